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
        self.starting: list[SlotTrial] = []
        """Those whose actors have what they need."""
        self._actor_manager = SimpleNamespace(next=None, is_actor_started=self.starting.__contains__)
        self._tune_controller = SimpleNamespace(_reuse_actors=True, _trial_to_actor=self)

    def __contains__(self, trial: SlotTrial) -> bool:
        return True

    def __getitem__(self, trial: SlotTrial) -> SlotTrial:
        return trial

    def stop_trial(self, trial: Any) -> None:
        self.stopped.append(trial.trial_id)

    def get_live_trials(self) -> list[Any]:
        return []


class SlotTrial:
    def __init__(self, trial_id: str) -> None:
        self.trial_id = self.name = trial_id
        self.attempt = 1
        self.status = "PENDING"

    def forget(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(bridges.time, "monotonic", lambda: now.seconds)
    return now


def a_bridge() -> tuple[SchedulerBridge, Controller, SlotTrial, SlotTrial]:
    """One that has seen two trials, for two slots."""
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
    return bridge, controller, first, second


RESULT = {"slot": "a", bridges.BATCH: Batch("1", 1).dumps(), "place": json.dumps({})}


@pytest.mark.parametrize(("start", "patience"), [(2.0, 15.0), (16.0, 32.0), (50.0, 60.0)])
def test_a_free_slot_lets_another_start_for_as_long_as_that_takes_here(
    clock: SimpleNamespace, start: float, patience: float
) -> None:
    bridge, controller, first, second = a_bridge()
    controller.starting += [first, second]
    bridge.choose_trial_to_run(controller)
    clock.seconds += start
    first.status = "RUNNING"
    assert bridge.on_trial_result(controller, first, RESULT) == "NOOP"
    clock.seconds += patience - start - 0.1
    bridge.choose_trial_to_run(controller)
    assert (bridge.held, controller.stopped) == (1, [])
    clock.seconds += 0.2
    bridge.choose_trial_to_run(controller)
    assert (bridge.held, controller.stopped) == (0, ["1"])


def test_a_free_slot_does_not_wait_for_one_for_which_there_is_no_room(clock: SimpleNamespace) -> None:
    bridge, controller, first, second = a_bridge()
    controller.starting.append(first)
    bridge.choose_trial_to_run(controller)
    first.status = "RUNNING"
    assert bridge.on_trial_result(controller, first, RESULT) == "STOP"
    assert second.status == "PENDING"


def test_a_free_slot_does_not_wait_for_one_that_has_started(clock: SimpleNamespace) -> None:
    bridge, controller, first, second = a_bridge()
    controller.starting += [first, second]
    bridge.choose_trial_to_run(controller)
    first.status = second.status = "RUNNING"  # and the other's first step takes its time
    assert bridge.on_trial_result(controller, first, RESULT) == "STOP"
