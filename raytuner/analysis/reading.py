"""What every answer about an experiment starts from: its state, whether its driver lives, and its saved plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from raytuner.journal import Checkpoint, ExperimentState, Folder, Lock, Tested, TrialState, replay
from raytuner.storage import join

__all__ = ["Reading", "Savings"]


@dataclass(frozen=True)
class Savings:
    """What was trained, and what early stopping made unnecessary. All in steps, over all trials."""

    trained: int
    full: int | None
    """What every trial that was begun would have taken to the end; None without ``max_steps``."""
    saved: int
    """What stopped and paused trials were spared."""

    @classmethod
    def of(cls, state: ExperimentState) -> Savings:
        full, trials = state.max_steps, state.trials.values()
        begun = sum(trial.status != "pending" for trial in trials)
        spared = [
            trial
            for trial in trials
            if trial.status in {"stopped", "paused"} and not trial.interrupted and not trial.over_budget
        ]
        saved = sum(full - trial.step for trial in spared) if full and state.spares else 0
        return cls(state.steps, full * begun if full else None, saved)


@dataclass(frozen=True)
class Reading:
    """The journal of ``folder`` as it stands, folded. ``history=False`` leaves out the single steps."""

    folder: Folder
    state: ExperimentState
    alive: bool
    """Is a driver at work on it?"""

    @classmethod
    def of(cls, folder: Folder, *, history: bool = False) -> Reading:
        """Read it now. Raises JournalError when the journal is damaged."""
        alive = Lock(folder).held_by_other()  # first: a driver that ends meanwhile has written everything by then
        return cls(folder, replay(folder, history=history), alive)

    @property
    def name(self) -> str:
        return self.state.name or self.folder.path.name

    @property
    def status(self) -> str:
        """As the journal says; ``interrupted`` where it ends in the middle because the driver was killed."""
        return "interrupted" if self.state.status == "running" and not self.alive else self.state.status

    @property
    def reason(self) -> str:
        """Why it has this status; empty while it runs."""
        if self.status != self.state.status:
            driver = self.state.drivers[-1]
            return f"the driver (process {driver.pid} on {driver.host}) is gone without a word"
        return self.state.reason

    @property
    def defaults(self) -> TrialState | None:
        """The trial of the user's own configuration: the baseline."""
        return next((trial for trial in self.state.trials.values() if trial.source == "defaults"), None)

    @property
    def test(self) -> Tested | None:
        """The last test of the best trial."""
        best = self.state.best
        return next((test for test in reversed(self.state.tests) if best and test.trial == best.id), None)

    @property
    def savings(self) -> Savings:
        return Savings.of(self.state)

    @cached_property
    def plan(self) -> Mapping[str, Any]:
        """The plan as it was saved; empty where it cannot be read."""
        try:
            plan = json.loads(self.folder.plan.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return plan if isinstance(plan, dict) else {}

    def ranked(self) -> list[TrialState]:
        """The trials that have a value, the best first; the earlier first where values are equal."""
        sign = -1 if self.state.mode == "max" else 1
        valued = (trial for trial in self.state.trials.values() if trial.value is not None)
        return sorted(valued, key=lambda trial: sign * (trial.value or 0.0))

    def path_of(self, checkpoint: Checkpoint | None) -> Path | None:
        """Where a checkpoint lies now; None when it does not stand."""
        return None if checkpoint is None else self.folder.here(checkpoint.path)

    def shown(self, path: Path) -> str:
        """What to call a path of the experiment: its address, where it lies in an object store."""
        remote = self.folder.remote
        return join(remote, path.relative_to(self.folder.path).as_posix()) if remote else str(path)
