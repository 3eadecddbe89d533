"""What an experiment will cost: trials, steps, slots and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from raytuner.definition import Experiment, Resources
from raytuner.errors import Problem
from raytuner.plan.machine import Machine, Node
from raytuner.plan.needs import Needs, room, slots_for, smallest
from raytuner.schedulers import Scheduler
from raytuner.search import SEARCHES, GridOptions, Search
from raytuner.space import Space, config_key

__all__ = [
    "Slots",
    "expected_steps",
    "find_slots",
    "kept_checkpoints",
    "most_configurations",
    "no_room",
    "rungs_of",
    "startup_trials",
]

COUNTABLE = 5_000
"""Configurations up to which those within the constraints are counted one by one."""


@dataclass(frozen=True)
class Slots:
    """How many trials run at the same time."""

    count: int
    limited_by: str
    """What keeps it from being more: the CPUs, the GPUs, concurrent_trials, or the number of trials."""


def find_slots(
    several: Sequence[Needs], resources: Resources, machine: Machine, trials: int | None
) -> tuple[Slots, list[Problem]]:
    """The slots on a machine, and why there is none if so.

    several: what trials take; where they differ, the slots are as many as the smallest have, and each must fit.
    """
    rooms = room(smallest(several), resources, machine)
    problems = next((found for needs in several if (found := no_room(needs, resources, machine))), [])
    if machine.elastic:
        problems, rooms = [], {"the nodes that may join": slots_for(smallest(several), resources, machine)}
    if resources.concurrent_trials is not None:
        rooms["concurrent_trials"] = resources.concurrent_trials
    if trials is not None:
        rooms["the number of trials"] = trials
    limit = min(rooms, key=lambda name: rooms[name])
    return Slots(rooms[limit], limit), problems


def no_room(needs: Needs, resources: Resources, machine: Machine) -> list[Problem]:
    """What keeps a trial from ever running."""
    rooms = room(needs, resources, machine)
    if min(rooms.values()) >= 1:
        return []
    anywhere = resources.model_copy(update={"accelerator": None, "labels": {}})
    if min(room(needs, anywhere, machine).values()) >= 1:
        labels = [f"{name}={value}" for name, value in resources.labels.items()]
        asked = ", ".join([*([resources.accelerator] if resources.accelerator else []), *labels])
        where = "resources.accelerator" if resources.accelerator else "resources.labels"
        has = sorted({name for node in machine.parts for name in _own(node, resources)})
        none = "no accelerators" if resources.accelerator else "no such labels"
        rule = f"some node must have it and room for one trial; there are {', '.join(has) or none}"
        return [Problem(where, rule, asked, "write another, or leave it out")]
    remedy = "ask for less, or use another machine"
    short = [
        Problem(
            f"resources.{kind}",
            f"there must be room for one trial, and there are {there} {kind.upper()}s for it",
            f"{needs}",
            remedy,
        )
        for kind, there in (("cpu", machine.cpus), ("gpu", machine.gpus))
        if rooms.get(f"the {kind.upper()}s", 1) < 1
    ]
    return short or [Problem("resources", "a node must have room for each worker of a trial", f"{needs}", remedy)]


def _own(node: Node, resources: Resources) -> list[str]:
    """What a node has of the kind that is asked for: accelerators, and values of the labels."""
    labels = {name: (node.labels or {}).get(name) for name in resources.labels}
    has = [f"{name}={value}" for name, value in labels.items() if value is not None]
    return [*((node.accelerators or ()) if resources.accelerator else ()), *has]


def most_configurations(experiment: Experiment, space: Space) -> int | None:
    """The trials after which the search has nothing left to propose; None when it never ends.

    Constraints are counted in when the configurations are few enough to look at.
    """
    there, search = _configurations(experiment, space), _search_class(experiment)
    own = search.most_proposals(experiment.search) if search else None
    return min((number for number in (there, own) if number is not None), default=None)


def startup_trials(experiment: Experiment) -> int:
    """The trials that the search proposes before it can learn from any; 0 when it is not known."""
    search = _search_class(experiment)
    return search.startup_trials(experiment.search) if search else 0


def _search_class(experiment: Experiment) -> type[Search] | None:
    """The search if it is one of ours; others would have to be imported."""
    return SEARCHES.get(str(getattr(experiment.search, "type", "")))


def _configurations(experiment: Experiment, space: Space) -> int | None:
    """The configurations that the search could propose, by the space."""
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
