"""The fold: what the events add up to."""

import math
from pathlib import Path

import pytest
from made_journals import OBJECTIVE, driver_started, make_experiment

from raytuner import journal
from raytuner.journal import (
    CheckpointRemoved,
    CheckpointWritten,
    Decided,
    DriverEnded,
    ExperimentState,
    JournalReader,
    Logged,
    Reported,
    TrialAsked,
    TrialEnded,
    TrialStarted,
    replay,
)


def asked(trial: str, at: float = 1.0, **fields) -> TrialAsked:
    return TrialAsked(trial=trial, config={"x": 1}, at=at, **fields)


def started(trial: str, attempt: int = 1, step: int = 0, at: float = 1.0) -> TrialStarted:
    return TrialStarted(trial=trial, attempt=attempt, step=step, at=at)


def reported(trial: str, step: int, value: float, attempt: int = 1, at: float = 1.0, seconds: float = 0.0) -> Reported:
    return Reported(
        trial=trial, attempt=attempt, step=step, metrics={"val_accuracy": value}, time=at, seconds=seconds, at=at
    )


def ended(trial: str, status: str, step: int = 1, at: float = 1.0, **fields) -> TrialEnded:
    return TrialEnded(trial=trial, attempt=1, status=status, step=step, at=at, **fields)


def fold(*events, history: bool = True, **driver) -> ExperimentState:
    state = ExperimentState(history=history)
    for event in (driver_started(at=1.0, **driver), *events):
        state.apply(event)
    return state


def objective(**changes) -> dict:
    return {"objective": OBJECTIVE | changes}


def test_a_trial_lives_through_its_statuses() -> None:
    state = fold(asked("000001"))
    trial = state.trials["000001"]
    assert trial.status == "pending"
    state.apply(started("000001", at=2.0))
    assert (trial.status, trial.attempt, trial.started_at) == ("running", 1, 2.0)
    state.apply(ended("000001", "paused", at=3.0, reason="rung 1"))
    assert (trial.status, trial.reason, trial.ended) == ("paused", "rung 1", False)
    state.apply(started("000001", attempt=2, step=1, at=4.0))
    assert (trial.status, trial.reason, trial.attempt, trial.started_at) == ("running", "", 2, 2.0)
    state.apply(ended("000001", "failed", at=5.0, error={"kind": "E"}))
    assert (trial.status, trial.ended, trial.error) == ("failed", True, {"kind": "E"})
    assert state.count("failed") == 1
    assert state.count("running", "paused") == 0


@pytest.mark.parametrize(("mode", "value", "step"), [("max", 0.9, 2), ("min", 0.1, 3)])
def test_the_value_is_the_best_finite_one(mode: str, value: float, step: int) -> None:
    values = [0.5, 0.9, 0.1, math.nan, math.inf, 0.9, 0.1]
    steps = [reported("000001", k + 1, v) for k, v in enumerate(values)]
    state = fold(asked("000001"), *steps, **objective(mode=mode))
    trial = state.trials["000001"]
    assert (trial.value, trial.value_step, trial.step) == (value, step, 7)
    assert state.best is trial


def test_select_last_takes_the_last_finite_value() -> None:
    state = fold(asked("000001"), asked("000002"), **objective(select="last"))
    for event in (reported("000001", 1, 0.9), reported("000002", 1, 0.6)):
        state.apply(event)
    assert state.best is state.trials["000001"]
    state.apply(reported("000001", 2, 0.5))
    assert (state.trials["000001"].value, state.trials["000001"].value_step) == (0.5, 2)
    assert state.best is state.trials["000002"]
    state.apply(reported("000001", 3, math.nan))
    assert state.trials["000001"].value == 0.5
    state.apply(reported("000001", 4, 0.7))
    assert state.best is state.trials["000001"]
    assert [value for *_, value in state.incumbents] == [0.9, 0.7]


def test_the_incumbents_are_every_improvement() -> None:
    state = fold(
        asked("000001"),
        asked("000002"),
        reported("000001", 1, 0.5, at=10.0),
        reported("000001", 2, 0.6, at=11.0),  # the best trial improves on itself
        reported("000002", 1, 0.6, at=12.0),  # as good is not better
        reported("000002", 2, 0.7, at=13.0),
        reported("000001", 3, 0.65, at=14.0),
    )
    expected = [(10.0, 1, "000001", 0.5), (11.0, 2, "000001", 0.6), (13.0, 4, "000002", 0.7)]
    assert state.incumbents == expected
    assert state.best_at == 13.0
    assert state.steps == 5


def test_a_resume_goes_on() -> None:
    state = fold(
        asked("000001", at=2.0),
        started("000001", at=2.0),
        *(reported("000001", k, 0.1 * k, at=2.0 + k, seconds=float(k)) for k in (1, 2, 3)),
    )
    assert (state.status, state.time_used) == ("running", 3.0)  # from the first trial on; killed at 5.0: no word
    state.apply(driver_started(driver=2, at=1000.0, budget={"trials": 80, "time": None}))
    assert (state.time_used, state.elapsed) == (3.0, 3.0)  # the time between drivers does not count
    state.apply(started("000001", attempt=2, step=2, at=1001.0))
    state.apply(reported("000001", 3, 0.35, attempt=2, at=1002.0, seconds=3.0))
    state.apply(DriverEnded(status="finished", reason="done", at=1003.0))
    trial = state.trials["000001"]
    assert [(step.step, step.attempt) for step in trial.steps] == [(1, 1), (2, 1), (3, 2)]
    assert (trial.value, trial.seconds, trial.started_at) == (0.35, 3.0, 2.0)
    assert (state.steps, state.time_used, state.status, state.reason) == (4, 5.0, "finished", "done")
    assert [driver.driver for driver in state.drivers] == [1, 2]
    assert state.budget["trials"] == 80
    assert state.started_at == 1.0


def test_checkpoints_come_and_go() -> None:
    def written(step: int, attempt: int, path: str) -> CheckpointWritten:
        return CheckpointWritten(trial="000001", attempt=attempt, step=step, path=path, at=1.0)

    state = fold(asked("000001"), reported("000001", 1, 0.5), reported("000001", 2, 0.9), reported("000001", 3, 0.8))
    trial = state.trials["000001"]
    assert (trial.best_checkpoint, trial.last_checkpoint) == (None, None)
    for event in (written(1, 1, "a"), written(2, 1, "b"), written(2, 2, "c"), written(3, 2, "d")):
        state.apply(event)
    assert trial.best_checkpoint is not None
    assert trial.last_checkpoint is not None
    assert (trial.best_checkpoint.path, trial.last_checkpoint.path) == ("c", "d")
    for path in ("a", "c", "nowhere"):
        state.apply(CheckpointRemoved(trial="000001", path=path, at=1.0))
    assert trial.best_checkpoint.path == "b"
    assert set(trial.checkpoints) == {"b", "d"}


def test_without_history_nothing_grows() -> None:
    events = (
        asked("000001"),
        *(reported("000001", k, 0.1) for k in range(1, 50)),
        Decided(trial="000001", step=1, action="stop", reason="", at=1.0),
        Logged(trial="000001", attempt=1, step=1, name="a", path="b", at=1.0),
    )
    lean, full = (fold(*events, history=history).trials["000001"] for history in (False, True))
    assert (lean.steps, lean.decisions, lean.logged) == ([], [], [])
    assert (len(full.steps), len(full.decisions), len(full.logged)) == (49, 1, 1)
    assert (lean.value, lean.step) == (full.value, full.step)


@pytest.mark.parametrize(("spares", "done"), [(True, 3), (False, 2)])
def test_a_pause_is_an_end_only_where_a_scheduler_spares_steps(spares: bool, done: int) -> None:
    def end(number: int, status: str, reason: str = "") -> TrialEnded:
        return TrialEnded(trial=f"00000{number}", attempt=1, status=status, step=1, reason=reason, at=3602.0)

    state = fold(*(asked(f"00000{number}") for number in (1, 2, 3, 4)), spares=spares)
    state.apply(started("000001", at=2.0))
    for event in (end(1, "finished"), end(2, "paused"), end(3, "stopped", "interrupted: Ctrl-C"), end(4, "stopped")):
        state.apply(event)
    assert (state.done, state.trials_an_hour) == (done, pytest.approx(done))
    assert (state.count("stopped"), state.count("interrupted"), state.count("stopped", "interrupted")) == (1, 1, 2)


def test_tests_are_kept() -> None:
    test = journal.Tested(trial="000001", step=1, metrics={"a": 1.0}, at=2.0)
    assert fold(asked("000001"), test).tests == [test]


def test_replay_reports_torn_tails(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path, 10)
    state = replay(folder)
    assert (len(state.trials), state.status, state.torn) == (10, "finished", [])
    assert state.best is not None
    assert state.best.best_checkpoint is not None
    path = next(folder.journal.iterdir())
    path.write_bytes(path.read_bytes()[:-3])
    state = replay(folder)
    assert (state.status, len(state.torn)) == ("running", 1)
    assert len(list(JournalReader(folder.journal).read())) > 100
