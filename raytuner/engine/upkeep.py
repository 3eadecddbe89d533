"""Care for the checkpoints on disk: what a lost attempt left behind is put on record, and what is too much goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from raytuner.disk import has_room, means_full
from raytuner.engine.shelf import Shelf
from raytuner.errors import CheckpointError
from raytuner.journal import CheckpointRemoved, CheckpointWritten, Event, ExperimentState, Folder, Reported, TrialState
from raytuner.journal.state import EXPLOIT
from raytuner.training.fence import Fence

__all__ = ["Upkeep"]

LOOK_SECONDS = 1.0
"""How often to look whether the disk has room."""
LOOKS = 3
"""How often to look for another trial's checkpoints, which it may delete meanwhile for a newer one."""


class Upkeep:
    """Keeps the record and the checkpoints on disk in step. ``disk`` is the budget in bytes, ``keep`` how many trials
    that have ended keep their checkpoints; None for no limit.
    """

    def __init__(
        self,
        folder: Folder,
        state: ExperimentState,
        record: Callable[[Event], None],
        warn: Callable[[str], None],
        *,
        disk: float | None,
        keep: int | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        self._folder = folder
        self.shelf = shelf or Shelf(folder)
        self._state = state
        self._record = record
        self._warn = warn
        self._disk = disk
        self._keep = keep
        self._warned = False
        self._room = True
        self._look_again = 0.0

    def fence(self, trial: TrialState, attempt: int) -> None:
        """Keep attempts of a trial before this one from touching its files, should one be alive somewhere."""
        try:
            Fence(self._folder.trial(trial.id)).put(attempt)
        except OSError as error:
            if not means_full(error):
                raise

    def has_room(self) -> bool:
        """Whether the disk has room for more; where it has none, that is said, and when it has again."""
        if time.monotonic() >= self._look_again:
            self.say_room(has_room(self._folder.path))
        return self._room

    def say_room(self, room: bool) -> None:
        """Take note of whether there is room; warn when the disk has become full, and when there is room again."""
        self._look_again = time.monotonic() + LOOK_SECONDS
        if room != self._room:
            self._room = room
            text = "there is room on the disk again: it goes on" if room else "the disk is full: it waits for room"
            self._warn(f"{self._folder.path}: {text}")

    def recover(self, trial: TrialState) -> None:
        """A checkpoint can outrun the journal by a batch: write down what it knows and the journal does not.

        One that an attempt before the last wrote, and that is not on record, came after its time, and is removed.
        """
        last = trial.attempt
        for gone in [path for path in trial.checkpoints if not self.shelf.exists(path)]:
            self._record(CheckpointRemoved(trial=trial.id, path=gone))
        for path in self.shelf.found(trial.id):
            try:
                manifest = self.shelf.manifest(path)
            except CheckpointError as error:
                self._warn(str(error))
                continue
            attempt = manifest["attempt"]
            if str(path) not in trial.checkpoints and attempt < last:
                self.shelf.remove(path)
                continue
            trial.attempt = max(trial.attempt, attempt)
            if str(path) not in trial.checkpoints:
                size = sum(entry["bytes"] for entry in manifest["files"].values())
                step = manifest["step"]
                self._record(
                    CheckpointWritten(
                        trial=trial.id,
                        attempt=attempt,
                        step=step,
                        path=str(path),
                        bytes=size,
                        reason=EXPLOIT if "origin" in manifest else "found",
                    )
                )
            for report in manifest["reports"]:
                if report["step"] > trial.step:
                    self._record(Reported(trial=trial.id, attempt=attempt, **report))

    def adopt(self, trial: TrialState, source: TrialState) -> int | None:
        """Make the source's latest checkpoint the trial's own, for its next attempt; its step, None if there is none.

        It is never one before the trial's own step, nor one after which nothing is left to train. What stands on the
        disk counts: a source that trains has written new ones, and deleted older ones, before it is known here.
        """
        attempt = trial.attempt + 1
        last = self._state.max_steps or math.inf
        for _ in range(LOOKS):
            for path in sorted(self.shelf.found(source.id), key=_step_and_attempt, reverse=True):
                step, wrote = _step_and_attempt(path)
                stale = wrote < source.attempt and str(path) not in source.checkpoints  # by one that was given up
                if stale or not trial.step <= step < last:
                    continue
                target = self._folder.trial(trial.id) / "checkpoints" / f"{step:06d}-{attempt}"
                try:
                    size = self.shelf.adopt(path, target, trial=trial.id, attempt=attempt)
                except CheckpointError:
                    continue
                self._record(
                    CheckpointWritten(
                        trial=trial.id, attempt=attempt, step=step, path=str(target), bytes=size, reason=EXPLOIT
                    )
                )
                return step
        return None

    def retire(self) -> None:
        """Delete checkpoints of trials that have ended, the worst first: those that are too many, and what is over the
        budget of space. Those that may still go on, or be needed by others, keep theirs, and so does the best.
        """
        if self._disk is None and self._keep is None:
            return
        trials = self._state.trials.values()
        total = sum(c.bytes for t in trials for c in t.checkpoints.values())
        over = self._disk is not None and total > self._disk
        if self._keep is None and not over:
            return
        best = self._state.best
        sign = -1.0 if self._state.mode == "max" else 1.0
        ended = [
            trial
            for trial in trials
            if trial.ended and trial is not best and trial.checkpoints and not trial.interrupted
        ]
        ended.sort(key=lambda t: float("inf") if t.value is None else sign * t.value)
        spare = len(ended) if self._keep is None else self._keep - 1
        while ended and (len(ended) > spare or (self._disk is not None and total > self._disk)):
            trial = ended.pop()
            for checkpoint in list(trial.checkpoints.values()):
                self.shelf.remove(Path(checkpoint.path))
                self._record(CheckpointRemoved(trial=trial.id, path=checkpoint.path))
                total -= checkpoint.bytes
        if self._disk is not None and total > self._disk and not self._warned:
            self._warned = True
            self._warn(
                f"the checkpoints of running trials and of the best one need {total / 1e6:.0f} MB, more than "
                f"checkpoints.disk={self._disk / 1e6:.0f} MB; raise it"
            )


def _step_and_attempt(path: Path) -> tuple[int, int]:
    step, _, attempt = path.name.partition("-")
    return int(step), int(attempt)
