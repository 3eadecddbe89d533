"""Plan to Ray Tune. Only here is Ray Tune known.

Nothing is imported here: slots and process servers live in this package too, and each pays for what it imports.
"""
