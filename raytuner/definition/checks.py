"""Rules between the sections of a definition, on as much of it as is sound."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import BaseModel

from raytuner.definition.amounts import AMOUNT_RULES, AUTO
from raytuner.definition.intervals import never_holds
from raytuner.definition.messages import parse_problem
from raytuner.definition.sections import Budget, Checkpoints, Objective, Resources
from raytuner.errors import Problem, SearchError, SpaceError
from raytuner.schedulers import SCHEDULERS, PbtOptions
from raytuner.search import SEARCHES
from raytuner.space import Choice, Expression, Float, Int, Space, unknown_name

__all__ = ["Parts", "cross_problems"]

Parameters = Mapping[str, Float | Int | Choice]


@dataclass(frozen=True)
class Parts:
    """The sections of a definition that are right in themselves; None for one that is not."""

    space: Parameters | None
    constraints: Mapping[int, str]
    """The constraints by their place in the list."""
    defaults: Mapping[str, Any] | None
    objective: Objective | None
    search: BaseModel | None
    scheduler: BaseModel | None
    budget: Budget | None
    resources: Resources | None
    checkpoints: Checkpoints | None
    has_test: bool
    broken: frozenset[str] = field(default_factory=frozenset)
    """Parameters that are there, but wrong: nothing is said of what refers to them."""


def cross_problems(parts: Parts) -> list[Problem]:
    """What does not fit together, without places."""
    problems: list[Problem] = []
    if parts.space is not None:
        problems += _space_problems(parts, parts.space)
        problems += _resource_problems(parts.resources, parts.space, parts.broken)
    problems += _component_problems(parts)
    budget = parts.budget
    population = parts.scheduler.population if isinstance(parts.scheduler, PbtOptions) else None
    limits = (budget.trials, budget.time, budget.gpu_hours) if budget else ()
    unbounded = budget and limits == (None, None, None) and population is None
    # A scheduler that is wrong may have a population all the same.
    if parts.search and parts.scheduler and unbounded and not _ends(parts.search):
        rule, remedy = "a budget is needed, of trials, time or gpu_hours", "write budget: {trials: 50} or {time: 30m}"
        problems.append(Problem("budget", rule, "none", remedy))
    resources = parts.resources
    if budget and budget.gpu_hours is not None and resources and resources.gpu == 0:
        rule, remedy = "there must be GPUs to count the hours of", "set resources.gpu, or give trials or time instead"
        problems.append(Problem("budget.gpu_hours", rule, f"{budget.gpu_hours:g} with resources.gpu 0", remedy))
    if budget and population is not None and budget.trials not in (None, population):
        rule = f"with pbt, the trials are the population, which is {population}"
        remedy = f"leave it out, or set scheduler.population to {budget.trials}"
        problems.append(Problem("budget.trials", rule, f"{budget.trials}", remedy))
    objective, checkpoints = parts.objective, parts.checkpoints
    if parts.has_test and objective and checkpoints and objective.select == "best" and not checkpoints.best:
        rule, remedy = "test runs on the best checkpoint, which must be kept", "set checkpoints.best to true"
        problems.append(Problem("checkpoints.best", rule, "false", remedy))
    return problems


def _ends(options: BaseModel) -> bool:
    """Whether a search comes to an end without a budget."""
    search = SEARCHES.get(_type(options))
    return _type(options) == "grid" or (search is not None and search.most_proposals(options) is not None)


def _type(options: BaseModel) -> str:
    return str(getattr(options, "type", ""))


def _space_problems(parts: Parts, parameters: Parameters) -> list[Problem]:
    sound = _without(parameters, parts.broken)
    unsure = parts.broken.union(parameters) - set(sound)
    constraints = {place: text for place, text in parts.constraints.items() if not _names(text) & unsure}
    defaults = {name: value for name, value in (parts.defaults or {}).items() if name not in unsure}
    if not sound and unsure:
        return []
    try:
        space = Space(sound, tuple(constraints.values()))
    except SpaceError as error:
        places = list(constraints)
        problems = [_at_place(problem, places) for problem in error.problems]
        rest = _without_blamed(parts, problems)
        return problems + (_space_problems(rest, parameters) if rest != parts else [])
    problems = _unsatisfiable(space, constraints)
    if defaults:
        problems += [_default(problem) for problem in space.problems(defaults)]
    if not problems and not unsure and parts.search is not None:
        problems += _unsupported(parts.search, space)
    return problems


def _resource_problems(resources: Resources | None, parameters: Parameters, broken: frozenset[str]) -> list[Problem]:
    """Expressions must speak of parameters; what they come to is known with a configuration only."""
    known = {*parameters, *broken}
    return [
        unknown_name(f"resources.{field}", name, dict.fromkeys(known))
        for field in AMOUNT_RULES
        if isinstance(text := getattr(resources, field, None), str) and text != AUTO
        for name in sorted(_names(text) - known)
    ]


def _without_blamed(parts: Parts, problems: Sequence[Problem]) -> Parts:
    """The parts without the parameters and constraints that problems were found in, to look at the rest of them."""
    blamed = {problem.where for problem in problems}
    broken = {name for name in parts.space or () for where in blamed if f"{where}.".startswith(f"space.{name}.")}
    constraints = {place: text for place, text in parts.constraints.items() if f"constraints[{place}]" not in blamed}
    return replace(parts, broken=parts.broken | broken, constraints=constraints)


def _without(parameters: Parameters, broken: frozenset[str]) -> Parameters:
    """The parameters but those whose conditions hang on a broken one."""
    kept = {name: parameter for name, parameter in parameters.items() if name not in broken}
    while True:
        gone = set(parameters) - set(kept) | broken
        sound = {name: parameter for name, parameter in kept.items() if not _parents(parameter) & gone}
        if len(sound) == len(kept):
            return kept
        kept = sound


def _parents(parameter: Float | Int | Choice) -> set[str]:
    when = parameter.when
    return set() if when is None else set(when) if isinstance(when, Mapping) else _names(when)


def _names(text: str) -> set[str]:
    try:
        return set(Expression(text).names)
    except SpaceError:
        return set()


def _at_place(problem: Problem, places: Sequence[int]) -> Problem:
    """A space counts the constraints that it was given; here some were left out."""
    match = re.fullmatch(r"constraints\[(\d+)\]", problem.where)
    where = f"constraints[{places[int(match[1])]}]" if match else problem.where
    return Problem(where, problem.rule, problem.got, problem.remedy)


def _default(problem: Problem) -> Problem:
    where = "defaults" if problem.where == "constraints" else f"defaults.{problem.where}"
    return Problem(where, problem.rule, problem.got, problem.remedy)


def _unsatisfiable(space: Space, constraints: Mapping[int, str]) -> list[Problem]:
    """Constraints that certainly nobody can satisfy: each alone, then all together."""
    rule, remedy = "some configuration must satisfy it, and none does", "loosen it, or widen the bounds"
    problems = []
    for place, text in constraints.items():
        names = _names(text)
        always = not any(space.parameters[name].when for name in names)
        if (always and never_holds(text, space.parameters)) or _cannot_hold(space, [text]):
            problems.append(Problem(f"constraints[{place}]", rule, repr(text), remedy))
    if not problems and len(constraints) > 1 and _cannot_hold(space, list(constraints.values())):
        rule = "some configuration must satisfy all of them, and none does"
        problems.append(Problem("constraints", rule, f"{len(constraints)} constraints", "loosen one"))
    return problems


def _cannot_hold(space: Space, constraints: list[str]) -> bool:
    """Looks through the parameters that the constraints speak of, with all that these hang on."""
    wanted = set().union(*(_names(text) for text in constraints))
    while more := set().union(*(_parents(space.parameters[name]) for name in wanted)) - wanted:
        wanted |= more
    part = {name: parameter for name, parameter in space.parameters.items() if name in wanted}
    return Space(part, constraints).satisfiable(np.random.default_rng(0)) is False


def _component_problems(parts: Parts) -> list[Problem]:
    """A scheduler of ours says by itself when it cannot work with these steps."""
    if parts.scheduler is None or parts.objective is None or _type(parts.scheduler) not in SCHEDULERS:
        return []
    try:
        scheduler = SCHEDULERS[_type(parts.scheduler)](parts.scheduler, max_steps=parts.objective.max_steps, seed=0)
        if parts.space and not parts.broken:
            with suppress(SpaceError):  # which is told elsewhere
                scheduler.use(Space(parts.space))
    except SearchError as error:
        where, _, text = str(error).partition(": ")
        return [parse_problem(where, text)]
    return []


def _unsupported(options: BaseModel, space: Space) -> list[Problem]:
    search = SEARCHES.get(_type(options))
    reasons = search.supports(space, options) if search else []
    problems = [parse_problem("search", reason) for reason in reasons]
    return [replace(problem, got=_type(options), remedy=problem.remedy or "use another search") for problem in problems]
