"""The sections whose options depend on a type: search, scheduler, and each parameter."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag

from raytuner.components import OutsideOptions
from raytuner.definition.code import CODE_PATTERN
from raytuner.schedulers import SCHEDULERS
from raytuner.search import SEARCHES
from raytuner.space import Choice, Float, Int, Parameter

__all__ = ["PARAMETERS", "Entry", "SchedulerOptions", "SearchOptions", "options_class"]

PARAMETERS: dict[str, type[Float | Int | Choice]] = {"float": Float, "int": Int, "choice": Choice}
_OTHER = "module:Class"


def options_class(registry: Mapping[str, Any], kind: object) -> type[BaseModel] | None:
    """The options of a component by its type name; None for an unknown one."""
    if isinstance(kind, str) and kind in registry:
        options: type[BaseModel] = registry[kind].Options
        return options
    return OutsideOptions if _is_outside(kind) else None


def _is_outside(kind: object) -> bool:
    """Whether a type names a class of somebody's module; files have no place here, since others must import it too."""
    match = CODE_PATTERN.fullmatch(kind) if isinstance(kind, str) else None
    return match is not None and not match["source"].endswith(".py") and "." not in match["name"]


def _kind(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    if kind is None:
        return None
    return _OTHER if _is_outside(kind) else str(kind)


def _expand_name(value: Any) -> Any:
    """``asha`` is short for ``{type: asha}``."""
    return {"type": value} if isinstance(value, str) else value


def _expand_list(value: Any) -> Any:
    """``[a, b]`` is short for ``{type: choice, values: [a, b]}``."""
    return {"type": "choice", "values": value} if isinstance(value, (list, tuple)) else value


def _options(registry: Mapping[str, Any]) -> Any:
    """The union of a registry's options, told apart by ``type``, with a bare name as the short form."""
    branches: list[Any] = [Annotated[component.Options, Tag(name)] for name, component in registry.items()]
    branches.append(Annotated[OutsideOptions, Tag(_OTHER)])
    union: Any = Annotated[reduce(or_, branches), Discriminator(_kind)]
    name = Annotated[
        str, Field(json_schema_extra={"anyOf": [{"enum": list(registry)}, {"pattern": r"^[\w.]+:[\w.]+$"}]})
    ]
    return Annotated[union, BeforeValidator(_expand_name, json_schema_input_type=union | name)]


if TYPE_CHECKING:
    SearchOptions = BaseModel
    SchedulerOptions = BaseModel
    Entry = Parameter
else:
    SearchOptions = _options(SEARCHES)
    SchedulerOptions = _options(SCHEDULERS)
    _values = Annotated[
        list[str | int | float | bool | list[str | int | float | bool | None] | None], Field(min_length=1)
    ]
    Entry = Annotated[Parameter, BeforeValidator(_expand_list, json_schema_input_type=Parameter | _values)]
