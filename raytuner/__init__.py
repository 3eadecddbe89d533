"""Hyper-parameter tuning on Ray: one file in; the best model, and the reasons to trust it, out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytuner.analysis import Results, load
    from raytuner.definition import Experiment
    from raytuner.errors import RaytunerError
    from raytuner.launch import extend, resume, run
    from raytuner.simulation import simulate
    from raytuner.space import Choice, Float, Int
    from raytuner.training import Trial

__version__ = "0.1.0"

__all__ = [
    "Choice",
    "Experiment",
    "Float",
    "Int",
    "RaytunerError",
    "Results",
    "Trial",
    "extend",
    "load",
    "resume",
    "run",
    "simulate",
]

_ROOMS = {
    "Choice": "space",
    "Experiment": "definition",
    "Float": "space",
    "Int": "space",
    "RaytunerError": "errors",
    "Results": "analysis",
    "Trial": "training",
    "extend": "launch",
    "load": "analysis",
    "resume": "launch",
    "run": "launch",
    "simulate": "simulation",
}


def __getattr__(name: str) -> Any:
    # A training module imports Trial in every trial's server, `plan` must answer at once: each pays for what it uses.
    if name not in _ROOMS:
        raise AttributeError(f"module 'raytuner' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"raytuner.{_ROOMS[name]}"), name)
