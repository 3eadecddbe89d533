"""A space: parameters, the conditions under which they exist, and constraints on their values."""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raytuner.errors import Problem, SpaceError
from raytuner.space.conditions import Rule, condition_rule, nearest, ordered_names, type_problems, unknown_name
from raytuner.space.counting import count
from raytuner.space.expression import Expression
from raytuner.space.parameters import Choice, Float, Int

__all__ = ["Config", "Space"]

Config = dict[str, Any]
"""A configuration: the active parameters and their values."""

TRIES = 1000
"""Draws after which ``sample`` gives up on the constraints."""
ENUMERABLE = 20_000
"""Configurations up to which a space is looked through completely when drawing finds nothing."""


class Space:
    """What may vary, and within which limits. Immutable.

    A parameter is *active* in a configuration when its condition holds and all the parents that the condition names are
    active. A configuration holds its active parameters and no others. A constraint applies where all its parameters
    are active; one that cannot be computed (a division by zero) counts as violated.

    Raises SpaceError, with every problem found: names that are no identifiers, conditions on what is not there or in a
    circle, expressions that are none.
    """

    def __init__(self, parameters: Mapping[str, Float | Int | Choice], constraints: Sequence[str] = ()) -> None:
        self._parameters = dict(parameters)
        self._constraints = tuple(constraints)
        self._conditions, self._rules = _compile(self._parameters, self._constraints)
        parents = {name: rule.names if rule else () for name, rule in self._conditions.items()}
        self._names = ordered_names(parents)
        self._axes = {name: self._parameters[name].axis for name in self._names}
        place = {name: index for index, name in enumerate(self._names)}
        # The constraints that can be judged once the n-th parameter has its value.
        self._ready: dict[str, list[Rule]] = {name: [] for name in self._names}
        for rule in self._rules:
            self._ready[max(rule.names, key=lambda name: place[name])].append(rule)

    @property
    def parameters(self) -> Mapping[str, Float | Int | Choice]:
        """The parameters by name, as written."""
        return MappingProxyType(self._parameters)

    @property
    def constraints(self) -> tuple[str, ...]:
        """The constraints, as written."""
        return self._constraints

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters, parents before children, otherwise as written: the dimensions of ``to_unit``."""
        return self._names

    @property
    def parents(self) -> Mapping[str, tuple[str, ...]]:
        """For each parameter, those that its condition names."""
        return {name: rule.names if rule else () for name, rule in self._conditions.items()}

    def __repr__(self) -> str:
        return f"Space({self._parameters!r}, {list(self._constraints)!r})"

    def __reduce__(self) -> tuple[type[Space], tuple[Any, ...]]:
        return Space, (self._parameters, self._constraints)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Space):
            return NotImplemented
        return list(self._parameters.items()) == list(other._parameters.items()) and (
            self._constraints == other._constraints
        )

    __hash__ = None  # type: ignore[assignment]  # how Python wants it said

    def active(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """The parameters that exist given the values in ``config``, in the order of ``names``.

        Values of inactive parameters are ignored; a parent without a value counts as inactive.
        """
        active: dict[str, None] = {}
        for name in self._names:
            rule = self._conditions[name]
            if rule is None or (
                all(parent in active and parent in config for parent in rule.names) and rule.holds(config)
            ):
                active[name] = None
        return tuple(active)

    def problems(self, config: Mapping[str, Any]) -> list[Problem]:
        """Everything that is wrong with a configuration; empty when it lies in the space."""
        problems = [
            Problem(
                name,
                "must be a parameter of the space",
                f"{name}={config[name]!r}",
                nearest(name, self._names),
            )
            for name in config
            if name not in self._parameters
        ]
        doubtful: set[str] = set()
        active = set(self.active(config))
        for name in self._names:
            rule = self._conditions[name]
            if rule is not None and doubtful.intersection(rule.names):
                doubtful.add(name)  # whether it exists is not known before its parents are right
            elif name not in active:
                if name in config:
                    condition = f"exists only when {rule.text}" if rule else "is inactive"
                    problems.append(Problem(name, condition, repr(config[name]), "leave it out"))
            elif name not in config:
                doubtful.add(name)
                remedy = f"add {name}, such as {self._axes[name].from_unit(0.5)!r}"
                problems.append(Problem(name, "must be given", "nothing", remedy))
            else:
                problem = self._parameters[name].problem(config[name], name)
                if problem is not None:
                    doubtful.add(name)
                    problems.append(problem)
        for rule in self._rules:
            sound = active.intersection(config).difference(doubtful)
            if sound.issuperset(rule.names) and not rule.holds(config):
                got = ", ".join(f"{name}={config[name]!r}" for name in rule.names)
                problems.append(Problem("constraints", f"{rule.text} must hold", got, "change one of these"))
        return problems

    def satisfies(self, config: Mapping[str, Any]) -> bool:
        """Whether the constraints hold that apply to a configuration, which must otherwise be sound."""
        return all(rule.holds(config) for rule in self._rules if all(name in config for name in rule.names))

    def sample(self, rng: np.random.Generator) -> Config:
        """A configuration drawn from the prior, within the constraints.

        One call of ``rng.random(len(names))`` a try, and at most 1000 tries; then small spaces are looked through.
        Raises SpaceError when nothing is found.
        """
        for _ in range(TRIES):
            config = self.from_unit(rng.random(len(self._names)))
            if self.satisfies(config):
                return config
        if self.enumerable:
            configs = list(self.grid(1))
            if configs:
                return configs[int(rng.integers(len(configs)))]
        found = "no configuration fulfils them" if self.enumerable else f"none of {TRIES} draws fulfils them"
        raise SpaceError(
            Problem(
                "constraints",
                "must leave something to try",
                f"{found}: {list(self._constraints)}",
                "loosen them",
            )
        )

    def to_unit(self, config: Mapping[str, Any]) -> NDArray[np.float64]:
        """The place of a configuration in the unit cube: (len(names),) in [0, 1], nan for inactive parameters.

        Logarithmic parameters are laid out by their logarithm; choices, and numbers with steps, lie in the middle of
        their value's cell. Raises SpaceError for a configuration outside the space (constraints are not checked).
        """
        unit = np.full(len(self._names), np.nan)
        active = set(self.active(config))
        for index, name in enumerate(self._names):
            if name in active:
                problem = (
                    self._parameters[name].problem(config[name], name)
                    if name in config
                    else Problem(name, "must be given", "nothing", "add it")
                )
                if problem is not None:
                    raise SpaceError(problem)
                unit[index] = self._axes[name].to_unit(config[name])
        return unit

    def from_unit(self, unit: Sequence[float] | NDArray[np.float64]) -> Config:
        """The configuration at a place in the unit cube; the inverse of ``to_unit``. Does not look at constraints.

        unit: (len(names),), clipped to [0, 1]; values of inactive parameters are ignored. Raises SpaceError for nan
        where a parameter is active.
        """
        if len(unit) != len(self._names):
            raise SpaceError(
                Problem("unit", f"must have {len(self._names)} values", f"{len(unit)}", "give one per parameter")
            )
        config: Config = {}
        for name, u in zip(self._names, unit, strict=True):
            if self._exists(name, config):
                try:
                    config[name] = self._axes[name].from_unit(float(u))
                except ValueError:
                    raise SpaceError(Problem(f"unit.{name}", "must be a number where active", "nan")) from None
        return config

    @cached_property
    def size(self) -> int | None:
        """The number of distinct configurations, with conditions but without constraints.

        None when a parameter is continuous, or when the conditions are too many to count (100 000 values of parents).
        """
        if any(axis.size is None for axis in self._axes.values()):
            return None
        return self.grid_size(1)

    def grid_size(self, points: int) -> int | None:
        """The number of configurations that ``grid(points)`` gives without constraints; None when too many to count."""
        return count(self._names, self._axes, self._conditions, points)

    @property
    def enumerable(self) -> bool:
        """Whether all configurations can be looked through in about a second."""
        size = self.size
        return size is not None and size <= ENUMERABLE

    def grid(self, points: int) -> Iterator[Config]:
        """Every combination of values within conditions and constraints, no two alike; the last name varies fastest.

        points: values, from end to end, that a continuous parameter gets. Others get all their values.
        """
        if points < 1:
            raise SpaceError(Problem("points", "must be at least 1", repr(points), "use 5"))
        return self._grid({}, 0, points)

    def satisfiable(self, rng: np.random.Generator, tries: int = TRIES) -> bool | None:
        """Whether some configuration fulfils the constraints.

        True: one was found. False: for certain none does, since all were looked at. None: ``tries`` draws found none.
        """
        if any(self.satisfies(self.from_unit(rng.random(len(self._names)))) for _ in range(tries)):
            return True
        if not self.enumerable:
            return None
        return bool(list(islice(self.grid(1), 1)))

    def _exists(self, name: str, earlier: Mapping[str, Any]) -> bool:
        """Whether a parameter is active, given the active ones before it."""
        rule = self._conditions[name]
        return rule is None or (all(parent in earlier for parent in rule.names) and rule.holds(earlier))

    def _grid(self, config: Config, place: int, points: int) -> Iterator[Config]:
        if place == len(self._names):
            yield {name: list(value) if isinstance(value, list) else value for name, value in config.items()}
            return
        name = self._names[place]
        if not self._exists(name, config):
            yield from self._grid(config, place + 1, points)
            return
        for value in self._axes[name].grid(points):
            config[name] = value
            rules = (rule for rule in self._ready[name] if all(other in config for other in rule.names))
            if all(rule.holds(config) for rule in rules):
                yield from self._grid(config, place + 1, points)
        del config[name]


def _compile(
    parameters: Mapping[str, Float | Int | Choice], constraints: Sequence[str]
) -> tuple[dict[str, Rule | None], list[Rule]]:
    """Conditions by parameter, and constraints. Raises SpaceError with everything that is wrong with them."""
    problems: list[Problem] = []
    if not parameters:
        problems.append(Problem("space", "must have at least one parameter", "none", "add what may vary"))
    for name in parameters:
        if not (isinstance(name, str) and name.isascii() and name.isidentifier() and not keyword.iskeyword(name)):
            what = "a parameter's name must be letters, digits and _, not start with a digit, and be no Python keyword"
            problems.append(Problem(f"space.{name}", what, repr(name), "rename it, as in 'dropout_rate'"))
    conditions: dict[str, Rule | None] = {}
    for name in parameters:
        conditions[name], wrong = condition_rule(name, parameters)
        problems += wrong
    rules: list[Rule] = []
    for index, text in enumerate(constraints):
        rule, wrong = _constraint(f"constraints[{index}]", text, parameters)
        problems += wrong
        if rule is not None:
            rules.append(rule)
    if problems:
        raise SpaceError(problems)
    return conditions, rules


def _constraint(
    where: str, text: str, parameters: Mapping[str, Float | Int | Choice]
) -> tuple[Rule | None, list[Problem]]:
    try:
        expression = Expression(text)
    except SpaceError as error:
        return None, [Problem(where, problem.rule, problem.got, problem.remedy) for problem in error.problems]
    problems = [unknown_name(where, name, parameters) for name in sorted(expression.names - set(parameters))]
    if not expression.names:
        problems.append(Problem(where, "a constraint must name a parameter", repr(text), "name one, or leave it out"))
    return Rule.of(expression), problems or type_problems(where, expression, parameters)
