"""Where the checkpoints of all trials lie, as the driver sees them: in the experiment's folder, or in a store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raytuner.errors import CheckpointError
from raytuner.journal import Folder
from raytuner.storage import Mirror
from raytuner.training.checkpoint import (
    MANIFEST,
    adopt_checkpoint,
    adopted_manifest,
    read_manifest,
    remove_checkpoint,
    unseal_manifest,
)

__all__ = ["Shelf", "StoreShelf"]


class Shelf:
    """Checkpoints in the experiment's folder. They are named by their paths."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While many trials are looked at, and nobody writes."""
        yield

    def exists(self, path: str) -> bool:
        return Path(path).exists()

    def found(self, trial: str) -> list[Path]:
        """A trial's checkpoints, in order of their names."""
        return sorted((self._folder.trial(trial) / "checkpoints").glob("[0-9]*-[0-9]*"))

    def manifest(self, path: Path) -> dict[str, Any]:
        """Raises CheckpointError when it is missing or damaged."""
        return read_manifest(path)

    def remove(self, path: Path) -> None:
        remove_checkpoint(path)

    def removed(self, path: str) -> None:
        """Take note that a trial has deleted one."""

    def adopt(self, source: Path, target: Path, *, trial: str, attempt: int) -> int:
        """Make another trial's checkpoint this trial's own; its bytes. Raises CheckpointError where it is gone."""
        return adopt_checkpoint(source, target, trial=trial, attempt=attempt)


class StoreShelf(Shelf):
    """Checkpoints in a store, by the paths that they have where they are worked with. A store that is away is waited
    for; StorageError comes when that was given up.
    """

    def __init__(self, folder: Folder, mirror: Mirror) -> None:
        super().__init__(folder)
        self._mirror = mirror
        self._store = mirror.store
        self._all: list[str] | None = None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        self._all = self._keys(self._folder.path / "trials")
        try:
            yield
        finally:
            self._all = None

    def _keys(self, folder: Path) -> list[str]:
        key = self._mirror.key(folder)
        if self._all is not None:
            return [k for k in self._all if k.startswith(f"{key}/")]
        return list(self._mirror.insist(lambda: self._store.below(key)))

    def exists(self, path: str) -> bool:
        if not Path(path).is_relative_to(self._folder.path):
            return False  # as another machine calls it
        return self._mirror.key(Path(path) / MANIFEST) in self._keys(Path(path))

    def found(self, trial: str) -> list[Path]:
        keys = self._keys(self._folder.trial(trial) / "checkpoints")
        return sorted({self._folder.path / Path(key).parent for key in keys if key.endswith(f"/{MANIFEST}")})

    def manifest(self, path: Path) -> dict[str, Any]:
        data = self._mirror.insist(lambda: self._store.read(self._mirror.key(path / MANIFEST)))
        if data is None:
            raise CheckpointError(f"{path}: the checkpoint is gone from {self._store.address}")
        try:
            return unseal_manifest(data)
        except ValueError as error:
            raise CheckpointError(f"{path}: the checkpoint is damaged ({error}); it is not used") from error

    def remove(self, path: Path) -> None:
        remove_checkpoint(path)
        self._mirror.remove(path)

    def removed(self, path: str) -> None:
        self._mirror.remove(Path(path))

    def adopt(self, source: Path, target: Path, *, trial: str, attempt: int) -> int:
        manifest = self.manifest(source)
        sealed = adopted_manifest(manifest, trial=trial, attempt=attempt)

        def copy() -> None:
            for name in manifest["files"]:
                self._store.copy(self._mirror.key(source / name), self._mirror.key(target / name))
            self._store.write(self._mirror.key(target / MANIFEST), sealed)

        try:
            self._mirror.insist(copy)
        except FileNotFoundError as error:
            raise CheckpointError(f"{source}: the checkpoint could not be taken over ({error})") from error
        return sum(int(entry["bytes"]) for entry in manifest["files"].values()) + len(sealed)
