"""What an experiment will cost: trials, steps, slots and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from raytuner.definition import Experiment, Resources
from raytuner.errors import Problem
from raytuner.plan.machine import Machine, Node
from raytuner.schedulers import Scheduler
from raytuner.search import GridOptions
from raytuner.space import Space, config_key

__all__ = ["Slots", "expected_steps", "find_slots", "kept_checkpoints", "most_configurations", "room", "rungs_of"]

COUNTABLE = 5_000
"""Configurations up to which those within the constraints are counted one by one."""


@dataclass(frozen=True)
class Slots:
    """How many trials run at the same time."""

    count: int
    limited_by: str
    """What keeps it from being more: the CPUs, the GPUs, concurrent_trials, or the number of trials."""


def room(resources: Resources, nodes: Sequence[Node]) -> dict[str, int]:
    """How many trials the CPUs, the GPUs, and both together have room for. A share of a GPU lies on one GPU."""

    def by_cpus(node: Node) -> int:
        return _floor(node.cpus / resources.cpu)

    def by_gpus(node: Node) -> int:
        if resources.gpu < 1:
            return _floor(node.gpus) * _floor(1 / resources.gpu)
        return _floor(node.gpus / resources.gpu)

    rooms = {"the CPUs": sum(map(by_cpus, nodes)) // resources.workers}
    if resources.gpu > 0:
        rooms["the GPUs"] = sum(map(by_gpus, nodes)) // resources.workers
        together = sum(min(by_cpus(node), by_gpus(node)) for node in nodes) // resources.workers
        if together < min(rooms.values()):
            rooms["the CPUs and GPUs of single nodes"] = together
    return rooms


def find_slots(resources: Resources, machine: Machine, trials: int | None) -> tuple[Slots, list[Problem]]:
    """The slots on a machine, and why there is none if so."""
    rooms = room(resources, machine.parts)
    problems = []
    for name, kind, needed, there in (
        ("the CPUs", "cpu", resources.cpu, machine.cpus),
        ("the GPUs", "gpu", resources.gpu, machine.gpus),
    ):
        if rooms.get(name, 1) < 1:
            rule = f"there must be room for one trial, and there are {there} {kind.upper()}s for it"
            got = f"{needed:g}" + (f" for each of {resources.workers} workers" if resources.workers > 1 else "")
            problems.append(Problem(f"resources.{kind}", rule, got, "ask for less, or use another machine"))
    if not problems and min(rooms.values()) < 1:
        rule = f"there must be room for one trial, and no node has {resources.cpu:g} CPU and {resources.gpu:g} GPU free"
        problems.append(Problem("resources", rule, f"{resources.workers} workers", "ask for less, or add nodes"))
    if resources.concurrent_trials is not None:
        rooms["concurrent_trials"] = resources.concurrent_trials
    if trials is not None:
        rooms["the number of trials"] = trials
    limit = min(rooms, key=lambda name: rooms[name])
    return Slots(rooms[limit], limit), problems


def most_configurations(experiment: Experiment, space: Space) -> int | None:
    """The trials after which the search has nothing left to propose; None when it never ends.

    Constraints are counted in when the configurations are few enough to look at.
    """
    grid = isinstance(experiment.search, GridOptions)
    points = experiment.search.points if isinstance(experiment.search, GridOptions) else 1
    size = space.grid_size(points) if grid else space.size
    if size is None or size > COUNTABLE:
        return size
    keys = {config_key(config) for config in islice(space.grid(points), COUNTABLE)}
    return len(keys | {config_key(experiment.defaults)} if experiment.defaults else keys)


def rungs_of(scheduler: Scheduler | None, trials: int | None) -> tuple[tuple[int, float | None], ...]:
    """The deciding steps, and the last, with the trials expected to reach each; None when trials are not counted."""
    if scheduler is None:
        return ()
    if trials is not None:
        return tuple(scheduler.expected_rungs(trials))
    last = () if scheduler.max_steps is None else (scheduler.max_steps,)
    return tuple((step, None) for step in (*scheduler.decision_steps(), *last))


def expected_steps(rungs: Sequence[tuple[int, float | None]], trials: int | None) -> float | None:
    """Steps trained by all trials together: between two rungs, by those that reach the upper one.

    A trial that is stopped at a rung has trained up to it. None when it cannot be told.
    """
    if trials is None or not rungs:
        return None
    total, last = 0.0, 0
    for step, reaching in rungs:
        if reaching is None:
            return None
        total += reaching * (step - last)
        last = step
    return total


def kept_checkpoints(experiment: Experiment) -> int:
    """The checkpoints that a trial keeps at most."""
    return experiment.checkpoints.keep + experiment.checkpoints.best


def _floor(number: float) -> int:
    return math.floor(number + 1e-9)
