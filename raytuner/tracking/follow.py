"""The loop that carries a journal into a store: read, translate, flush, remember how far; try again when it fails."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from raytuner.definition import without_password
from raytuner.disk import means_full
from raytuner.errors import StorageError, TrackingError
from raytuner.journal import Cursor, Folder, JournalReader, events_beyond
from raytuner.tracking.progress import cursor_file, status_file
from raytuner.tracking.store import MODEL, PARENT, Artifact, Run, Store, StoreAway, Update, open_store
from raytuner.tracking.translate import Translator

__all__ = ["Follower"]

_CHUNK = 20_000  # events between two flushes: bounds memory, and what is done twice after a kill; a run costs as much
# for many metrics as for one, so what has fallen behind catches up in large chunks
_BACKOFF = (1.0, 30.0)  # seconds between two tries, doubled from the first to the second


@dataclass(frozen=True)
class _Place:
    """How far the journal is known to be in a store."""

    cursor: Cursor
    uri: str
    parent: str = ""

    @classmethod
    def load(cls, path: Path) -> _Place:
        try:
            data = json.loads(path.read_text())
            return cls(Cursor(int(data["segment"]), int(data["offset"])), str(data["uri"]), str(data["run_id"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return cls(Cursor(), "")

    def save(self, path: Path) -> None:
        _write_json(path, {
            "segment": self.cursor.segment, "offset": self.cursor.offset, "uri": self.uri, "run_id": self.parent,
        })  # fmt: skip


class Follower:
    """Carries the journal of ``folder`` into the store at ``uri``. One at a time may work on a folder."""

    def __init__(self, folder: Folder, uri: str, *, log: TextIO | None = None, wait: bool = False) -> None:
        """wait: until another one is done; else TrackingError says that there is one."""
        self._folder = folder
        self._uri = uri
        self._shown = without_password(uri)
        self._log = log
        self._store: Store | None = None
        self._runs: dict[str, Run] | None = None
        self._waiting: dict[str, Update] = {}
        self._reader = JournalReader(folder.journal)
        self.translator = Translator(folder)
        self.problem = ""
        """The last thing that went wrong, and was not mended since."""
        self.refused = ""
        """What the store will never take; it was left out."""
        folder.cursors.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder.cursors / "mlflow.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            os.close(self._lock)
            raise TrackingError(
                f"{folder.path}: another process is writing this experiment to MLflow already; wait for it to end"
            ) from None
        self._done = _Place.load(cursor_file(folder))

    def close(self) -> None:
        """Let the store and the folder go."""
        if self._store is not None:
            self._store.close()
        os.close(self._lock)

    def step(self, *, last: bool = False) -> None:
        """Read what is new and write it, a chunk of events at a time, until nothing is left for now.

        last: also put the report there, which is written when the journal has ended.

        Raises StoreAway when the store cannot be written now (call again, nothing is lost), TrackingError when it
        never can, JournalError when the journal is damaged.
        """
        while True:
            if not self._waiting:
                self._waiting = self._read()
            if self._runs is None and self.translator.key:
                self._connect()
            if not self._waiting:
                break
            self._flush()
            self._waiting = {}
            self.problem = ""
            self.report()
        if last and self._store is not None and self._runs is not None and PARENT in self._runs:
            report = self._folder.report
            self._store.upload(self._runs[PARENT], Artifact(report.name, report))

    def patiently(
        self, patience: Callable[[], float], sleep: Callable[[float], None] = time.sleep, *, last: bool = False
    ) -> bool:
        """``step`` until it works, waiting longer and longer; False when ``patience()`` (seconds left) ends first."""
        pause = _BACKOFF[0]
        while True:
            try:
                self.step(last=last)
                return True
            except (StoreAway, OSError) as error:
                if isinstance(error, OSError) and not means_full(error):
                    raise
                self._complain(str(error))
                self._store, self._runs = None, None
                left = patience()
                if left <= 0:
                    return False
                sleep(min(pause, left))
                pause = min(pause * 2, _BACKOFF[1])

    def report(self) -> None:
        """Write the status file, if there is room for it."""
        behind = events_beyond(self._folder.journal, self._done.cursor)
        try:
            _write_json(status_file(self._folder), {
                "behind": behind, "error": self.problem or self.refused, "updated": time.time(), "uri": self._shown,
                "run_id": self._done.parent, "experiment_id": self._store.experiment_id if self._store else "",
            })  # fmt: skip
        except OSError as error:
            if not means_full(error):
                raise

    def _complain(self, problem: str) -> None:
        if problem != self.problem and self._log is not None:
            with suppress(OSError):  # the disk may be what is full
                print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {problem}", file=self._log, flush=True)
        self.problem = problem
        self.report()

    def _read(self) -> dict[str, Update]:
        """The updates of the next events beyond those that are in the store."""
        new = 0
        for event in self._reader.read():
            self.translator.apply(event)
            if self._is_done():
                self.translator.take()  # it was written by an earlier tracker; only its trace in the state counts
                continue
            new += 1
            if new == _CHUNK:
                break
        return self.translator.take()

    def _is_done(self) -> bool:
        done, here = self._done.cursor, self._reader.cursor
        return (here.segment, here.offset) <= (done.segment, done.offset)

    def _connect(self) -> None:
        """Open the store and find our runs there. A cursor counts only for the store and the run it was kept for."""
        if self._store is None:
            self._store = open_store(self._uri)
        translator = self.translator
        first = translator.state.drivers[0].name  # an experiment that was renamed since keeps its runs
        self._runs = self._store.find(first, translator.key, translator.labels())
        parent = self._runs.get(PARENT)
        if self._done.cursor == Cursor() or (
            self._done.uri == self._shown and parent and parent.id == self._done.parent
        ):
            return
        self._done = _Place(Cursor(), self._shown)
        self.translator = Translator(self._folder)
        self._reader = JournalReader(self._folder.journal)
        self._waiting = self._read()

    def _flush(self) -> None:
        assert self._store is not None
        assert self._runs is not None
        store, runs = self._store, self._runs
        self._create(store, runs)
        self._unless_refused(store.write, {runs[trial].id: update for trial, update in self._waiting.items()})
        for trial, update in self._waiting.items():
            for artifact in update.artifacts.values():
                if artifact.source is not None:
                    self._fetch(artifact.source)
                self._unless_refused(store.upload, runs[trial], artifact)
        model = self._waiting[PARENT].model if PARENT in self._waiting else None
        name = self.translator.details.register
        if model is not None and name:
            self._unless_refused(store.register, name, runs[PARENT], MODEL, model)
        self._done = _Place(self._reader.cursor, self._shown, runs[PARENT].id)
        self._done.save(cursor_file(self._folder))

    def _fetch(self, path: Path) -> None:
        try:
            self._folder.fetch(path)
        except StorageError as error:
            raise StoreAway(str(error)) from error

    def _unless_refused(self, action: Callable[..., None], *arguments: Any) -> None:
        """Do it; what the store will never take is left out, for it must not hold up all the rest."""
        try:
            action(*arguments)
        except StoreAway:
            raise
        except TrackingError as error:
            self.refused = str(error)
            self._complain(self.refused)

    def _create(self, store: Store, runs: dict[str, Run]) -> None:
        if PARENT not in runs:
            self._waiting = {PARENT: Update(), **self._waiting}
        missing = [trial for trial in self._waiting if trial not in runs]
        for trial in missing:  # also runs that vanished from the store, whose parameters were written long ago
            self._waiting[trial].params = self.translator.params(trial) | self._waiting[trial].params
        if PARENT in missing:
            runs |= store.create({PARENT: self.translator.birth(PARENT)}, None)
        births = {trial: self.translator.birth(trial) for trial in missing if trial != PARENT}
        if births:
            runs |= store.create(births, runs[PARENT])


def _write_json(path: Path, data: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(data))
    temporary.replace(path)
