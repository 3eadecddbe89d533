"""Where the driver runs. What a node is asked for lives here too, and pays only for what it imports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytuner.launch.again import plan_again
    from raytuner.launch.local import drive, extend, machine, plan_of, resume, run, send_record

__all__ = ["drive", "extend", "machine", "plan_again", "plan_of", "resume", "run", "send_record"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'raytuner.launch' has no attribute {name!r}")
    import importlib

    home = "again" if name == "plan_again" else "local"
    return getattr(importlib.import_module(f"raytuner.launch.{home}"), name)
