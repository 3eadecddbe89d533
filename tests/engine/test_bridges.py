"""What Ray Tune is told, and when, without Ray."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from raytuner.engine import bridges
from raytuner.engine.batch import Batch
from raytuner.engine.bridges import SchedulerBridge


class Controller:
    """Of Ray Tune's what is called."""

    def __init__(self) -> None:
        self.stopped: list[str] = []
        self._tune_controller = SimpleNamespace(_reuse_actors=True)

    def stop_trial(self, trial: Any) -> None:
        self.stopped.append(trial.trial_id)

    def get_live_trials(self) -> list[Any]:
        return []


class SlotTrial(SimpleNamespace):
    def __init__(self, trial_id: str) -> None:
        super().__init__(trial_id=trial_id, name=trial_id, attempt=1)

    def forget(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(bridges.time, "monotonic", lambda: now.seconds)
    return now


@pytest.mark.parametrize(("start", "patience"), [(2.0, 15.0), (16.0, 32.0), (50.0, 60.0)])
def test_a_free_slot_lets_another_come_up_for_as_long_as_starts_take_here(
    clock: SimpleNamespace, start: float, patience: float
) -> None:
    conductor: Any = SimpleNamespace(
        take=lambda batch, **place: True,
        books=SimpleNamespace(slots_now=2, waiting=None),
        left=set(),
        stopping=None,
        thinking=False,
    )
    bridge, controller = SchedulerBridge(conductor, lambda: None), Controller()
    first, second = SlotTrial("1"), SlotTrial("2")
    for trial in (first, second):
        bridge.on_trial_add(controller, trial)
    clock.seconds += start
    result = {"slot": "a", bridges.BATCH: Batch("1", 1).dumps(), "place": json.dumps({})}
    assert bridge.on_trial_result(controller, first, result) == "NOOP"
    clock.seconds += patience - start - 0.1
    bridge.choose_trial_to_run(controller)
    assert (bridge.held, controller.stopped) == (1, [])
    clock.seconds += 0.2
    bridge.choose_trial_to_run(controller)
    assert (bridge.held, controller.stopped) == (0, ["1"])
