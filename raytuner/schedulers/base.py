"""What a scheduler is: it decides which trials go on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from raytuner.errors import Problem, SearchError
from raytuner.space import Config, Space

__all__ = ["Decision", "Exploit", "Resume", "Scheduler"]


@dataclass(frozen=True)
class Exploit:
    """A trial is to go on from another's latest checkpoint, with another configuration."""

    source: str
    """The trial whose checkpoint it is; possibly the trial itself."""
    config: Config
    """The whole configuration with which it goes on."""


@dataclass(frozen=True)
class Decision:
    """What becomes of a trial after a report."""

    action: Literal["continue", "pause", "stop", "exploit"]
    """``continue``: train the next step. ``pause``: free the slot and keep the checkpoint; ``next_to_resume`` may name
    the trial later. ``stop``: the trial has ended and never comes back. ``exploit``: go on as ``exploit`` says."""
    reason: str
    """Why, as a sentence with numbers."""
    exploit: Exploit | None = None


@dataclass(frozen=True)
class Resume:
    """A paused trial goes on."""

    trial_id: str
    reason: str
    """Why, as a sentence with numbers."""
    exploit: Exploit | None = None
    """Where from, and how, if not from its own checkpoint as it was."""


class Scheduler(ABC):
    """Decides which trials go on. Pure and deterministic: the same calls in the same order get the same answers.

    The caller reports the steps at which the scheduler wants to be asked, in the order of their arrival, values being
    minimised, and carries out each decision::

        scheduler.on_report("000001", 1, 0.9)      # Decision("continue", "rung 1: 0.9 is 1st of 1, ...")
        scheduler.on_report("000002", 1, 0.7)      # Decision("continue", ...)
        scheduler.on_report("000003", 1, 0.8)      # Decision("stop", "rung 1: 0.8 is 2nd of 3, ...")
        scheduler.on_end("000003", "stopped")

    A slot that is free first asks ``next_to_resume``, and starts a new trial when the answer is None.
    ``on_start`` tells of a new trial before it reports.
    """

    Options: ClassVar[type[BaseModel]]
    """The model of the options that the scheduler takes."""
    pauses: bool = False
    """Whether it may pause trials, or copy them, so that every deciding step needs a checkpoint."""
    spares: bool = True
    """Whether it may spare trials their last steps: stop them, or leave them paused for good."""
    compares: Literal["value", "last"] = "value"
    """What it wants to be told of a trial: its value, which may be an earlier step's, or what it reported last."""
    most_trials: int | None = None
    """The most trials that it takes; None for any number."""

    def __init__(self, options: BaseModel, *, max_steps: int | None, seed: int) -> None:
        """max_steps: the most steps that a trial takes, at least 1; None when unknown."""
        self.options = options
        self.max_steps = max_steps
        self.seed = seed

    def use(self, space: Space) -> None:  # noqa: B027, not every scheduler cares for configurations
        """Told the space before anything else. Raises SearchError when the options do not fit it."""

    def on_start(self, trial_id: str, config: Config, *, baseline: bool = False) -> None:  # noqa: B027, as above
        """A new trial is handed out; or one goes on with another configuration than the scheduler said.

        baseline: it has the defaults, which all others are compared with: it is trained as it is.
        """

    @abstractmethod
    def decision_steps(self) -> tuple[int, ...]:
        """The steps at which something is decided, ascending, below ``max_steps``."""

    def decides_at(self, step: int) -> bool:
        """Whether a report at this step must wait for a decision."""
        return step in self.decision_steps()

    @abstractmethod
    def on_report(self, trial_id: str, step: int, value: float) -> Decision:
        """Decides after a report.

        step: counted from 1. value: the objective, minimised and finite; raises SearchError otherwise. To be called in
        the order of arrival, for every report at a step where ``decides_at`` holds.
        """

    def on_end(self, trial_id: str, status: str) -> None:  # noqa: B027, not every scheduler keeps account
        """A trial has ended (finished, stopped or failed) and is not to be resumed, unless it reports again."""

    def adopt(self, trial_id: str, values: Mapping[int, float], *, ended: bool) -> None:
        """Takes over a trial that another scheduler has judged. Called after ``on_start``, before any report.

        values: what it had come to at each deciding step of this scheduler that it has done. ended: as in ``on_end``;
        else it stands at its last step, paused.
        """
        for step, value in sorted(values.items()):
            self.on_report(trial_id, step, value)
        if ended:
            self.on_end(trial_id, "stopped")

    def readmit(self, trial_id: str, step: int) -> bool:
        """Whether an adopted trial that had done all its steps goes on at once, as there are more now.

        step: its last. Where ``pauses`` holds and it stands at a deciding step, ``next_to_resume`` says so instead.
        """
        return not (self.pauses and self.decides_at(step))

    def next_to_resume(self, *, fresh: bool = False) -> Resume | None:
        """The paused trial to go on next, or None. The caller must resume it: the same place is not offered twice.

        fresh: a new trial could be started in its stead.
        """
        return None

    @abstractmethod
    def expected_rungs(self, trials: int) -> list[tuple[int, float]]:
        """How many of so many trials are expected to reach each deciding step, and ``max_steps`` last."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that later decisions depend on, as JSON-able values."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state; then decides as the scheduler that it came from. Raises SearchError for a foreign one."""


def check_report(trial_id: str, step: int, value: float) -> None:
    """Raises SearchError for a report that nothing can be decided on."""
    if not math.isfinite(value):
        rule = "a scheduler compares finite values only"
        raise SearchError(str(Problem(f"trial {trial_id}, step {step}", rule, repr(value), "end the trial as failed")))
    if step < 1:
        raise SearchError(str(Problem(f"trial {trial_id}", "steps count from 1", repr(step), "report the first as 1")))
