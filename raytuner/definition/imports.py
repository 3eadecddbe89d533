"""What the user's code imports, by reading it: nothing is imported to find out."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import decode_source
from pathlib import Path

__all__ = ["Imports", "find_imports"]


@dataclass(frozen=True)
class Imports:
    """What files need to be imported themselves, each with the place that needs it first, file:line.

    What a ``try`` or an ``if`` guards at the top level of a module does not count.
    """

    modules: dict[str, str] = field(default_factory=dict)
    """Top-level modules from elsewhere."""
    later: dict[str, str] = field(default_factory=dict)
    """Those that are imported in functions alone, and so when these are called."""
    files: dict[Path, str] = field(default_factory=dict)
    """Files of the project that are run on the way."""


def find_imports(files: Iterable[Path], root: Path) -> Imports:
    """What the files need, and what files below ``root`` that they import need."""
    root = root.resolve()
    found = Imports()
    in_functions: list[tuple[ast.stmt, Path]] = []
    seen = {file.resolve() for file in files}
    todo = list(seen)
    while todo:
        path = todo.pop()
        for node in _body(path, root):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                in_functions += [(each, path) for each in _within(node)]
            for name, local in _imports(node, path, root):
                place = f"{path.relative_to(root).as_posix()}:{node.lineno}"
                for file in local:
                    found.files.setdefault(file, place)
                todo += [file for file in local if file not in seen]
                seen.update(local)
                if _from_elsewhere(name, local, root):
                    found.modules.setdefault(name.partition(".")[0], place)
    for node, path in in_functions:
        for name, local in _imports(node, path, root):
            top = name.partition(".")[0]
            if _from_elsewhere(name, local, root) and top not in found.modules:
                found.later.setdefault(top, f"{path.relative_to(root).as_posix()}:{node.lineno}")
    return found


def _body(path: Path, root: Path) -> list[ast.stmt]:
    if not path.is_relative_to(root):
        return []
    try:
        return ast.parse(decode_source(path.read_bytes())).body
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []  # told elsewhere


def _within(node: ast.AST) -> Iterator[ast.stmt]:
    """The imports in a function or class that nothing guards."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif not isinstance(child, (ast.Try, ast.TryStar)):
            yield from _within(child)


def _from_elsewhere(name: str, local: list[Path], root: Path) -> bool:
    return bool(name) and not local and not (root / name.partition(".")[0]).is_dir()


def _imports(node: ast.stmt, path: Path, root: Path) -> Iterator[tuple[str, list[Path]]]:
    """The modules that a statement imports, each with the files below ``root`` that it runs."""
    if isinstance(node, ast.ImportFrom) and node.level:
        base = path.parents[node.level - 1].joinpath(*filter(None, (node.module or "").split(".")))
        yield "", [p for each in (base, *(base / alias.name for alias in node.names)) for p in _sources(each)]
        return
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):  # what is imported from a package may be a module of it
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    for name in names:
        parts = name.split(".")
        yield name, [p for n in range(len(parts)) for p in _sources(root.joinpath(*parts[: n + 1]))]


def _sources(module: Path) -> list[Path]:
    """The files that an import of the module at this place, without its ending, would run."""
    return [path for path in (module.with_name(f"{module.name}.py"), module / "__init__.py") if path.is_file()]
