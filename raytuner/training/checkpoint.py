"""Checkpoints on disk: written whole or not at all, checksummed, never loaded when damaged.

A checkpoint is a folder with ``manifest.json`` (what it is, every file's size and SHA-256, and the reports of its
attempt so far) beside ``state.pt`` or ``state.pkl`` (what ``trial.steps(**state)`` keeps) and ``files/`` (what the
user saved through ``trial.checkpoint_dir()``). It is built under a temporary name and renamed when complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from raytuner.disk import has_room, means_full
from raytuner.errors import CheckpointError, DiskFullError
from raytuner.training.channel import ChannelClosed
from raytuner.training.fence import Fence

__all__ = [
    "MANIFEST",
    "adopt_checkpoint",
    "adopted_manifest",
    "load_checkpoint",
    "read_manifest",
    "remove_checkpoint",
    "sync_checkpoint",
    "unseal_manifest",
    "verify_checkpoint",
    "write_checkpoint",
]

SCHEMA = "raytuner.checkpoint/1"
MANIFEST = "manifest.json"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_checkpoint(
    target: Path,
    state: Mapping[str, Any] | None,
    *,
    meta: Mapping[str, Any],
    files: Path | None = None,
    fence: Fence | None = None,
) -> int:
    """Write ``state`` (and the folder ``files``, which is moved in) as the checkpoint ``target``; return its bytes.

    ``meta`` goes into the manifest: ``trial``, ``attempt``, ``step``, ``reports``.
    Raises CheckpointError when it cannot be written (DiskFullError for want of room), ChannelClosed when the ``fence``
    keeps its attempt out; then nothing stands at ``target``.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if files is not None:
            files.rename(temporary / "files")
        if state is not None:
            _write_state(temporary, state)
        listing: dict[str, dict[str, Any]] = {}
        total = 0
        for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
            size = path.stat().st_size
            listing[path.relative_to(temporary).as_posix()] = {"bytes": size, "sha256": _digest(path)}
            total += size
        manifest = temporary / MANIFEST
        manifest.write_bytes(_sealed({"schema": SCHEMA, **meta, "files": listing}))
        total += manifest.stat().st_size
        if fence is not None:
            fence.check(meta["attempt"])
        if target.exists():  # the same step of the same attempt: the newer one counts
            remove_checkpoint(target)
        temporary.rename(target)
    except ChannelClosed:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    except Exception as error:  # whatever the user's objects raise when they are pickled
        full = means_full(error) or not has_room(target)  # torch does not say why it could not write
        if files is not None and (temporary / "files").exists():
            (temporary / "files").rename(files)
        shutil.rmtree(temporary, ignore_errors=True)
        if full:
            raise DiskFullError(f"{target}: the checkpoint could not be written, since the disk is full") from error
        raise CheckpointError(
            f"{target}: the checkpoint could not be written ({type(error).__name__}: {error}); "
            "pass only what can be saved to trial.steps()"
        ) from error
    return total


def adopt_checkpoint(source: Path, target: Path, *, trial: str, attempt: int) -> int:
    """Make another trial's checkpoint one of this trial's own; return its bytes.

    Its files become links where they can (no byte is copied then), so that it outlives the other's. It carries none of
    the other's reports. Raises CheckpointError when the source is not whole, or has gone meanwhile.
    """
    manifest = read_manifest(source)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        total = 0
        for name, entry in manifest["files"].items():
            place = temporary / name
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source / name, place)
            except OSError:  # another file system, or one without links
                shutil.copyfile(source / name, place)
            total += int(entry["bytes"])
        temporary.mkdir(parents=True, exist_ok=True)
        (temporary / MANIFEST).write_bytes(adopted_manifest(manifest, trial=trial, attempt=attempt))
        remove_checkpoint(target)
        temporary.rename(target)
        return total + (target / MANIFEST).stat().st_size
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"{source}: the checkpoint could not be taken over ({error})") from error


def adopted_manifest(manifest: Mapping[str, Any], *, trial: str, attempt: int) -> bytes:
    """What the manifest becomes of a checkpoint that another trial takes over."""
    origin = {"trial": manifest["trial"], "attempt": manifest["attempt"], "step": manifest["step"]}
    own = {"trial": trial, "attempt": attempt, "reports": [], "seconds": 0.0, "origin": origin}
    return _sealed({**manifest, **own})


def sync_checkpoint(path: Path) -> None:
    """Have the system put a checkpoint on the disk; before an older one is deleted for it.

    Without this it would be there within half a minute anyway, and one torn by a power failure is refused.
    """
    for file in (*(p for p in path.rglob("*") if p.is_file()), path, path.parent):
        _sync(file)


def _write_state(folder: Path, state: Mapping[str, Any]) -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        crc32 = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)  # milliseconds, for what the SHA-256 sums tell better
        try:
            torch.save(dict(state), folder / "state.pt")
        finally:
            torch.serialization.set_crc32_options(crc32)
    else:
        with (folder / "state.pkl").open("wb") as file:
            pickle.dump(dict(state), file, protocol=pickle.HIGHEST_PROTOCOL)


def _sealed(manifest: dict[str, Any]) -> bytes:
    """The manifest as JSON whose first entry is the SHA-256 of all that follows it."""
    rest = json.dumps(manifest).encode()[1:]
    return b'{"sha256": "%s", %s' % (hashlib.sha256(rest).hexdigest().encode(), rest)


def unseal_manifest(data: bytes) -> dict[str, Any]:
    """The manifest that these bytes hold. Raises ValueError when they are not what was written."""
    seal, rest = data[:79], data[79:]
    if seal != b'{"sha256": "%s", ' % hashlib.sha256(rest).hexdigest().encode():
        raise ValueError(f"{MANIFEST} is not what was written")
    manifest: dict[str, Any] = json.loads(b"{" + rest)
    if manifest.get("schema") != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA}")
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest alone. Raises CheckpointError when it is missing or unreadable."""
    try:
        return unseal_manifest((path / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: the checkpoint is incomplete or damaged ({error}); it is not used") from error


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """The manifest, after every file was found whole. Raises CheckpointError that names the damaged file."""
    manifest = read_manifest(path)
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{path}: the checkpoint is damaged, {name} is missing; it is not used")
        if file.stat().st_size != entry["bytes"] or _digest(file) != entry["sha256"]:
            raise CheckpointError(
                f"{path}: the checkpoint is damaged, {name} is not what was written (SHA-256 differs); it is not used"
            )
    return manifest


def load_checkpoint(path: Path | str, *, device: str = "cpu") -> dict[str, Any]:
    """The state saved at ``path``, checked first; tensors on ``device``. Empty when only files were saved.

    The state is unpickled: load checkpoints of your own experiments only.
    Raises CheckpointError when it is damaged.
    """
    path = Path(path)
    verify_checkpoint(path)
    if (path / "state.pt").exists():
        import torch

        return cast("dict[str, Any]", torch.load(path / "state.pt", map_location=device, weights_only=False))
    if (path / "state.pkl").exists():
        with (path / "state.pkl").open("rb") as file:
            return cast("dict[str, Any]", pickle.load(file))  # noqa: S301 - our own, its checksum was right
    return {}


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint. Renamed first, so that a half-deleted one never looks like a whole one."""
    doomed = path.with_name(f".{path.name}.removed")
    with suppress(FileNotFoundError):
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
