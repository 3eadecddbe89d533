"""How far tracking has come, told from files alone: for whoever started the tracker, and for whoever looks later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raytuner.journal import Cursor, Folder, events_beyond

__all__ = ["behind", "cursor_file", "read_status", "status_file"]


def cursor_file(folder: Folder) -> Path:
    """Where the tracker remembers how much of the journal is in its store."""
    return folder.cursors / "mlflow.json"


def status_file(folder: Folder) -> Path:
    """Where the tracker tells how it is: ``behind``, ``error``, ``run_id``, ``uri``, ``updated`` (epoch seconds)."""
    return folder.cursors / "mlflow.status.json"


def read_status(folder: Folder) -> dict[str, Any]:
    """The tracker's last word; empty before its first."""
    try:
        status = json.loads(status_file(folder).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def behind(folder: Folder) -> int:
    """How many events of the journal are not in the store yet."""
    return events_beyond(folder.journal, Cursor.load(cursor_file(folder)))
