"""What may vary: the three kinds of parameter, as a person writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from raytuner.errors import Problem
from raytuner.space.axes import Axis, Continuous, Lattice, Levels, level_key
from raytuner.space.priors import Confidence

__all__ = [
    "Choice",
    "ChoicePrior",
    "Condition",
    "Float",
    "FloatPrior",
    "Int",
    "IntPrior",
    "Parameter",
    "Scalar",
    "Value",
    "broken_rule",
]

LARGEST = 2**53
"""Whole numbers beyond this have no exact float, and hence no exact place in [0, 1]."""

Scalar = str | int | float | bool | None
Value = Scalar | list[Scalar]
Condition = str | dict[str, Value | list[Value]]
"""``{parent: value}`` or ``{parent: [value, value]}`` (all parents must agree), or an expression (``depth > 2``)."""

Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True, ge=-LARGEST, le=LARGEST)]


def broken_rule(rule: str, got: str = "", remedy: str = "") -> PydanticCustomError:
    """An error for validators to raise; ``ctx`` of the resulting error holds rule, got and remedy apart."""
    text = rule + (f", got {got}" if got else "") + (f"; {remedy}" if remedy else "")
    return PydanticCustomError("broken_rule", "{text}", {"text": text, "rule": rule, "got": got, "remedy": remedy})


def _type_is_required(schema: dict[str, Any]) -> None:
    # In Python the class says it; in a file nothing else does.
    schema["required"] = ["type", *(name for name in schema.get("required", []) if name != "type")]


class _Prior(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    confidence: Confidence = "medium"
    """How sure that is: the more, the more of the search is near the value."""


class FloatPrior(_Prior):
    """A value that the best one is believed to be near, and how surely."""

    value: Finite
    """The value."""


class IntPrior(_Prior):
    """A value that the best one is believed to be near, and how surely."""

    value: Whole
    """The value."""


class ChoicePrior(_Prior):
    """A value that is believed to be the best one, and how surely."""

    value: Value
    """The value."""


def _expand_value(prior: Any) -> Any:
    """``3`` is short for ``{value: 3}``; ``null`` is no prior."""
    return prior if prior is None or isinstance(prior, Mapping | _Prior) else {"value": prior}


FloatBelief = Annotated[
    FloatPrior | None, BeforeValidator(_expand_value, json_schema_input_type=Finite | FloatPrior | None)
]
IntBelief = Annotated[IntPrior | None, BeforeValidator(_expand_value, json_schema_input_type=Whole | IntPrior | None)]
ChoiceBelief = Annotated[
    ChoicePrior | None, BeforeValidator(_expand_value, json_schema_input_type=Value | ChoicePrior | None)
]


class _Parameter(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, json_schema_extra=_type_is_required
    )

    when: Condition | None = Field(None)
    """When the parameter exists: ``{optimizer: sgd}``, ``{optimizer: [sgd, adam]}``, ``depth > 2``. Default: always."""

    @field_validator("when")
    @classmethod
    def _says_something(cls, when: Condition | None) -> Condition | None:
        if when is not None and not when:
            raise broken_rule("a condition must name a parent", repr(when), "leave 'when' out, or name one")
        return when

    @cached_property
    def axis(self) -> Axis:
        """The parameter's values on [0, 1]."""
        raise NotImplementedError

    def problem(self, value: Any, where: str = "") -> Problem | None:
        """What is wrong with a value of this parameter; None when nothing is."""
        raise NotImplementedError

    def _check_prior(self, prior: FloatPrior | IntPrior | ChoicePrior | None) -> None:
        if prior is None:
            return
        # The axis has a place for the prior only if this value is a good one.
        problem = self.model_copy(update={"prior": None}).problem(prior.value)
        if problem is not None:
            raise broken_rule(f"prior {problem.rule}", problem.got, problem.remedy)


class _Number(_Parameter):
    def _check_bounds(self, low: float, high: float, step: float | None, log: bool) -> None:
        if not low < high:
            remedy = "swap the bounds" if low > high else "use a choice with one value"
            raise broken_rule("low < high must hold", f"low={low!r}, high={high!r}", remedy)
        if log and low <= 0:
            raise broken_rule("log needs low > 0", f"low={low!r}", "raise low, or leave log out")
        if not math.isfinite(high - low):
            raise broken_rule("high - low must be finite", f"low={low!r}, high={high!r}", "narrow the bounds")
        if step is None:
            return
        if step > high - low:
            raise broken_rule("step must fit between low and high", f"step={step!r}", f"use at most {high - low!r}")
        lattice = Lattice.of(low, high, step, log=log)
        if lattice.count > LARGEST:
            raise broken_rule("a step must be wide enough to count", f"step={step!r}", "leave step out")
        if abs(lattice.last - high) > 1e-9 * step:
            raise broken_rule(
                "high must be low plus a whole number of steps",
                f"low={low!r}, high={high!r}, step={step!r}",
                f"use high: {lattice.last!r} or high: {lattice.value(lattice.count)!r}",
            )


class Float(_Number):
    """A real number from ``low`` to ``high``, both included."""

    type: Literal["float"] = "float"
    """The kind of parameter."""
    low: Finite
    """The least value."""
    high: Finite
    """The greatest value, above ``low``."""
    log: bool = Field(False, strict=True)
    """Whether to search evenly in the logarithm; needs ``low`` above 0."""
    step: Finite | None = Field(None, gt=0)
    """Values are ``low``, ``low + step``, ... up to ``high``; any number between, if left out."""
    prior: FloatBelief = None
    """A value that the best one is believed to be near: ``3e-4``, or ``{value: 3e-4, confidence: high}``."""

    @model_validator(mode="after")
    def _consistent(self) -> Float:
        self._check_bounds(self.low, self.high, self.step, self.log)
        self._check_prior(self.prior)
        return self

    @cached_property
    def axis(self) -> Continuous | Lattice:
        axis: Continuous | Lattice = Continuous(self.low, self.high, self.log)
        if self.step is not None:
            axis = Lattice.of(self.low, self.high, self.step, log=self.log)
        return axis if self.prior is None else axis.favouring(self.prior.value, self.prior.confidence)

    def problem(self, value: Any, where: str = "") -> Problem | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return Problem(where, "must be a number", repr(value), _between(self.low, self.high))
        return _outside(self.low, self.high, self.axis, value, where)


class Int(_Number):
    """A whole number from ``low`` to ``high``, both included."""

    type: Literal["int"] = "int"
    """The kind of parameter."""
    low: Whole
    """The least value."""
    high: Whole
    """The greatest value, above ``low``."""
    log: bool = Field(False, strict=True)
    """Whether to search evenly in the logarithm; needs ``low`` above 0."""
    step: Whole | None = Field(None, gt=0)
    """Values are ``low``, ``low + step``, ... up to ``high``; every whole number, if left out."""
    prior: IntBelief = None
    """A value that the best one is believed to be near: ``4``, or ``{value: 4, confidence: high}``."""

    @model_validator(mode="after")
    def _consistent(self) -> Int:
        self._check_bounds(self.low, self.high, self.step, self.log)
        self._check_prior(self.prior)
        return self

    @cached_property
    def axis(self) -> Lattice:
        axis = Lattice.of(self.low, self.high, self.step or 1, log=self.log)
        return axis if self.prior is None else axis.favouring(self.prior.value, self.prior.confidence)

    def problem(self, value: Any, where: str = "") -> Problem | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return Problem(where, "must be a whole number", repr(value), _between(self.low, self.high))
        return _outside(self.low, self.high, self.axis, value, where)


class Choice(_Parameter):
    """One of the listed values."""

    type: Literal["choice"] = "choice"
    """The kind of parameter."""
    values: tuple[Value, ...] = Field(min_length=1)
    """The values: texts, numbers, true, false, null, or lists of these. A configuration holds the value itself."""
    ordered: bool = Field(False, strict=True)
    """Whether the values stand in an order in which neighbours behave alike, as in ``[32, 64, 128]``."""
    prior: ChoiceBelief = None
    """The value that is believed to be the best: ``adam``, or ``{value: adam, confidence: high}``."""

    @field_validator("values", mode="before")
    @classmethod
    def _plain_and_distinct(cls, values: Any) -> Any:
        if not isinstance(values, list | tuple):
            raise broken_rule("values must be a list", repr(values), "write [a, b, c]")
        seen = set()
        for value in values:
            if not _is_value(value):
                raise broken_rule(
                    "a choice's value must be a text, a finite number, true, false, null, or a list of these",
                    repr(value),
                    "name it by a text, and look it up in the code",
                )
            key = level_key(value)
            if key in seen:
                raise broken_rule("values must differ", f"{value!r} twice", "keep one of them")
            seen.add(key)
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Choice:
        self._check_prior(self.prior)
        return self

    @cached_property
    def axis(self) -> Levels:
        axis = Levels(self.values)
        if self.prior is None:
            return axis
        return axis.favouring(self.prior.value, self.prior.confidence, ordered=self.ordered)

    def problem(self, value: Any, where: str = "") -> Problem | None:
        if _is_value(value) and self.axis.index(value) is not None:
            return None
        shown = ", ".join(repr(known) for known in self.values[:10]) + (", ..." if len(self.values) > 10 else "")
        return Problem(where, "must be one of the choice's values", repr(value), f"use one of {shown}")


Parameter = Annotated[Float | Int | Choice, Field(discriminator="type")]
"""Any of the three kinds, told apart by ``type``."""


def _is_value(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(not isinstance(item, list | tuple) and _is_value(item) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int)


def _between(low: float, high: float) -> str:
    return f"use one from {low!r} to {high!r}"


def _outside(low: float, high: float, axis: Axis, value: float, where: str) -> Problem | None:
    top = max(high, axis.last) if isinstance(axis, Lattice) else high  # a bound may miss its step by rounding
    if not low <= value <= top:
        return Problem(where, f"must be from {low!r} to {high!r}", repr(value), _between(low, high))
    if isinstance(axis, Lattice):
        nearest = axis.value(axis.index(value))
        if abs(nearest - value) > 1e-9 * float(axis.step):
            return Problem(where, f"must be on a step of {axis.step}", repr(value), f"use {nearest!r}")
    return None
