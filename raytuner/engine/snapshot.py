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
from pathlib import Path

__all__ = ["changed_since", "search_path", "take_snapshot"]

MANIFEST = ".snapshot.json"
MOST_FILES = 5000
SKIPPED = frozenset({"node_modules", "site-packages", "__pycache__", "results", "build", "dist"})


def take_snapshot(root: Path, target: Path, *, also: Iterable[Path] = ()) -> dict[str, str]:
    """Copy the Python files below ``root`` (those that git knows or does not ignore, where there is git) to ``target``.

    Returns and writes down the CRC-32 of each by its path. ``also``: folders that must not be linked into the copy.
    """
    files = _python_files(root)
    target.mkdir(parents=True, exist_ok=True)
    sums: dict[str, str] = {}
    folders: set[Path] = {Path()}
    for relative in files:
        copy = target / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / relative, copy)
        sums[relative.as_posix()] = _sum(copy)
        folders.update(relative.parents)
    hidden = {path.resolve() for path in also}
    for folder in folders:
        with suppress(OSError):
            for entry in os.scandir(root / folder):
                if entry.name.startswith(".") or entry.name in SKIPPED or Path(entry.path).resolve() in hidden:
                    continue
                link = target / folder / entry.name
                if not link.exists() and not (entry.is_file() and entry.name.endswith(".py")):
                    link.symlink_to(Path(entry.path).resolve())
    (target / MANIFEST).write_text(json.dumps({"root": str(root), "files": sums}))
    return sums


def changed_since(snapshot: Path) -> list[str]:
    """The files that are different, gone or new in the working tree since the snapshot, by their paths."""
    try:
        manifest = json.loads((snapshot / MANIFEST).read_text())
    except (OSError, ValueError):
        return []
    root, before = Path(manifest["root"]), manifest["files"]
    now = {path.as_posix(): _sum(root / path) for path in _python_files(root)} if root.is_dir() else {}
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


def _python_files(root: Path) -> list[Path]:
    listed = _git_files(root)
    if listed is None:
        listed = []
        for folder, names, files in os.walk(root):
            names[:] = [
                n
                for n in names
                if not n.startswith(".") and n not in SKIPPED and not (Path(folder, n) / "pyvenv.cfg").exists()
            ]
            listed += [Path(folder, name).relative_to(root) for name in files if name.endswith(".py")]
            if len(listed) > MOST_FILES:
                break
    return sorted(path for path in listed[:MOST_FILES] if (root / path).is_file())


def _git_files(root: Path) -> list[Path] | None:
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.py"]
    try:
        listing = subprocess.run(command, capture_output=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return [Path(name) for name in listing.decode(errors="surrogateescape").split("\0") if name]
