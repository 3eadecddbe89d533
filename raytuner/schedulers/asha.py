"""Asynchronous successive halving: many trials start, the best go on.

Li, Jamieson, Rostamizadeh, Gonina, Hardt, Recht and Talwalkar: A System for Massively Parallel Hyperparameter Tuning,
MLSys 2020.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from raytuner.components import Options
from raytuner.errors import Problem, SearchError
from raytuner.schedulers.base import Decision, Resume, Scheduler, check_report

__all__ = ["AshaOptions", "AshaScheduler"]

PAIRS = 100
"""The latest trials seen at both of two rungs, by which the first one's order is judged."""
BELIEF = 10.0
"""Pairs of trials in the right order that are believed in before any is seen."""
REHEARSED = 1000
"""Trials beyond which a forecast is scaled up instead of played through."""


class AshaOptions(Options):
    """Asynchronous successive halving: at every rung, the best 1/reduction_factor of the trials go on."""

    type: Literal["asha"] = "asha"
    """The kind of scheduler."""
    form: Literal["stop", "promote"] = "stop"
    """``stop``: a trial that is not among the best so far ends at once. ``promote``: it is paused at every rung and
    goes on when it is among the best; slower trials get a second look, at the price of checkpoints."""
    grace_steps: int = Field(1, ge=1, le=10**9)
    """Steps that every trial gets before it may be stopped or paused: the first rung."""
    reduction_factor: int = Field(3, ge=2, le=1000)
    """One of so many trials goes on at each rung; each rung has so many times the steps of the one before."""
    min_agreement: float = Field(0.5, ge=-1, le=1)
    """How well the order of trials at a rung must have lasted until each later one (Kendall's tau: 1 the same order, 0
    no relation), or else the rung stops or pauses nobody. -1 trusts every rung, as the paper does."""


class Entry(NamedTuple):
    """A trial in a rung. Entries sort by value, ties by arrival."""

    value: float
    arrival: int
    trial_id: str


class Agreement:
    """How well the order of the latest trials at a rung lasted until a later one."""

    def __init__(self) -> None:
        self.pairs: deque[tuple[float, float]] = deque()
        """Each trial's value at the one and at the other."""
        self._right = self._wrong = 0

    def add(self, early: float, late: float) -> None:
        """Enter a trial; beyond ``PAIRS``, the oldest leaves."""
        self._count(early, late, 1)
        self.pairs.append((early, late))
        if len(self.pairs) > PAIRS:
            self._count(*self.pairs.popleft(), -1)

    @property
    def tau(self) -> float:
        """Kendall's tau, drawn to 1 by ``BELIEF``; ties tell nothing."""
        return (self._right - self._wrong + BELIEF) / (self._right + self._wrong + BELIEF)

    def _count(self, early: float, late: float, sign: int) -> None:
        for other_early, other_late in self.pairs:
            same = (early - other_early) * (late - other_late)
            if same > 0:
                self._right += sign
            elif same < 0:
                self._wrong += sign


class AshaScheduler(Scheduler):
    """Asynchronous successive halving, in two forms.

    Rungs are at ``grace_steps * reduction_factor**k``, below ``max_steps``. A report at step s settles every rung up to
    s that its trial has not settled yet: its value enters each of them.

    ``stop``: the trial goes on when it is among the best ``ceil(n / reduction_factor)`` of the n trials that the rung
    holds by then, itself included (the same as value <= the 1/reduction_factor quantile, as in Syne Tune's stopping
    variant); otherwise it ends. With reduction_factor 3, at rung 1::

        A 0.9  1st of 1, best 1 goes on: continue
        B 0.7  1st of 2, best 1 goes on: continue
        C 0.8  2nd of 3, best 1 goes on: stop
        D 0.8  3rd of 4, best 2 go on:   stop (C came first)
        E 0.75 2nd of 5, best 2 go on:   continue

    ``promote`` (Alg. 2 of the paper): the trial pauses at each rung. From the highest rung down, the best trial goes on
    that is among the ``floor(n / reduction_factor)`` best of its rung, has not been promoted from it, and has not
    ended; when that is the reporting trial itself, it goes on without a pause.

    Values of failed trials stay in their rungs, since they were measured.

    A rung decides only as long as its order tells something about that of every later one (``min_agreement``). The best
    configurations often start slowly (a low learning rate wins the first epoch, a high one the training), and a rung
    that comes too early would stop just them. What is known of its order comes from the trials that went on; as soon as
    they show it to be worthless, all go on, which shows it the better. The last rung is trusted.
    """

    Options = AshaOptions

    def __init__(self, options: AshaOptions, *, max_steps: int | None, seed: int) -> None:
        super().__init__(options, max_steps=max_steps, seed=seed)
        if max_steps is None or max_steps <= options.grace_steps:
            rule = "asha needs objective.max_steps above scheduler.grace_steps"
            got = f"max_steps={max_steps}, grace_steps={options.grace_steps}"
            raise SearchError(str(Problem("scheduler", rule, got, "set max_steps, or lower grace_steps")))
        self.form = options.form
        self.pauses = options.form == "promote"
        self._factor = options.reduction_factor
        self._least = options.min_agreement
        self._rungs: dict[int, list[Entry]] = {}
        step = options.grace_steps
        while step < max_steps:
            self._rungs[step] = []
            step *= self._factor
        self._promoted: dict[int, set[str]] = {rung: set() for rung in self._rungs}
        self._ended: set[str] = set()
        self._values: dict[str, dict[int, float]] = {}  # of each trial, at the rungs that it has stood at
        self._agreements: dict[int, dict[int, Agreement]] = {rung: {} for rung in self._rungs}  # with each later one

    def decision_steps(self) -> tuple[int, ...]:
        return tuple(self._rungs)

    def decides_at(self, step: int) -> bool:
        return step in self._rungs

    def on_report(self, trial_id: str, step: int, value: float) -> Decision:
        check_report(trial_id, step, value)
        self._ended.discard(trial_id)  # it trains again: a retry
        settled = self._settled(trial_id)
        rungs = [rung for rung in self._rungs if settled < rung <= step]
        if not rungs:
            return Decision("continue", f"step {step}: no rung to settle")
        self._compare(trial_id, rungs[-1], value)
        entries = [Entry(value, len(self._rungs[rung]), trial_id) for rung in rungs]
        for rung, entry in zip(rungs, entries, strict=True):
            insort(self._rungs[rung], entry)
        if self.form == "promote":
            # A rung that was jumped over is behind the trial: it must not be promoted from there.
            for rung in rungs[:-1]:
                self._promoted[rung].add(trial_id)
            return self._pause(rungs[-1], entries[-1])
        decisions = [self._stop(rung, entry) for rung, entry in zip(rungs, entries, strict=True)]
        return next((decision for decision in decisions if decision.action == "stop"), decisions[-1])

    def on_end(self, trial_id: str, status: str) -> None:
        self._ended.add(trial_id)

    def adopt(self, trial_id: str, values: Mapping[int, float], *, ended: bool) -> None:
        """It enters every rung that it has done, as it was there; what it may go on from is the last of them."""
        rungs = sorted(values)
        for rung in rungs:
            check_report(trial_id, rung, values[rung])
            self._compare(trial_id, rung, values[rung])
            insort(self._rungs[rung], Entry(values[rung], len(self._rungs[rung]), trial_id))
        for rung in rungs[:-1]:
            self._promoted[rung].add(trial_id)
        if ended:
            self._ended.add(trial_id)

    def readmit(self, trial_id: str, step: int) -> bool:
        if step not in self._rungs:  # it stands between two rungs: nothing is in its way
            self._promoted.get(self._settled(trial_id), set()).add(trial_id)
            return True
        if self.form == "promote":
            return False
        entry = next(entry for entry in self._rungs[step] if entry.trial_id == trial_id)
        return self._stop(step, entry).action == "continue"

    def next_to_resume(self, *, fresh: bool = False) -> Resume | None:
        if self.form != "promote":
            return None
        found = self._promotable()
        if found is None:
            return None
        rung, entry = found
        self._promoted[rung].add(entry.trial_id)
        return Resume(entry.trial_id, "among the best of its rung by now")

    def expected_rungs(self, trials: int) -> list[tuple[int, float]]:
        """Forecast by running this scheduler on random values, as if the best at one rung were the best at all.

        One trial trains at a time; with many at once, somewhat more go on.
        """
        rng = np.random.default_rng(self.seed)
        some = min(trials, REHEARSED)
        rounds = min(16, 2 * REHEARSED // max(some, 1))
        reached = np.zeros(len(self._rungs) + 1)
        for _ in range(rounds):
            reached += self._rehearse(rng.permutation(some).tolist())
        scale = trials / max(some, 1) / rounds
        steps = (*self._rungs, self.max_steps or 0)
        return [(step, round(float(n) * scale, 1)) for step, n in zip(steps, reached, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {
            "rungs": [[rung, [list(entry) for entry in entries]] for rung, entries in self._rungs.items()],
            "promoted": [[rung, sorted(trials)] for rung, trials in self._promoted.items()],
            "ended": sorted(self._ended),
            "values": [[trial, [list(item) for item in values.items()]] for trial, values in self._values.items()],
            "pairs": [
                [rung, later, [list(pair) for pair in agreement.pairs]]
                for rung, agreements in self._agreements.items()
                for later, agreement in agreements.items()
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        rungs = [rung for rung, _ in state["rungs"]]
        if rungs != list(self._rungs):
            rule = f"a state must have the scheduler's rungs {list(self._rungs)}"
            raise SearchError(
                str(Problem("scheduler", rule, repr(rungs), "keep max_steps and the scheduler's options"))
            )
        self._rungs = {rung: [Entry(*entry) for entry in entries] for rung, entries in state["rungs"]}
        self._promoted = {rung: set(trials) for rung, trials in state["promoted"]}
        self._ended = set(state["ended"])
        self._values = {trial: {int(rung): value for rung, value in values} for trial, values in state["values"]}
        self._agreements = {rung: {} for rung in self._rungs}
        for rung, later, pairs in state["pairs"]:
            agreement = self._agreements[rung][later] = Agreement()
            for early, late in pairs:
                agreement.add(early, late)

    def _settled(self, trial_id: str) -> int:
        """The highest rung that a trial has settled; 0 before the first."""
        return max(self._values.get(trial_id, ()), default=0)

    def _compare(self, trial_id: str, rung: int, value: float) -> None:
        """Enter what a trial came to at a rung, beside its values at the rungs before."""
        known = self._values.setdefault(trial_id, {})
        for before, early in known.items():
            self._agreements[before].setdefault(rung, Agreement()).add(early, value)
        known[rung] = value

    def _trusted(self, rung: int) -> bool:
        return self._lasts(rung) >= self._least

    def _lasts(self, rung: int) -> float:
        """How well the order at a rung agrees with that of the later rung that it agrees with least."""
        return min((agreement.tau for agreement in self._agreements[rung].values()), default=1.0)

    def _stop(self, rung: int, entry: Entry) -> Decision:
        entries = self._rungs[rung]
        place = bisect_left(entries, entry) + 1
        keep = -(-len(entries) // self._factor)
        if place > keep and self._trusted(rung):
            return Decision("stop", self._reason(rung, place, keep))
        return Decision("continue", self._reason(rung, place, keep))

    def _pause(self, rung: int, entry: Entry) -> Decision:
        entries = self._rungs[rung]
        reason = self._reason(rung, bisect_left(entries, entry) + 1, len(entries) // self._factor)
        if self._promotable() == (rung, entry) or not self._trusted(rung):
            self._promoted[rung].add(entry.trial_id)
            return Decision("continue", reason)
        return Decision("pause", reason)

    def _promotable(self) -> tuple[int, Entry] | None:
        """Alg. 2, lines 12-19: the best trial that may go on, looked for from the highest rung down."""
        for rung in reversed(self._rungs):
            entries, promoted = self._rungs[rung], self._promoted[rung]
            for entry in entries[: len(entries) // self._factor]:
                if entry.trial_id not in promoted and entry.trial_id not in self._ended:
                    return rung, entry
        return None

    def _reason(self, rung: int, place: int, keep: int) -> str:
        part = {2: "half", 3: "third", 4: "quarter"}.get(self._factor, f"1/{self._factor}")
        held = len(self._rungs[rung])
        who = f"the best {part} ({keep}) goes on"
        if not self._trusted(rung):
            who = f"all go on, since its order did not last (agreement {self._lasts(rung):.2f})"
        return f"rung {rung}: {_ordinal(place)} of {held}, {who}"

    def _rehearse(self, values: list[int]) -> list[int]:
        """How many of these trials reach each rung and the end, one after the other, promoted ones first."""
        assert isinstance(self.options, AshaOptions)
        fresh = AshaScheduler(self.options, max_steps=self.max_steps, seed=self.seed)
        steps = list(fresh._rungs)
        ended = 0

        def train(trial: int, place: int) -> bool:
            while place < len(steps):
                if fresh.on_report(str(trial), steps[place], values[trial]).action != "continue":
                    return False
                place += 1
            return True

        for trial in range(len(values)):
            ended += train(trial, 0)
            while (resumed := fresh.next_to_resume()) is not None:
                ended += train(int(resumed.trial_id), steps.index(fresh._settled(resumed.trial_id)) + 1)
        return [*(len(entries) for entries in fresh._rungs.values()), ended]


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
