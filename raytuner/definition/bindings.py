"""The names that a module or class body binds, read from its syntax tree."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

__all__ = ["Bindings", "bindings"]

_DYNAMIC = {"exec", "eval", "globals", "locals", "vars", "setattr", "__import__"}
"""Calls by which code can bind names that no reader sees."""


@dataclass
class Bindings:
    """What a body binds."""

    names: dict[str, list[ast.AST]] = field(default_factory=dict)
    """Each name with the statements that may bind it, in order; an import of several names is split, one a name."""
    open_ended: bool = False
    """Whether more may be bound than was seen: by a star import, a module's ``__getattr__``, ``exec`` and the like."""

    def functions(self) -> list[str]:
        """Public names bound by ``def`` or ``class``."""
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        return [
            name
            for name, nodes in self.names.items()
            if not name.startswith("_") and any(isinstance(node, kinds) for node in nodes)
        ]


def bindings(body: ast.Module | ast.ClassDef) -> Bindings:
    """Reads what ``body`` binds, also below ``if``, ``try``, ``with``, loops and ``match``."""
    reader = _Reader()
    for statement in body.body:
        reader.visit(statement)
    if "__getattr__" in reader.found.names:
        reader.found.open_ended = True
    return reader.found


class _Reader(ast.NodeVisitor):
    def __init__(self) -> None:
        self.found = Bindings()

    def _bind(self, name: str, node: ast.AST) -> None:
        self.found.names.setdefault(name, []).append(node)

    def _definition(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self._bind(node.name, node)
        # Bodies bind names of their own, save what they declare global or do dynamically.
        for inner in ast.walk(node):
            if isinstance(inner, ast.Global):
                for name in inner.names:
                    self._bind(name, inner)

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _definition

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """A lambda binds nothing outside itself."""

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._bind(alias.asname or alias.name.partition(".")[0], node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name == "*":
                self.found.open_ended = True
                continue
            single = ast.ImportFrom(node.module, [alias], node.level, lineno=node.lineno)
            self._bind(alias.asname or alias.name, single)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            if isinstance(target, ast.Name):
                self._bind(target.id, node)
            else:
                self.visit(target)
        self.visit(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        # The name of the handler is unbound again at its end.
        for statement in node.body:
            self.visit(statement)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self._bind(node.id, node)
        elif node.id in _DYNAMIC:
            self.found.open_ended = True

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr == "modules" and isinstance(node.value, ast.Name) and node.value.id == "sys":
            self.found.open_ended = True
        self.generic_visit(node)

    def _pattern(self, node: ast.MatchAs | ast.MatchStar | ast.MatchMapping) -> None:
        name = node.rest if isinstance(node, ast.MatchMapping) else node.name
        if name:
            self._bind(name, node)
        self.generic_visit(node)

    visit_MatchAs = visit_MatchStar = visit_MatchMapping = _pattern

    def _comprehension(self, node: ast.expr) -> None:
        # Its targets are its own; only a walrus reaches outside.
        for inner in ast.walk(node):
            if isinstance(inner, ast.NamedExpr):
                self.visit(inner.target)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension
