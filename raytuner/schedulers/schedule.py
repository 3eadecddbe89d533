"""A fixed schedule: the parameters of a trial change at given steps. A winner of PBT is trained again with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raytuner.components import Options
from raytuner.errors import Problem, SearchError
from raytuner.schedulers.base import Decision, Exploit, Scheduler, check_report
from raytuner.space import Config, Space, broken_rule

__all__ = ["Change", "ScheduleOptions", "ScheduleScheduler"]


class Change(BaseModel):
    """From a step on, some parameters have other values."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    after: int = Field(ge=1, le=10**9)
    """The last step with the values before."""
    config: dict[str, Any] = Field(min_length=1)
    """The parameters that change, with their values from the next step on."""


class ScheduleOptions(Options):
    """Parameters that change at given steps, the same for every trial."""

    type: Literal["schedule"] = "schedule"
    """The kind of scheduler."""
    changes: list[Change] = Field(default_factory=list)
    """The changes, in the order of their steps."""

    @model_validator(mode="after")
    def _in_order(self) -> ScheduleOptions:
        steps = [change.after for change in self.changes]
        if steps != sorted(set(steps)):
            raise broken_rule(
                "the steps of the changes must ascend", f"{steps}", "put them in order, one for each step"
            )
        return self


class ScheduleScheduler(Scheduler):
    """Has each trial go on from its own checkpoint with other parameters after the given steps."""

    Options = ScheduleOptions
    spares = False
    pauses = True
    compares = "last"

    def __init__(self, options: ScheduleOptions, *, max_steps: int | None, seed: int) -> None:
        super().__init__(options, max_steps=max_steps, seed=seed)
        self._changes = {change.after: change.config for change in options.changes}
        self._configs: dict[str, Config] = {}
        self._space: Space | None = None
        late = [step for step in self._changes if max_steps is not None and step >= max_steps]
        if late or max_steps is None:
            rule = "a schedule needs objective.max_steps, above the steps of all changes"
            got = f"max_steps={max_steps}, changes after {sorted(self._changes)}"
            raise SearchError(str(Problem("scheduler", rule, got, "raise max_steps, or take late changes out")))

    def use(self, space: Space) -> None:
        self._space = space
        for place, change in enumerate(self.settings.changes):
            for name, value in change.config.items():
                where = f"scheduler.changes[{place}].config.{name}"
                parameter = space.parameters.get(name)
                if parameter is None:
                    remedy = f"use some of {', '.join(space.names)}"
                    raise SearchError(str(Problem(where, "must name a parameter of the space", repr(name), remedy)))
                problem = parameter.problem(value, where)
                if problem is not None:
                    raise SearchError(str(problem))

    @property
    def settings(self) -> ScheduleOptions:
        assert isinstance(self.options, ScheduleOptions)
        return self.options

    def decision_steps(self) -> tuple[int, ...]:
        return tuple(self._changes)

    def on_start(self, trial_id: str, config: Config, *, baseline: bool = False) -> None:
        self._configs[trial_id] = dict(config)

    def on_report(self, trial_id: str, step: int, value: float) -> Decision:
        check_report(trial_id, step, value)
        change = self._changes.get(step)
        if change is None:
            return Decision("continue", f"step {step}: no change")
        config = {**self._configs[trial_id], **change}
        if self._space is not None:
            active = self._space.active(config)
            config = {name: value for name, value in config.items() if name in active}
        self._configs[trial_id] = config
        said = ", ".join(f"{name}={value}" for name, value in change.items())
        return Decision("exploit", f"the schedule: {said} after step {step}", Exploit(trial_id, dict(config)))

    def expected_rungs(self, trials: int) -> list[tuple[int, float]]:
        return [(self.max_steps or 0, float(trials))]

    def state_dict(self) -> dict[str, Any]:
        return {"configs": {name: dict(config) for name, config in self._configs.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._configs = {name: dict(config) for name, config in state["configs"].items()}
