"""Experiment files: reading with every problem at once, and writing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from raytuner.definition.code import CODE_PATTERN, CodeInfo, find_code
from raytuner.definition.code import import_root as import_root_of
from raytuner.definition.document import FLOAT, INT, MAX_BYTES, Document, read_yaml
from raytuner.definition.experiment import Experiment, check
from raytuner.definition.overrides import apply_overrides
from raytuner.errors import DefinitionError, Problem

__all__ = ["find_experiment_code", "load", "to_plain", "to_yaml"]


def load(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    import_root: Path | None = None,
    *,
    text: str | None = None,
) -> Experiment:
    """The experiment of a file, with ``key.path=value`` overrides put in.

    The code that it names is looked for below ``import_root`` (by default the root of the file), but not
    imported. text: what the file would say, where it is not to be read. Raises DefinitionError with everything that
    is wrong.
    """
    file = Path(path)
    text = _read_text(file) if text is None else text
    root = import_root or import_root_of(file)
    document = read_yaml(text, str(path))
    if overrides and isinstance(document.data, dict):
        apply_overrides(document, overrides)
    experiment, problems = _check_all(document, file, root)
    if problems and overrides:
        before = read_yaml(text, str(path))
        problems = document.blame(problems, _check_all(before, file, root)[1])
    if problems or experiment is None:
        raise DefinitionError(problems)
    return experiment


def read_config(file: Path) -> dict[str, Any]:
    """The configuration in a YAML file, unchecked. Raises DefinitionError where it is no mapping."""
    document = read_yaml(_read_text(file), str(file))
    if document.problems:
        raise DefinitionError(document.problems)
    if not isinstance(document.data, dict):
        rule, remedy = "a configuration is a mapping", "write a line name: value for each parameter"
        raise DefinitionError(Problem("", rule, type(document.data).__name__, remedy, str(file)))
    return dict(document.data)


def find_experiment_code(experiment: Experiment, root: Path) -> dict[str, CodeInfo]:
    """What is known of the code that an experiment names, by key path: train, test, and components out of tree."""
    named = {
        "train": experiment.train,
        "test": experiment.test,
        "search.type": getattr(experiment.search, "type", None),
        "scheduler.type": getattr(experiment.scheduler, "type", None),
    }
    return _find(named, root, None)


def to_yaml(experiment: Experiment) -> str:
    """The experiment with all its values, those left out included; ``Experiment.from_yaml`` gives back an equal one."""
    text: str = yaml.dump(to_plain(experiment), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def to_plain(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON-able data, with all its values; ``Experiment(**data)`` gives back an equal one."""
    plain: dict[str, Any] = _plain(experiment)
    return plain


def _read_text(file: Path) -> str:
    def refuse(rule: str, got: str, remedy: str, line: int = 0) -> DefinitionError:
        return DefinitionError(Problem("", rule, got, remedy, str(file), line))

    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise refuse("the file must exist", "nothing there", f"check the path; the folder is {Path.cwd()}") from None
    except OSError as error:
        raise refuse("the file must be readable", str(error.strerror), "name a YAML file") from None
    if len(data) > MAX_BYTES:
        got, remedy = f"more than {MAX_BYTES} bytes", "keep data in files of its own"
        raise refuse("a definition must be small", got, remedy)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        got, line = f"byte 0x{data[error.start]:02x}", data.count(b"\n", 0, error.start) + 1
        raise refuse("the file must be UTF-8 text", got, "save it as UTF-8", line) from None


def _check_all(document: Document, file: Path, root: Path) -> tuple[Experiment | None, list[Problem]]:
    """The experiment if there is one, and every problem with its place, also those of the code."""
    experiment, problems = check(document)
    if isinstance(document.data, dict):
        problems += _code_problems(document.data, file, root)
    return experiment, document.locate(problems)


def _code_problems(data: Mapping[str, Any], file: Path, root: Path) -> list[Problem]:
    def type_of(section: object) -> object:
        return section.get("type") if isinstance(section, Mapping) else section

    named = {
        "train": data.get("train"),
        "test": data.get("test"),
        "search.type": type_of(data.get("search")),
        "scheduler.type": type_of(data.get("scheduler")),
    }
    found = _find(named, root, file.parent)
    return [problem for info in found.values() for problem in info.problems]


def _find(named: Mapping[str, object], root: Path, folder: Path | None) -> dict[str, CodeInfo]:
    """Looks for what has the form of code; what has not is a problem of the field, or a component of ours."""
    return {
        where: find_code(target, root, where, folder)
        for where, target in named.items()
        if isinstance(target, str) and CODE_PATTERN.fullmatch(target)
    }


def _plain(value: Any) -> Any:
    """Models as mappings, tuples as lists; what is left out and means nothing stays left out."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        plain = {name: _plain(getattr(value, name)) for name in fields}
        left_out = {name for name, each in plain.items() if each is None and fields[name].default is None}
        plain = {name: each for name, each in plain.items() if name not in left_out}
        if isinstance(value, Experiment) and value.tracking is None:
            plain["tracking"] = "none"
        return plain | {name: _plain(each) for name, each in (value.model_extra or {}).items()}
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or 1.2 would take for something else than text; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_list(self, data: Any) -> yaml.SequenceNode:
        """Plain lists on one line, ``[32, 64, 128]``."""
        flow = not any(isinstance(each, (list, dict)) for each in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)


_Dumper.add_representer(list, _Dumper.represent_list)
for _tag, _pattern in (("int", INT), ("float", FLOAT)):
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, None)
