"""What goes to a cluster with an experiment: the project's files, without secrets, and no more than a limit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from raytuner.definition import PACKAGE_MARK, find_imports, format_size
from raytuner.engine.snapshot import INSTALLED, SKIPPED
from raytuner.engine.token import cluster_token
from raytuner.errors import LaunchError
from raytuner.launch.confidential import secrecy
from raytuner.launch.requirements import requirement_files
from raytuner.plan import Plan

__all__ = ["Package", "git_state", "pack"]

_IGNORES = (".gitignore", ".rayignore")
"""Ray would leave out, by these, files that were chosen here."""


@dataclass(frozen=True)
class Package:
    """A copy of what goes to the cluster."""

    folder: Path
    file: str
    """The definition in it."""
    files: int
    size: int
    """Bytes."""
    notes: tuple[str, ...]
    """What was left out, for a person."""


def pack(plan: Plan, target: Path) -> Package:
    """Copy what goes to the cluster to ``target``: the files that git tracks, and those that the definition names.

    Where the import root is in no repository, all files go that git would not ignore, save those of virtual
    environments, hidden folders and results. Raises LaunchError for what is too large, for a secret that the
    definition names, for a file that is imported and would stay, and where git does not answer.
    """
    assert plan.file is not None
    root, cluster = plan.import_root, plan.experiment.cluster
    named = {plan.file.resolve(), *(info.file.resolve() for info in plan.code.values() if info.file is not None)}
    wanted = {path.relative_to(root.resolve()) for path in named if path.is_relative_to(root.resolve())}
    for pattern in cluster.include:
        wanted |= _included(root, pattern)
    if cluster.requirements is not None:
        wanted |= requirement_files(root, Path(cluster.requirements))
    token = cluster_token()
    for path in sorted(wanted):
        if reason := secrecy(root, path, token):
            raise LaunchError(
                f"{path}: the definition names it, but it {reason} and would leave this machine; "
                "give secrets to the nodes in their environment"
            )
    tracked = _tracked(root)
    chosen, notes = wanted | set(tracked), []
    secret = {path: reason for path in chosen if (reason := secrecy(root, path, token))}
    outside = {path for path in chosen - wanted - secret.keys() if not _lies_in(root, path)}
    chosen -= secret.keys() | outside
    chosen = {path for path in chosen if path.name not in _IGNORES and (root / path).is_file()}
    _check_imports(plan, chosen)
    sizes = {path: (root / path).stat().st_size for path in chosen}
    if sum(sizes.values()) > cluster.limit:
        largest = sorted(sizes, key=lambda path: -sizes[path])[:5]
        raise LaunchError(
            f"{root}: what goes to the cluster may have {format_size(cluster.limit)}, and has "
            f"{format_size(sum(sizes.values()))} in {len(sizes)} files; the largest are "
            + ", ".join(f"{path} ({format_size(sizes[path])})" for path in largest)
            + "; put data where all nodes see it, take it out of git, or raise cluster.limit"
        )
    if secret:
        notes.append(f"left out, as secrets: {_some(secret, 20)}")
    if outside:
        notes.append(f"left out, as links out of the project: {_some(outside)}")
    if untracked := [path for path in _untracked(root) if path not in chosen]:
        notes.append(f"not in git, so left out: {_some(untracked)} (git add, or cluster.include)")
    for path in sorted(chosen):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / path, target / path)
    file = plan.file.resolve().relative_to(root.resolve()).as_posix()
    (target / PACKAGE_MARK).write_text(json.dumps({"file": file, "git": git_state(root)}))
    return Package(target, file, len(chosen), sum(sizes.values()), tuple(notes))


def _check_imports(plan: Plan, chosen: set[Path]) -> None:
    """Whether all files of the project that are imported go along."""
    root = plan.import_root.resolve()
    code = [info.file for info in plan.code.values() if info.file is not None]
    imported = {file.relative_to(root): place for file, place in find_imports(code, root).files.items()}
    if stays := {path: place for path, place in imported.items() if path not in chosen}:
        raise LaunchError(
            "what goes to the cluster lacks files that are imported: "
            + ", ".join(f"{path} (by {stays[path]})" for path in sorted(stays))
            + "; git add them, or name them in cluster.include"
        )


def git_state(root: Path) -> dict[str, str | bool]:
    """The commit of the working tree, and whether it was changed since; as it was sent, on a cluster."""
    try:
        sent: dict[str, str | bool] = json.loads((root / PACKAGE_MARK).read_text())["git"]
        return sent
    except (OSError, ValueError, KeyError):
        pass
    try:
        commit, changed = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--", ".")
        return {"commit": commit.strip(), "dirty": bool(changed.strip())}
    except (OSError, subprocess.SubprocessError):
        return {}


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    env = {**os.environ, "LC_ALL": "C"}  # what it says is read
    return os.fsdecode(subprocess.run(command, capture_output=True, check=True, timeout=60, env=env).stdout)


def _paths(listing: str) -> list[Path]:
    return [Path(name) for name in listing.split("\0") if name]


def _in_repository(root: Path) -> bool:
    try:
        return _git(root, "rev-parse", "--is-inside-work-tree").strip() == "true"
    except subprocess.CalledProcessError as error:
        said = os.fsdecode(error.stderr)
        if "not a git repository (or any" in said:
            return False
        raise LaunchError(
            f"{root}: git does not tell which files go to the cluster; it says: {said.strip()}"
        ) from error
    except OSError as error:
        raise LaunchError(f"git is needed to tell which files go to the cluster: {error}; install it") from error


def _tracked(root: Path) -> list[Path]:
    """The files that git tracks below the root; in no repository, those that it would not ignore."""
    if _in_repository(root):
        return _paths(_git(root, "ls-files", "-z", "--cached", "--recurse-submodules"))
    with tempfile.TemporaryDirectory() as folder:
        _git(Path(folder), "init", "-q", "--bare")
        others = ["ls-files", "-z", "--others", "--exclude-standard"]
        listing = _git(root, f"--git-dir={folder}", f"--work-tree={root}", *others)
    return [path for path in _paths(listing) if _is_own(root, path)]


def _is_own(root: Path, path: Path) -> bool:
    folders = path.parts[:-1]
    if any(name.startswith(".") or name in SKIPPED for name in folders):
        return False
    return not any((root / folder / "pyvenv.cfg").exists() for folder in path.parents)


def _untracked(root: Path) -> list[Path]:
    """Python files that git neither tracks nor ignores."""
    if not _in_repository(root):
        return []
    listing = _paths(_git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py"))
    return [path for path in listing if INSTALLED.isdisjoint(path.parts)]


def _included(root: Path, pattern: str) -> set[Path]:
    found = sorted(root.glob(pattern.rstrip("/")))
    files = {f for path in found for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file()}
    if not files:
        raise LaunchError(f"cluster.include: there is no file {pattern!r} in {root}; it is relative to that folder")
    return {path.relative_to(root) for path in files if "__pycache__" not in path.parts}


def _lies_in(root: Path, path: Path) -> bool:
    return (root / path).resolve().is_relative_to(root.resolve())


def _some(paths: Iterable[Path], most: int = 5) -> str:
    names = sorted(map(str, paths))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
