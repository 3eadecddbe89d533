"""What all commands share: exit codes, and JSON."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["FAILED", "INTERRUPTED", "USAGE", "print_json"]

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def print_json(data: dict[str, Any]) -> None:
    """One JSON object, and nothing else."""
    print(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))
