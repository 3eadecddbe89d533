"""A node's share of an experiment in an object store: what its trials need is fetched, what they make is sent.

On the node it all lies in a folder as everywhere, at the same path on all nodes. A checkpoint counts once it is in the
store: until then, the driver does not hear of it, nor of what was deleted since it stands.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from raytuner.engine.batch import Batch
from raytuner.engine.snapshot import MANIFEST as SNAPSHOT
from raytuner.errors import CheckpointError, StorageError, TrialError
from raytuner.storage import ObjectStore, fetch_folder
from raytuner.training.checkpoint import MANIFEST, read_manifest, remove_checkpoint, verify_checkpoint
from raytuner.training.trial import TrialSpec

__all__ = ["StoreSupply", "Supply", "open_supply"]

T = TypeVar("T")

LOGS_SECONDS = 10.0
"""How often a trial's output is sent while it goes on."""
AGAIN_SECONDS = (0.5, 10.0)
"""The first and the longest wait before a store that is away is tried again."""
LOGS = ("stdout.log", "stderr.log")


class Supply:
    """The experiment's folder is one that all nodes share: there is nothing to do."""

    def begin(self, spec: TrialSpec, *, give_up: Callable[[], bool]) -> None:
        """Fetch what an attempt starts with; a store that is away is waited for. Raises TrialError to give that up."""

    def secure(self, batch: Batch, *, give_up: Callable[[], bool]) -> None:
        """Send what the batch tells of, before it is passed on; again and again where the store is away.

        give_up: whether there is no time for that any more; then it never was, as far as the driver knows.
        """

    def end(self) -> None:
        """Send what the last attempt has printed."""


class StoreSupply(Supply):
    """The experiment's folder is this node's own, and the experiment lies in a store."""

    def __init__(self, address: str, folder: str) -> None:
        """Fetches the code, where it is not here as it should be."""
        self._store = ObjectStore(address)
        self._folder = Path(folder)
        self._spec: TrialSpec | None = None
        self._unsafe: set[str] = set()
        self._held: list[dict[str, Any]] = []
        self._logs: dict[Path, int] = {}
        self._logs_sent = 0.0
        self._insist(self._fetch_code, give_up=lambda: False)

    def _key(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    def _fetch_code(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ".code.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            there = self._store.read(f"code/{SNAPSHOT}")
            manifest = self._folder / "code" / SNAPSHOT
            if there is None or (manifest.exists() and manifest.read_bytes() == there):
                return
            for name in json.loads(there)["files"]:
                self._store.download(f"code/{name}", self._folder / "code" / name)
            manifest.parent.mkdir(exist_ok=True)
            manifest.write_bytes(there)

    # -- before an attempt ------------------------------------------------------------------------------------------

    def begin(self, spec: TrialSpec, *, give_up: Callable[[], bool]) -> None:
        self.end()
        self._spec = spec
        self._unsafe, self._held = set(), []
        if self._insist(lambda: any(self._have(Path(path)) for path in spec.checkpoints), give_up) is None:
            raise TrialError(f"{self._store.address}: it is away, and there is no time to wait for a checkpoint")
        for log in (spec.logs / name for name in LOGS if spec.attempt > 1):
            with suppress(StorageError):
                self._store.download_grown(self._key(log), log)

    def end(self) -> None:
        if self._spec is not None:
            with suppress(StorageError):
                self._send_logs(self._spec)

    def _have(self, path: Path) -> bool:
        """Whether a whole checkpoint is here now, or could be fetched."""
        with suppress(CheckpointError):
            verify_checkpoint(path)
            return True
        key = self._key(path)
        sealed = self._store.read(f"{key}/{MANIFEST}")
        if sealed is None:
            return False
        # The files of a copy that another trial left may still be on this node.
        origin = json.loads(sealed).get("origin", {})
        source = self._folder / "trials" / str(origin.get("trial"))
        source = source / "checkpoints" / f"{origin.get('step', 0):06d}-{origin.get('attempt')}"
        for instead in (source, None):
            fetch_folder(self._store, key, path, instead=instead)
            with suppress(CheckpointError):
                verify_checkpoint(path)
                return True
        return False

    # -- after a part of it -----------------------------------------------------------------------------------------

    def secure(self, batch: Batch, *, give_up: Callable[[], bool]) -> None:
        passed: list[dict[str, Any]] = []
        warnings: list[dict[str, Any]] = []

        def told(problem: str) -> None:
            if not warnings:
                text = f"trial {batch.trial} had to wait, for what it keeps could not be sent: {problem}"
                warnings.append({"m": "warning", "text": text})

        for message in batch.messages:
            match message["m"]:
                case "checkpoint":
                    if self._insist(partial(self._send_checkpoint, Path(message["path"])), give_up, told):
                        passed += [message, *self._held]
                        self._held = []
                    else:
                        self._unsafe.add(message["path"])
                case "removed":
                    if message["path"] not in self._unsafe:
                        (self._held if self._unsafe else passed).append(message)
                    self._unsafe.discard(message["path"])
                case "logged":
                    if self._insist(partial(self._send_file, Path(message["path"])), give_up, told):
                        passed.append(message)
                case _:
                    passed.append(message)
        if batch.decide is not None and self._unsafe:  # the trial waits: nobody deletes anything
            lost = ", ".join(sorted(self._unsafe))
            text = f"{lost}: the checkpoint could not be sent, since it is not on this node; is {self._folder} its own?"
            warnings.append({"m": "warning", "text": text})
        batch.messages[:] = passed + warnings
        if batch.end is not None or time.monotonic() - self._logs_sent > LOGS_SECONDS:
            self.end()
        if batch.end is not None and batch.end["status"] == "finished" and self._spec is not None:
            self._tidy(Path(self._spec.dir) / "checkpoints")

    def _insist(
        self, action: Callable[[], T], give_up: Callable[[], bool], told: Callable[[str], None] = lambda text: None
    ) -> T | None:
        """Do it, however long the store is away; None where there is no time for that. told: hears why, once."""
        pause, longest = AGAIN_SECONDS
        while True:
            try:
                return action()
            except StorageError as error:
                told(str(error))
                if give_up():
                    return None
                time.sleep(pause)
                pause = min(2 * pause, longest)

    def _send_checkpoint(self, path: Path) -> bool:
        """Send a checkpoint, its manifest last; False when it has been deleted meanwhile, for a newer one."""
        linked = path.with_name(f".{path.name}.sent")  # the trial goes on, and may delete it
        try:
            shutil.rmtree(linked, ignore_errors=True)
            manifest = read_manifest(path)
            for name in manifest["files"]:
                (linked / name).parent.mkdir(parents=True, exist_ok=True)
                _link(path / name, linked / name)
            for name in manifest["files"]:
                self._store.upload(linked / name, f"{self._key(path)}/{name}")
            self._store.upload(path / MANIFEST, f"{self._key(path)}/{MANIFEST}")
        except (FileNotFoundError, CheckpointError):
            return False
        finally:
            shutil.rmtree(linked, ignore_errors=True)
        return True

    def _send_file(self, path: Path) -> bool:
        with suppress(FileNotFoundError):
            self._store.upload(path, self._key(path))
            return True
        return False

    def _send_logs(self, spec: TrialSpec) -> None:
        self._logs_sent = time.monotonic()
        for name in LOGS:
            path = spec.logs / name
            size = path.stat().st_size if path.exists() else 0
            if size and size != self._logs.get(path):
                self._store.upload(path, self._key(path))
                self._logs[path] = size

    def _tidy(self, checkpoints: Path) -> None:
        """The trial has ended: its checkpoints lie in the store, and if one is needed it is fetched."""
        for path in checkpoints.glob("[0-9]*-[0-9]*"):
            if str(path) not in self._unsafe:
                remove_checkpoint(path)


def _link(file: Path, link: Path) -> None:
    """Raises FileNotFoundError when the file is gone."""
    try:
        os.link(file, link)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copyfile(file, link)


def open_supply(address: str | None, folder: str) -> Supply:
    """The supply for an experiment's folder; ``address``: where it lies, if that is not the folder itself."""
    return StoreSupply(address, folder) if address is not None else Supply()
