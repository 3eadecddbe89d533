"""The fence around a trial's files: an attempt that was given up, and wakes later, must not touch them any more."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from raytuner.training.channel import ChannelClosed

__all__ = ["Fence"]


class Fence:
    """A number in the trial's folder: attempts before it are over, whatever they believe."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "attempt"

    def put(self, attempt: int) -> None:
        """Keep out all attempts before this one. It is never put back."""
        if self._first() >= attempt:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_name(f".attempt.{os.getpid()}")
        temporary.write_text(str(attempt))
        temporary.replace(self._file)

    def check(self, attempt: int) -> None:
        """Raises ChannelClosed for an attempt that is kept out: nobody listens to it any more."""
        if self._first() > attempt:
            raise ChannelClosed

    def _first(self) -> int:
        with suppress(OSError, ValueError):
            return int(self._file.read_text())
        return 0
