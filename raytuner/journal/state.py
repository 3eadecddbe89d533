"""The state of an experiment, folded from its events: what every reader of the journal starts from."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from raytuner.journal.events import (
    CheckpointRemoved,
    CheckpointWritten,
    Decided,
    DriverEnded,
    DriverStarted,
    Event,
    Exploited,
    Extended,
    Logged,
    Measured,
    Reported,
    Retried,
    Tested,
    TrialAsked,
    TrialEnded,
    TrialStarted,
    Usage,
)
from raytuner.journal.folder import Folder
from raytuner.journal.log import JournalReader
from raytuner.journal.snapshot import load_snapshot, save_snapshot, worth_saving

__all__ = ["USED_UP", "Checkpoint", "ExperimentState", "Fold", "Phase", "Step", "TrialState", "failure_way", "replay"]

EXPLOIT = "exploit"
"""The reason of a checkpoint that a trial took over from another."""
INTERRUPTED = "interrupted"
"""How the reason begins of a trial that a resume goes on with."""
USED_UP = "is used up"
"""How the reason ends of a trial that the budget has cut off."""
ENDED = frozenset({"finished", "stopped", "failed"})


def failure_way(error: Mapping[str, Any] | None) -> tuple[str, str]:
    """The way in which a trial has failed: the kind of its error, and what stands before the details."""
    error = error or {}
    return str(error.get("kind", "")), str(error.get("message", "")).partition(":")[0]


@dataclass(frozen=True)
class Step:
    """What a trial reported at one step."""

    step: int
    metrics: dict[str, float]
    time: float
    """Seconds since the epoch."""
    seconds: float
    """The trial's training time so far."""
    attempt: int = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that stands."""

    step: int
    attempt: int
    path: str
    bytes: int
    reason: str


@dataclass(frozen=True)
class Phase:
    """A time of a trial with one configuration."""

    after: int
    """The step of the checkpoint that it began with; 0 from scratch."""
    config: dict[str, Any]
    source: str = ""
    """The trial whose checkpoint that was; empty for the first phase."""
    source_phase: int = 0
    """Which of the source's phases the checkpoint was from, counted from 0."""
    left: int = 0
    """The last step of the trial's phase before."""


@dataclass
class TrialState:
    """One trial as far as the journal tells."""

    id: str
    config: dict[str, Any]
    """What its value was reached with; before it has one, what was asked for."""
    source: str
    status: str = "pending"
    """pending, running, paused, finished, stopped, failed."""
    attempt: int = 0
    step: int = 0
    """The last step reported."""
    value: float | None = None
    """The objective's best finite value over the steps (or the last one, where the objective selects ``last``)."""
    value_step: int = 0
    seconds: float = 0.0
    """Training time, all attempts."""
    asked_at: float = 0.0
    started_at: float = 0.0
    ended_at: float = 0.0
    reason: str = ""
    error: dict[str, Any] | None = None
    node: str = ""
    gpus: list[str] = field(default_factory=list)
    ranks: list[dict[str, Any]] = field(default_factory=list)
    """The ``node`` and ``gpus`` of each further process of a distributed trial."""
    cpu: float = 0.0
    """The CPU cores of each of its processes."""
    gpu: float = 0.0
    """The GPUs of each of its processes; below 1 the share of one."""
    gpu_granted: float | None = None
    """The share of a GPU that it was given for want of memory; None where it has what the definition says."""
    gpu_memory: int = 0
    """The most bytes of a GPU that it was seen to take."""
    gpu_total: int = 0
    """The bytes of that GPU."""
    last: dict[str, float] = field(default_factory=dict)
    """The metrics of the last step."""
    steps: list[Step] = field(default_factory=list)
    """Every step, when the state keeps history."""
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    """Those that stand, by path."""
    decisions: list[Decided] = field(default_factory=list)
    logged: list[Logged] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    """One for each configuration that it had; what was asked for is the first."""

    @property
    def asked(self) -> dict[str, Any]:
        """The configuration that it began with."""
        return self.phases[0].config if self.phases else self.config

    @property
    def current(self) -> dict[str, Any]:
        """The configuration that it trains with now."""
        return self.phases[-1].config if self.phases else self.config

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def interrupted(self) -> bool:
        """Whether it was cut off by the end of its driver, and goes on with a resume."""
        return self.status == "stopped" and self.reason.startswith(INTERRUPTED)

    @property
    def over_budget(self) -> bool:
        """Whether time or GPU-hours had run out over it."""
        return self.status == "stopped" and self.reason.endswith(USED_UP)

    @property
    def best_checkpoint(self) -> Checkpoint | None:
        """The checkpoint of the value's step; None when it was not kept."""
        own = (c for c in self.checkpoints.values() if c.reason != EXPLOIT)  # else it is another trial's
        at_best = [c for c in own if c.step == self.value_step]
        return max(at_best, key=lambda c: c.attempt, default=None)

    @property
    def last_checkpoint(self) -> Checkpoint | None:
        return max(self.checkpoints.values(), key=lambda c: (c.step, c.attempt), default=None)


@dataclass
class ExperimentState:
    """An experiment as far as the journal tells. ``history=False`` keeps no step lists (for long-lived readers)."""

    history: bool = True
    name: str = ""
    metric: str = ""
    mode: str = "min"
    select: str = "best"
    max_steps: int | None = None
    budget: dict[str, Any] = field(default_factory=dict)
    spares: bool = True
    """Whether the scheduler may spare trials their last steps."""
    status: str = "pending"
    """pending, running, finished, interrupted or failed. A driver that was killed leaves ``running``."""
    reason: str = ""
    drivers: list[DriverStarted] = field(default_factory=list)
    extensions: list[Extended] = field(default_factory=list)
    trials: dict[str, TrialState] = field(default_factory=dict)
    best: TrialState | None = None
    best_at: float = 0.0
    """When the best value was reported."""
    incumbents: list[tuple[float, int, str, float]] = field(default_factory=list)
    """The incumbent curve: (time, steps trained so far, trial, value) at each improvement."""
    tests: list[Tested] = field(default_factory=list)
    steps: int = 0
    """Steps trained, all trials, counting a step that was trained again."""
    started_at: float = 0.0
    last_at: float = 0.0
    elapsed: float = 0.0
    """Seconds of earlier drivers (downtime between them not counted)."""
    torn: list[str] = field(default_factory=list)
    usage: Usage | None = None
    """What became of the devices' time, all drivers together."""
    _usage_before: Usage | None = None
    _driver_at: float = 0.0

    @property
    def by_hand(self) -> int:
        """Trials that were asked for by hand, beside the budget's."""
        return sum(trial.source == "user" for trial in self.trials.values())

    @property
    def wanted(self) -> int | None:
        """Trials that there are to be: the budget's, and those by hand; None without a limit."""
        most = self.budget.get("trials")
        return None if most is None else most + self.by_hand

    @property
    def trials_an_hour(self) -> float:
        """Trials that have come to their end, for each hour of work."""
        return self.done / self.time_used * 3600 if self.time_used > 0 else 0.0

    @property
    def done(self) -> int:
        """Trials that have come to their end; a pause may be one where the scheduler spares trials steps."""
        return self.count("finished", "stopped", "failed", *(["paused"] if self.spares else []))

    @property
    def time_used(self) -> float:
        """Seconds in which a driver was at work, each from its first trial's start: what the budget counts."""
        return self.elapsed + (self.last_at - self._driver_at if self._driver_at else 0.0)

    @property
    def gpu_hours(self) -> float:
        """Hours of GPUs that trials have held, as far as they are on record."""
        return self.usage.busy / 3600 if self.usage is not None and self.usage.unit == "GPU" else 0.0

    def lineage(self, trial_id: str, step: int) -> list[tuple[str, int, int, dict[str, Any]]]:
        """How a state came about: (trial, first step, last step, configuration), in the order of the steps.

        That of the trial after a step, followed back over the checkpoints that were taken over. The steps follow one
        another from 1 on: training so again from scratch is a fixed schedule.
        """
        trial = self.trials[trial_id]
        phase = max((number for number, phase in enumerate(trial.phases) if phase.after < step), default=0)
        found: list[tuple[str, int, int, dict[str, Any]]] = []
        while True:
            begun = trial.phases[phase]
            if step > begun.after:
                found.append((trial.id, begun.after + 1, step, begun.config))
            if not begun.source:
                return found[::-1]
            step, phase, trial = begun.after, begun.source_phase, self.trials[begun.source]

    def curve(self) -> list[tuple[float, int, str, float]]:
        """The incumbents in the order of time, from the history: (time, steps trained so far, trial, value).

        The journal has the reports of different trials batch by batch, a second apart; here they are in order.
        """
        reports = sorted(
            (step.time, trial.id, step.metrics[self.metric])
            for trial in self.trials.values()
            for step in trial.steps
            if math.isfinite(step.metrics.get(self.metric, math.nan))
        )
        found: list[tuple[float, int, str, float]] = []
        for number, (time, trial_id, value) in enumerate(reports, start=1):
            if not found or self.better(value, found[-1][3]):
                found.append((time, number, trial_id, value))
        return found

    def count(self, *statuses: str) -> int:
        """Trials with one of these statuses; ``interrupted`` for those that a driver's end has stopped."""
        trials = self.trials.values()
        found = sum(trial.status in statuses for trial in trials)
        if ("stopped" in statuses) != (INTERRUPTED in statuses):
            interrupted = sum(trial.interrupted for trial in trials)
            found += interrupted if INTERRUPTED in statuses else -interrupted
        return found

    def better(self, a: float, b: float) -> bool:
        """Is ``a`` strictly better than ``b``?"""
        return a > b if self.mode == "max" else a < b

    def apply(self, event: Event) -> None:
        """Take one event in."""
        if isinstance(event, DriverStarted):
            self._driver_started(event)
        self.last_at = max(self.last_at, event.at)
        match event:
            case Reported():
                self._reported(event)
            case DriverEnded():
                self.status, self.reason = event.status, event.reason
            case Tested():
                self.tests.append(event)
            case TrialAsked():
                self.trials[event.trial] = TrialState(
                    event.trial, event.config, event.source, asked_at=event.at, phases=[Phase(0, event.config)]
                )
            case TrialStarted():
                self._driver_at = self._driver_at or event.at
                trial = self.trials[event.trial]
                trial.status, trial.attempt = "running", event.attempt
                trial.node, trial.gpus, trial.ranks = event.node, event.gpus, event.ranks
                trial.cpu, trial.gpu = event.cpu, event.gpu
                trial.started_at = trial.started_at or event.at
                trial.ended_at, trial.reason = 0.0, ""
            case TrialEnded():
                trial = self.trials[event.trial]
                trial.status, trial.reason, trial.error = event.status, event.reason, event.error
                trial.ended_at = event.at
            case CheckpointWritten():
                self.trials[event.trial].checkpoints[event.path] = Checkpoint(
                    event.step, event.attempt, event.path, event.bytes, event.reason
                )
            case CheckpointRemoved():
                self.trials[event.trial].checkpoints.pop(event.path, None)
            case Decided():
                if self.history:
                    self.trials[event.trial].decisions.append(event)
            case Exploited():
                trial = self.trials[event.trial]
                trial.phases.append(
                    Phase(event.source_step, event.config, event.source, event.source_phase, left=event.step)
                )
            case Extended():
                self._extended(event)
            case Usage():
                self._usage(event)
            case Measured():
                trial = self.trials[event.trial]
                trial.gpu_memory = max(trial.gpu_memory, event.gpu_memory)
                trial.gpu_total = event.gpu_total
            case Retried():
                trial = self.trials[event.trial]
                trial.status, trial.reason = "pending", event.reason
                trial.gpu_granted = event.gpu or trial.gpu_granted
            case Logged():
                if self.history:
                    self.trials[event.trial].logged.append(event)

    def _driver_started(self, event: DriverStarted) -> None:
        self.elapsed = self.time_used  # until the last event of the driver before: downtime does not count
        self._usage_before = self.usage
        self._driver_at = 0.0  # until its first trial starts: what Ray takes to come up does not count
        self.started_at = self.started_at or event.at
        self.drivers.append(event)
        self.name, self.status, self.reason = event.name, "running", ""
        self.metric, self.mode = event.objective["metric"], event.objective["mode"]
        self.select, self.max_steps = event.objective.get("select", "best"), event.objective.get("max_steps")
        self.budget, self.spares = event.budget, event.spares

    def _extended(self, event: Extended) -> None:
        self.extensions.append(event)
        for trial_id, config in event.configs.items():
            trial = self.trials[trial_id]
            trial.config, trial.phases = config, [Phase(0, config)]
        cut_off = [trial_id for trial_id in event.reopened if self.trials[trial_id].status == "stopped"]
        for trial_id in [*event.retried, *cut_off]:
            trial = self.trials[trial_id]
            trial.status, trial.reason, trial.error = "pending", "", None

    def _usage(self, event: Usage) -> None:
        before = self._usage_before
        if before is not None and before.unit == event.unit:
            idle = {reason: before.idle.get(reason, 0.0) for reason in before.idle}
            for reason, seconds in event.idle.items():
                idle[reason] = idle.get(reason, 0.0) + seconds
            event = replace(event, total=before.total + event.total, busy=before.busy + event.busy, idle=idle)
        self.usage = event

    def _reported(self, event: Reported) -> None:
        trial = self.trials[event.trial]
        self.steps += 1
        trial.step, trial.last = event.step, event.metrics
        trial.seconds = max(trial.seconds, event.seconds)
        if self.history:
            # A step that was trained again after a resume replaces what was reported before.
            while trial.steps and trial.steps[-1].step >= event.step:
                trial.steps.pop()
            trial.steps.append(Step(event.step, event.metrics, event.time, event.seconds, event.attempt))
        value = event.metrics.get(self.metric)
        if value is None or not math.isfinite(value):
            return
        if trial.value is not None and self.select != "last" and not self.better(value, trial.value):
            return
        before = self.best.value if self.best is not None else None
        trial.value, trial.value_step, trial.config = value, event.step, trial.current
        if before is None or self.better(value, before):
            self.best, self.best_at = trial, event.time or event.at
            self.incumbents.append((self.best_at, self.steps, trial.id, value))
        elif trial is self.best:  # its last value got worse
            sign = 1 if self.mode == "max" else -1
            valued = (other for other in self.trials.values() if other.value is not None)
            self.best = max(valued, key=lambda other: sign * (other.value or 0.0))


class Fold:
    """A state that follows the journal of ``folder``. Without history it begins where a snapshot of it ends."""

    def __init__(self, folder: Folder, *, history: bool = False) -> None:
        self.folder = folder
        self.state = ExperimentState(history=history)
        self.reader = JournalReader(folder.journal)
        self._new = 0
        found = None if history else load_snapshot(folder, self.state)
        if found is not None:
            self.state, self.reader.cursor, self.reader.torn = found

    def catch_up(self) -> Iterator[Event]:
        """Take in what is new, an event at a time. Raises JournalError when the journal is damaged."""
        for event in self.reader.read():
            self.state.apply(event)
            self._new += 1
            yield event
        if worth_saving(self._new) and not self.state.history:
            save_snapshot(self.folder, self.state, self.reader.cursor, self.reader.torn)
            self._new = 0


def replay(folder: Folder, *, history: bool = True) -> ExperimentState:
    """The whole journal of an experiment, folded. Raises JournalError when it is damaged."""
    fold = Fold(folder, history=history)
    deque(fold.catch_up(), maxlen=0)
    fold.state.torn = fold.reader.torn + fold.reader.unread()
    return fold.state
