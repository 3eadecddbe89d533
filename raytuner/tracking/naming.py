"""What things are called in MLflow: runs, metrics, parameters, tags, and the statuses of trials."""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["STATES", "metric_key", "param_value", "run_name", "short", "tag_value"]

STATES: dict[str, str] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "paused": "KILLED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}
"""How a trial or an experiment ended, in MLflow's words, as its own Optuna storage says them."""

_KEY = 250
_PARAM = 6000
_TAG = 5000  # MLflow's servers took 5000 before they took 8000
_NAME = 70


def metric_key(name: str) -> str:
    """A user's metric name as MLflow takes it: what it forbids becomes an underscore."""
    key = re.sub(r"[^\w.\- :/]", "_", name)[:_KEY]
    if posixpath.normpath(key) != key or key.startswith(("/", "..")) or key in {"", "."}:
        key = re.sub(r"[./]", "_", key) or "_"
    return key


def param_value(value: Any) -> str:
    """A parameter's value: scalars as Python writes them, everything else as JSON."""
    scalar = value is None or isinstance(value, str | bool | int | float)
    return (str(value) if scalar else json.dumps(value, default=str))[:_PARAM]


def tag_value(text: Any) -> str:
    """A tag's value, cut where MLflow would refuse it."""
    return str(text)[:_TAG]


def short(value: Any) -> str:
    """A value in few characters, for a name: floats with three significant digits."""
    if isinstance(value, float) and not isinstance(value, bool) and math.isfinite(value):
        return f"{value:.3g}"
    return param_value(value)


def run_name(trial_id: str, config: Mapping[str, Any], source: str = "search") -> str:
    """A child's name: ``000017 · lr=0.0031 depth=2 …``, or ``000001 · defaults``."""
    if source == "defaults":
        return f"{trial_id} · defaults"
    name = f"{trial_id} ·"
    for key, value in config.items():
        part = f" {key}={short(value)}"
        if len(name) + len(part) > _NAME:
            return f"{name} …"
        name += part
    return name.removesuffix(" ·")
