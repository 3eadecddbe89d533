"""The append-only journal: checksummed lines in segments, one segment a driver.

A line is eight hexadecimal digits of CRC-32, a space, the event as JSON, and a line break. A line that a dying
driver left torn can only be the last of its segment; it is skipped and reported. Damage anywhere else raises.
"""

from __future__ import annotations

import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from raytuner.disk import means_full
from raytuner.errors import JournalError
from raytuner.journal.events import (
    SCHEMA,
    CheckpointRemoved,
    CheckpointWritten,
    Event,
    Logged,
    TrialStarted,
    decode,
    encode,
)
from raytuner.journal.folder import Folder

ROOM_SECONDS = 0.5
"""How often a writer that waits for room on the disk tries again."""

__all__ = ["Cursor", "JournalReader", "JournalWriter", "events_beyond"]


def _line(payload: str) -> bytes:
    body = payload.encode(errors="backslashreplace")  # a lone surrogate (from a path, say) becomes its JSON escape
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _segments(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.jsonl") if p.stem.isdigit())


class JournalWriter:
    """Appends events to a new segment. Every event reaches the system's file cache at once, so a killed driver
    loses none; the disk has it after at most ``sync_every`` seconds, or when ``sync()`` returns.
    """

    def __init__(
        self, folder: Path, *, sync_every: float = 1.0, on_full: Callable[[Path], bool] = lambda path: False
    ) -> None:
        """on_full: called again and again while the disk is full; whether to wait on until there is room."""
        folder.mkdir(parents=True, exist_ok=True)
        existing = _segments(folder)
        self.segment = int(existing[-1].stem) + 1 if existing else 1
        self.path = folder / f"{self.segment:06d}.jsonl"
        self.on_full = on_full
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._size = 0
        self._write(_line(json.dumps({"schema": f"raytuner.journal/{SCHEMA}"})))
        self._dirty = threading.Event()
        self._closed = threading.Event()
        self._sync_every = sync_every
        self._syncer = threading.Thread(target=self._sync_loop, name="journal-sync", daemon=True)
        self._syncer.start()
        self.events = 0

    def _write(self, line: bytes) -> None:
        while True:
            try:
                written = os.write(self._fd, line)
            except OSError as error:
                if not means_full(error):
                    raise JournalError(f"{self.path}: the journal must be writable: {error}") from error
                written = 0
            if written == len(line):
                break
            os.ftruncate(self._fd, self._size)  # of a line, a part may fit, which no other may follow
            if not self.on_full(self.path):
                raise JournalError(
                    f"{self.path}: the journal must be writable, and the disk is full; what is on record is whole, "
                    "and a resume goes on from there"
                )
            time.sleep(ROOM_SECONDS)
        self._size += written

    def append(self, event: Event) -> Event:
        """Write the event (its time is set here if it has none) and return it as written."""
        if not event.at:
            event = replace(event, at=time.time())
        self._write(_line(encode(event)))
        self.events += 1
        self._dirty.set()
        return event

    @property
    def cursor(self) -> Cursor:
        """Where a reader is who has read all of it."""
        return Cursor(self.segment, self._size)

    def sync(self) -> None:
        """Return when all events so far are on the disk."""
        self._dirty.clear()
        os.fsync(self._fd)

    def _sync_loop(self) -> None:
        while not self._closed.wait(self._sync_every):
            if self._dirty.is_set():
                try:
                    self.sync()
                except OSError:  # some file systems say only now that they are full
                    self._dirty.set()

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._syncer.join()
            self.sync()
            os.close(self._fd)


@dataclass(frozen=True)
class Cursor:
    """A place in the journal: the segment, and the bytes of it that were read."""

    segment: int = 0
    offset: int = 0

    def save(self, path: Path) -> None:
        """Write the cursor down, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"segment": self.segment, "offset": self.offset}))
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Cursor:
        """The cursor saved at ``path``, or the beginning when there is none."""
        try:
            data = json.loads(path.read_text())
            return cls(int(data["segment"]), int(data["offset"]))
        except (FileNotFoundError, ValueError, KeyError):
            return cls()


class JournalReader:
    """Reads the journal in ``folder`` from a cursor on, as far as it is written, again and again.

    Paths of the experiment's own files come as they are called here, wherever they were written down.
    ``torn`` lists the torn tails that were skipped, as sentences for a person.
    """

    def __init__(self, folder: Path, cursor: Cursor | None = None) -> None:
        self._folder = folder
        self._experiment = Folder(folder.parent)
        self._here = f"{folder.parent}{os.sep}"
        self.cursor = cursor or Cursor()
        self.torn: list[str] = []

    def read(self) -> Iterator[Event]:
        """The events since the cursor; the cursor moves as they are taken."""
        for path in _segments(self._folder):
            number = int(path.stem)
            if number < self.cursor.segment:
                continue
            if number > self.cursor.segment:
                self.cursor = Cursor(number, 0)
            yield from self._read_segment(path)

    def unread(self) -> list[str]:
        """What stands torn at the end of the last segment: a line being written now, or one whose driver died."""
        path = self._folder / f"{self.cursor.segment:06d}.jsonl"
        left = path.stat().st_size - self.cursor.offset if path.exists() else 0
        return [f"{path}: the last {left} bytes are torn and were skipped"] if left else []

    def _read_segment(self, path: Path) -> Iterator[Event]:
        # Looked up before reading: once a later segment exists, nobody writes to this one any more.
        last = path == _segments(self._folder)[-1]
        with path.open("rb") as file:
            file.seek(self.cursor.offset)
            data = file.read()
        start = 0
        while start < len(data):
            end = data.find(b"\n", start) + 1
            line = data[start:end] if end else data[start:]
            payload = self._check(line)
            if payload is None:
                rest = data[end:] if end else b""
                if rest.strip(b"\0\n"):
                    raise JournalError(
                        f"{path}: the line at byte {self.cursor.offset} is damaged, and not by a driver that died: "
                        "lines follow it; restore the file from a copy"
                    )
                if not last:
                    self.torn.append(
                        f"{path}: the last {len(line)} bytes are torn and were skipped (the driver died as it wrote)"
                    )
                    self.cursor = Cursor(self.cursor.segment, self.cursor.offset + len(line))
                return
            start = end
            self.cursor = Cursor(self.cursor.segment, self.cursor.offset + len(line))
            if payload.startswith('{"schema"'):
                self._check_schema(path, payload)
                continue
            yield self._placed(decode(payload))

    def _placed(self, event: Event) -> Event:
        """The event with its path as it is called here."""
        match event:
            case CheckpointWritten() | CheckpointRemoved() | Logged() if not event.path.startswith(self._here):
                return replace(event, path=str(self._experiment.here(event.path)))
            case TrialStarted(checkpoint=str(checkpoint)) if not checkpoint.startswith(self._here):
                return replace(event, checkpoint=str(self._experiment.here(checkpoint)))
            case _:
                return event

    @staticmethod
    def _check(line: bytes) -> str | None:
        if not line.endswith(b"\n") or len(line) < 10 or line[8:9] != b" ":
            return None
        body = line[9:-1]
        try:
            return body.decode() if int(line[:8], 16) == zlib.crc32(body) else None
        except ValueError:
            return None

    @staticmethod
    def _check_schema(path: Path, payload: str) -> None:
        schema = str(json.loads(payload)["schema"])
        name, _, version = schema.partition("/")
        if name != "raytuner.journal" or not version.isdigit() or int(version) > SCHEMA:
            raise JournalError(
                f"{path}: the journal's schema must be raytuner.journal/{SCHEMA} or older, got {schema}; "
                "upgrade raytuner to read it"
            )


def events_beyond(folder: Path, cursor: Cursor) -> int:
    """How many events of the journal in ``folder`` lie beyond the cursor, counted without reading them."""
    events = 0
    for path in _segments(folder):
        number = int(path.stem)
        if number >= cursor.segment:
            offset = cursor.offset if number == cursor.segment else 0
            with path.open("rb") as file:
                file.seek(offset)
                events += max(0, file.read().count(b"\n") - (offset == 0))  # a segment's first line is its schema
    return events
