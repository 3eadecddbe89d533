"""``python -m raytuner.tracking FOLDER [--uri URI] [--follow-pid PID]``: the tracker's process.

It carries the journal into MLflow until the driver ended and everything is written. SIGTERM asks it to write what is
left and end; interrupts are the driver's business. Exit codes: 0 all is in the store, 1 it is not.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import threading
import time

from raytuner.errors import RaytunerError
from raytuner.journal import Folder, Lock
from raytuner.tracking.address import resolve_uri
from raytuner.tracking.client_store import calm_environment
from raytuner.tracking.follow import Follower
from raytuner.tracking.tracker import PATIENCE, STORE

_INTERVAL = 2.0  # seconds between two flushes while the driver is at work
_LOOK = 0.5  # seconds between two looks at the driver
_LINGER = 60.0  # seconds that a driver whose journal ended is given to say goodbye


class _Driver:
    """The driver that is followed: a process, or whoever holds the folder's lock."""

    def __init__(self, folder: Folder, pid: int | None) -> None:
        self._lock = Lock(folder)
        self.pid = pid
        self._process = None
        if pid is not None:
            import psutil

            try:
                self._process = psutil.Process(pid)
            except psutil.NoSuchProcess:
                self._process = None

    def gone(self) -> bool:
        if self.pid is None:
            return not self._lock.held_by_other()
        if self._process is None:
            return True
        import psutil

        try:
            return not self._process.is_running() or self._process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


class _Loop:
    """Follows until the driver ended."""

    def __init__(self, follower: Follower, driver: _Driver, patience: float, told_to_end: threading.Event) -> None:
        self._follower = follower
        self._driver = driver
        self._patience = patience
        self._deadline = math.inf
        self._ended_at = math.inf
        self._told_to_end = told_to_end

    def run(self) -> bool:
        """True when everything is written."""
        while True:
            over = self._over()  # before reading, so that what was written before the end is read after it
            if not self._follower.patiently(self._left, self._rest, last=over):
                return False
            if over:
                return True
            self._rest(_INTERVAL)

    def _over(self) -> bool:
        if self._deadline is math.inf and (self._told_to_end.is_set() or self._driver.gone() or self._said_ended()):
            self._deadline = time.monotonic() + self._patience
        return self._deadline is not math.inf

    def _said_ended(self) -> bool:
        """Has the journal ended, and has the driver had the time to write its report?"""
        state = self._follower.translator.state
        if state.status in {"pending", "running"}:
            return False
        if self._driver.pid is None:
            return True
        if state.drivers[-1].pid != self._driver.pid:  # the end of an earlier driver: ours has not begun
            return False
        self._ended_at = min(self._ended_at, time.monotonic())
        return time.monotonic() > self._ended_at + _LINGER

    def _left(self) -> float:
        self._over()
        return self._deadline - time.monotonic()

    def _rest(self, seconds: float) -> None:
        """Sleep, but no longer than until the driver is gone."""
        was_over, until = self._over(), time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if was_over:
                time.sleep(left)
            elif self._told_to_end.wait(min(left, _LOOK)) or self._over():
                return


def main() -> int:
    """Run the tracker; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m raytuner.tracking")
    parser.add_argument("folder")
    parser.add_argument("--uri", default=os.environ.get(STORE), help=f"the store; by default what {STORE} names")
    parser.add_argument("--follow-pid", type=int)
    parser.add_argument("--patience", type=float, default=PATIENCE)
    arguments = parser.parse_args()
    if arguments.uri is None:
        parser.error(f"--uri or {STORE} is needed")
    folder = Folder.find(arguments.folder)
    driver = _Driver(folder, arguments.follow_pid)
    os.nice(10)  # training runs beside us on the same cores
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    told_to_end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told_to_end.set())
    # The tracker of a driver that was killed may still be at work: it ends by itself, as its driver is gone.
    follower = Follower(folder, resolve_uri(arguments.uri), log=sys.stderr, wait=True)
    loop = _Loop(follower, driver, arguments.patience, told_to_end)
    try:
        with calm_environment():
            complete = loop.run()
    except RaytunerError as error:  # nothing that trying again would mend
        complete, follower.problem = False, str(error)
    follower.report()
    follower.close()
    if complete and not follower.refused:
        return 0
    problem = follower.problem or follower.refused
    sys.stderr.write(f"{problem}\nfinish later with `raytuner sync {folder.where}`\n")
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RaytunerError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
