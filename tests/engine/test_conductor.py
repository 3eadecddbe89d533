"""What runs next, what becomes of it, and that a driver that dies anywhere changes nothing of it. No Ray in here."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conductor_tools import ASHA, PBT, PROMOTE, TOGETHER, Driver, make_plan, result, run_until_cut
from host_tools import later

from raytuner.engine.batch import Batch
from raytuner.engine.conductor import LOST_ATTEMPTS
from raytuner.journal import (
    CheckpointWritten,
    Decided,
    DriverStarted,
    Event,
    Reported,
    Retried,
    TrialAsked,
    TrialEnded,
    TrialStarted,
    replay,
)
from raytuner.training import Trial, TrialSpec
from raytuner.training.checkpoint import write_checkpoint


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


# -- to the end -----------------------------------------------------------------------------------------------------


def test_every_trial_runs_to_its_end(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path)).run()
    assert [t.id for t in driver.trials] == [f"{n:06d}" for n in range(1, 10)]
    for trial in driver.trials:
        assert trial.status == ("failed" if trial.id == "000002" else "finished")
        assert trial.node == "here"
    failed = driver.trials[1]
    assert failed.error is not None
    assert failed.reason == failed.error["message"] == "ValueError: not this one"


def test_one_slot_gives_one_record(tmp_path: Path) -> None:
    """... the same every time, but for times and places."""

    def record(name: str) -> list[dict[str, Any]]:
        (tmp_path / name).mkdir()
        driver = Driver(make_plan(tmp_path / name, scheduler=PROMOTE)).run()
        events = [e for e in driver.events(Event) if not isinstance(e, DriverStarted | CheckpointWritten)]
        fields = [{"type": e.type, **vars(e)} for e in events]
        for event in fields:
            for name in ("at", "time", "seconds", "path", "checkpoint", "pid", "error"):
                event.pop(name, None)
        return [event for event in fields if event["type"] != "checkpoint_removed"]

    assert record("first") == record("second")


def test_the_defaults_come_first(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path, defaults={"x": 0.25}, budget={"trials": 3})).run()
    asked = driver.events(TrialAsked)
    assert asked[0].config == {"x": 0.25}
    assert [event.source for event in asked] == ["defaults", "search", "search"]


def test_a_search_that_has_no_more_is_the_end(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, search={"type": "grid", "points": 4}, budget={})
    for slots in (1, 3):
        (Path(plan.storage) / "journal").mkdir(parents=True, exist_ok=True)
        driver = Driver(plan, slots=slots).run()
        assert len(driver.trials) == 4
        for path in driver.folder.journal.iterdir():
            path.unlink()


def test_the_search_learns_what_became_of_each(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path, scheduler=ASHA)).run()
    known = driver.conductor.search.trials
    for trial in driver.trials:
        assert known[trial.id].status == trial.status
        if trial.status == "failed":
            assert known[trial.id].values == {}
        else:
            assert known[trial.id].values[trial.step] == trial.value
    assert {t.status for t in driver.trials} == {"failed", "finished", "stopped"}


def test_what_is_maximised_is_told_the_other_way_round(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        for step in trial.steps():
            trial.report(acc=step / 10)

    plan = make_plan(
        tmp_path, objective={"metric": "acc", "mode": "max", "max_steps": 9}, scheduler=ASHA, budget={"trials": 2}
    )
    driver = Driver(plan, train=train).run()
    assert driver.conductor.search.trials["000001"].values == {1: -0.1, 3: -0.3, 9: -0.9}
    assert driver.state.trials["000001"].value == 0.9
    assert [e.value for e in driver.events(Decided)][:2] == [0.1, 0.3]


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_promotion_comes_to_its_end(tmp_path: Path, slots: int) -> None:
    """With more paused trials than slots, which none of them may block."""
    driver = Driver(make_plan(tmp_path, scheduler=PROMOTE, budget={"trials": 12}), slots=slots).run()
    assert len(driver.trials) == 12
    paused = [t for t in driver.trials if t.status == "paused"]
    finished = [t for t in driver.trials if t.status == "finished"]
    assert len(paused) > slots
    assert finished
    assert driver.state.best in finished
    again = [t for t in driver.trials if t.attempt > 1]
    assert again
    for trial in again:
        assert [s.step for s in trial.steps] == list(range(1, trial.step + 1)), "each goes on where it was"
    assert driver.conductor.scheduler.next_to_resume() is None, "nobody who may go on was left behind"


def test_the_last_pause_may_promote_another(tmp_path: Path) -> None:
    """The third trial pauses with nothing else at work and no trial left to ask for: now the first may go on."""

    def train(trial: Trial) -> None:
        weights = np.zeros(1)
        for step in trial.steps(weights=weights):
            trial.report(loss=int(trial.id) + 1 / step)

    objective = {"metric": "loss", "mode": "min", "max_steps": 3}
    driver = Driver(
        make_plan(tmp_path, scheduler=PROMOTE, budget={"trials": 3}, objective=objective), train=train
    ).run()
    assert [(t.status, t.step) for t in driver.trials] == [("finished", 3), ("paused", 1), ("paused", 1)]


# -- a driver that dies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheduler", ["none", ASHA, PROMOTE, PBT, TOGETHER], ids=["none", "stop", "promote", "pbt", "pbt-together"]
)
def test_a_driver_that_dies_anywhere_changes_nothing(tmp_path: Path, scheduler: Any) -> None:
    """Cut after every few events, resumed, and compared with the driver that lived: the same configurations asked
    for, the same rungs, the same results, whatever the slot had done meanwhile.
    """
    fields = {"scheduler": scheduler, "tags": {"search": "listener"}, "budget": {"trials": 10}}
    (tmp_path / "whole").mkdir()
    whole = Driver(make_plan(tmp_path / "whole", **fields)).run()
    expected = result(whole)
    assert {"failed", "finished"} <= {t.status for t in whole.trials}
    events = len(whole.events(Event))
    for cut in range(1, events, 9 if scheduler == "none" else 5):
        folder = tmp_path / f"cut-{cut}"
        folder.mkdir()
        plan = make_plan(folder, **fields)
        run_until_cut(plan, cut)
        assert result(Driver(plan).run()) == expected, f"cut after event {cut}"


def test_a_driver_may_die_again_and_again(tmp_path: Path) -> None:
    fields = {"scheduler": PROMOTE, "tags": {"search": "listener"}, "budget": {"trials": 10}}
    (tmp_path / "whole").mkdir()
    expected = result(Driver(make_plan(tmp_path / "whole", **fields)).run())
    plan = make_plan(tmp_path, **fields)
    driver = next(filter(None, (run_until_cut(plan, 5 + number % 7) for number in range(300))))
    got = result(driver)
    assert got["asked"] == expected["asked"]
    assert got["ended"] == expected["ended"]
    assert got["scheduler"] == expected["scheduler"]
    attempts = [(e.trial, e.attempt) for e in driver.events(TrialStarted)]
    assert len(set(attempts)) == len(attempts), "no number is given twice"


def test_reports_that_only_a_checkpoint_knows_are_written_down_first(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, budget={"trials": 1})
    first = Driver(plan)
    spec = first.next()
    assert spec is not None
    reports = [{"step": s, "metrics": {"loss": 1 / s}, "time": 100.0 + s, "seconds": float(s)} for s in (1, 2, 3)]
    first.conductor.take(
        Batch(spec.trial, 1, [{"m": "started", "step": 0, "checkpoint": None, "pid": 1}, {"m": "report", **reports[0]}])
    )
    first.close()
    path = Path(spec.dir) / "checkpoints" / "000003-1"
    write_checkpoint(
        path,
        {
            "weights": np.full(1, 3.0),
            "__rng__": {"python": __import__("random").getstate(), "numpy": np.random.get_state()},
        },
        meta={"trial": spec.trial, "attempt": 1, "step": 3, "seconds": 3.0, "reports": reports},
    )
    damaged = path.with_name("000005-1")
    damaged.mkdir()

    second = Driver(plan)
    known = [(e.step, e.attempt, e.metrics["loss"]) for e in second.events(Reported)]
    assert known == [(1, 1, 1.0), (2, 1, 0.5), (3, 1, 1 / 3)]
    assert [e.path for e in second.events(CheckpointWritten)] == [str(path)]
    assert any(str(damaged) in warning for warning in second.conductor.warnings)
    spec = second.next()
    assert spec is not None
    assert spec.checkpoints == (str(path),)
    assert spec.attempt > 2, "one that was handed out as the driver died may be at work"
    assert spec.best == (1 / 3, 3)
    second.conductor._running.clear()
    second.conductor._queue.append(spec.trial)
    second.run()
    assert [s.step for s in second.trials[0].steps] == list(range(1, 10))
    assert len(second.events(Reported)) == 9


def test_a_checkpoint_that_is_no_more_is_struck_off(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, budget={"trials": 1})
    first = Driver(plan)
    spec = first.next()
    assert spec is not None
    gone = str(Path(spec.dir) / "checkpoints" / "000001-1")
    first.conductor.take(
        Batch(
            spec.trial,
            1,
            [
                {"m": "started", "step": 0, "checkpoint": None, "pid": 1},
                {"m": "report", "step": 1, "metrics": {"loss": 1.0}, "time": 1.0, "seconds": 1.0},
                {"m": "checkpoint", "step": 1, "path": gone, "bytes": 3, "reason": "best"},
            ],
        )
    )
    first.close()
    second = Driver(plan)
    assert second.trials[0].checkpoints == {}
    second.run()
    assert second.conductor.warnings == []


def test_an_interrupted_trial_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    def slow(trial: Trial) -> None:
        weights = np.zeros(1)
        for step in trial.steps(weights=weights):
            weights += 1
            time.sleep(0.05)
            trial.report(loss=1 / step)

    plan = make_plan(tmp_path, budget={"trials": 2}, tags={"search": "listener"})
    first = Driver(plan, slots=2, train=slow)

    later(0.2, first.interrupt)
    first.run()
    assert {t.status for t in first.trials} == {"stopped"}
    assert all(t.reason == "interrupted: Ctrl-C" for t in first.trials)
    assert all(t.last_checkpoint and t.last_checkpoint.step == t.step for t in first.trials)
    done = {t.id: t.step for t in first.trials}
    told = first.conductor.search.trials
    assert {trial.status for trial in told.values()} == {"pending"}, "an interruption teaches nothing"

    second = Driver(plan, slots=2, train=slow).run()
    assert {t.status for t in second.trials} == {"finished"}
    started = {e.trial: e.step for e in second.events(TrialStarted)}
    assert started == done
    assert len(second.events(Reported)) == 18


def test_a_stop_by_the_scheduler_is_one_while_all_are_interrupted(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, scheduler=ASHA, budget={"trials": 2})
    driver = Driver(plan)
    driver.conductor.books.slots = 2
    for value in (1.0, 2.0):
        spec = driver.next()
        assert spec is not None
        if value == 2.0:
            driver.conductor.stop("Ctrl-C", "interrupted")
        started = {"m": "started", "step": 0, "checkpoint": None, "pid": 1}
        report = {"m": "report", "step": 1, "metrics": {"loss": value}, "time": 1.0, "seconds": 1.0}
        ended = driver.conductor.take(Batch(spec.trial, 1, [started, report], decide=1))
        assert ended == (value == 2.0)
    assert driver.trials[1].status == "stopped"
    assert driver.trials[1].reason.startswith("rung 1: 2nd of 2")
    driver.close()
    second = Driver(plan)
    assert list(second.conductor._queue) == ["000001"]
    second.close()


# -- attempts that are lost -----------------------------------------------------------------------------------------


def lose(spec: TrialSpec) -> Batch:
    error = {"kind": "lost", "message": "the server ended", "traceback": ""}
    return Batch(spec.trial, spec.attempt, [], None, {"status": "failed", "reason": "", "step": 0, "error": error})


@pytest.mark.parametrize("how", ["batch", "slot"])
def test_a_lost_attempt_starts_again_three_times(tmp_path: Path, how: str) -> None:
    assert LOST_ATTEMPTS == 3
    driver = Driver(make_plan(tmp_path, budget={"trials": 2}), train=lambda trial: trial.config["x"])
    conductor = driver.conductor
    for attempt in range(1, 5):
        spec = driver.next()
        assert spec is not None
        assert (spec.trial, spec.attempt) == ("000001", attempt), "it goes on before anything new"
        assert not conductor.finished
        if how == "batch":
            assert conductor.take(lose(spec))
        else:
            conductor.lost(spec.trial, spec.attempt, "the server ended")
            conductor.lost(spec.trial, spec.attempt, "told twice")
    trial = driver.trials[0]
    assert trial.status == "failed"
    assert trial.error is not None
    assert trial.error["kind"] == "lost"
    assert conductor.search.trials["000001"].status == "failed"
    assert len(conductor.warnings) == 3
    spec = driver.next()
    assert spec is not None
    assert spec.trial == "000002"
    conductor.lost(spec.trial, spec.attempt, "the server ended")
    driver.run()
    assert driver.trials[1].status == "finished"


def test_a_trial_that_gets_on_between_its_losses_is_never_given_up(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path, budget={"trials": 1}))
    for step in range(1, 3 * LOST_ATTEMPTS):
        spec = driver.next()
        assert spec is not None
        report = {"m": "report", "step": step, "metrics": {"loss": 1.0}, "time": 1.0, "seconds": 1.0}
        driver.conductor.take(Batch(spec.trial, spec.attempt, [report]))
        driver.conductor.lost(spec.trial, spec.attempt, "its node is gone")
    trial = driver.state.trials["000001"]
    assert trial.status == "pending"
    assert [event.step for event in driver.events(Retried)] == list(range(1, 3 * LOST_ATTEMPTS))
    for _ in range(LOST_ATTEMPTS):
        spec = driver.next()
        assert spec is not None
        driver.conductor.lost(spec.trial, spec.attempt, "its node is gone")
    assert trial.status == "failed"
    assert trial.reason == "its node is gone; that was 4 times without another step done"
    driver.close()


# -- trials that all fail in the same way ---------------------------------------------------------------------------


def fail(spec: TrialSpec, message: str, kind: str = "error") -> Batch:
    error = {"kind": kind, "message": message, "traceback": ""}
    return Batch(spec.trial, spec.attempt, [], None, {"status": "failed", "reason": message, "step": 0, "error": error})


def fail_trials(driver: Driver, messages: list[str]) -> None:
    for message in messages:
        spec = driver.next()
        assert spec is not None
        assert driver.conductor.take(fail(spec, message))


def test_the_first_trials_all_fail_in_the_same_way(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, budget={"trials": 50}, give_up_after=5)
    driver = Driver(plan)
    driver.conductor.books.slots = 2
    fail_trials(driver, [f"KeyError: {number}" for number in range(4)])
    assert driver.conductor.stopping is None
    under_way = driver.next()
    fail_trials(driver, ["KeyError: 'images'"])
    reason = "the first 5 trials all failed in the same way, the last one so: KeyError: 'images'"
    assert (driver.conductor.stopping or "").startswith(reason)
    assert driver.conductor.stop_status == "failed"
    assert driver.next() is None
    assert under_way is not None
    end = {"status": "stopped", "reason": "was asked to", "step": 0, "error": None}
    driver.conductor.take(Batch(under_way.trial, under_way.attempt, [], None, end))
    driver.close()
    again = Driver(plan)
    spec = again.next()
    assert spec is not None
    assert spec.trial == under_way.trial, "a resume goes on with what was under way"
    again.conductor.take(fail(spec, "ValueError: another"))
    assert again.conductor.stopping is None, "they do not all fail in the same way"
    again.close()


def test_they_all_fail_in_the_same_way_after_some_steps(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        for step in trial.steps(nothing=[0]):
            if step == 3:
                raise KeyError(trial.config["x"])
            trial.report(loss=1 / step)

    driver = Driver(make_plan(tmp_path, budget={"trials": 50}, give_up_after=5), train=train).run()
    assert driver.conductor.stop_status == "failed"
    assert len(driver.trials) == 5


def test_one_that_did_not_fail_is_reason_enough_to_go_on(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        for step in trial.steps(nothing=[0]):
            if step == 3 and trial.id != "000002":
                raise KeyError(trial.config["x"])
            trial.report(loss=1 / step)

    driver = Driver(make_plan(tmp_path, budget={"trials": 9}, give_up_after=5), train=train).run()
    assert driver.conductor.stopping is None
    assert len(driver.trials) == 9


def test_a_paused_trial_that_is_stopped_does_not_go_on(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, scheduler=PROMOTE, budget={"trials": 9})
    expected = Driver(plan).run()
    promoted = next(event.trial for event in expected.events(Decided) if event.action == "resume")
    (tmp_path / "again").mkdir()
    plan = make_plan(tmp_path / "again", scheduler=PROMOTE, budget={"trials": 9})
    driver = Driver(plan)
    while promoted not in driver.state.trials or driver.state.trials[promoted].status != "paused":
        spec = driver.next()
        assert spec is not None
        driver.hosts[0].begin(spec)
        while not driver.conductor.take(driver.hosts[0].collect(), node="here"):
            pass
        driver.hosts[0].end()
    assert driver.conductor.stop_trial(promoted, "it was asked for")
    assert driver.state.trials[promoted].status == "stopped"
    step = driver.state.trials[promoted].step
    driver.close()
    after = Driver(plan).run()
    assert after.state.trials[promoted].step == step
    assert after.state.trials[promoted].reason == "it was asked for"
    assert len(after.trials) == 9


@pytest.mark.parametrize(
    ("messages", "give_up_after"),
    [(["A: 1", "B: 2", "A: 3", "A: 4"], 3), (["A: 1"] * 12, None)],
)
def test_failures_that_are_no_reason_to_give_up(tmp_path: Path, messages: list[str], give_up_after: int | None) -> None:
    driver = Driver(make_plan(tmp_path, budget={"trials": 50}, give_up_after=give_up_after))
    fail_trials(driver, messages)
    assert driver.conductor.stopping is None
    driver.close()


def test_what_a_given_up_attempt_still_says_does_not_count(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path))
    spec = driver.next()
    assert spec is not None
    driver.conductor.lost(spec.trial, spec.attempt, "its slot was lost")
    again = driver.next()
    assert again is not None
    stale = {"m": "report", "step": 7, "metrics": {"loss": -1.0}, "time": 1.0, "seconds": 1.0}
    before = len(driver.events(Event))
    end = {"status": "finished", "reason": "", "step": 7, "error": None}
    assert driver.conductor.take(Batch(spec.trial, spec.attempt, [stale], None, end)) is True
    assert driver.conductor.take(Batch(spec.trial, spec.attempt, [stale], decide=7)) is True
    assert len(driver.events(Event)) == before
    assert driver.state.trials[spec.trial].value is None
    assert driver.conductor.running == 1
    driver.close()


def test_a_lost_attempt_goes_on_from_what_it_left_behind(tmp_path: Path) -> None:
    """The batch that would have told of the newest checkpoint went with its slot, and the one before was deleted."""
    driver = Driver(make_plan(tmp_path, budget={"trials": 1}))
    spec = driver.next()
    assert spec is not None
    folder = Path(spec.dir) / "checkpoints"
    reports = [{"step": s, "metrics": {"loss": 1 / s}, "time": 1.0, "seconds": 1.0} for s in (1, 2)]
    told = [
        {"m": "started", "step": 0, "checkpoint": None, "pid": 1},
        {"m": "report", **reports[0]},
        {"m": "checkpoint", "step": 1, "path": str(folder / "000001-1"), "bytes": 1, "reason": "best"},
    ]
    driver.conductor.take(Batch(spec.trial, 1, told))
    meta = {"trial": spec.trial, "attempt": 1, "step": 2, "seconds": 1.0, "reports": reports}
    write_checkpoint(folder / "000002-1", {"weights": np.full(1, 2.0)}, meta=meta)
    driver.conductor.lost(spec.trial, spec.attempt, "its slot was lost")
    again = driver.next()
    assert again is not None
    assert again.checkpoints == (str(folder / "000002-1"),)
    assert driver.state.trials[spec.trial].step == 2
    driver.close()


def test_a_slot_lost_on_the_way_out_is_no_failure(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, budget={"trials": 1})
    driver = Driver(plan)
    spec = driver.next()
    assert spec is not None
    driver.conductor.stop("Ctrl-C", "interrupted")
    driver.conductor.lost(spec.trial, spec.attempt, "its slot was taken away")
    assert driver.trials[0].status == "stopped"
    driver.close()
    assert Driver(plan).run().trials[0].status == "finished", "a resume goes on with it"


def test_a_module_that_cannot_be_imported_is_the_end(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path))
    spec = driver.next()
    assert spec is not None
    error = {"kind": "import", "message": "ImportError: no", "traceback": ""}
    end = {"status": "failed", "reason": "importing the training module failed", "step": 0, "error": error}
    driver.conductor.take(Batch(spec.trial, 1, [], None, end))
    assert driver.next() is None
    assert driver.conductor.finished
    assert driver.conductor.stop_status == "failed"
    assert driver.conductor.fatal == "importing the training module failed"
    driver.close()


# -- the rest -------------------------------------------------------------------------------------------------------


def test_no_more_attempts_than_slots(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path), slots=2)
    assert [driver.next() is not None for _ in range(4)] == [True, True, False, False]
    assert driver.conductor.running == 2


def test_the_test_sees_one_checkpoint_and_a_folder_of_its_own(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path)).run()
    best = driver.state.best
    assert best is not None
    assert best.best_checkpoint is not None
    spec = driver.conductor.spec_for_test(best, best.best_checkpoint.path)
    assert spec.checkpoints == (best.best_checkpoint.path,)
    assert spec.dir == str(driver.folder.trial(best.id) / "test")
    assert (spec.decides, spec.deadline) == ((), None)
    assert driver.conductor.running == 0


def test_the_record_is_the_state(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path, scheduler=PROMOTE), slots=2).run()
    folded = replay(driver.folder)
    assert folded.trials == driver.state.trials
    assert folded.best == driver.state.best
    assert [e.status for e in driver.events(TrialEnded)][-1] in ("finished", "paused", "failed")
    assert not [t for t in threading.enumerate() if t.name.startswith("trial-")]
