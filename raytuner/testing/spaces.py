"""Spaces to try a search on: two fixed ones, and any."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from raytuner.space import Choice, Float, Int, Space

__all__ = ["MIXED", "SMALL", "spaces"]

MIXED = Space(
    {
        "lr": Float(low=1e-4, high=0.1, log=True, prior=1e-2),
        "dropout": Float(low=0, high=0.5, step=0.1),
        "depth": Int(low=1, high=4),
        "width": Int(low=32, high=512, step=32, log=True),
        "optimizer": Choice(values=["sgd", "adam", "lion"]),
        "momentum": Float(low=0, high=0.99, when={"optimizer": "sgd"}),
        "nesterov": Choice(values=[True, False], when="momentum > 0.5"),
        "batch": Choice(values=[32, 64, 128], ordered=True, prior={"value": 128, "confidence": "high"}),
        "layers": Choice(values=[[64, 64], [128]]),
        "constant": Choice(values=["only"]),
    },
    ["width * depth <= 1024", "dropout < 0.3 or depth > 1"],
)
"""All that a space can have: logarithms, steps, orders, lists, a constant, priors, nested conditions, constraints."""
SMALL = Space(
    {"a": Int(low=1, high=3), "b": Choice(values=["x", "y"]), "c": Int(low=1, high=2, when={"b": "y"})},
    ["not (a == 3 and b == 'x')"],
)
"""Eight configurations."""

Parameter = Float | Int | Choice


@st.composite
def spaces(
    draw: st.DrawFn,
    unordered: bool = True,
    conditions: bool = True,
    priors: bool = True,
    least: int = 1,
    most: int = 5,
) -> Space:
    """Any space of ``least`` to ``most`` parameters, with something left within its constraints.

    unordered, conditions, priors: whether it may have choices without an order, parameters that exist at times, and
    parameters with a prior.
    """
    parameters: dict[str, Parameter] = {}
    for index in range(draw(st.integers(least, most))):
        when = draw(_condition(parameters)) if conditions and parameters and draw(st.booleans()) else None
        plain = draw(_parameter(unordered, when))
        parameters[f"p{index}"] = draw(_believed(plain)) if priors and draw(st.booleans()) else plain
    limits = draw(st.lists(_constraint(parameters), max_size=2))
    space = Space(parameters, [limit for limit in limits if limit is not None])
    assume(space.satisfiable(np.random.default_rng(0), 100))
    return space


@st.composite
def _parameter(draw: st.DrawFn, unordered: bool, when: Any) -> Parameter:
    kind = draw(st.sampled_from(["float", "steps", "int", "choice"]))
    log = draw(st.booleans())
    low = draw(st.integers(1, 5) if log else st.integers(-5, 5))
    if kind == "float":
        width = draw(st.floats(0.001, 1e4))
        return Float(low=low * 0.001, high=low * 0.001 + width, log=log, when=when)
    if kind == "steps":
        count = draw(st.integers(1, 20))
        return Float(low=low / 2, high=low / 2 + count * 0.5, step=0.5, log=log, when=when)
    if kind == "int":
        step = draw(st.sampled_from([None, 1, 3]))
        return Int(low=low, high=low + (step or 1) * draw(st.integers(1, 40)), step=step, log=log, when=when)
    values = draw(st.sampled_from([["only"], [True, False], [1, 2.5, None], ["a", [1, 2], "c"], [8, 16, 32, 64]]))
    return Choice(values=values, ordered=not unordered or draw(st.booleans()), when=when)


@st.composite
def _believed(draw: st.DrawFn, plain: Parameter) -> Parameter:
    """The parameter with a prior at any of its values."""
    value = plain.axis.from_unit(draw(st.floats(0, 1)))
    prior = {"value": value, "confidence": draw(st.sampled_from(["low", "medium", "high"]))}
    return type(plain).model_validate(plain.model_dump() | {"prior": prior})


@st.composite
def _condition(draw: st.DrawFn, parameters: dict[str, Parameter]) -> Any:
    """A condition on an earlier parameter, which may be conditional itself."""
    name = draw(st.sampled_from(sorted(parameters)))
    parent = parameters[name]
    if isinstance(parent, Choice):
        return {name: draw(st.sampled_from(parent.values))}
    return f"{name} > {_middle(parent)}" if draw(st.booleans()) else f"{name} <= {_middle(parent)}"


@st.composite
def _constraint(draw: st.DrawFn, parameters: dict[str, Parameter]) -> str | None:
    """A constraint that halves what one parameter may be, or what two may be together; None without numbers."""
    numbers = sorted(name for name, one in parameters.items() if not isinstance(one, Choice))
    if not numbers:
        return None
    one, two = draw(st.sampled_from(numbers)), draw(st.sampled_from(numbers))
    return f"{one} + {two} <= {_middle(parameters[one]) + _middle(parameters[two])}"


def _middle(parameter: Parameter) -> float:
    assert not isinstance(parameter, Choice)
    return (float(parameter.low) + float(parameter.high)) / 2
