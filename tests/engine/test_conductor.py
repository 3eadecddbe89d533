"""What runs next, what becomes of it, and that a driver that dies anywhere changes nothing of it. No Ray in here."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_tools import later

from raytuner.definition import Experiment
from raytuner.engine.batch import Batch
from raytuner.engine.conductor import LOST_ATTEMPTS, Conductor
from raytuner.engine.host import StopRequest
from raytuner.engine.threadhost import ThreadHost
from raytuner.journal import (
    CheckpointWritten,
    Decided,
    DriverStarted,
    Event,
    ExperimentState,
    Folder,
    JournalReader,
    JournalWriter,
    Reported,
    TrialAsked,
    TrialEnded,
    TrialStarted,
    TrialState,
    replay,
)
from raytuner.plan import Plan
from raytuner.plan import compile as compile_plan
from raytuner.search import Search
from raytuner.training import Trial, TrialSpec
from raytuner.training.checkpoint import write_checkpoint


class Listener(Search):
    """Proposes what depends on all that it knows, so that nothing it is told late, twice or not at all goes unseen."""

    from raytuner.search import RandomOptions as Options

    def _propose(self, rng: np.random.Generator, number: int) -> dict[str, Any]:
        known = {name: (trial.status, trial.values) for name, trial in self.trials.items()}
        heard = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).digest()
        return {"x": float((rng.random() + heard[0] / 256) % 1)}


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


# -- an experiment, and the world around a conductor ----------------------------------------------------------------


def make_plan(tmp_path: Path, **fields: Any) -> Plan:
    (tmp_path / "user.py").write_text("def train(trial): ...\n")
    defaults: dict[str, Any] = {
        "name": "test",
        "train": "user:train",
        "objective": {"metric": "loss", "mode": "min", "max_steps": 9},
        "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
        "search": "random",
        "budget": {"trials": 9},
        "tracking": "none",
        "storage": str(tmp_path / "results"),
    }
    return compile_plan(Experiment(**{**defaults, **fields}), import_root=tmp_path)


def curve(trial: Trial) -> None:
    """Good and bad learners, of which the second fails; each keeps a state that knows its step."""
    x = trial.config["x"]
    weights = np.zeros(1)
    for step in trial.steps(weights=weights):
        weights += 1
        assert weights[0] == step, "a trial that goes on must have its state"
        if trial.id == "000002":
            raise ValueError("not this one")
        trial.report(loss=(x - 0.4) ** 2 + 1 / step)


class CutError(Exception):
    """The driver dies."""


class Journal(JournalWriter):
    """Kills the driver after so many events."""

    left = 10**9

    def append(self, event: Event) -> Event:
        event = super().append(event)
        self.left -= 1
        if self.left == 0:
            raise CutError
        return event


class Driver:
    """One driver's time: a conductor with its journal, and slots in threads."""

    def __init__(self, plan: Plan, *, slots: int = 1, cut: int = 10**9, train: Any = curve) -> None:
        self.folder = Folder(Path(plan.storage))
        events = list(JournalReader(self.folder.journal).read())
        self.journal = Journal(self.folder.journal)
        self.state = ExperimentState()
        self.conductor = Conductor(plan, self.folder, self.journal, self.state)
        if plan.experiment.tags.get("search") == "listener":
            self.conductor.search = Listener(plan.space, seed=1, options=Listener.Options())
        self.conductor.slots = slots
        self.stops = [StopRequest() for _ in range(slots)]
        self.hosts = [ThreadHost(train, stop=stop) for stop in self.stops]
        self.journal.left = cut
        self.conductor.replay(events)
        self.conductor.record(
            DriverStarted(
                name="test",
                driver=self.journal.segment,
                objective=plan.experiment.objective.model_dump(),
                budget={},
                pid=os.getpid(),
                host="here",
            )
        )
        self.conductor.take_over()

    def run(self) -> Driver:
        """To the end, as Ray Tune does it: a slot that is free asks for the next attempt, unless it is all over."""
        busy: dict[int, TrialSpec] = {}
        while True:
            for number, host in enumerate(self.hosts):
                if number not in busy and not self.conductor.finished:
                    spec = self.conductor.next()
                    if spec is not None:
                        host.begin(spec)
                        busy[number] = spec
            if not busy:
                break
            for number in list(busy):
                if self.conductor.take(self.hosts[number].collect(), node="here"):
                    self.hosts[number].end()
                    del busy[number]
        assert self.conductor.finished
        self.close()
        return self

    def close(self) -> None:
        for host in self.hosts:
            host.close()
        self.journal.close()

    @property
    def trials(self) -> list[TrialState]:
        return list(self.state.trials.values())

    def events(self, kind: type[Event]) -> list[Any]:
        return [event for event in JournalReader(self.folder.journal).read() if isinstance(event, kind)]


def run_until_cut(plan: Plan, cut: int) -> Driver | None:
    """A driver that has come to the end; None when it died on the way."""
    driver = None
    try:
        driver = Driver(plan, cut=cut)
        return driver.run()
    except CutError:
        if driver is not None:
            driver.close()
        return None


def result(driver: Driver) -> dict[str, Any]:
    """All that must not depend on where a driver died."""
    decisions: dict[tuple[str, int], set[str]] = {}
    for event in driver.events(Decided):
        decisions.setdefault((event.trial, event.step), set()).add(event.action)
    return {
        "asked": [(t.id, t.config) for t in driver.trials],
        "ended": [(t.id, t.status, t.step, t.value, t.value_step) for t in driver.trials],
        "steps": {t.id: {s.step: s.metrics for s in t.steps} for t in driver.trials},
        "decisions": decisions,
        "scheduler": driver.conductor.scheduler.state_dict(),
        "search": {k: (v.status, v.values) for k, v in driver.conductor.search.trials.items()},
        "best": driver.state.best.id if driver.state.best else None,
    }


ASHA = {"type": "asha", "reduction_factor": 3}
PROMOTE = {**ASHA, "form": "promote"}


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


@pytest.mark.parametrize("scheduler", ["none", ASHA, PROMOTE], ids=["none", "stop", "promote"])
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
    spec = first.conductor.next()
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
    spec = second.conductor.next()
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
    spec = first.conductor.next()
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

    def interrupt() -> None:
        first.conductor.stop("Ctrl-C", "interrupted")
        for stop in first.stops:
            stop.set("Ctrl-C")

    later(0.2, interrupt)
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
    driver.conductor.slots = 2
    for value in (1.0, 2.0):
        spec = driver.conductor.next()
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
        spec = conductor.next()
        assert spec is not None
        assert (spec.trial, spec.attempt) == ("000001", attempt), "it goes on before anything new"
        assert not conductor.finished
        if how == "batch":
            assert conductor.take(lose(spec))
        else:
            conductor.lost(spec.trial, "the server ended")
            conductor.lost(spec.trial, "told twice")
    trial = driver.trials[0]
    assert trial.status == "failed"
    assert trial.error is not None
    assert trial.error["kind"] == "lost"
    assert conductor.search.trials["000001"].status == "failed"
    assert len(conductor.warnings) == 3
    spec = conductor.next()
    assert spec is not None
    assert spec.trial == "000002"
    conductor.lost(spec.trial, "the server ended")
    driver.run()
    assert driver.trials[1].status == "finished"


def test_what_a_given_up_attempt_still_says_does_not_count(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path))
    spec = driver.conductor.next()
    assert spec is not None
    driver.conductor.lost(spec.trial, "its slot was lost")
    again = driver.conductor.next()
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
    spec = driver.conductor.next()
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
    driver.conductor.lost(spec.trial, "its slot was lost")
    again = driver.conductor.next()
    assert again is not None
    assert again.checkpoints == (str(folder / "000002-1"),)
    assert driver.state.trials[spec.trial].step == 2
    driver.close()


def test_a_slot_lost_on_the_way_out_is_no_failure(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, budget={"trials": 1})
    driver = Driver(plan)
    spec = driver.conductor.next()
    assert spec is not None
    driver.conductor.stop("Ctrl-C", "interrupted")
    driver.conductor.lost(spec.trial, "its slot was taken away")
    assert driver.trials[0].status == "stopped"
    driver.close()
    assert Driver(plan).run().trials[0].status == "finished", "a resume goes on with it"


def test_a_module_that_cannot_be_imported_is_the_end(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path))
    spec = driver.conductor.next()
    assert spec is not None
    error = {"kind": "import", "message": "ImportError: no", "traceback": ""}
    end = {"status": "failed", "reason": "importing the training module failed", "step": 0, "error": error}
    driver.conductor.take(Batch(spec.trial, 1, [], None, end))
    assert driver.conductor.next() is None
    assert driver.conductor.finished
    assert driver.conductor.stop_status == "failed"
    assert driver.conductor.fatal == "importing the training module failed"
    driver.close()


# -- budgets --------------------------------------------------------------------------------------------------------


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
    conductor.slots = 2
    clock[0] = 40.0  # what it took to come up
    spec = conductor.next()
    assert spec is not None
    assert spec.deadline == pytest.approx(time.time() + 100, abs=2)
    started = {"m": "started", "step": 0, "checkpoint": None, "pid": 1}
    assert not conductor.take(Batch(spec.trial, spec.attempt, [started]))
    clock[0] = 80.0
    second = conductor.next()
    assert second is not None
    assert second.deadline == pytest.approx(time.time() + 60, abs=2)
    assert not conductor.time_is_up()
    clock[0] = 140.0
    assert conductor.time_is_up()
    conductor.stop("the time budget is used up")
    assert conductor.next() is None
    assert not conductor.finished, "one is still at work"
    end = {"status": "stopped", "reason": "the time budget is used up", "step": 0, "error": None}
    assert conductor.take(Batch(spec.trial, 1, [], None, end))
    assert conductor.take(Batch(second.trial, 1, [], None, end))
    assert conductor.finished
    assert driver.trials[0].reason == "the time budget is used up"
    driver.close()
    assert list(Driver(plan).conductor._queue) == [], "what the budget has ended is not taken up again"


def test_without_a_time_budget_it_is_never_up(tmp_path: Path, clock: list[float]) -> None:
    driver = Driver(make_plan(tmp_path))
    clock[0] = 1e9
    assert not driver.conductor.time_is_up()
    spec = driver.conductor.next()
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

    def interrupt() -> None:
        driver.conductor.stop("Ctrl-C", "interrupted")
        for stop in driver.stops:
            stop.set("Ctrl-C")

    later(0.15, interrupt)
    driver.run()
    assert all(t.checkpoints for t in driver.trials)


# -- the rest -------------------------------------------------------------------------------------------------------


def test_no_more_attempts_than_slots(tmp_path: Path) -> None:
    conductor = Driver(make_plan(tmp_path), slots=2).conductor
    assert [conductor.next() is not None for _ in range(4)] == [True, True, False, False]
    assert conductor.running == 2


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
