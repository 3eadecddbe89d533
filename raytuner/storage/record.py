"""The record of an experiment in a store: its journal in pieces, and the small files beside it.

A segment of the journal is a row of objects ``journal/<segment>/<offset>.jsonl``. The last of them grows: it is written
anew, whole, until it has ``PIECE_BYTES``, and then a next one begins. So each holds whole lines, and a reader puts
them one after the other.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from raytuner.errors import StorageError
from raytuner.storage.objects import ObjectStore, StoredObject

__all__ = ["JournalSender", "experiments_in", "fetch_folder", "mark", "pull", "remote_of"]

PIECE_BYTES = 256 * 1024
HEAD_BYTES = 2048
MARK = ".storage"
"""The file in a working folder that names the address whose copy it is."""
FETCHED = ("experiment.yaml", "plan.json", "report.md")
FETCHED_BELOW = ("code", "cursors")


def remote_of(folder: Path) -> str | None:
    """The address whose working folder this is; None for a folder that is the experiment's own."""
    try:
        return (folder / MARK).read_text().strip() or None
    except OSError:
        return None


def mark(folder: Path, address: str) -> None:
    """Make a folder the working folder of an address."""
    folder.mkdir(parents=True, exist_ok=True)
    if remote_of(folder) != address:
        (folder / MARK).write_text(f"{address}\n")


def experiments_in(store: ObjectStore) -> list[str]:
    """The names of the experiments below an address, as far as they are there."""
    return [name for name in store.names() if store.names(f"{name}/journal")]


def pull(store: ObjectStore, folder: Path) -> bool:
    """Bring a working folder up to what the store has of the record; False when the store has no experiment there.

    What is on record here alone (its driver was killed before it was sent) stays, unless somebody else has gone on
    from what the store had: then it is set aside, as ``journal/<segment>.unsent``.
    """
    pieces = _pieces(store)
    if not pieces:
        return False
    journal = folder / "journal"
    first = journal / f"{min(pieces)}.jsonl"
    if first.exists() and not _begins_alike(store, first):  # another experiment had this name here
        folder.rename(next(p for n in range(1, 10**6) if not (p := folder.with_name(f"{folder.name}~{n}")).exists()))
    mark(folder, store.address)
    journal.mkdir(exist_ok=True)
    news = False
    for segment, objects in pieces.items():
        news = _fetch_segment(store, journal / f"{segment}.jsonl", objects, last=segment == max(pieces)) or news
    if news or not (folder / "plan.json").exists():
        for key in store.below("code").keys() | store.below("cursors").keys() | set(FETCHED):
            store.download(key, folder / key)
    return True


def fetch_folder(store: ObjectStore, key: str, target: Path, *, instead: Path | None = None) -> bool:
    """Fetch all objects below a key into a folder, which appears whole; False when there are none.

    instead: a folder whose files of the same name and size are linked, in place of being fetched.
    """
    objects = store.below(key)
    if not objects:
        return False
    temporary = target.with_name(f".{target.name}.{os.getpid()}.fetched")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        for name, entry in ((Path(name).relative_to(key), entry) for name, entry in objects.items()):
            near = instead / name if instead is not None else None
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            if (
                near is not None
                and near.is_file()
                and near.stat().st_size == entry.size
                and name.name != "manifest.json"
            ):
                os.link(near, temporary / name)
            elif not store.download(f"{key}/{name.as_posix()}", temporary / name):
                return False  # it is being deleted
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _pieces(store: ObjectStore) -> dict[str, dict[int, StoredObject]]:
    """The journal's pieces: by segment, then by where they begin."""
    found: dict[str, dict[int, StoredObject]] = {}
    for key, entry in store.below("journal").items():
        parts = key.removeprefix("journal/").removesuffix(".jsonl").split("/")
        if len(parts) == 2 and all(part.isdigit() for part in parts):
            found.setdefault(parts[0], {})[int(parts[1])] = entry
    return {segment: dict(sorted(found[segment].items())) for segment in sorted(found)}


def _begins_alike(store: ObjectStore, segment: Path) -> bool:
    """Whether a segment is the store's, or one of another experiment: they begin with when and by whom it was begun."""
    with segment.open("rb") as file:
        ours = file.read(HEAD_BYTES)
    theirs = store.read(_key(segment, 0), most=HEAD_BYTES) or b""
    length = min(len(ours), len(theirs))
    return ours[:length] == theirs[:length]


def _fetch_segment(store: ObjectStore, path: Path, pieces: dict[int, StoredObject], *, last: bool) -> bool:
    """Bring one segment up to what its pieces hold; True when it was not."""
    there = sum(piece.size for piece in pieces.values())
    here = path.stat().st_size if path.exists() else 0
    if here > there and not last:
        with path.open("r+b") as file:
            file.seek(there)
            path.with_suffix(".unsent").write_bytes(file.read())
            file.truncate(there)
        return True
    if here >= there:
        return False
    with path.open("r+b" if here else "wb") as file:
        for start, piece in pieces.items():
            if start + piece.size <= here:
                continue
            data = store.read(_key(path, start))
            if data is None or len(data) < piece.size:
                raise StorageError(f"{store.address}: {_key(path, start)} is gone or shorter than it was; try again")
            file.seek(start)
            file.write(data)
        os.fsync(file.fileno())
    return True


def _key(segment: Path, start: int) -> str:
    return f"journal/{segment.stem}/{start:012d}.jsonl"


class JournalSender:
    """Sends the journal in a folder to a store, as far as it is written; what was sent already, once."""

    def __init__(self, store: ObjectStore, journal: Path) -> None:
        self._store = store
        self._journal = journal
        self._starts: dict[str, int] = {}
        self._sent: dict[str, int] = {}
        for segment, pieces in _pieces(store).items():
            self._starts[segment] = max(pieces)
            self._sent[segment] = max(pieces) + pieces[max(pieces)].size

    def send(self) -> None:
        """Send what is new: whole lines only."""
        for path in sorted(self._journal.glob("[0-9]*.jsonl")):
            segment = path.stem
            size = path.stat().st_size
            while self._sent.get(segment, 0) < size:
                start = self._starts.get(segment, 0)
                with path.open("rb") as file:
                    file.seek(start)
                    data = file.read(2 * PIECE_BYTES)
                data = data[: data.rfind(b"\n") + 1]
                if start + len(data) <= self._sent.get(segment, 0):
                    break  # a line that is being written, or that its driver never ended
                self._store.write(_key(path, start), data)
                self._sent[segment] = start + len(data)
                if len(data) >= PIECE_BYTES:
                    self._starts[segment] = start + len(data)

    def unsent(self) -> int:
        """How many bytes of the journal are here alone."""
        files = self._journal.glob("[0-9]*.jsonl")
        return sum(max(0, path.stat().st_size - self._sent.get(path.stem, 0)) for path in files)
