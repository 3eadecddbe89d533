"""When a parameter exists: ``when`` as a person wrote it, made ready to be asked."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import islice, product
from math import prod
from typing import Any

from raytuner.errors import Problem, SpaceError
from raytuner.space.axes import level_key
from raytuner.space.expression import Expression, ExpressionTypeError
from raytuner.space.parameters import Choice, Float, Int

__all__ = ["Rule", "condition_rule", "nearest", "ordered_names", "type_problems", "unknown_name"]

REPRESENTATIVES = 256
"""Combinations of types that an expression is tried on when the space is built."""
COMBINATIONS = 2000
"""Combinations of parents' values up to which it is checked that a condition can hold at all."""


@dataclass(frozen=True)
class Rule:
    """Something that parameters must fulfil: a condition or a constraint."""

    names: tuple[str, ...]
    """The parameters that it speaks of, sorted."""
    holds: Callable[[Mapping[str, Any]], bool]
    """Whether a configuration that has all of ``names`` fulfils it."""
    text: str
    """As written."""

    @classmethod
    def of(cls, expression: Expression) -> Rule:
        """An expression that cannot be computed for a configuration (a division by zero) does not hold for it."""

        def holds(config: Mapping[str, Any]) -> bool:
            try:
                return expression.holds(config)
            except SpaceError:
                return False

        return cls(tuple(sorted(expression.names)), holds, expression.text)

    @classmethod
    def equals(cls, wanted: Mapping[str, frozenset[Any]], text: str) -> Rule:
        """Every named parameter has one of the wanted values, given by their ``level_key``."""

        def holds(config: Mapping[str, Any]) -> bool:
            try:
                return all(level_key(config[name]) in keys for name, keys in wanted.items())
            except TypeError:  # no value that any parameter can have
                return False

        return cls(tuple(sorted(wanted)), holds, text)


def condition_rule(name: str, parameters: Mapping[str, Float | Int | Choice]) -> tuple[Rule | None, list[Problem]]:
    """The rule of a parameter's ``when``, and what is wrong with it."""
    when, where = parameters[name].when, f"space.{name}.when"
    if when is None:
        return None, []
    if isinstance(when, str):
        try:
            expression = Expression(when)
        except SpaceError as error:
            return None, [_at(where, problem) for problem in error.problems]
        problems = [unknown_name(where, parent, parameters) for parent in sorted(expression.names - set(parameters))]
        if not expression.names:
            problems.append(Problem(where, "a condition must name a parent", repr(when), "name one, or leave it out"))
        rule = Rule.of(expression)
        return rule, problems or type_problems(where, expression, parameters) or _never(where, rule, parameters)
    problems, wanted = [], {}
    for parent, value in when.items():
        if parent not in parameters:
            problems.append(unknown_name(where, parent, parameters))
            continue
        values = _alternatives(value, parameters[parent])
        problems += _impossible(f"{where}.{parent}", values, parameters[parent])
        wanted[parent] = frozenset(level_key(item) for item in values)
    text = " and ".join(f"{parent} is {value!r}" for parent, value in when.items())
    return Rule.equals(wanted, text), problems


def ordered_names(parents: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Parents before children, otherwise as written. Raises SpaceError for a cycle."""
    try:
        TopologicalSorter(parents).prepare()
    except CycleError as error:
        circle = list(reversed(error.args[1]))
        rule = "conditions must not go in a circle"
        raise SpaceError(Problem(f"space.{circle[0]}.when", rule, " -> ".join(circle), "break it")) from None
    names: dict[str, None] = {}

    def visit(name: str) -> None:
        for parent in parents[name]:
            if parent not in names:
                visit(parent)
        names[name] = None

    for name in parents:
        if name not in names:
            visit(name)
    return tuple(names)


def type_problems(where: str, expression: Expression, parameters: Mapping[str, Float | Int | Choice]) -> list[Problem]:
    """Whether an expression mixes types, tried with one value of every type that each parameter can have."""
    names = sorted(expression.names)
    for values in islice(product(*(_one_of_each_type(parameters[name]) for name in names)), REPRESENTATIVES):
        config = dict(zip(names, values, strict=True))
        try:
            expression.holds(config)
        except ExpressionTypeError as error:
            return [_at(where, problem) for problem in error.problems]
        except SpaceError:
            continue  # a matter of the values, such as a division by zero
    return []


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy that names the nearest known name."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


def _at(where: str, problem: Problem) -> Problem:
    return Problem(where, problem.rule, problem.got, problem.remedy)


def unknown_name(where: str, name: str, parameters: Mapping[str, Any]) -> Problem:
    """An expression or a condition speaks of what is not there."""
    return Problem(where, "must speak of parameters of this space", repr(name), nearest(name, parameters))


def _alternatives(value: Any, parent: Float | Int | Choice) -> list[Any]:
    """A list means any of its values, unless the parent has this very list as a value."""
    if isinstance(value, list) and parent.problem(value) is not None:
        return value
    return [value]


def _impossible(where: str, values: list[Any], parent: Float | Int | Choice) -> Iterator[Problem]:
    if isinstance(parent, Float) and parent.step is None:
        yield Problem(where, "a continuous parent is never exactly one value", repr(values), "write 'when: name > 0.5'")
        return
    if not values:
        yield Problem(where, "a condition must allow a value", "[]", "list at least one of the parent's values")
    for value in values:
        problem = parent.problem(value, where)
        if problem is not None:
            near = [known for known in getattr(parent, "values", ()) if isinstance(known, str)]
            close = difflib.get_close_matches(str(value), near, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else problem.remedy
            yield Problem(where, "must be a value that the parent can have", repr(value), remedy)


def _never(where: str, rule: Rule, parameters: Mapping[str, Float | Int | Choice]) -> list[Problem]:
    """Whether a condition fails for all values of its parents, as it does for a misspelt ``optimizer == "sdg"``."""
    axes = [parameters[name].axis for name in rule.names]
    if any(axis.size is None for axis in axes) or prod(axis.grid_size(1) for axis in axes) > COMBINATIONS:
        return []
    for values in product(*(axis.grid(1) for axis in axes)):
        if rule.holds(dict(zip(rule.names, values, strict=True))):
            return []
    remedy = "compare with values that the parents can have"
    return [Problem(where, "a condition must hold for some values of its parents", repr(rule.text), remedy)]


def _one_of_each_type(parameter: Float | Int | Choice) -> list[Any]:
    if not isinstance(parameter, Choice):
        return [parameter.high]
    return list({type(value): value for value in parameter.values}.values())
