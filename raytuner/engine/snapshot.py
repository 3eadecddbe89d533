"""A copy of the user's code, taken when an experiment starts: whoever starts later runs the same code.

Python files are copied; what lies beside them (data, configuration) is linked, so that paths relative to a module
still lead somewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from raytuner.definition import PACKAGE_MARK

__all__ = ["changed_since", "search_path", "take_snapshot"]

MANIFEST = ".snapshot.json"
MOST_FILES = 5000
INSTALLED = frozenset({"node_modules", "site-packages", "__pycache__"})
SKIPPED = INSTALLED | {"results", "build", "dist"}


def take_snapshot(root: Path, target: Path, *, without: Iterable[Path] = ()) -> dict[str, str]:
    """Copy the Python files below ``root`` (those that git knows or does not ignore, where there is git) to ``target``.

    Of a package that was sent to a cluster, which vanishes with its job, all files.
    Returns and writes down the CRC-32 of each by its path. ``without``: folders that are no part of the code, such as
    the one that results go to.
    """
    root = root.resolve()
    left_out = [path.resolve() for path in without if not root.is_relative_to(path.resolve())]
    files = _all_files(root) if (root / PACKAGE_MARK).exists() else _python_files(root, left_out)
    target.mkdir(parents=True, exist_ok=True)
    sums: dict[str, str] = {}
    folders: set[Path] = {Path()}
    for relative in files:
        copy = target / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / relative, copy)
        sums[relative.as_posix()] = _sum(copy)
        folders.update(relative.parents)
    for folder in folders:
        for entry in os.scandir(root / folder):
            real = os.path.realpath(entry.path)
            if entry.name.startswith(".") or entry.name in SKIPPED or Path(real) in left_out:
                continue
            with suppress(FileExistsError):  # copied, or a folder of copies
                os.symlink(real, target / folder / entry.name)
    manifest = {"root": str(root), "without": [str(path) for path in left_out], "files": sums}
    (target / MANIFEST).write_text(json.dumps(manifest))
    return sums


def changed_since(snapshot: Path) -> list[str]:
    """The files that are different, gone or new in the working tree since the snapshot, by their paths."""
    try:
        manifest = json.loads((snapshot / MANIFEST).read_text())
    except (OSError, ValueError):
        return []
    root, before = Path(manifest["root"]), manifest["files"]
    if not root.is_dir() or (root / PACKAGE_MARK).exists():
        return []  # there is no working tree any more; what was sent to a cluster does not change
    moved = snapshot.parent.resolve()  # the experiment's folder, wherever it was put since
    without = [Path(path) for path in manifest["without"]] + [moved] * (not root.is_relative_to(moved))
    files = _python_files(root, without)
    now = {path.as_posix(): _sum(root / path) for path in files}
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def search_path(root: Path, snapshot: Path) -> list[str]:
    """What comes first on a trial's ``sys.path``: the snapshot, and its parts that the driver's path names."""
    first = [str(snapshot)]
    for entry in sys.path:
        path = Path(entry).resolve() if entry else Path.cwd()
        if path != root and path.is_relative_to(root):
            copy = snapshot / path.relative_to(root)
            if copy.is_dir() and not copy.is_symlink():
                first.append(str(copy))
    return [*first, str(root)]


def _sum(path: Path) -> str:
    return f"{zlib.crc32(path.read_bytes()):08x}"


def _python_files(root: Path, without: list[Path]) -> list[Path]:
    listed = _git_files(root)
    if listed is None:
        listed = []
        for folder, names, files in os.walk(root):
            names[:] = [
                name for name in names if _may_hold_code(Path(folder, name)) and Path(folder, name) not in without
            ]
            listed += [Path(folder, name).relative_to(root) for name in files if name.endswith(".py")]
            if len(listed) > MOST_FILES:
                break
    ours = (path for path in listed if not any((root / path).is_relative_to(folder) for folder in without))
    return sorted(path for path in islice(ours, MOST_FILES) if (root / path).is_file())


def _all_files(root: Path) -> list[Path]:
    files = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(path for path in files if INSTALLED.isdisjoint(path.parts))


def _may_hold_code(folder: Path) -> bool:
    return not folder.name.startswith(".") and folder.name not in SKIPPED and not (folder / "pyvenv.cfg").exists()


def _git_files(root: Path) -> list[Path] | None:
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.py"]
    try:
        listing = subprocess.run(command, capture_output=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    files = [Path(name) for name in listing.decode(errors="surrogateescape").split("\0") if name]
    return [path for path in files if INSTALLED.isdisjoint(path.parts)]
