"""Plan to Ray Tune. Only here is Ray Tune known; nothing of Ray is imported before an engine runs."""

from raytuner.engine.conductor import Conductor
from raytuner.engine.runner import Engine, Interrupt, connect
from raytuner.engine.snapshot import changed_since, take_snapshot

__all__ = ["Conductor", "Engine", "Interrupt", "changed_since", "connect", "take_snapshot"]
