"""How much of a resource: a number, or an expression over the parameters that gives one for each configuration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from raytuner.errors import SpaceError
from raytuner.space import Expression, broken_rule

__all__ = ["AMOUNT_RULES", "AUTO", "CpuAmount", "GpuAmount", "WorkerCount"]

AUTO = "auto"
"""For ``gpu``: as little of a GPU as trials are seen to need."""

Rule = Callable[[Any], tuple[str, str] | None]
"""What is wrong with a value, as a rule and a remedy; None when nothing is."""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _cpu(value: Any) -> tuple[str, str] | None:
    right = _is_number(value) and value > 0
    return None if right else ("a number above 0 is needed", "write 1, or 0.5 for half a core")


def _gpu(value: Any) -> tuple[str, str] | None:
    if not _is_number(value) or value < 0:
        return "a number of at least 0 is needed", "write 0, 0.25 to share a GPU, 1, or auto"
    if value > 1 and value != int(value):
        return "above 1, a number of GPUs must be whole", f"use {int(value)} or {int(value) + 1}"
    return None


def _workers(value: Any) -> tuple[str, str] | None:
    right = _is_number(value) and value == int(value) and value >= 1
    return None if right else ("a whole number of at least 1 is needed", "write 1, or 4 for a trial of four processes")


AMOUNT_RULES: dict[str, Rule] = {"cpu": _cpu, "gpu": _gpu, "workers": _workers}
"""The rule of each field of ``resources`` that may be an expression."""


def _amount(name: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if isinstance(value, str):
            if name == "gpu" and value == AUTO:
                return value
            try:
                Expression(value)
            except SpaceError as error:
                problem = error.problems[0]
                raise broken_rule(problem.rule, remedy=problem.remedy) from None
            return value
        wrong = AMOUNT_RULES[name](value)
        if wrong is not None:
            raise broken_rule(wrong[0], remedy=wrong[1])
        return int(value) if name == "workers" else float(value)

    return check


_Text = Annotated[str, Field(min_length=1, examples=["1 if width <= 512 else 2"])]

CpuAmount = Annotated[
    float | str, BeforeValidator(_amount("cpu"), json_schema_input_type=Annotated[float, Field(gt=0)] | _Text)
]
GpuAmount = Annotated[
    float | str, BeforeValidator(_amount("gpu"), json_schema_input_type=Annotated[float, Field(ge=0)] | _Text)
]
WorkerCount = Annotated[
    int | str, BeforeValidator(_amount("workers"), json_schema_input_type=Annotated[int, Field(ge=1)] | _Text)
]
