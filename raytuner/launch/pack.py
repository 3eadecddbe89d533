"""What goes to a cluster with an experiment: the project's files, without secrets, and no more than a limit."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from raytuner.definition import PACKAGE_MARK, format_size
from raytuner.engine.snapshot import INSTALLED, SKIPPED
from raytuner.errors import LaunchError
from raytuner.plan import Plan

__all__ = ["Package", "git_state", "pack", "requirements_of"]

SECRETS = (
    ".env",
    ".env.*",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.jks",
    "*.keystore",
    "*.kdbx",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    ".netrc",
    "_netrc",
    ".pgpass",
    ".pypirc",
    ".npmrc",
    ".git-credentials",
    ".htpasswd",
    "auth_token",
    "credentials",
    "credentials.*",
    "secrets.*",
    "*.secret",
    "*service-account*.json",
    "*service_account*.json",
    "kubeconfig",
    "*.kubeconfig",
)
"""Names of files that hold secrets, and never leave this machine."""
HARMLESS = ("*.example", "*.sample", "*.template", "*.dist")
SECRET_FOLDERS = frozenset({".ssh", ".aws", ".azure", ".gcloud", ".gnupg", ".kube", ".docker", ".ray"})
_PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")
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
    environments, hidden folders and results. Raises LaunchError for what is too large, and for a secret that the
    definition names.
    """
    assert plan.file is not None
    root, cluster = plan.import_root, plan.experiment.cluster
    named = {plan.file.resolve(), *(info.file.resolve() for info in plan.code.values() if info.file is not None)}
    wanted = {path.relative_to(root.resolve()) for path in named if path.is_relative_to(root.resolve())}
    for pattern in cluster.include:
        wanted |= _included(root, pattern)
    if cluster.requirements is not None:
        wanted |= _requirement_files(root, Path(cluster.requirements))
    for path in sorted(wanted):
        if reason := _secret(root, path):
            raise LaunchError(
                f"{path}: the definition names it, but it {reason} and would leave this machine; "
                "give secrets to the nodes in their environment"
            )
    tracked = _tracked(root)
    chosen, notes = wanted | set(tracked), []
    secret = {path: reason for path in chosen if (reason := _secret(root, path))}
    outside = {path for path in chosen - wanted - secret.keys() if not _lies_in(root, path)}
    chosen -= secret.keys() | outside
    chosen = {path for path in chosen if path.name not in _IGNORES and (root / path).is_file()}
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
        notes.append(f"left out, as secrets: {_some(secret)}")
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


def requirements_of(root: Path, file: str) -> tuple[list[str], list[str]]:
    """The lines of a file of pip requirements for Ray's runtime environment, and the files of constraints they name.

    ``-r`` is followed; ``-c`` names the file as it lies in the package, by the variable that Ray sets for pip.
    """
    lines: list[str] = []
    named: list[str] = []

    def read(path: Path) -> None:
        for line in (root / path).read_text().splitlines():
            line = re.sub(r"(^|\s)#.*", "", line).strip()
            option, _, other = line.partition(" ")
            if option in ("-r", "--requirement"):
                read(path.parent / other.strip())
            elif option in ("-c", "--constraint"):
                named.append(os.path.normpath(path.parent / other.strip()))
                lines.append(f"-c ${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{named[-1]}")
            elif line:
                lines.append(line)

    read(Path(file))
    return lines, named


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
    return os.fsdecode(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)


def _paths(listing: str) -> list[Path]:
    return [Path(name) for name in listing.split("\0") if name]


def _in_repository(root: Path) -> bool:
    try:
        return _git(root, "rev-parse", "--is-inside-work-tree").strip() == "true"
    except subprocess.SubprocessError:
        return False
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


def _requirement_files(root: Path, file: Path) -> set[Path]:
    """A file of requirements, and those that it names."""
    if not (root / file).is_file():
        raise LaunchError(
            f"cluster.requirements: there is no file {str(file)!r} in {root}; it is relative to that folder"
        )
    found = {Path(os.path.normpath(file))}
    for option, other in re.findall(r"(?m)^\s*(-r|-c|--requirement|--constraint)\s+(\S+)", (root / file).read_text()):
        path = Path(os.path.normpath(file.parent / other))
        if option in ("-c", "--constraint"):
            if not (root / path).is_file():
                raise LaunchError(f"{file}: there is no file {other!r} in {root}")
            found.add(path)
        elif path not in found:
            found |= _requirement_files(root, path)
    return found


def _secret(root: Path, path: Path) -> str:
    """Why a file is taken for a secret; an empty string when it is not."""
    name = path.name.lower()
    if SECRET_FOLDERS.intersection(path.parts[:-1]):
        return f"lies in {next(part for part in path.parts if part in SECRET_FOLDERS)}/"
    matches = any(fnmatch.fnmatch(name, pattern) for pattern in SECRETS)
    if matches and not name.endswith(".py") and not any(fnmatch.fnmatch(name, pattern) for pattern in HARMLESS):
        return "is called as a secret is"
    try:
        with (root / path).open("rb") as file:
            return "holds a private key" if _PRIVATE_KEY.search(file.read(2**16)) else ""
    except OSError:
        return ""


def _lies_in(root: Path, path: Path) -> bool:
    return (root / path).resolve().is_relative_to(root.resolve())


def _some(paths: Iterable[Path], most: int = 5) -> str:
    names = sorted(map(str, paths))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
