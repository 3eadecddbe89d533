"""What each running trial takes, how much of a GPU ``gpu: auto`` comes to, and whether there is room for one more."""

from __future__ import annotations

import math
from dataclasses import replace

from raytuner.definition import AUTO
from raytuner.errors import LaunchError, PlanError
from raytuner.journal import ExperimentState, TrialState
from raytuner.plan import Machine, Needs, Plan, all_fit, needs_of, no_room, room, slots_for, smallest, varies
from raytuner.training.devices import CONTEXT_BYTES

__all__ = ["Books", "larger_share", "share_for"]

MARGIN = 1.2
"""How much more memory than was seen a trial is given: the allocator's fragments, and steps that take more."""
MOST = 16
"""Trials that ``auto`` puts on one GPU at most: beyond that they only wait for each other."""


def share_for(peak: float, total: float) -> float:
    """The share of a GPU, one whole part of it, in which a trial finds room that was seen to take ``peak`` of ``total``
    bytes.
    """
    parts = math.floor(total / (peak * MARGIN + CONTEXT_BYTES))
    return _part(max(1, min(parts, MOST)))


def larger_share(share: float) -> float:
    """About twice the share."""
    return _part(max(1, round(1 / share) // 2))


def _part(parts: int) -> float:
    return math.floor(10_000 / parts) / 10_000  # Ray counts ten-thousandths: three thirds must not be more than one


class Books:
    """Keeps account of what runs. Pure; ``state`` has what trials were seen to take."""

    def __init__(self, plan: Plan, state: ExperimentState) -> None:
        self._plan = plan
        self._state = state
        self._resources = plan.experiment.resources
        self._varies = varies(self._resources)
        self._machine = self._first = plan.machine
        self._running: dict[str, Needs] = {}
        self.slots = 1
        """Trials that run at the same time, at most; some may wait for nodes that an autoscaler adds."""
        self.slots_now = 1
        """Trials for which there is room on the nodes that are there."""
        self.waiting: str | None = None
        """The trial for which there is no room yet: nobody overtakes it."""
        self.unit = "GPU" if any(needs.gpu for needs in plan.needs) else "CPU"
        """What is counted below: GPUs where trials take some, else CPU cores."""
        self.busy = 0.0
        """Devices that trials train on."""
        self.starting = 0.0
        """Devices of trials that come up."""
        self._at_work: set[str] = set()

    @property
    def capacity(self) -> float:
        """Devices that trials can use now."""
        if not self._varies:
            return self.slots_now * self._weight(self._plan.needs[0])
        return float(self._machine.gpus if self.unit == "GPU" else self._machine.cpus)

    def _weight(self, needs: Needs) -> float:
        return needs.workers * (needs.gpu if self.unit == "GPU" else needs.cpu)

    def resize(self, machine: Machine) -> None:
        """Take note of the cluster as it is now. Raises LaunchError when it has no room for any trial."""
        self._machine = machine
        self._recount()
        if self.slots < 1:
            problems = no_room(smallest(self._wanted()), self._resources, machine)
            raise LaunchError("\n".join(map(str, problems)))

    def _recount(self) -> None:
        needs = smallest(self._wanted())
        self.slots = slots_for(needs, self._resources, self._machine)
        self.slots_now = slots_for(needs, self._resources, self._machine.present)

    def _wanted(self) -> list[Needs]:
        if self._resources.gpu != AUTO:
            return list(self._plan.needs)
        return [replace(needs, gpu=self._auto()) for needs in self._plan.needs]

    def _auto(self) -> float:
        seen = [(t.gpu_memory / t.gpu_total, t) for t in self._state.trials.values() if t.gpu_total]
        if not seen:
            return 1.0
        most = max(seen, key=lambda pair: pair[0])[1]
        return share_for(most.gpu_memory, most.gpu_total)

    def needs(self, trial: TrialState) -> Needs:
        """What a trial takes when it starts now. Raises PlanError for a configuration that gives no right amount."""
        needs = needs_of(self._resources, trial.current)
        if trial.gpu_granted:
            return replace(needs, gpu=trial.gpu_granted)
        return replace(needs, gpu=self._auto()) if self._resources.gpu == AUTO else needs

    def start(self, trial: TrialState) -> Needs:
        """Enter a trial. Raises PlanError when it can never run."""
        needs = self.needs(trial)
        if self._varies:
            machines = (self._machine, self._first)
            if all(min(room(needs, self._resources, m).values()) < 1 and not m.elastic for m in machines):
                raise PlanError(f"resources: this configuration needs {needs}, for which no node has room")
            if not all_fit([*self._running.values(), needs], self._resources, self._machine):
                self.waiting = trial.id
        self._running[trial.id] = needs
        if self.waiting != trial.id:
            self.starting += self._weight(needs)
        return needs

    def started(self, trial_id: str) -> Needs:
        """Its process runs: it waits no longer. What it has taken."""
        needs = self._running[trial_id]
        if self.waiting == trial_id:
            self.waiting = None
        elif trial_id not in self._at_work:
            self.starting -= self._weight(needs)
        if trial_id not in self._at_work:
            self._at_work.add(trial_id)
            self.busy += self._weight(needs)
        return needs

    def end(self, trial_id: str) -> Needs | None:
        """Strike a trial off."""
        needs = self._running.pop(trial_id, None)
        if needs is None:
            return None
        if self.waiting == trial_id:
            self.waiting = None
        elif trial_id in self._at_work:
            self._at_work.discard(trial_id)
            self.busy -= self._weight(needs)
        else:
            self.starting -= self._weight(needs)
        return needs

    def measured(self) -> None:
        """A trial was seen to take GPU memory."""
        if self._resources.gpu == AUTO:
            self._recount()
