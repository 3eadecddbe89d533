"""How far tracking has come, told from files alone: for whoever started the tracker, and for whoever looks later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raytuner.journal import Cursor, Folder

__all__ = ["behind", "cursor_file", "read_status", "status_file", "unread_lines"]


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
    return unread_lines(folder, Cursor.load(cursor_file(folder)))


def unread_lines(folder: Folder, cursor: Cursor) -> int:
    """How many lines of the journal lie beyond the cursor (a segment's first line, its schema, not counted)."""
    lines = 0
    for path in sorted(folder.journal.glob("*.jsonl")):
        if not path.stem.isdigit() or int(path.stem) < cursor.segment:
            continue
        offset = cursor.offset if int(path.stem) == cursor.segment else 0
        with path.open("rb") as file:
            file.seek(offset)
            lines += file.read().count(b"\n") - (offset == 0)
    return max(lines, 0)
