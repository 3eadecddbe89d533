"""Requests from other shells to the driver at work: small files in the experiment's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from raytuner.journal import Folder

__all__ = ["Request", "is_configuration", "is_stop", "take_requests"]

Request = dict[str, Any]


def is_stop(request: Request) -> bool:
    """Whether it asks for the end of the experiment, or of a trial."""
    return "stop" in request


def is_configuration(request: Request) -> bool:
    """Whether it asks for a configuration to be tried."""
    return isinstance(request.get("enqueue"), dict)


def take_requests(folder: Folder, wanted: Callable[[Request], bool] = lambda request: True) -> list[Request]:
    """Those that are wanted, the earliest first; the others stay. One that cannot be read goes."""
    found: list[Request] = []
    with suppress(FileNotFoundError):
        for entry in sorted(os.scandir(folder.control), key=lambda entry: entry.name):
            request = _read(Path(entry.path))
            if request is None or wanted(request):
                found += [request] if request is not None else []
                os.unlink(entry.path)
    return found


def _read(path: Path) -> Request | None:
    try:
        request = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return request if isinstance(request, dict) else None
