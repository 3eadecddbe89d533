"""What pydantic finds, said in raytuner's words: place, rule, what was given, remedy."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from pydantic_core import ErrorDetails

from raytuner.errors import Problem

__all__ = ["Path", "Place", "dotted", "nearest", "parse_problem", "show", "suggestion", "translate"]

Path = tuple[str | int, ...]
"""A key path: ``("space", "lr", "values", 0)``."""


class Place(NamedTuple):
    """A file (or a ``--set`` option) and a line in it, 0 when there is none."""

    file: str
    line: int


def dotted(path: Path) -> str:
    """``("space", "lr", "values", 0)`` as ``space.lr.values[0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def show(value: object, limit: int = 70) -> str:
    """A value as a person would write it in YAML, on one line, cut at ``limit`` characters."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, float) and not math.isfinite(value):
        text = ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    elif isinstance(value, str):
        text = repr(value)
    elif isinstance(value, (Mapping, list, tuple)):
        text = json.dumps(value, default=str, ensure_ascii=False).replace('"', "")
    else:
        try:
            text = str(value)
        except ValueError:
            text = "a very long number"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def nearest(word: object, known: Iterable[str]) -> str | None:
    """The known word most like ``word``, if one is like it at all."""
    known = list(known)
    if not isinstance(word, str):
        return None
    lowered = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    # "maximize" is far from "max" by its letters, but begins with it.
    found = found or [name for name in lowered if len(name) > 1 and word.lower().startswith(name)]
    return lowered[found[0]] if found else None


def suggestion(word: object, known: Sequence[str], noun: str) -> str:
    """A remedy for a word that is not among the known ones."""
    found = nearest(word, known)
    if found:
        return f"did you mean {found!r}?"
    return f"{noun}: {', '.join(known)}" if known else "remove it"


def parse_problem(where: str, text: str) -> Problem:
    """A problem from the one-line form that errors have: rule, got ...; remedy."""
    rule, _, remedy = text.partition("; ")
    rule, _, got = rule.partition(", got ")
    return Problem(where, rule, got, remedy)


def translate(
    errors: Sequence[ErrorDetails], data: object, remedy_for: Callable[[Path], str]
) -> list[tuple[Path, Problem]]:
    """Pydantic's errors as problems without a place, one a key path.

    Args:
        errors: ``ValidationError.errors()``.
        data: what was validated, to tell keys from the names of union branches in pydantic's locations.
        remedy_for: gives the remedy for an unknown key at a path.
    """
    grouped: dict[Path, list[ErrorDetails]] = {}
    for error in errors:
        grouped.setdefault(_path(error, data), []).append(error)
    return [(path, _problem(path, group, remedy_for)) for path, group in grouped.items()]


def _path(error: ErrorDetails, data: object) -> Path:
    """The key path of an error: its location without the tags of unions."""
    path: list[str | int] = []
    here = data
    for part in error["loc"]:
        in_list = isinstance(part, int) and isinstance(here, (list, tuple)) and part < len(here)
        if in_list or (isinstance(here, Mapping) and part in here):
            here = here[part]  # type: ignore[index]  # a path of pydantic's fits its input
            path.append(part)
    if error["type"] == "missing":
        path.append(error["loc"][-1])
    return tuple(path)


_KINDS = {
    "string_type": "a string",
    "string_sub_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a mapping (key: value)",
    "mapping_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "dataclass_type": "a mapping (key: value)",
    "list_type": "a list",
    "tuple_type": "a list",
    "none_required": "null",
}
"""Types of pydantic errors that say: another kind of value is needed."""

_BOUNDS = {
    "greater_than": ("a number above {gt:.12g} is needed", "give a number above {gt:.12g}"),
    "greater_than_equal": ("a number of at least {ge:.12g} is needed", "give {ge:.12g} or more"),
    "less_than": ("a number below {lt:.12g} is needed", "give a number below {lt:.12g}"),
    "less_than_equal": ("a number of at most {le:.12g} is needed", "give {le:.12g} or less"),
    "finite_number": ("a finite number is needed", "give a number that is neither infinite nor nan"),
    "string_too_short": ("at least {min_length} characters are needed", "write something"),
    "string_too_long": ("at most {max_length} characters are allowed", "shorten it"),
    "string_pattern_mismatch": ("the text must match {pattern}", "write it in this form"),
    "too_short": ("a list of at least {min_length} value is needed", "add what is missing"),
    "too_long": ("a list of at most {max_length} is allowed", "remove some"),
}


def _problem(path: Path, group: list[ErrorDetails], remedy_for: Callable[[Path], str]) -> Problem:
    where = dotted(path)
    kinds = list(dict.fromkeys(_KINDS[error["type"]] for error in group if error["type"] in _KINDS))
    others = [error for error in group if error["type"] not in _KINDS]
    if kinds and not others:
        needed = " or ".join(kinds)
        return Problem(where, f"{needed} is needed", show(group[0]["input"]), _kind_remedy(kinds, group[0]["input"]))
    error = others[0]
    kind, context, got = error["type"], error.get("ctx", {}), show(error["input"])
    if kind == "missing":
        return Problem(where, "this key is needed", "nothing", f"add {where.rpartition('.')[2]!r}")
    if kind == "extra_forbidden":
        return Problem(where, "unknown key", repr(path[-1]), remedy_for(path))
    if kind == "union_tag_invalid":
        types = [name.strip("'") for name in context["expected_tags"].split(", ")]
        where, given = f"{where}.type", repr(context["tag"])
        return Problem(where, "the type must be known", given, suggestion(context["tag"], types, "types"))
    if kind == "union_tag_not_found" and not isinstance(error["input"], Mapping):
        return Problem(where, "a name or a mapping (key: value) is needed", got, "write {type: ...}")
    if kind == "union_tag_not_found":
        return Problem(f"{where}.type", "this key is needed", "nothing", "add 'type'")
    if kind == "broken_rule":
        given = context["got"] or ("" if isinstance(error["input"], Mapping) else got)
        return Problem(where, context["rule"], given, context["remedy"])
    if kind == "too_short" and isinstance(error["input"], Mapping):
        return Problem(where, "at least one key with its value is needed", got, "add what is missing")
    if kind == "literal_error":
        choices = [choice.strip("'") for choice in context["expected"].replace(" or ", ", ").split(", ")]
        found = nearest(error["input"], choices)
        remedy = f"did you mean {found!r}?" if found else f"write one of {', '.join(choices)}"
        return Problem(where, f"one of {', '.join(choices)} is needed", got, remedy)
    if kind in _BOUNDS:
        rule, remedy = (text.format(**context) for text in _BOUNDS[kind])
        return Problem(where, rule, got, remedy)
    if kind in ("value_error", "assertion_error"):
        problem = parse_problem(where, str(context.get("error", error["msg"])))
        return problem if problem.got else replace(problem, got=got)
    return Problem(where, error["msg"].replace("Input should be", "must be"), got)


def _kind_remedy(kinds: list[str], given: object) -> str:
    if given is None:
        return "give a value, or remove the key"
    if kinds == ["a string"]:
        return f'quote it: "{show(given)}"' if isinstance(given, (int, float)) else "write a text"
    if kinds == ["a whole number"] and isinstance(given, float):
        return "write it without a fraction or exponent"
    if any("number" in kind for kind in kinds):
        return "write a number, without quotes or units"
    if kinds == ["a list"]:
        return "write it in brackets: [...]"
    return "write true or false" if kinds == ["true or false"] else "write keys and values below it"
