"""Where everything of one experiment lies, and the lock that lets one driver at a time work on it."""

from __future__ import annotations

import fcntl
import os
import shlex
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from raytuner.errors import JournalError
from raytuner.storage import (
    Lease,
    ObjectStore,
    experiments_in,
    fetch_folder,
    is_address,
    join,
    pull,
    remote_of,
    work_folder,
)

__all__ = ["READ_AT", "Folder", "Lock", "write_whole"]

READ_AT = "RAYTUNER_CLUSTER"
"""Set in a cluster's jobs, whose output is read elsewhere: the address by which the reader reaches the cluster."""


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all. Raises JournalError where it cannot be written, on a full disk too."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise JournalError(f"{path}: the file must be writable: {error.strerror or error}") from error


@dataclass(frozen=True)
class Folder:
    """The folder ``<storage>/<name>/`` of an experiment; for one in an object store, where this machine works on it."""

    path: Path

    @classmethod
    def find(cls, where: str | os.PathLike[str]) -> Folder:
        """The folder at ``where``; raises JournalError when there is no experiment in it.

        For an address in an object store it is brought up to date first; StorageError when that cannot be reached.
        """
        if is_address(str(where)):
            return cls._find_in_store(str(where))
        path = Path(where).expanduser().absolute()
        if not path.is_dir():
            raise JournalError(f"{where}: the folder of an experiment is needed, and there is no such folder")
        folder = cls(path)
        if not folder.journal.is_dir():
            inside = sorted(p.parent.name for p in path.glob("*/journal") if p.is_dir())
            hint = f"; did you mean {', '.join(str(Path(where) / name) for name in inside[:5])}?" if inside else ""
            raise JournalError(f"{where}: the folder of an experiment is needed; no journal/ is in it{hint}")
        return folder

    @classmethod
    def _find_in_store(cls, address: str) -> Folder:
        folder = cls(work_folder(address))
        if folder.journal.is_dir() and Lock(folder).held_here():
            return folder  # what its driver has here is newer than what it has sent
        if not pull(ObjectStore(address), folder.path) and not folder.journal.is_dir():
            inside = experiments_in(ObjectStore(address))
            hint = f"; did you mean {', '.join(join(address, name) for name in inside[:5])}?" if inside else ""
            raise JournalError(f"{address}: the address of an experiment is needed; no journal/ is there{hint}")
        return folder

    @property
    def remote(self) -> str | None:
        """The address in an object store where the experiment lies; None where this folder is the experiment's own."""
        return remote_of(self.path)

    @property
    def where(self) -> str:
        """What to call it on a command line."""
        return self.remote or str(self.path)

    def command(self, verb: str, *arguments: str) -> str:
        """What one types to have something done with it, where what is printed here is read."""
        address = os.environ.get(READ_AT)
        where = self.where if address is None else self.where.partition("?")[0].rstrip("/").rpartition("/")[2]
        return shlex.join(["raytuner", verb, where, *arguments, *(["--address", address] if address else [])])

    def here(self, path: str | Path) -> Path:
        """What a path of the record is called now: it may have been written on another machine, or before a move."""
        path = Path(path)
        if path.is_relative_to(self.path) or "trials" not in path.parts:
            return path
        below = len(path.parts) - 1 - path.parts[::-1].index("trials")
        return self.path.joinpath(*path.parts[below:])

    def fetch(self, path: Path) -> Path:
        """A file or folder of the experiment, fetched where it lies in an object store and is not here."""
        remote = None if path.exists() or not path.is_relative_to(self.path) else self.remote
        if remote is not None:
            store, key = ObjectStore(remote), path.relative_to(self.path).as_posix()
            _ = store.download(key, path) or fetch_folder(store, key, path)
        return path

    def fetch_log(self, path: Path) -> None:
        """Bring a log up to what the object store has of it, if the experiment lies in one."""
        remote = self.remote
        if remote is not None:
            ObjectStore(remote).download_grown(path.relative_to(self.path).as_posix(), path)

    @property
    def journal(self) -> Path:
        return self.path / "journal"

    @property
    def definition(self) -> Path:
        return self.path / "experiment.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def report(self) -> Path:
        return self.path / "report.md"

    @property
    def code(self) -> Path:
        """The snapshot of the user's code, taken when the experiment started."""
        return self.path / "code"

    @property
    def control(self) -> Path:
        """Requests to the running driver, such as to stop; one small file each."""
        return self.path / "control"

    @property
    def cursors(self) -> Path:
        """How far each reader of the journal has come."""
        return self.path / "cursors"

    def trial(self, trial_id: str) -> Path:
        return self.path / "trials" / trial_id

    def checkpoint(self, trial_id: str, step: int, attempt: int) -> Path:
        return self.trial(trial_id) / "checkpoints" / f"{step:06d}-{attempt}"


_LOOK = 0.3
"""Seconds that a lock is tried for: long enough to outlast somebody's look, which takes it for an instant."""


def _flock(fd: int) -> bool:
    deadline = time.monotonic() + _LOOK
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True


class Lock:
    """Held by the one driver of an experiment; the system frees it when its holder dies."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._path = folder.lock
        self._file: int | None = None

    def acquire(self) -> Lock:
        """Take the lock, or raise JournalError that names the holder."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not _flock(fd):
            holder = os.read(fd, 200).decode(errors="replace").strip() or "another process"
            os.close(fd)
            raise JournalError(
                f"{self._folder.where}: only one driver at a time may work on an experiment, and {holder} does; "
                f"wait for it, or stop it with `raytuner stop {self._folder.where}`"
            )
        os.ftruncate(fd, 0)
        with suppress(OSError):  # on a full disk it is held without a name
            os.write(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._file = fd
        return self

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def held_by_other(self) -> bool:
        """True while a living driver holds the lock, on whatever machine where the experiment is in an object store."""
        if self.held_here():
            return True
        remote = self._folder.remote if self._file is None else None
        return remote is not None and Lease.holder(ObjectStore(remote), self._folder.path) is not None

    def held_here(self) -> bool:
        """True while a living driver holds the lock of this folder."""
        if self._file is not None or not self._path.exists():
            return False
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two who look don't see each other
        except OSError:
            return True
        finally:
            os.close(fd)
        return False

    def __enter__(self) -> Lock:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
