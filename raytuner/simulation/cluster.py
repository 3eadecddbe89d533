"""A virtual cluster: workers that take a search's and a scheduler's trials, on a clock of events."""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raytuner.errors import Problem, SearchError
from raytuner.schedulers import PbtScheduler, Scheduler, ScheduleScheduler
from raytuner.search import Observation, Search, Status
from raytuner.simulation.tables import Table
from raytuner.space import Config

__all__ = ["Budget", "Cluster", "Run", "simulate_run"]

SPEEDS, LOSSES, REPETITIONS = range(3)
"""Streams of random numbers, apart from one another, so that a worker more does not change the others' fate."""


@dataclass(frozen=True)
class Budget:
    """What ends a run: the first of these that is reached."""

    trials: int | None = None
    """Trials that are started."""
    steps: int | None = None
    """Steps that are trained, all trials together."""
    seconds: float | None = None
    """Virtual time."""


@dataclass(frozen=True)
class Cluster:
    """Who trains. All random, and the same for the same seed."""

    workers: int = 1
    stragglers: float = 0.0
    """The standard deviation of the logarithm of a worker's speed: 0.2 makes one in six slower by a fifth or more."""
    failures: float = 0.0
    """The chance that a training of full length loses its worker; it goes on from its last rung on a free one."""


@dataclass
class _Trial:
    id: str
    number: int
    config: Config
    step: int = 0
    """The last step that is kept: a loss throws a trial back to it."""
    best: float = math.inf
    value: float = math.inf
    """What the objective selects of the steps reported so far."""
    protected: bool = False
    """The defaults, which are a baseline, and are never stopped early."""


@dataclass
class Run:
    """What became of one run. Times are virtual seconds since its start."""

    seed: int
    workers: int
    times: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """(steps,): when each step was reported, ascending."""
    regrets: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """(steps,): the regret of the best trial so far, by what the objective selects; inf before the first value. With
    ``select: last``, a trial gets worse when its last value does."""
    ends: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """(trials,): when each trial that has ended did, ascending."""
    statuses: dict[str, int] = field(default_factory=dict)
    """Trials by their last status."""
    failed: list[bool] = field(default_factory=list)
    """For each trial, in the order of asking, whether its training failed."""
    seconds: float = 0.0
    """When it was over: when its last trial ended, or the budget cut off what was under way."""
    busy: float = 0.0
    """Seconds that all workers trained."""
    lost: int = 0
    """Workers lost on the way."""
    search_seconds: float = 0.0
    """Seconds that the search took, real ones."""

    @property
    def trials(self) -> int:
        return len(self.failed)

    @property
    def steps(self) -> int:
        return len(self.times)

    @property
    def utilisation(self) -> float:
        """The share of the workers' time in which they trained."""
        return self.busy / (self.workers * self.seconds) if self.seconds else 0.0

    @property
    def regret(self) -> float:
        """The regret at the end."""
        return float(self.regrets[-1]) if self.steps else math.inf

    def regret_at_steps(self, steps: float) -> float:
        """The regret after so many steps; inf before the first."""
        return float(self.regrets[min(int(steps), self.steps) - 1]) if steps >= 1 and self.steps else math.inf

    def regret_at_time(self, seconds: float) -> float:
        """The regret after so many virtual seconds."""
        return self.regret_at_steps(int(np.searchsorted(self.times, seconds, side="right")))

    def regret_at_trials(self, trials: float) -> float:
        """The regret when so many trials had ended; that of the end when there were fewer."""
        if trials > len(self.ends):
            return self.regret
        return self.regret_at_time(self.ends[int(trials) - 1]) if trials >= 1 else math.inf


def simulate_run(
    table: Table,
    search: Search,
    scheduler: Scheduler,
    cluster: Cluster,
    budget: Budget,
    *,
    seed: int,
    select: Literal["best", "last"] = "best",
    max_steps: int | None = None,
) -> Run:
    """Run a search and a scheduler on a table until the budget is used up. Deterministic for a seed.

    max_steps: the most steps of a trial; the table's by default. As on a real cluster, a free worker first takes a
    trial that lost its own, then one that the scheduler resumes, then a new one.

    Raises SearchError for a scheduler that changes configurations on the way: no table knows what becomes of these.
    """
    if isinstance(scheduler, PbtScheduler | ScheduleScheduler):
        rule = "a table has trainings with one configuration from start to end"
        got = f"{scheduler.options.type}, which changes it on the way"  # type: ignore[attr-defined]
        raise SearchError(str(Problem("scheduler", rule, got, "simulate asha or none, or run it")))
    return _Simulation(table, search, scheduler, cluster, budget, seed, select, max_steps or table.steps).run()


class _Simulation:
    def __init__(
        self,
        table: Table,
        search: Search,
        scheduler: Scheduler,
        cluster: Cluster,
        budget: Budget,
        seed: int,
        select: str,
        max_steps: int,
    ) -> None:
        self._table, self._search, self._scheduler = table, search, scheduler
        self._cluster, self._budget, self._seed = cluster, budget, seed
        self._select, self._max_steps = select, max_steps
        self._deciding = [*(step for step in scheduler.decision_steps() if step < max_steps), max_steps]
        self._trials: dict[str, _Trial] = {}
        self._status: dict[str, str] = {}
        self._lost: deque[_Trial] = deque()
        self._reports: list[tuple[float, int, float]] = []  # time, trial's number, value
        self._ends: list[float] = []
        self._run = Run(seed, cluster.workers)
        self._steps = 0
        speeds = np.random.default_rng([seed, SPEEDS]).normal(0.0, cluster.stragglers, cluster.workers)
        self._slowness = np.exp(speeds)
        self._losses = np.random.default_rng([seed, LOSSES])
        self._loss_a_step = 1.0 - (1.0 - cluster.failures) ** (1.0 / max_steps)

    def run(self) -> Run:
        order = count()
        events: list[tuple[float, int, int, _Trial, int, str]] = []
        idle = list(range(self._cluster.workers))
        now = 0.0

        def start(trial: _Trial, worker: int) -> None:
            seconds, reached, end = self._train(trial, worker, now)
            self._run.busy += seconds
            heapq.heappush(events, (now + seconds, next(order), worker, trial, reached, end))

        while True:
            while idle and (found := self._next()) is not None:
                start(found, heapq.heappop(idle))
            if not events:
                break
            if self._budget.seconds is not None and events[0][0] > self._budget.seconds:
                now = self._budget.seconds
                break
            now, _, worker, trial, reached, end = heapq.heappop(events)
            goes_on = self._finish(trial, reached, end, now)
            if self._budget.steps is not None and self._steps >= self._budget.steps:
                break
            if goes_on:
                start(trial, worker)
            else:
                heapq.heappush(idle, worker)
        for cut_off, _, _, trial, *_ in events:
            self._run.busy -= cut_off - now
            self._status[trial.id] = "running"
        return self._result(now)

    def _next(self) -> _Trial | None:
        if self._lost:
            return self._lost.popleft()
        number = len(self._trials)
        fresh = self._budget.trials is None or number < self._budget.trials
        resumed = self._scheduler.next_to_resume(fresh=fresh)
        if resumed is not None:
            return self._trials[resumed.trial_id]
        if self._budget.trials is not None and number >= self._budget.trials:
            return None
        began = time.perf_counter()
        trial_id = f"{number + 1:06d}"
        config = self._search.ask(trial_id)
        self._run.search_seconds += time.perf_counter() - began
        if config is None:
            return None
        trial = _Trial(trial_id, number, config, protected=number < len(self._search.first))
        self._trials[trial_id] = trial
        self._scheduler.on_start(trial_id, config, baseline=trial.protected)
        self._run.failed.append(False)
        return trial

    def _train(self, trial: _Trial, worker: int, now: float) -> tuple[float, int, str]:
        """Train to the next decision: the seconds that it takes, the step reached, and how it ends there."""
        target = next(step for step in self._deciding if step > trial.step)
        repetition = int(np.random.default_rng([self._seed, REPETITIONS, trial.number]).integers(2**31))
        curve = self._table.curve(trial.config, target, repetition)
        began = curve.seconds[trial.step - 1] if trial.step else 0.0
        seconds = (curve.seconds[trial.step :] - began) * self._slowness[worker]
        values = curve.values[trial.step :]
        end, length = "decide", len(values)
        broken = np.flatnonzero(~np.isfinite(values))
        if len(broken):
            end, length = "failed", int(broken[0]) + 1
        if self._loss_a_step:
            survived = int(self._losses.geometric(self._loss_a_step)) - 1
            if survived < length:
                end, length = "lost", survived + 1
        for value, after in zip(values[:length].tolist(), seconds[:length].tolist(), strict=True):
            if math.isfinite(value):
                trial.best = min(trial.best, value)
                trial.value = trial.best if self._select == "best" else value
                self._reports.append((now + after, trial.number, value))
        return float(seconds[length - 1]), trial.step + length, end

    def _finish(self, trial: _Trial, reached: int, end: str, now: float) -> bool:
        """Whether the trial goes on where it is."""
        self._steps += reached - trial.step
        if end == "lost":
            self._run.lost += 1
            self._lost.append(trial)
            return False
        trial.step = reached
        if end == "failed":
            self._run.failed[trial.number] = True
            self._end(trial, "failed", now)
            return False
        if reached >= self._max_steps:
            self._end(trial, "finished", now)
            return False
        action = self._scheduler.on_report(trial.id, reached, trial.value).action
        if action == "stop" and trial.protected:
            action = "continue"
        if action == "stop":
            self._end(trial, "stopped", now)
        else:
            status: Status = "paused" if action == "pause" else "running"
            self._status[trial.id] = status
            self._tell(trial, status)
        return action == "continue"

    def _end(self, trial: _Trial, status: Status, now: float) -> None:
        self._status[trial.id] = status
        self._scheduler.on_end(trial.id, status)
        self._tell(trial, status)
        self._ends.append(now)

    def _tell(self, trial: _Trial, status: Status) -> None:
        value = None if status == "failed" else trial.value
        began = time.perf_counter()
        self._search.tell(Observation(trial.id, trial.config, step=max(trial.step, 1), value=value, status=status))
        self._run.search_seconds += time.perf_counter() - began

    def _result(self, now: float) -> Run:
        limit = math.inf if self._budget.seconds is None else self._budget.seconds
        if self._budget.steps is not None:
            limit = min(limit, now)
        reports = sorted(report for report in self._reports if report[0] <= limit)
        if self._budget.steps is not None:
            reports = reports[: self._budget.steps]
        run = self._run
        run.seconds = now
        run.times = np.array([at for at, _, _ in reports])
        run.regrets = self._regrets(reports)
        run.ends = np.array(sorted(self._ends))
        for status in self._status.values():
            run.statuses[status] = run.statuses.get(status, 0) + 1
        return run

    def _regrets(self, reports: list[tuple[float, int, float]]) -> NDArray[np.float64]:
        """After each report, the regret of the trial that is best by then."""
        configs = [trial.config for trial in self._trials.values()]
        values: dict[int, float] = {}
        # A heap of value, when it was first reached, and trial; what is no longer a trial's value is passed over.
        ranking: list[tuple[float, int, int]] = []
        regrets = np.empty(len(reports))
        best, regret = (math.inf, -1, -1), math.inf
        for index, (_, number, value) in enumerate(reports):
            values[number] = min(value, values.get(number, math.inf)) if self._select == "best" else value
            heapq.heappush(ranking, (values[number], index, number))
            while values[ranking[0][2]] != ranking[0][0]:
                heapq.heappop(ranking)
            if ranking[0] != best:
                best = ranking[0]
                regret = self._table.reference.regret(self._table.true_value(configs[best[2]], best[0]))
            regrets[index] = regret
        return regrets
