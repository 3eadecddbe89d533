"""``--set key.path=value``: overrides of single values of a file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from raytuner.definition.document import Document, read_yaml
from raytuner.definition.messages import Path, Place, dotted, show
from raytuner.errors import DefinitionError, Problem

__all__ = ["apply_overrides"]

_PART = re.compile(r"\.?([^.\[\]=]+)|\[(\d+)\]")


def apply_overrides(document: Document, overrides: Iterable[str]) -> None:
    """Puts the values of ``key.path=value`` texts into the document; values are read as YAML.

    Keys are separated by dots, places in a list are ``[0]``. Missing sections are made, and short forms
    (``search: random``) are written out when something is set below them. What cannot be done is added to the
    document's problems.
    """
    for text in overrides:
        place = Place(f"--set {text}", 0)
        try:
            path, value = _parse(text)
            document.override(_make_way(document, path), value, place)
        except DefinitionError as error:
            document.problems += [
                Problem(each.where, each.rule, each.got, each.remedy, *place) for each in error.problems
            ]


def _parse(text: str) -> tuple[Path, Any]:
    key, equals, value = text.partition("=")
    parts = list(_PART.finditer(key))
    if not equals or not parts or "".join(part[0] for part in parts) != key or key.startswith((".", "[")):
        rule = "an override is key.path=value"
        raise DefinitionError(Problem("", rule, repr(text), "such as --set budget.trials=10"))
    path = tuple(int(part[2]) if part[2] else part[1] for part in parts)
    document = read_yaml(value)
    if document.problems:
        raise DefinitionError(document.problems)
    return path, document.data


def _make_way(document: Document, path: Path) -> Path:
    """Makes sure that there is something to set the last part of ``path`` in."""
    here: Any = document.data
    for depth, part in enumerate(path):
        where = dotted(path[:depth])
        if isinstance(part, int):
            if not isinstance(here, list) or part >= len(here):
                given = f"a list of {len(here)}" if isinstance(here, list) else show(here)
                raise DefinitionError(Problem(where, f"there is no entry [{part}]", given, "set the whole list"))
        elif not isinstance(here, dict):
            raise DefinitionError(Problem(where, f"there is no key {part!r} in it", show(here), "set the whole value"))
        if depth == len(path) - 1:
            break
        if isinstance(part, str):
            here[part] = _opened(path[: depth + 1], here.get(part))
        here = here[part]
    return path


def _opened(path: Path, value: Any) -> Any:
    """A value into which something is set: a missing one becomes a mapping, a short form its long form."""
    if value is None:
        return {}
    if len(path) == 1 and path[0] in ("search", "scheduler") and isinstance(value, str):
        return {"type": value}
    if path == ("cluster",) and isinstance(value, str):
        return {"address": value}
    if len(path) == 2 and path[0] == "space" and isinstance(value, list):
        return {"type": "choice", "values": value}
    return {} if path == ("tracking",) and value == "none" else value
