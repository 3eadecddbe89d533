"""What a trial takes of a cluster, and for how many trials there is room."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raytuner.definition import AMOUNT_RULES, AUTO, Resources
from raytuner.errors import PlanError, Problem, SpaceError
from raytuner.plan.machine import Machine, Node
from raytuner.space import Expression

__all__ = ["Needs", "all_fit", "needs_of", "room", "slots_for", "smallest", "varies"]


@dataclass(frozen=True)
class Needs:
    """What one trial takes: so many workers, and each the CPUs and GPUs (or a share of one GPU)."""

    workers: int = 1
    cpu: float = 1.0
    gpu: float = 0.0

    def __str__(self) -> str:
        gpu = f", {self.gpu:g} GPU" if self.gpu else ""
        return f"{self.workers} workers with {self.cpu:g} CPU{gpu}" if self.workers > 1 else f"{self.cpu:g} CPU{gpu}"


def varies(resources: Resources) -> bool:
    """Whether trials take different amounts: by their configurations, or by what they are seen to need."""
    return any(isinstance(getattr(resources, field), str) for field in AMOUNT_RULES)


def needs_of(resources: Resources, config: Mapping[str, Any]) -> Needs:
    """What a trial with this configuration takes; a whole GPU for ``auto``, which is not known before it has run.

    Raises PlanError for an expression that gives no right amount.
    """
    return Needs(*(_amount(field, getattr(resources, field), config) for field in ("workers", "cpu", "gpu")))


def _amount(field: str, written: Any, config: Mapping[str, Any]) -> Any:
    if not isinstance(written, str):
        return written
    if field == "gpu" and written == AUTO:
        return 1.0
    where = f"resources.{field}"
    try:
        value = Expression(written).evaluate(config)
    except SpaceError as error:
        problem = error.problems[0]
        raise PlanError(str(Problem(where, problem.rule, f"{written!r} for {_some(config)}", problem.remedy))) from None
    wrong = AMOUNT_RULES[field](value)
    if wrong is not None:
        raise PlanError(str(Problem(where, wrong[0], f"{value!r} from {written!r} for {_some(config)}", wrong[1])))
    return int(value) if field == "workers" else float(value)


def _some(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in config.items())


def room(needs: Needs, resources: Resources, machine: Machine) -> dict[str, int]:
    """How many such trials the CPUs, the GPUs, and both together have room for, on the nodes that are right for them.

    A share of a GPU lies on one GPU.
    """
    nodes = _right(resources, machine)
    rooms = {"the CPUs": sum(_by_cpus(needs, node) for node in nodes) // needs.workers}
    if needs.gpu > 0:
        rooms["the GPUs"] = sum(_by_gpus(needs, node) for node in nodes) // needs.workers
        both = sum(min(_by_cpus(needs, node), _by_gpus(needs, node)) for node in nodes) // needs.workers
        if both < min(rooms.values()):
            rooms["the CPUs and GPUs of single nodes"] = both
    return rooms


def slots_for(needs: Needs, resources: Resources, machine: Machine) -> int:
    """How many such trials may run at the same time, ``concurrent_trials`` at most.

    Where nodes may come that are not known beforehand, so many; one, if that is left out.
    """
    most, slots = resources.concurrent_trials, min(room(needs, resources, machine).values())
    if machine.elastic:
        return max(slots, 1) if most is None else most
    return slots if most is None else min(slots, most)


def all_fit(wanted: Iterable[Needs], resources: Resources, machine: Machine) -> bool:
    """Whether these trials find room side by side, the largest placed first, each worker on the first node it fits."""
    left = [[node.cpus, [1.0] * _floor(node.gpus)] for node in _right(resources, machine)]
    place, before = 0, (0.0, 0.0)
    for needs in sorted(wanted, key=lambda n: (n.gpu, n.cpu), reverse=True):
        if (needs.gpu, needs.cpu) != before:  # else the nodes until here have no room for such a worker
            place, before = 0, (needs.gpu, needs.cpu)
        for _ in range(needs.workers):
            while place < len(left) and not _take(needs, left[place]):
                place += 1
            if place == len(left):
                return False
    return True


def _take(needs: Needs, node: list[Any]) -> bool:
    cpus, gpus = node
    if cpus + 1e-9 < needs.cpu:
        return False
    if needs.gpu >= 1:
        whole = [place for place, free in enumerate(gpus) if free > 1 - 1e-9][: round(needs.gpu)]
        if len(whole) < needs.gpu:
            return False
        for place in whole:
            gpus[place] = 0.0
    elif needs.gpu > 0:
        shared = next((place for place, free in enumerate(gpus) if free + 1e-9 >= needs.gpu), None)
        if shared is None:
            return False
        gpus[shared] -= needs.gpu
    node[0] = cpus - needs.cpu
    return True


def smallest(several: Sequence[Needs]) -> Needs:
    """The least of each kind that any of these takes."""
    first = several[0]
    return replace(
        first,
        workers=min(n.workers for n in several),
        cpu=min(n.cpu for n in several),
        gpu=min(n.gpu for n in several),
    )


def _right(resources: Resources, machine: Machine) -> list[Node]:
    return [node for node in machine.parts if node.suits(resources.accelerator, resources.labels)]


def _by_cpus(needs: Needs, node: Node) -> int:
    return _floor(node.cpus / needs.cpu)


def _by_gpus(needs: Needs, node: Node) -> int:
    return _floor(node.gpus) * _floor(1 / needs.gpu) if needs.gpu < 1 else _floor(node.gpus / needs.gpu)


def _floor(number: float) -> int:
    """The whole part, of a number that may be a little below it by rounding."""
    return math.floor(number + 1e-9)
