"""The guard of a Ray that the driver started: it sees to it that no process of that Ray outlives the driver.

Ray's processes notice when their node ends, once they are up. A worker or an agent that is just starting then looks for
its node first, for up to half a minute (measured with Ray 2.60), and nothing else would end it. What a Ray starts is
known by its environment, which a process hands to those that it starts.

The guard's process runs this file as a script, with nothing but the standard library's built-in parts: it is there
within 0.1 s.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator

__all__ = ["MARK", "Guard"]

MARK = "RAYTUNER_RAY"
"""The environment variable that tells whose Ray a process belongs to."""
KILL_SECONDS = 10.0
"""How long to go on until nothing is left, which takes the system an instant."""


class Guard:
    """Kills what a Ray consists of when this process ends, in whatever way, or with ``close``."""

    def __init__(self) -> None:
        import secrets  # here, as the script needs neither
        import subprocess

        self._mark = secrets.token_hex(8)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self._mark, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what ends the terminal must not end the guard with the driver
        )

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Within it, Ray is started."""
        os.environ[MARK] = self._mark
        try:
            yield
        finally:
            del os.environ[MARK]

    def close(self) -> None:
        """Ray was shut down: end what is left of it, and the guard."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def kill_marked(mark: str) -> None:
    """Kill the processes with this mark, until there are none."""
    entry = f"{MARK}={mark}".encode()
    limit = time.monotonic() + KILL_SECONDS
    while time.monotonic() < limit:
        found = [int(name) for name in os.listdir("/proc") if name.isdigit() and _has(name, entry)]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _has(pid: str, entry: bytes) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
        return entry in environ.read().split(b"\0")
    return False


def main() -> None:
    """``python guard.py MARK PID``: wait for the end of a process, or of the input, then kill what is marked."""
    mark, pid = sys.argv[1], int(sys.argv[2])
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        select.select([sys.stdin, os.pidfd_open(pid)], [], [])
    kill_marked(mark)


if __name__ == "__main__":
    main()
