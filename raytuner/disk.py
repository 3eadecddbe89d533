"""A disk that is full: how that is told from other errors, and seen beforehand."""

from __future__ import annotations

import errno
import os
from pathlib import Path

__all__ = ["has_room", "means_full"]

FULL = (errno.ENOSPC, errno.EDQUOT)
LEAST_BYTES = 4 * 2**20
"""With less free than this, a disk counts as full: logs and small files need room, too."""


def means_full(error: BaseException) -> bool:
    """Whether an error says that the disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in FULL


def has_room(folder: Path) -> bool:
    """Whether there is room left where a folder lies, or would; True where that cannot be told."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        there = os.statvfs(folder)
    except OSError:
        return True
    return there.f_bavail * there.f_frsize >= LEAST_BYTES
