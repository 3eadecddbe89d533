"""A fixed schedule: parameters that change at given steps."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from raytuner.errors import SearchError
from raytuner.schedulers import ScheduleOptions, ScheduleScheduler
from raytuner.space import Choice, Float, Space

SPACE = Space(
    {
        "lr": Float(low=0.0, high=1.0),
        "optimizer": Choice(values=["sgd", "adam"]),
        "momentum": Float(low=0.0, high=0.9, when={"optimizer": "sgd"}),
    }
)


def schedule(*changes: Any, max_steps: int | None = 10) -> ScheduleScheduler:
    options = ScheduleOptions.model_validate({"type": "schedule", "changes": list(changes)})
    scheduler = ScheduleScheduler(options, max_steps=max_steps, seed=0)
    scheduler.use(SPACE)
    return scheduler


def test_values_change_after_their_steps() -> None:
    scheduler = schedule({"after": 3, "config": {"lr": 0.1}}, {"after": 6, "config": {"optimizer": "adam"}})
    assert scheduler.decision_steps() == (3, 6)
    scheduler.on_start("A", {"lr": 0.5, "optimizer": "sgd", "momentum": 0.9})
    first = scheduler.on_report("A", 3, 0.0)
    assert (first.action, first.reason) == ("exploit", "the schedule: lr=0.1 after step 3")
    assert first.exploit is not None
    assert (first.exploit.source, first.exploit.config) == ("A", {"lr": 0.1, "optimizer": "sgd", "momentum": 0.9})
    fresh = schedule({"after": 3, "config": {"lr": 0.1}}, {"after": 6, "config": {"optimizer": "adam"}})
    fresh.load_state_dict(scheduler.state_dict())
    for one in (scheduler, fresh):
        second = one.on_report("A", 6, 0.0)
        assert second.exploit is not None
        assert second.exploit.config == {"lr": 0.1, "optimizer": "adam"}  # no momentum without sgd


@pytest.mark.parametrize(
    ("changes", "max_steps", "message"),
    [
        ([{"after": 3, "config": {"lrr": 0.1}}], 10, r"changes\[0\].config.lrr: must name a parameter .* optimizer"),
        ([{"after": 3, "config": {"lr": 7.0}}], 10, r"changes\[0\].config.lr: .*got 7"),
        ([{"after": 10, "config": {"lr": 0.1}}], 10, r"above the steps of all changes, got max_steps=10"),
        ([{"after": 1, "config": {"lr": 0.1}}], None, r"needs objective.max_steps"),
    ],
)
def test_what_does_not_fit(changes: Any, max_steps: int | None, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        schedule(*changes, max_steps=max_steps)


def test_steps_ascend() -> None:
    change = {"after": 3, "config": {"lr": 0.1}}
    with pytest.raises(ValidationError, match="must ascend"):
        schedule(change, change)
