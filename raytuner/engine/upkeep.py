"""Care for the checkpoints on disk: what a lost attempt left behind is put on record, and what is too much goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from raytuner.errors import CheckpointError
from raytuner.journal import CheckpointRemoved, CheckpointWritten, Event, ExperimentState, Folder, Reported, TrialState
from raytuner.training.checkpoint import read_manifest, remove_checkpoint

__all__ = ["INTERRUPTED", "Upkeep"]

INTERRUPTED = "interrupted"
"""How the reason begins of a trial that a resume goes on with."""


class Upkeep:
    """Keeps the record and the checkpoints on disk in step. ``disk`` is the budget in bytes, or None."""

    def __init__(
        self,
        folder: Folder,
        state: ExperimentState,
        record: Callable[[Event], None],
        warn: Callable[[str], None],
        *,
        disk: float | None,
    ) -> None:
        self._folder = folder
        self._state = state
        self._record = record
        self._warn = warn
        self._disk = disk
        self._warned = False

    def recover(self, trial: TrialState) -> None:
        """A checkpoint can outrun the journal by a batch: write down what it knows and the journal does not."""
        for gone in [path for path in trial.checkpoints if not Path(path).exists()]:
            self._record(CheckpointRemoved(trial=trial.id, path=gone))
        folder = self._folder.trial(trial.id) / "checkpoints"
        for path in sorted(folder.glob("[0-9]*-[0-9]*")):
            try:
                manifest = read_manifest(path)
            except CheckpointError as error:
                self._warn(str(error))
                continue
            attempt = manifest["attempt"]
            trial.attempt = max(trial.attempt, attempt)
            if str(path) not in trial.checkpoints:
                size = sum(entry["bytes"] for entry in manifest["files"].values())
                step = manifest["step"]
                self._record(
                    CheckpointWritten(
                        trial=trial.id, attempt=attempt, step=step, path=str(path), bytes=size, reason="found"
                    )
                )
            for report in manifest["reports"]:
                if report["step"] > trial.step:
                    self._record(Reported(trial=trial.id, attempt=attempt, **report))

    def keep_within_disk(self) -> None:
        """Delete checkpoints of trials that have ended, worst first, while the experiment's are over their budget."""
        if self._disk is None:
            return
        trials = self._state.trials.values()
        total = sum(c.bytes for t in trials for c in t.checkpoints.values())
        if total <= self._disk:
            return
        best = self._state.best
        sign = -1.0 if self._state.mode == "max" else 1.0
        ended = [
            trial
            for trial in trials
            if trial.ended and trial is not best and trial.checkpoints and not trial.reason.startswith(INTERRUPTED)
        ]
        ended.sort(key=lambda t: float("inf") if t.value is None else sign * t.value, reverse=True)
        for trial in ended:
            for checkpoint in list(trial.checkpoints.values()):
                remove_checkpoint(Path(checkpoint.path))
                self._record(CheckpointRemoved(trial=trial.id, path=checkpoint.path))
                total -= checkpoint.bytes
            if total <= self._disk:
                return
        if not self._warned:
            self._warned = True
            self._warn(
                f"the checkpoints of running trials and of the best one need {total / 1e6:.0f} MB, more than "
                f"checkpoints.disk={self._disk / 1e6:.0f} MB; raise it"
            )
