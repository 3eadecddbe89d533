"""Experiments in object stores: what lies there, the folder that it is worked on in, and the way between them.

Whoever works on an experiment does so in a folder of their own machine, with the same layout as the experiment's would
have; what counts is in the store. The driver's machine sends what it writes and takes in requests (``Mirror``), a
trial's node sends checkpoints and fetches those that it needs (``engine/supply.py``), and everybody else takes a copy
of the record (``pull``).
"""

from raytuner.storage.address import SCHEMES, is_address, join, split, work_folder
from raytuner.storage.lease import Lease
from raytuner.storage.mirror import Mirror
from raytuner.storage.objects import ObjectStore, StoredObject
from raytuner.storage.record import experiments_in, fetch_folder, pull, remote_of

__all__ = [
    "SCHEMES",
    "Lease",
    "Mirror",
    "ObjectStore",
    "StoredObject",
    "experiments_in",
    "fetch_folder",
    "is_address",
    "join",
    "pull",
    "remote_of",
    "split",
    "work_folder",
]
