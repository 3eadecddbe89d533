"""Time and disk: what an experiment may use, and what a look at it costs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conductor_tools import Driver, make_plan
from host_tools import later

from raytuner.engine.batch import Batch
from raytuner.journal import Fold, replay, snapshot
from raytuner.plan import Machine
from raytuner.training import Trial


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds that have passed beside the real ones."""
    ahead = [0.0]
    real = time.monotonic
    monkeypatch.setattr("raytuner.engine.conductor.time.monotonic", lambda: real() + ahead[0])
    yield ahead
    ahead[0] = 0.0


def test_time_is_up_when_it_was_used(tmp_path: Path, clock: list[float]) -> None:
    plan = make_plan(tmp_path, budget={"time": 100})
    driver = Driver(plan)
    conductor = driver.conductor
    conductor.books.slots = 2
    clock[0] = 40.0  # what it took to come up
    spec = driver.next()
    assert spec is not None
    assert spec.deadline == pytest.approx(time.time() + 100, abs=2)
    started = {"m": "started", "step": 0, "checkpoint": None, "pid": 1}
    assert not conductor.take(Batch(spec.trial, spec.attempt, [started]))
    clock[0] = 80.0
    second = driver.next()
    assert second is not None
    assert second.deadline == pytest.approx(time.time() + 60, abs=2)
    assert not conductor.used_up()
    clock[0] = 140.0
    assert conductor.used_up() == "the time budget is used up"
    conductor.stop("the time budget is used up")
    assert driver.next() is None
    assert not conductor.finished, "one is still at work"
    end = {"status": "stopped", "reason": "the time budget is used up", "step": 0, "error": None}
    assert conductor.take(Batch(spec.trial, 1, [], None, end))
    assert conductor.take(Batch(second.trial, 1, [], None, end))
    assert conductor.finished
    assert driver.trials[0].reason == "the time budget is used up"
    driver.close()
    assert list(Driver(plan).conductor._queue) == [], "what the budget has ended is not taken up again"


def test_gpu_hours_are_those_that_trials_hold_over_all_drivers(tmp_path: Path, clock: list[float]) -> None:
    plan = make_plan(tmp_path, budget={"gpu_hours": 1.0}, resources={"gpu": 0.5, "cpu": 0.5}, machine=Machine(4, 2))
    started = {"m": "started", "step": 0, "checkpoint": None, "pid": 1}

    def train(driver: Driver, hours: float) -> str:
        """Have two trials hold half a GPU each for so long."""
        conductor = driver.conductor
        conductor.books.resize(Machine(4, 2))
        for _ in range(2):
            spec = driver.next()
            assert spec is not None
            assert not conductor.take(Batch(spec.trial, spec.attempt, [dict(started)]))
        conductor.account()
        clock[0] += hours * 3600
        conductor.account()
        return conductor.used_up()

    first = Driver(plan)
    assert train(first, 0.6) == ""
    first.close()
    clock[0] += 1e6  # without a driver
    second = Driver(plan)
    assert second.state.gpu_hours == pytest.approx(0.6, rel=1e-3)
    assert second.conductor.used_up() == ""
    assert train(second, 0.35) == ""
    clock[0] += 0.06 * 3600
    second.conductor.account()
    assert second.conductor.used_up() == "the budget of 1 GPU-hours is used up"
    second.close()


def test_without_a_time_budget_it_is_never_up(tmp_path: Path, clock: list[float]) -> None:
    driver = Driver(make_plan(tmp_path))
    clock[0] = 1e9
    assert not driver.conductor.used_up()
    spec = driver.next()
    assert spec is not None
    assert spec.deadline is None
    driver.close()


def test_an_interruption_outranks_the_end_of_time(tmp_path: Path) -> None:
    conductor = Driver(make_plan(tmp_path)).conductor
    conductor.stop("the time budget is used up")
    conductor.stop("Ctrl-C", "interrupted")
    conductor.stop("the time budget is used up")
    assert (conductor.stopping, conductor.stop_status) == ("Ctrl-C", "interrupted")


def with_ballast(trial: Trial) -> None:
    ballast = np.zeros(12_500)  # 100 kB
    for step in trial.steps(ballast=ballast):
        trial.report(loss=abs(trial.config["x"] - 0.5) + 1 / step)


def on_disk(driver: Driver) -> int:
    return sum(p.stat().st_size for p in driver.folder.path.glob("trials/*/checkpoints/**/*") if p.is_file())


def test_checkpoints_stay_within_their_disk_budget(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, checkpoints={"disk": "500kB"}, budget={"trials": 12})
    driver = Driver(plan, train=with_ballast).run()
    assert on_disk(driver) <= 500_000
    listed = {path for t in driver.trials for path in t.checkpoints}
    assert listed == {str(p) for p in driver.folder.path.glob("trials/*/checkpoints/*")}, "the record says what stands"
    best = driver.state.best
    assert best is not None
    assert best.best_checkpoint is not None
    assert driver.conductor.warnings == []


def test_the_worst_give_up_their_checkpoints_first(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        ballast = np.zeros(12_500)
        for _ in trial.steps(ballast=ballast):
            trial.report(loss={1: 2.0, 2: 9.0, 3: 1.0, 4: 5.0}[int(trial.id)])

    plan = make_plan(tmp_path, checkpoints={"disk": "750kB"}, budget={"trials": 4})
    driver = Driver(plan, train=train).run()
    assert [len(t.checkpoints) for t in driver.trials] == [2, 0, 2, 2]


def test_the_best_so_many_keep_theirs(tmp_path: Path) -> None:
    losses = {1: 2.0, 2: 9.0, 3: 1.0, 4: 5.0, 5: 0.5}

    def train(trial: Trial) -> None:
        for _ in trial.steps(ballast=np.zeros(10)):
            if trial.id == "000005":
                raise ValueError("it fails before it has anything to keep")
            trial.report(loss=losses[int(trial.id)])

    plan = make_plan(tmp_path, checkpoints={"trials": 2}, budget={"trials": 5})
    driver = Driver(plan, train=train).run()
    assert [len(t.checkpoints) for t in driver.trials] == [2, 0, 2, 0, 0]
    (tmp_path / "one").mkdir()
    one = Driver(make_plan(tmp_path / "one", checkpoints={"trials": 1}, budget={"trials": 4}), train=train).run()
    assert [len(t.checkpoints) for t in one.trials] == [0, 0, 2, 0], "the best, whatever comes"


def test_a_budget_that_the_best_alone_exceeds_is_told_once(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path, checkpoints={"disk": "50kB"}), train=with_ballast).run()
    best = driver.state.best
    assert best is not None
    assert best.best_checkpoint is not None
    (warning,) = driver.conductor.warnings
    assert "checkpoints.disk" in warning
    assert "raise it" in warning


def test_the_disk_budget_spares_what_a_resume_needs(tmp_path: Path) -> None:
    def slow(trial: Trial) -> None:
        ballast = np.zeros(12_500)
        for step in trial.steps(ballast=ballast):
            time.sleep(0.03)
            trial.report(loss=abs(trial.config["x"] - 0.5) + 1 / step)

    driver = Driver(make_plan(tmp_path, checkpoints={"disk": "50kB"}, budget={"trials": 3}), slots=3, train=slow)

    later(0.15, driver.interrupt)
    driver.run()
    assert all(t.checkpoints for t in driver.trials)


def test_who_looks_at_a_long_record_need_not_read_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "EVENTS", 40)
    plan = make_plan(tmp_path)
    driver = Driver(plan)
    driver.state.history = False  # as the driver of an experiment has it
    driver.conductor.account()
    assert not (driver.folder.cursors / "state.pickle").exists(), "so few events are read soon"
    driver.run()
    driver.conductor.account()
    fold = Fold(driver.folder)
    assert fold.state == replay(driver.folder, history=False)
    assert fold.state.steps == driver.state.steps > 40
    assert list(fold.catch_up()) == [], "all of it is in the snapshot"
