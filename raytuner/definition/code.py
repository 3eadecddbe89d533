"""Finds the code that a definition names, without importing it: its imports may be heavy, or have effects.

A name is refused only when it certainly is not there. What cannot be decided by reading (a compiled module, a star
import) is a warning.
"""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import re
import sys
from dataclasses import dataclass, replace
from importlib.util import decode_source
from pathlib import Path
from typing import Literal

from raytuner.definition.bindings import Bindings, bindings
from raytuner.definition.messages import suggestion
from raytuner.errors import Problem

__all__ = ["CODE_PATTERN", "PACKAGE_MARK", "CodeInfo", "find_code", "import_from", "import_root"]

CODE_PATTERN = re.compile(
    r"(?P<source>[^:]+\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)"
)
"""``module:name`` or ``path/file.py:name``; the name may be dotted (a static method)."""

PACKAGE_MARK = ".raytuner-package.json"
"""A file in the root of a package that ``raytuner launch`` has sent to a cluster, and what is known of it."""
_ROOT_MARKS = ("pyproject.toml", ".git", PACKAGE_MARK)

Kind = Literal["trial", "ray_function", "ray_class", "unknown"]
_MAX_HOPS = 5


@dataclass(frozen=True)
class CodeInfo:
    """What is known of the code behind ``module:name``."""

    kind: Kind = "unknown"
    """``trial``: a function of a trial; ``ray_function``: one whose first parameter is called ``config``;
    ``ray_class``: a class, thus a Ray ``Trainable``; ``unknown``: it may be there, but reading cannot tell."""
    file: Path | None = None
    """The file that holds it, if it is one."""
    line: int = 0
    """Where it is defined in ``file``, from 1; 0 when unknown."""
    warnings: tuple[str, ...] = ()
    """What could not be made sure of."""
    problems: tuple[Problem, ...] = ()
    """Why it certainly cannot be used; empty when it may be."""


def import_root(file: Path) -> Path:
    """The nearest folder above ``file`` that holds a ``pyproject.toml`` or ``.git``, else the file's own folder.

    On a cluster, the root of the package that it came in.
    """
    folder = file.resolve().parent
    for candidate in (folder, *folder.parents):
        if any((candidate / mark).exists() for mark in _ROOT_MARKS):
            return candidate
    return folder


def import_from(*folders: Path) -> None:
    """Put folders first on ``sys.path``, so that from here on code is imported from where ``find_code`` looks it up."""
    first = [str(folder) for folder in folders]
    sys.path[:] = [*first, *(entry for entry in sys.path if entry not in first)]
    importlib.invalidate_caches()


def find_code(target: str, root: Path, where: str = "train", folder: Path | None = None) -> CodeInfo:
    """Looks up ``module:name`` on ``root`` and ``sys.path``, or ``path/file.py:name`` below ``root``.

    Args:
        target: text that matches ``CODE_PATTERN``.
        root: the import root; it comes first, as it does when the code is imported.
        where: the key path for problems; ``train`` may be a function or a class, ``test`` a function, all else is a
            component and a class.
        folder: the folder of the definition, for the remedy when a file lies beside it instead of in the root.
    """
    match = CODE_PATTERN.fullmatch(target)
    if match is None:
        rule, remedy = "code is named module:name or path/file.py:name", "such as objectives.digits:train"
        return CodeInfo(problems=(Problem(where, rule, repr(target), remedy),))
    found = _find_file(match["source"], root, where, folder)
    if found.problems or found.file is None:
        return found
    return _find_name(found.file, match["name"], root, where, target)


def _find_file(source: str, root: Path, where: str, folder: Path | None = None) -> CodeInfo:
    if not source.endswith(".py"):
        return _find_module(source, root, where)
    path = root / source
    if path.is_file():
        return CodeInfo(file=path.resolve())
    remedy = f"paths are relative to the import root {root}"
    if folder and (folder / source).is_file() and folder.resolve().is_relative_to(root):
        remedy = f"paths are relative to {root}: write {(folder.resolve() / source).relative_to(root).as_posix()!r}"
    return CodeInfo(problems=(Problem(where, "the file must exist", repr(source), remedy),))


def _find_module(module: str, root: Path, where: str) -> CodeInfo:
    """Walks down the packages by their finders, which read folders but run none of the user's code."""
    importlib.invalidate_caches()
    parts = module.split(".")
    spec = _top_level_spec(parts[0], root)
    for depth, part in enumerate(parts[1:], start=1):
        if spec is None or spec.submodule_search_locations is None:
            break
        folders = list(spec.submodule_search_locations)
        # Only the last part of the name: with dots the finder would look for the parent in sys.modules.
        below = importlib.machinery.PathFinder.find_spec(part, folders)
        if below is None:
            if spec.origin and _makes_modules(Path(spec.origin)):
                return CodeInfo(warnings=(f"{where}: {module} may be made when {'.'.join(parts[:depth])} is imported",))
            return CodeInfo(problems=(_no_module(module, part, folders, where),))
        spec = below
    if spec is None:
        return CodeInfo(problems=(_no_module(module, parts[0], [str(root)], where),))
    if len(parts) > 1 and spec.submodule_search_locations is None and spec.name != parts[-1]:
        rule = f"{spec.name} is a module, not a package"
        return CodeInfo(problems=(Problem(where, rule, repr(module), "name a module that exists"),))
    if spec.origin is None and spec.submodule_search_locations is not None:
        rule, remedy = "a folder without __init__.py holds no functions", f"name a module in it: {module}.<file>:<name>"
        return CodeInfo(problems=(Problem(where, rule, repr(module), remedy),))
    if spec.origin and spec.origin.endswith(".py"):
        return CodeInfo(file=Path(spec.origin))
    return CodeInfo(warnings=(f"{where}: {module} is no Python source, so that its names could not be checked",))


def _top_level_spec(name: str, root: Path) -> importlib.machinery.ModuleSpec | None:
    """The spec that an import would find with ``root`` first on the path."""
    for finder in sys.meta_path:
        folders = [str(root), *sys.path] if finder is importlib.machinery.PathFinder else None
        find_spec = getattr(finder, "find_spec", None)
        spec: importlib.machinery.ModuleSpec | None = find_spec(name, folders) if find_spec else None
        if spec is not None:
            return spec
    return None


def _makes_modules(init: Path) -> bool:
    """Whether a package's ``__init__`` may put modules where no file is."""
    try:
        text = init.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return "sys.modules" in text or "__path__" in text


def _no_module(module: str, part: str, folders: list[str], where: str) -> Problem:
    there = sorted(
        entry.stem
        for folder in folders
        if Path(folder).is_dir()
        for entry in Path(folder).iterdir()
        if entry.stem.isidentifier() and not entry.stem.startswith("_") and (entry.suffix == ".py" or entry.is_dir())
    )
    remedy = suggestion(part, there[:20], f"in {', '.join(folders)} there are")
    return Problem(where, f"there must be a module {module}", f"no {part!r}", remedy or "check its name, or install it")


def _find_name(file: Path, name: str, root: Path, where: str, target: str, hops: int = 0) -> CodeInfo:
    """Finds ``name`` among what ``file`` binds at its top level; follows plain aliases and imports."""
    try:
        # Decoded as the import does it: by the coding line, else strictly as UTF-8.
        bound = bindings(ast.parse(decode_source(file.read_bytes()), filename=str(file)))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 0
        got = f"{getattr(error, 'msg', error)} ({file}:{line})"
        return CodeInfo(file=file, problems=(Problem(where, f"{target} must be valid Python", got, "mend the module"),))
    except OSError as error:
        return CodeInfo(file=file, warnings=(f"{where}: {file} cannot be read: {error.strerror}",))
    except (RecursionError, MemoryError):
        return CodeInfo(file=file, warnings=(f"{where}: {file} is nested too deeply to be looked into",))
    first, _, rest = name.partition(".")
    nodes = bound.names.get(first)
    if nodes is None:
        if bound.open_ended:
            return CodeInfo(file=file, warnings=(f"{where}: {file} binds names dynamically; {first!r} was not seen",))
        remedy = suggestion(first, sorted(bound.functions()), "it has")
        rule = f"{file.name} must define {first!r} at its top level"
        return CodeInfo(file=file, problems=(Problem(where, rule, "no such name", remedy),))
    if rest:
        return _find_member(nodes, rest, CodeInfo(file=file), where)
    return _describe(nodes, bound, CodeInfo(file=file), root, where, hops)


def _find_member(nodes: list[ast.AST], rest: str, info: CodeInfo, where: str) -> CodeInfo:
    owner = nodes[-1]
    if not isinstance(owner, ast.ClassDef) or len(nodes) > 1:
        return info
    members = bindings(owner).names
    first = rest.partition(".")[0]
    if first in members or owner.bases or owner.decorator_list or owner.keywords:
        return replace(info, line=owner.lineno)
    rule = f"class {owner.name} must define {first!r}"
    return replace(info, problems=(Problem(where, rule, "no such name", suggestion(first, sorted(members), "it has")),))


def _describe(nodes: list[ast.AST], bound: Bindings, info: CodeInfo, root: Path, where: str, hops: int) -> CodeInfo:
    """What the bindings of one name are; when a name is bound several times, they must agree or it stays unknown."""
    found = [_describe_one(node, bound, info, root, where, hops) for node in nodes]
    if any(each.kind != found[-1].kind for each in found):
        return replace(info, line=found[-1].line)
    last = found[-1]
    return last if all(each.problems for each in found) else replace(last, problems=())


def _describe_one(node: ast.AST, bound: Bindings, info: CodeInfo, root: Path, where: str, hops: int) -> CodeInfo:
    info = replace(info, line=getattr(node, "lineno", 0))
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        kind, problem = _function(node, where)
        return replace(info, kind=kind, problems=(problem,) if problem else ())
    if isinstance(node, ast.ClassDef):
        return replace(info, kind="ray_class", problems=_class_problems(node, where))
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and hops < _MAX_HOPS:
        aliased = bound.names.get(node.value.id)
        return _describe(aliased, bound, info, root, where, hops + 1) if aliased else info
    if isinstance(node, ast.ImportFrom) and hops < _MAX_HOPS:
        return _follow_import(node, bound, info, root, where, hops)
    return info


def _follow_import(
    node: ast.ImportFrom, bound: Bindings, info: CodeInfo, root: Path, where: str, hops: int
) -> CodeInfo:
    """``from x import name``: looks on in x. What is wrong there is a warning: the import itself may be guarded."""
    assert info.file is not None
    name = node.names[0].name
    if node.level:
        folder = info.file.parents[node.level - 1]
        parts = (node.module or "").split(".") if node.module else []
        base = folder.joinpath(*parts)
        file = base.with_suffix(".py") if parts and base.with_suffix(".py").is_file() else base / "__init__.py"
        there = CodeInfo(file=file) if file.is_file() else CodeInfo()
    else:
        there = _find_module(node.module or "", root, where)
    if there.file is None:
        return replace(info, warnings=(f"{where}: imported from {node.module}, which was not found or is no source",))
    inner = _find_name(there.file, name, root, where, f"{node.module}:{name}", hops + 1)
    if inner.problems:
        return replace(info, warnings=tuple(f"{problem}" for problem in inner.problems))
    return inner


def _class_problems(node: ast.ClassDef, where: str) -> tuple[Problem, ...]:
    given = f"class {node.name}"
    if where == "test":
        return (Problem(where, "a function is needed", given, "name a function of a trial"),)
    if where == "train" and not (node.bases or node.keywords or node.decorator_list):
        return (Problem(where, "a class must be a Ray Trainable", given, "derive it, or name a function"),)
    return ()


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, where: str) -> tuple[Kind, Problem | None]:
    """The style of a function by its first parameter. Decorators may change parameters, so then nothing is refused."""
    positional = [*node.args.posonlyargs, *node.args.args]
    kind: Kind = "ray_function" if positional and positional[0].arg == "config" else "trial"
    if where not in ("train", "test"):
        return kind, Problem(where, "a component must be a class", f"def {node.name}", "name the class")
    if node.decorator_list:
        return kind, None
    if isinstance(node, ast.AsyncFunctionDef):
        return kind, Problem(where, "a plain function is needed", f"async def {node.name}", "remove async")
    required = len(positional) - len(node.args.defaults)
    keyword_only = [
        each.arg for each, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if default is None
    ]
    if (not positional and not node.args.vararg) or required > 1 or keyword_only:
        given = f"def {node.name}({ast.unparse(node.args)})"
        rule, remedy = "the function must take one argument, the trial", f"write def {node.name}(trial)"
        return kind, Problem(where, rule, given, remedy)
    return kind, None
