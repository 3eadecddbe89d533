"""Tracking from outside: start the process that does it, ask how it is, or do it here and now."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from raytuner.errors import TrackingError
from raytuner.journal import Folder
from raytuner.tracking.address import resolve_uri
from raytuner.tracking.follow import Follower
from raytuner.tracking.progress import behind, read_status

__all__ = ["Tracker", "start_tracker", "sync"]

STORE = "RAYTUNER_TRACKING_STORE"
"""Tells the tracker's process the address of the store."""
PATIENCE = 60.0
"""Seconds that a store may be away after the driver's end before the tracker gives up."""


class Tracker:
    """The tracker's process. It ends by itself once the journal says that the driver ended, or the driver is gone."""

    def __init__(self, folder: Folder, uri: str, *, follow_pid: int | None, patience: float) -> None:
        self.folder = folder
        self.uri = uri
        self._patience = patience
        self._told = False
        self._process = self._start(follow_pid)

    def _start(self, follow_pid: int | None) -> subprocess.Popen[bytes]:
        # -P: what lies in the folder, a snapshot of somebody's code among it, must not be importable.
        command = [sys.executable, "-P", "-m", "raytuner.tracking", str(self.folder.path)]
        command += ["--patience", str(self._patience)]
        if follow_pid is not None:
            command += ["--follow-pid", str(follow_pid)]
        root = Path(__file__).parents[2]
        # Beside the sources it is found by its place; installed, that place would come before the standard library.
        places = [] if root.name in {"site-packages", "dist-packages"} else [str(root)]
        # An empty entry means the current folder, which for the tracker is the experiment's: nothing to import there.
        path = os.pathsep.join([*places, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
        with open(self.folder.path / "tracking.log", "ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder.path,
                # Not as an argument, which all on this machine may read: it may hold a password.
                env={**os.environ, "PYTHONPATH": path, STORE: self.uri},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the driver: the tracker still has to write what follows
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End it at once; what is missing can be written later, by ``sync``."""
        self._process.kill()
        self._process.wait()

    def progress(self) -> int:
        """How many events of the journal are not in the store yet."""
        return behind(self.folder)

    def problem(self) -> str:
        """What keeps the store from being written; empty when nothing does."""
        error = str(read_status(self.folder).get("error") or "")
        if not error and not self.running and self._process.returncode != 0:
            return f"the tracker ended with code {self._process.returncode}; see {self.folder.path / 'tracking.log'}"
        return error

    def wait(self, timeout: float) -> bool:
        """Have it write what is left, at once, and end. True when all is in the store, False after ``timeout`` seconds.

        Call it after the journal's last event and the report, as often as you like. A tracker that was killed is
        started once more.
        """
        deadline = time.monotonic() + timeout
        if self.running and not self._told:
            self._process.send_signal(signal.SIGTERM)
        self._told = True  # one that is started again knows by itself that it is to end
        for _ in range(2):
            try:
                code = self._process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                return False
            if code >= 0 or self.progress() == 0:
                return code <= 0
            self._process = self._start(None)
        return False


def start_tracker(folder: Folder, uri: str, *, follow_pid: int | None = None, patience: float = PATIENCE) -> Tracker:
    """Start tracking ``folder`` in the store at ``uri``, in a process of its own, at a low priority.

    follow_pid: the driver, this process by default; the tracker catches up and ends when it is gone.
    patience: seconds that the store may be away after the driver's end.
    Raises TrackingError for an address that can be no store.
    """
    uri = resolve_uri(uri)
    folder.cursors.mkdir(parents=True, exist_ok=True)
    return Tracker(folder, uri, follow_pid=os.getpid() if follow_pid is None else follow_pid, patience=patience)


def sync(folder: Folder, uri: str, *, patience: float = PATIENCE) -> int:
    """Write all of the journal that is not in the store yet, in this process, and return how many events that were.

    Raises TrackingError when the store stays away for ``patience`` seconds, or refuses something, or while a
    tracker is at work on the folder.
    """
    from raytuner.tracking.client_store import calm_environment

    before = behind(folder)
    follower = Follower(folder, resolve_uri(uri))
    deadline = time.monotonic() + patience
    try:
        with calm_environment():
            if not follower.patiently(lambda: deadline - time.monotonic(), last=True):
                raise TrackingError(f"{behind(folder)} events are not in MLflow yet: {follower.problem}")
        follower.report()
        if follower.refused:
            raise TrackingError(follower.refused)
        return before
    finally:
        follower.close()
