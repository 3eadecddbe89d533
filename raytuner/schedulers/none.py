"""No scheduler: every trial trains to its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from raytuner.components import Options
from raytuner.schedulers.base import Decision, Scheduler, check_report

__all__ = ["NoneOptions", "NoneScheduler"]


class NoneOptions(Options):
    """Every trial trains to its end."""

    type: Literal["none"] = "none"
    """The kind of scheduler."""


class NoneScheduler(Scheduler):
    """Lets every trial go on."""

    Options = NoneOptions
    spares = False

    def decision_steps(self) -> tuple[int, ...]:
        return ()

    def on_report(self, trial_id: str, step: int, value: float) -> Decision:
        check_report(trial_id, step, value)
        return Decision("continue", "no scheduler: every trial trains to its end")

    def expected_rungs(self, trials: int) -> list[tuple[int, float]]:
        return [] if self.max_steps is None else [(self.max_steps, float(trials))]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
