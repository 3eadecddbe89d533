"""A file of pip requirements, as it goes to a cluster: its lines, and the files that it names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from raytuner.errors import LaunchError

__all__ = ["requirement_files", "requirements_of"]

_NAMES_A_FILE = re.compile(r"(?:-([rc])\s*|--(r|c)(?:equirement|onstraint)(?:\s*=\s*|\s+))(\S+)")
_CREDENTIALS = re.compile(r"(?i)https?://(?![^\s@/]*\$\{)[^\s@/]+@|[a-z+.]+://[^\s@/:]*:(?!\$\{)[^\s@/]+@")
"""A user, or a password, in an address; one from the environment (``${TOKEN}``) is filled in by pip on the node."""


def requirements_of(root: Path, file: str) -> tuple[list[str], list[str]]:
    """The lines for Ray's runtime environment, and the files of constraints that they need.

    ``-r`` is followed; ``-c`` names the file as it lies in the package, by the variable that Ray sets for pip. Raises
    LaunchError as ``requirement_files`` does.
    """
    lines: list[str] = []
    constraints: list[str] = []
    for path, kind, line, named in _read(root, _normal(root, Path(file), "cluster.requirements"), "r", set()):
        if kind == "c":
            constraints += [path.as_posix()] if path.as_posix() not in constraints else []
        elif named is not None:
            lines.append(f"-c ${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{named.as_posix()}")
        elif line:
            lines.append(line)
    return lines, constraints


def requirement_files(root: Path, file: Path) -> set[Path]:
    """A file of requirements, and those that it names, however deep.

    Raises LaunchError for a file that is not there or lies outside of ``root``, and for credentials in an address:
    the cluster keeps the lines with the job, where all may read them.
    """
    first = _normal(root, file, "cluster.requirements")
    return {path for path, _, _, _ in _read(root, first, "r", set())}


def _read(root: Path, path: Path, kind: str, seen: set[Path]) -> Iterator[tuple[Path, str, str, Path | None]]:
    """File, kind (r or c), line, and the file of constraints that the line names; an empty line for a file itself."""
    if path in seen:
        return
    seen.add(path)
    yield path, kind, "", None
    text = (root / path).read_text().replace("\\\n", " ")
    for number, raw in enumerate(text.splitlines(), start=1):
        line = re.sub(r"(^|\s)#.*", "", raw).strip()
        if _CREDENTIALS.search(line):
            raise LaunchError(
                f"{path}:{number}: an address must not hold credentials, as the cluster keeps it with the job; write "
                "${TOKEN} in their place, and set that variable on the nodes, or give the nodes a ~/.netrc"
            )
        option = _NAMES_A_FILE.fullmatch(line)
        if option is None or "://" in line:
            yield path, kind, line, None
            continue
        other = _normal(root, path.parent / option[3], f"{path}:{number}")
        constrains = kind == "c" or (option[1] or option[2]) == "c"
        if constrains:
            yield path, kind, line, other
        yield from _read(root, other, "c" if constrains else "r", seen)


def _normal(root: Path, path: Path, where: str) -> Path:
    normal = Path(os.path.normpath(path))
    if normal.is_absolute() or ".." in normal.parts:
        raise LaunchError(f"{where}: {str(path)!r} lies outside of {root}, and only what is below it goes along")
    if not (root / normal).is_file():
        raise LaunchError(f"{where}: there is no file {str(path)!r} in {root}; it is relative to that folder")
    return normal
