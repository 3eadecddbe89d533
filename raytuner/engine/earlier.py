"""The trials of before an extension, for a search and a scheduler that begin anew."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import cast

from raytuner.engine.proposals import Proposals
from raytuner.journal import Event, ExperimentState, Extended, Reported, TrialState
from raytuner.schedulers import Scheduler
from raytuner.search import Observation, Status

__all__ = ["Earlier", "cut_off"]


def cut_off(trial: TrialState) -> bool:
    """Whether a trial is to go on some day, though nothing runs: its driver died, or was interrupted."""
    return trial.status in ("running", "pending") or trial.interrupted


class Earlier:
    """Takes events until the extension, then tells of the trials as if their search and scheduler had seen them."""

    def __init__(self, state: ExperimentState) -> None:
        self._state = state
        self._reports: defaultdict[str, dict[int, float]] = defaultdict(dict)

    def take(self, event: Event) -> None:
        """Keep what is needed of an event, which the state has taken in."""
        if isinstance(event, Reported):
            value = event.metrics.get(self._state.metric, math.nan)
            if math.isfinite(value):
                self._reports[event.trial][event.step] = value

    def hand_over(self, extended: Extended, proposals: Proposals, scheduler: Scheduler) -> list[str]:
        """Tell search and scheduler of every trial; returns the reopened ones that go on at once."""
        sign = -1.0 if self._state.mode == "max" else 1.0
        trials = self._state.trials.values()
        reopened = [trial for trial in extended.reopened if not cut_off(self._state.trials[trial])]
        for trial in trials:
            if trial.source == "user":
                proposals.tell(Observation(trial.id, trial.config, step=0, value=None, status="pending"))
            else:
                proposals.asked(trial.id, trial.config, 0)
            scheduler.on_start(trial.id, trial.config, baseline=trial.source == "defaults")
        for trial in trials:
            steps = [step for step in scheduler.decision_steps() if step <= trial.step]
            if cut_off(trial) and steps and steps[-1] == trial.step:
                steps.pop()  # it will be judged there when it is taken up
            best, last = self._values(trial, steps)
            for step, value in best.items():
                told = Observation(trial.id, trial.config, step=step, value=sign * value, status="running")
                proposals.tell(told)
            judged = last if scheduler.compares == "last" else best
            known = {step: sign * value for step, value in judged.items()}
            over = trial.ended and not cut_off(trial) and trial.id not in reopened
            scheduler.adopt(trial.id, known, ended=over)
            if over or trial.status == "paused" or trial.id in reopened:
                self._tell_end(trial, proposals, sign, over=over)
        return [trial for trial in reopened if scheduler.readmit(trial, self._state.trials[trial].step)]

    def _values(self, trial: TrialState, steps: list[int]) -> tuple[dict[int, float], dict[int, float]]:
        """At each of these steps, what the trial's value was by then, and what it had reported last."""
        better = max if self._state.mode == "max" else min
        best, last = {}, {}
        for step in steps:
            until = [value for at, value in sorted(self._reports[trial.id].items()) if at <= step]
            if until:
                best[step] = until[-1] if self._state.select == "last" else better(until)
                last[step] = until[-1]
        return best, last

    def _tell_end(self, trial: TrialState, proposals: Proposals, sign: float, *, over: bool) -> None:
        status = cast("Status", trial.status) if over else "paused"
        value = None if status == "failed" or trial.value is None else sign * trial.value
        proposals.tell(Observation(trial.id, trial.config, step=max(trial.step, 1), value=value, status=status))
