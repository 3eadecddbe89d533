"""An experiment's results in Python: frames of trials and steps, and the best trial with its checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytuner.analysis.reading import Reading
from raytuner.errors import CheckpointError
from raytuner.journal import ExperimentState, Folder

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BestTrial", "Results", "load"]


@dataclass(frozen=True)
class BestTrial:
    """The trial with the best value, and the step that it was reached at."""

    id: str
    config: Mapping[str, Any]
    value: float
    step: int
    checkpoint: Path | None
    """The checkpoint of that step; None when it was not kept (``checkpoints: {best: false}``)."""

    def load_checkpoint(self, *, device: str = "cpu") -> dict[str, Any]:
        """What ``trial.steps(**state)`` kept at the best step, by name; tensors on ``device``.

        Raises CheckpointError when no checkpoint was kept, or it is damaged.
        """
        if self.checkpoint is None:
            raise CheckpointError(
                f"trial {self.id}: no checkpoint of its best step {self.step} was kept; keep them with "
                "`checkpoints: {best: true}`"
            )
        from raytuner.training.checkpoint import load_checkpoint

        return load_checkpoint(self.checkpoint, device=device)


@dataclass(frozen=True)
class Results:
    """What an experiment has come to, as its journal told when it was loaded.

    >>> results = raytuner.load("results/digits-mlp")
    >>> results.trials.sort_values("value").tail()
    >>> results.best.load_checkpoint()["model"]
    """

    reading: Reading

    @property
    def folder(self) -> Folder:
        return self.reading.folder

    @property
    def state(self) -> ExperimentState:
        """Everything the journal tells, trial by trial and step by step."""
        return self.reading.state

    @property
    def status(self) -> str:
        """pending, running, finished, interrupted or failed."""
        return self.reading.status

    @cached_property
    def trials(self) -> pd.DataFrame:
        """A row a trial: id, status, source, value, value_step, steps, seconds, reason, and ``config.<name>`` each.

        A parameter that is not active in a trial is missing there.
        """
        import pandas as pd

        rows = [
            {
                "id": trial.id,
                "status": trial.status,
                "source": trial.source,
                "value": trial.value,
                "value_step": trial.value_step if trial.value is not None else None,
                "steps": trial.step,
                "seconds": trial.seconds,
                "reason": trial.reason,
                **{f"config.{name}": value for name, value in trial.config.items()},
            }
            for trial in self.state.trials.values()
        ]
        fixed = ["id", "status", "source", "value", "value_step", "steps", "seconds", "reason"]
        frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=fixed)
        return frame.astype({"value": "float64", "value_step": "Int64"})

    @cached_property
    def steps(self) -> pd.DataFrame:
        """A row a step of a trial: trial, step, attempt, time (seconds since the epoch), seconds, and each metric."""
        import pandas as pd

        rows = [
            {
                "trial": trial.id,
                "step": step.step,
                "attempt": step.attempt,
                "time": step.time,
                "seconds": step.seconds,
                **step.metrics,
            }
            for trial in self.state.trials.values()
            for step in trial.steps
        ]
        return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["trial", "step", "attempt", "time", "seconds"])

    @cached_property
    def incumbent(self) -> pd.DataFrame:
        """A row an improvement: time (seconds since the start), steps (by all trials till then), trial, value."""
        import pandas as pd

        rows = [(at - self.state.started_at, steps, trial, value) for at, steps, trial, value in self.state.curve()]
        return pd.DataFrame(rows, columns=["time", "steps", "trial", "value"])

    @property
    def best(self) -> BestTrial | None:
        """The best trial; None before any trial has reported."""
        trial = self.state.best
        if trial is None or trial.value is None:
            return None
        checkpoint = self.reading.path_of(trial.best_checkpoint)
        if checkpoint is not None:
            checkpoint = self.folder.fetch(checkpoint)
        return BestTrial(trial.id, trial.config, trial.value, trial.value_step, checkpoint)

    @property
    def test(self) -> Mapping[str, float] | None:
        """The test metrics of the best trial; None when it was not tested, or its test failed."""
        test = self.reading.test
        return None if test is None or test.error is not None else test.metrics

    @property
    def summary(self) -> dict[str, Any]:
        """Numbers: ``trials`` by status, ``steps_trained``, ``steps_full``, ``steps_saved``, ``seconds`` at work."""
        savings = self.reading.savings
        statuses = [trial.status for trial in self.state.trials.values()]
        return {
            "trials": {status: statuses.count(status) for status in dict.fromkeys(statuses)},
            "steps_trained": savings.trained,
            "steps_full": savings.full,
            "steps_saved": savings.saved,
            "seconds": self.state.time_used,
        }


def load(path: str | os.PathLike[str]) -> Results:
    """The results in the folder of an experiment, which may still be running.

    Raises JournalError when there is no experiment in it, or its journal is damaged.
    """
    return Results(Reading.of(Folder.find(path), history=True))
