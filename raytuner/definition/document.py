"""YAML text to plain data, remembering where everything was written.

The dialect is YAML with the scalars of YAML 1.2: ``1e-4`` is a float, ``on`` and ``yes`` are strings, ``12:30`` is no
number. Tags are refused (nothing is ever constructed but plain data), keys are strings and unique, and size, depth and
the number of values after the expansion of aliases are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from raytuner.definition.messages import Path, Place, dotted, show
from raytuner.errors import DefinitionError, Problem

__all__ = ["FLOAT", "INT", "MAX_BYTES", "Document", "parse_scalar", "read_yaml"]

MAX_BYTES = 1_000_000
"""The largest file that is read, in bytes."""
_MAX_DEPTH = 40
_MAX_VALUES = 50_000
INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
"""Plain scalars that are whole numbers, by the core schema of YAML 1.2."""
FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
"""Plain scalars that are other numbers."""


@dataclass
class Document:
    """What a file holds, and where each key of it was written."""

    data: Any
    source: str = ""
    """The file's name for messages; empty for text that came from no file."""
    places: dict[str, Place] = field(default_factory=dict)
    """Where each key path (``space.lr.values[0]``) was written; the empty path is the whole."""
    problems: list[Problem] = field(default_factory=list)
    spoilt: list[str] = field(default_factory=list)
    """Key paths whose values were refused already, so that nothing more is said about them."""

    def locate(self, problems: Iterable[Problem]) -> list[Problem]:
        """The document's own problems and these, each once, with its place, in the order of the file."""
        fresh = [problem for problem in problems if not any(_within(problem.where, path) for path in self.spoilt)]
        placed = [
            replace(problem, file=place.file, line=place.line)
            for problem in fresh
            for place in [self._place(problem.where)]
        ]
        return sorted(dict.fromkeys([*self.problems, *placed]), key=lambda each: (each.line == 0, each.line))

    def _place(self, where: str) -> Place:
        """Where a key path was written, or the nearest one above it that was."""
        while where and where not in self.places:
            where = re.sub(r"(^|\.)[^.\[]*$|\[[^\[]*$", "", where)
        return self.places.get(where, Place(self.source, 1))

    def blame(self, problems: Iterable[Problem], before: Iterable[Problem]) -> list[Problem]:
        """Gives located problems that the file did not have before its overrides to these overrides.

        Such as ``log needs low > 0``, told of a parameter that stands in the file, after ``--set space.lr.low=0``.
        """
        known = {(problem.where, problem.rule, problem.got) for problem in before}
        overrides = {where: place.file for where, place in self.places.items() if place.line == 0}
        blamed = []
        for problem in problems:
            if problem.line and (problem.where, problem.rule, problem.got) not in known:
                below = [text for where, text in overrides.items() if _within(where, problem.where)]
                problem = replace(problem, file=" ".join(below or overrides.values()), line=0)
            blamed.append(problem)
        return blamed

    def override(self, path: Path, value: Any, place: Place) -> None:
        """Replaces the value at a key path of mappings and lists that exist above it."""
        here = self.data
        for part in path[:-1]:
            here = here[part]
        here[path[-1]] = value
        where = dotted(path)
        for known in [known for known in self.places if _within(known, where)]:
            del self.places[known]
        self.places[where] = place


def _within(where: str, path: str) -> bool:
    return where == path or not path or where.startswith((f"{path}.", f"{path}["))


class _Loader(yaml.SafeLoader):
    """Composes nodes only; notes which of them carry an explicit tag, and bounds the depth."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (as the base has it)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.tags: dict[int, str] = {}
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs have no types here
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"values are nested deeper than {_MAX_DEPTH}", problem_mark=event.start_mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        tag = getattr(event, "tag", None)
        if tag is not None and node is not None:
            self.tags[id(node)] = tag
        return node


_SPECIAL: dict[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def parse_scalar(text: str) -> Any:
    """A plain (unquoted) scalar by the core schema of YAML 1.2. Raises ValueError for an integer of absurd length."""
    if text in _SPECIAL:
        return _SPECIAL[text]
    if INT.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def read_yaml(text: str, source: str = "") -> Document:
    """Reads one YAML document. Raises DefinitionError when it cannot be read at all; what can be read around (a key
    written twice, a tag) is left in ``problems``, so that the rest of the file is checked too.
    """
    if len(text) > MAX_BYTES:
        rule = f"a definition has at most {MAX_BYTES} bytes"
        raise DefinitionError(Problem("", rule, f"{len(text)}", "keep data in files of its own", source, 1))
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise DefinitionError(_syntax_problem(error, text, source)) from None
    document = Document(None, source)
    if node is None:
        return document
    reader = _Reader(document, loader.tags)
    try:
        document.data = reader.read(node, ())
    except _TooMany:
        rule = f"a definition has at most {_MAX_VALUES} values, those repeated by aliases counted"
        raise DefinitionError(Problem("", rule, remedy="write fewer values or aliases", file=source, line=1)) from None
    return document


class _TooMany(Exception):
    pass


class _Reader:
    """Turns nodes into plain data and fills the document's places and problems."""

    def __init__(self, document: Document, tags: dict[int, str]) -> None:
        self.document = document
        self.tags = tags
        self.open: set[int] = set()
        self.count = 0

    def read(self, node: yaml.Node, path: Path) -> Any:
        self.count += 1
        if self.count > _MAX_VALUES:
            raise _TooMany
        self.document.places.setdefault(dotted(path), Place(self.document.source, node.start_mark.line + 1))
        if id(node) in self.tags:
            tag = self.tags[id(node)].replace("tag:yaml.org,2002:", "!!")
            self._refuse(path, "YAML tags are not allowed", tag, "write the plain value", node)
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self.open:
            self._refuse(path, "an alias cannot stand inside what it repeats", "", "write the value out", node)
            return None
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.read(child, (*path, index)) for index, child in enumerate(node.value)]
            return dict(self._entries(node, path))
        finally:
            self.open.discard(id(node))

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        if node.style is not None:
            return node.value
        try:
            return parse_scalar(node.value)
        except ValueError:
            self._refuse(path, "a number has at most 4300 digits", show(node.value), "use a smaller one", node)
            return None

    def _entries(self, node: yaml.Node, path: Path) -> Iterator[tuple[str, Any]]:
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self._scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if key == "<<" and key_node.style is None:
                rule, remedy = "merge keys are not supported", "write the keys out"
                self._refuse(path, rule, "<<", remedy, key_node, spoil=True)
            elif slip := _missing_space(key_node, value_node):
                rule = "a space is needed after a colon"
                self._refuse(path, rule, repr(key_node.value), f"write {slip}", key_node, spoil=True)
            elif not isinstance(key, str) or id(key_node) in self.tags:
                text = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                remedy = f'quote it: "{text}"' if isinstance(key_node, yaml.ScalarNode) else "use a string"
                self._refuse(path, "a key must be a string", text, remedy, key_node, spoil=False)
            elif key in first_lines:
                rule = f"each key may be written once (first on line {first_lines[key]})"
                self._refuse((*path, key), rule, f"{key!r} again", "remove one", key_node, spoil=False)
            else:
                first_lines[key] = line
                # The key's line, not the value's: it is where a person looks for it.
                self.document.places.setdefault(dotted((*path, key)), Place(self.document.source, line))
                yield key, self.read(value_node, (*path, key))

    def _refuse(self, path: Path, rule: str, got: str, remedy: str, node: yaml.Node, *, spoil: bool = True) -> None:
        place = Place(self.document.source, node.start_mark.line + 1)
        self.document.problems.append(Problem(dotted(path), rule, got, remedy, place.file, place.line))
        if spoil:
            self.document.spoilt.append(dotted(path))


def _missing_space(key: yaml.Node, value: yaml.Node) -> str:
    """What was meant by ``{type:asha}``, which is the key ``type:asha`` without a value; empty when it is not that."""
    plain = all(isinstance(node, yaml.ScalarNode) and node.style is None for node in (key, value))
    match = re.fullmatch(r"([A-Za-z_]\w*):(\S.*)", key.value) if plain and value.value == "" else None
    return f"{match[1]}: {match[2]}" if match else ""


def _syntax_problem(error: yaml.YAMLError, text: str, source: str) -> Problem:
    """PyYAML's words, with the line, and a remedy for the commonest slips."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return Problem(
            "", "the text holds a control character", f"U+{int(error.character):04X}", "remove it", source, line
        )
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or str(error)
    remedy = "check the indentation, colons and brackets here and just above"
    if "\\t" in what:
        remedy = "indent with spaces, not tabs"
    elif "mapping values are not allowed" in what:
        remedy = 'check the indentation, or quote a text that holds ": "'
    elif "nested deeper" in what:
        remedy = "write it flatter"
    elif "but found another document" in what:
        what, remedy = "there is more than one document (---)", "keep one document a file"
    line = mark.line + 1 if mark else 1
    return Problem("", f"the file must be valid YAML ({what})", "", remedy, source, line)
