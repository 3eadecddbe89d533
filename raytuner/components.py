"""Searches and schedulers by name: ours from a table, anybody's as ``package.module:Class``.

A component is a class with a pydantic model of its options, named ``Options``, on it. What an experiment file says
about a component (``{type: asha, grace_steps: 3}``) is its options; ``type`` says which class they belong to.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raytuner.errors import Problem, SearchError

__all__ = ["Options", "OutsideOptions", "resolve"]


class Options(BaseModel):
    """The base of all options: frozen, unknown keys refused, docstrings under fields in the JSON Schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class OutsideOptions(BaseModel):
    """The options of a component that comes with neither this package nor a schema; its class checks them later."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    type: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", max_length=500)
    """Where the component's class is: ``package.module:Class``."""


def resolve(
    options: BaseModel, table: Mapping[str, type[Any]], base: type[Any], *, where: str
) -> tuple[type[Any], BaseModel]:
    """The class that options belong to, and the options as this class wants them.

    Imports the module of a component that is not in the table. Raises SearchError when there is no such class, it
    does not derive from ``base``, lacks a method or its ``Options``, or these refuse what was given.

    where: the key in the experiment file, for messages.
    """
    name = str(getattr(options, "type", ""))
    found = table[name] if name in table else _load(name, table, where)
    own = _check(found, name, where, base)
    if name in table and isinstance(options, own):
        return found, options
    fields = options.model_dump()
    if "type" not in own.model_fields:
        fields.pop("type", None)
    try:
        return found, own.model_validate(fields)
    except ValidationError as error:
        lines = [
            str(
                Problem(
                    ".".join([where, *(str(part) for part in item["loc"])]),
                    item["msg"],
                    repr(item["input"]),
                    f"see the options of {name}",
                )
            )
            for item in error.errors()
        ]
        raise SearchError("\n".join(lines)) from None


def _load(name: str, table: Mapping[str, type[Any]], where: str) -> type[Any]:
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute.isidentifier()):
        remedy = f"use one of {', '.join(table)}, or 'package.module:Class'"
        raise SearchError(str(Problem(f"{where}.type", "must name a component", repr(name), remedy)))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        rule = f"must be importable ({error})"
        raise SearchError(str(Problem(f"{where}.type", rule, repr(name), "check the name and the path"))) from error
    if not isinstance(found, type):
        raise SearchError(str(Problem(f"{where}.type", "must be a class", repr(name), "name the class itself")))
    return found


def _check(found: type[Any], name: str, where: str, base: type[Any]) -> type[BaseModel]:
    """The options of a class that can be used as a component."""
    options = getattr(found, "Options", None)
    if not (isinstance(options, type) and issubclass(options, BaseModel)):
        remedy = f"give {found.__name__} a pydantic model named Options"
        raise SearchError(str(Problem(f"{where}.type", "must have its Options", repr(name), remedy)))
    if not issubclass(found, base):
        rule = f"must derive from raytuner.{base.__module__.split('.')[1]}.{base.__name__}"
        remedy = f"write class {found.__name__}({base.__name__})"
        raise SearchError(str(Problem(f"{where}.type", rule, repr(name), remedy)))
    missing = ", ".join(sorted(found.__abstractmethods__))
    if missing:
        raise SearchError(str(Problem(f"{where}.type", f"must have {missing}", repr(name), f"define {missing}")))
    return options
