"""What makes two configurations the same one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["canonical", "config_key"]

EXACT = 2**53
"""Whole numbers up to here have a float of their own."""


def canonical(value: Any) -> Any:
    """A JSON-able form in which equal values look alike: 1 and 1.0 do, True and 1 do not, a tuple is a list."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return float(value) if abs(value) <= EXACT else value
    if isinstance(value, float):
        return float(value) + 0.0  # -0.0 becomes 0.0
    if isinstance(value, Mapping):
        return {str(name): canonical(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if hasattr(value, "item"):  # a numpy scalar
        return canonical(value.item())
    raise TypeError(f"a configuration holds numbers, texts, booleans, null and lists of them, got {value!r}")


def config_key(config: Mapping[str, Any]) -> str:
    """16 hexadecimal characters, the same for equal configurations whatever the order of their keys."""
    text = json.dumps(canonical(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
