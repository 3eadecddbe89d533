"""How a node's GPUs are used, as its driver tells."""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import Any

__all__ = ["DeviceReader"]

READ_SECONDS = 10.0
"""How often a node's devices are read."""


class DeviceReader:
    """Reads a node's GPUs now and then, by ``nvidia-smi`` and without waiting for it."""

    QUERY = ("index", "utilization.gpu", "memory.used", "memory.total")

    def __init__(self) -> None:
        self._program = shutil.which("nvidia-smi")
        self._process: subprocess.Popen[str] | None = None
        self._next = 0.0

    def poll(self) -> list[dict[str, Any]] | None:
        """What the GPUs were doing, when that has just been read. Call it often."""
        if self._program is None:
            return None
        if self._process is None:
            if time.monotonic() >= self._next:
                self._next = time.monotonic() + READ_SECONDS
                command = [self._program, f"--query-gpu={','.join(self.QUERY)}", "--format=csv,noheader,nounits"]
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
            return None
        if self._process.poll() is None:
            return None
        output, _ = self._process.communicate()
        self._process = None
        return [device for line in output.splitlines() if (device := _device(line)) is not None]

    @property
    def pid(self) -> int | None:
        """The process that reads now, if one does."""
        return self._process.pid if self._process is not None else None

    def close(self) -> None:
        """Leave no process behind."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


def _device(line: str) -> dict[str, Any] | None:
    """A device of nvidia-smi's table; its memory is in MiB, its use in percent."""
    try:
        index, use, memory, total = (part.strip() for part in line.split(","))
        return {"gpu": index, "use": float(use) / 100, "memory": int(memory) * 2**20, "total": int(total) * 2**20}
    except ValueError:  # "[N/A]", for what a device does not tell
        return None
