"""The driver's side of an experiment in a store: what it writes in its folder goes there, and requests come back."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from raytuner.errors import StorageError
from raytuner.storage.lease import Lease
from raytuner.storage.objects import ObjectStore
from raytuner.storage.record import JournalSender, mark, pull

__all__ = ["Mirror"]

T = TypeVar("T")

JOURNAL_SECONDS = 1.0
"""How often what is new in the journal is sent."""
REQUESTS_SECONDS = 2.0
FILES_SECONDS = 5.0
FILES = ("experiment.yaml", "plan.json", "report.md", "server.log", "tracking.log")
AGAIN_SECONDS = 1.0
ENDING_SECONDS = 30.0
"""How long the end waits for a store that is away."""


class Mirror:
    """Holds the lease, and keeps store and working folder alike, from ``start`` to ``close``.

    ``lost`` becomes true when another driver has taken the experiment over: nothing is sent from then on.
    """

    def __init__(
        self,
        address: str,
        folder: Path,
        *,
        cursors: bool = True,
        say: Callable[[str], None] = lambda text: None,
        keep_waiting: Callable[[], bool] = lambda: True,
    ) -> None:
        """cursors: what is tracked is tracked elsewhere, and so may be how far. keep_waiting: for a driver that may be
        dead, or a store that is away.
        """
        self.store = ObjectStore(address)
        self.lost = False
        self.problem = ""
        """What keeps the store from being written; empty when nothing does."""
        self._folder = folder
        self._cursors = cursors
        self._lease = Lease(self.store, folder)
        self._say = say
        self._keep_waiting = keep_waiting
        self._removals: queue.SimpleQueue[Path] = queue.SimpleQueue()
        self._doomed: list[Path] = []
        self._sent: dict[Path, tuple[int, int]] = {}
        self._ending = threading.Event()
        self._next_files = self._next_requests = 0.0
        self._sender: JournalSender | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Take the lease, and bring the folder up to the store. Raises JournalError where another driver is at work."""
        self._lease.acquire(self._say, self._keep_waiting)
        try:
            pull(self.store, self._folder)
            mark(self._folder, self.store.address)
            self._sender = JournalSender(self.store, self._folder / "journal")
            self._take_requests()  # those of before, which whoever starts this can tell from later ones so
        except BaseException:
            self._lease.release()
            raise
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def insist(self, action: Callable[[], T]) -> T:
        """Do something with the store, again and again while it is away, and nobody has asked for the end."""
        while True:
            try:
                return action()
            except StorageError as error:
                self.problem = str(error)
                if not self._keep_waiting():
                    raise
                time.sleep(AGAIN_SECONDS)

    def remove(self, folder: Path) -> None:
        """Delete what the store has of a folder; soon."""
        self._removals.put(folder)

    def key(self, path: Path) -> str:
        """What a file or folder of the working folder is called in the store."""
        return path.relative_to(self._folder).as_posix()

    def flush(self) -> None:
        """Send all that is new, now. Raises StorageError."""
        self._send(everything=True)

    def close(self) -> str:
        """Send what is left, and give the lease back; what could not be sent, for a person, or an empty string."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
        limit = time.monotonic() + ENDING_SECONDS
        while not self.lost:
            try:
                self._send(everything=True)
                break
            except (StorageError, OSError) as error:
                self.problem = str(error)
                if time.monotonic() > limit or not self._keep_waiting():
                    break
                time.sleep(1.0)
        left = self._sender.unsent() if self._sender is not None else 0
        self._lease.release()
        if self.lost:
            return f"{self.store.address}: another driver has taken the experiment over"
        return f"{left} bytes of the record are in {self._folder} alone: {self.problem}" if left else ""

    def _run(self) -> None:
        while not self._ending.wait(JOURNAL_SECONDS):
            try:
                self._send()
                self.problem = ""
            except Exception as error:  # whatever it is, the next turn tries again, and it is shown
                self.problem = str(error) if isinstance(error, StorageError) else repr(error)

    def _send(self, *, everything: bool = False) -> None:
        assert self._sender is not None
        if self.lost or not self._lease.renew():
            self.lost = True
            return
        self._sender.send()
        now = time.monotonic()
        if everything or now >= self._next_files:
            self._next_files = now + FILES_SECONDS
            self._send_files()
        if everything or now >= self._next_requests:
            self._next_requests = now + REQUESTS_SECONDS
            self._take_requests()
        self._remove_doomed()

    def _send_files(self) -> None:
        below = ["code", *(["cursors"] if self._cursors else [])]
        files = [self._folder / name for name in FILES]
        for name in below:
            for place, _, names in os.walk(self._folder / name):  # links, to data mostly, are not followed
                files += [path for entry in names if not (path := Path(place, entry)).is_symlink()]
        for path in files:
            with suppress(FileNotFoundError):
                about = path.stat()
                seen = (about.st_size, about.st_mtime_ns)
                if self._sent.get(path) != seen:
                    self.store.upload(path, self.key(path))
                    self._sent[path] = seen

    def _take_requests(self) -> None:
        control = self._folder / "control"
        for key in self.store.below("control"):
            control.mkdir(exist_ok=True)
            name = Path(key).name
            # Not within control/, where the driver takes whatever it finds.
            if self.store.download(key, self._folder / f".{name}"):
                (self._folder / f".{name}").rename(control / name)
            self.store.remove([key])

    def _remove_doomed(self) -> None:
        while not self._removals.empty():
            self._doomed.append(self._removals.get())
        while self._doomed:
            keys = list(self.store.below(self.key(self._doomed[0])))
            # The manifest first: without it the rest is no checkpoint.
            self.store.remove(sorted(keys, key=lambda key: not key.endswith("/manifest.json")))
            self._doomed.pop(0)
