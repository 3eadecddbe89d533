"""A part of an object store, through pyarrow's file systems."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytuner.errors import StorageError
from raytuner.storage.address import SCHEMES

__all__ = ["ObjectStore", "StoredObject"]

_CHUNK = 2**20


@dataclass(frozen=True)
class StoredObject:
    """What a store tells of an object: its size in bytes, and when it was written, by the store's own clock."""

    size: int
    written: float


class ObjectStore:
    """What lies below one address, by keys relative to it (``journal/000001/000000000000.jsonl``).

    Objects appear whole or not at all. Every method raises StorageError when the store cannot be reached, or refuses.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        scheme = address.partition("://")[0]
        if scheme not in SCHEMES:
            raise StorageError(
                f"storage: it must be a folder or begin with one of {', '.join(f'{s}://' for s in SCHEMES)}, "
                f"got {address!r}"
            )
        from pyarrow import fs  # not at the head: a look at a definition does without it

        self._fs: Any
        with self._errors("opened"):
            self._fs, base = fs.FileSystem.from_uri(address)
        self._base = str(base).rstrip("/")
        self._selector = fs.FileSelector
        self._file = fs.FileType.File

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, ValueError, NotImplementedError) as error:
            text = re.sub(r" \(Request ID: \w+\)| CURL response: .*", "", str(error).splitlines()[0])[:300]
            raise StorageError(
                f"{self.address}: it could not be {what} ({text}); look at the address, at the credentials in this "
                "machine's environment, and whether it can be reached from here"
            ) from error

    def _path(self, key: str) -> str:
        return f"{self._base}/{key}" if key else self._base

    def below(self, prefix: str = "") -> dict[str, StoredObject]:
        """All objects below ``prefix`` (a key as of a folder) by their keys, in order."""
        with self._errors("listed"):
            try:
                infos = self._fs.get_file_info(
                    self._selector(self._path(prefix.rstrip("/")), recursive=True, allow_not_found=True)
                )
            except FileNotFoundError:
                return {}
        found = {
            info.path.removeprefix(f"{self._base}/"): StoredObject(
                int(info.size), info.mtime.timestamp() if info.mtime is not None else 0.0
            )
            for info in infos
            if info.type == self._file
        }
        return dict(sorted(found.items()))

    def names(self, prefix: str = "") -> list[str]:
        """The names directly below ``prefix``, those of further prefixes included."""
        with self._errors("listed"):
            try:
                infos = self._fs.get_file_info(
                    self._selector(self._path(prefix.rstrip("/")), recursive=False, allow_not_found=True)
                )
            except FileNotFoundError:
                return []
        return sorted(info.base_name for info in infos)

    def read(self, key: str, *, most: int | None = None) -> bytes | None:
        """An object's bytes, at most so many; None when there is no such object."""
        with self._errors("read"):
            try:
                return self._bytes(key, most)
            except FileNotFoundError:
                return None

    def _bytes(self, key: str, most: int | None) -> bytes:
        """Read an object; again, where it was replaced or deleted between the look at its size and the reading."""
        for last in (False, True):
            try:
                with self._fs.open_input_stream(self._path(key)) as stream:
                    return bytes(stream.read(most))
            except FileNotFoundError:
                raise
            except OSError:
                if last:
                    raise
        raise AssertionError

    def write(self, key: str, data: bytes) -> None:
        """Put ``data`` there, in the place of what was there."""
        with self._errors("written to"), self._fs.open_output_stream(self._path(key)) as stream:
            stream.write(data)

    def upload(self, path: Path, key: str) -> None:
        """Put a file there. Raises FileNotFoundError when it is gone."""
        with path.open("rb") as file, self._errors("written to"), self._fs.open_output_stream(self._path(key)) as out:
            shutil.copyfileobj(file, out, _CHUNK)

    def download(self, key: str, path: Path) -> bool:
        """Fetch an object into a file, which appears whole; False when there is no such object."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with (
                self._errors("read"),
                self._fs.open_input_stream(self._path(key)) as stream,
                temporary.open("wb") as out,
            ):
                shutil.copyfileobj(stream, out, _CHUNK)
            temporary.replace(path)
        except FileNotFoundError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def download_grown(self, key: str, path: Path) -> None:
        """Fetch an object if it is larger than the file: of one that only ever grows, what is newer here stays."""
        entry = self.below(key.rpartition("/")[0]).get(key)
        if entry is not None and (not path.exists() or path.stat().st_size < entry.size):
            self.download(key, path)

    def copy(self, source: str, target: str) -> None:
        """Have the store copy an object. Raises FileNotFoundError when it is gone."""
        with self._errors("written to"):
            self._fs.copy_file(self._path(source), self._path(target))

    def remove(self, keys: Iterable[str]) -> None:
        """Delete objects, in this order; those that are gone already are none."""
        with self._errors("deleted from"):
            for key in keys:
                with suppress(FileNotFoundError):
                    self._fs.delete_file(self._path(key))

    def clear(self) -> None:
        """Delete all that is there."""
        with self._errors("deleted from"), suppress(FileNotFoundError):
            self._fs.delete_dir_contents(self._base, missing_dir_ok=True)
