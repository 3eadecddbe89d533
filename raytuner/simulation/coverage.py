"""Whether a table can answer for an experiment's space."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from raytuner.space import Choice, Float, Int, Space

__all__ = ["uncovered"]

COUNTABLE = 10_000
"""Values of a parameter up to which each is looked at. More are those of a step, of which three say it all."""
INSIDE = 0.6180339887
"""A place between the ends of a range that lies on no step."""
LOOKS = 200
"""Configurations that are looked at for what hangs on several parameters: conditions, and the table's constraints."""


def uncovered(table: Space, own: Space) -> str:
    """What a table's space lacks of an experiment's own, in words; empty when it has all of it."""
    for name, parameter in own.parameters.items():
        if name not in table.parameters:
            return f"it has no {name}"
        for value in _values(parameter):
            problem = table.parameters[name].problem(value, name)
            if problem is not None:
                return f"{problem.where} {problem.rule}, got {problem.got}"
    rng = np.random.default_rng(0)
    for _ in range(LOOKS):
        for problem in table.problems(own.sample(rng)):
            return f"{problem.where} {problem.rule}, got {problem.got}"
    return ""


def _values(parameter: Float | Int | Choice) -> Iterator[Any]:
    """Values of which the others are right when these are."""
    axis: Any = parameter.axis
    if axis.size is not None:
        yield from map(axis.value, range(axis.size) if axis.size <= COUNTABLE else (0, 1, axis.size - 1))
    elif isinstance(parameter, Float):
        yield from (parameter.low, parameter.high, parameter.low + INSIDE * (parameter.high - parameter.low))
