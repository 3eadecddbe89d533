"""A search that takes its time: nobody waits for it, and what it prepares ahead changes no record. No Ray in here."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conductor_tools import PROMOTE, CutError, Driver, Listener, make_plan
from host_tools import wait_until

from raytuner.engine.batch import Batch
from raytuner.engine.conductor import AHEAD_SLOTS
from raytuner.engine.proposals import Proposals
from raytuner.errors import SearchError
from raytuner.journal import Decided, Event, Reported, TrialAsked, TrialEnded
from raytuner.plan import Plan
from raytuner.search import Observation
from raytuner.training import TrialSpec


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


class Gated(Listener):
    """Thinks about a proposal until it is let through."""

    def __init__(self, plan: Plan, *, free: int = 0) -> None:
        """free: the first proposals, for which there is no gate."""
        super().__init__(plan.space, seed=1, options=Listener.Options())
        self.free = free
        self.begun = threading.Semaphore(0)
        """Released for each proposal that is thought about behind the gate."""
        self.gate = threading.Semaphore(0)

    def _propose(self, rng: np.random.Generator, number: int) -> dict[str, Any]:
        if number >= self.free:
            self.begun.release()
            self.gate.acquire()
        return super()._propose(rng, number)


class Chronicler(Listener):
    """Proposes what depends on the order of all that it was told and asked, which is more than a search should."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.space, seed=1, options=Listener.Options())
        self.heard: list[tuple[str, int]] = []

    def _propose(self, rng: np.random.Generator, number: int) -> dict[str, Any]:
        order = [one for trial, step in self.heard for one in (int(trial), step)]
        return {"x": float(np.random.default_rng([0, *order]).random())}

    def asked(self, trial_id: str, config: dict[str, Any]) -> None:
        super().asked(trial_id, config)
        self.heard.append((trial_id, 0))

    def tell(self, observation: Observation) -> None:
        super().tell(observation)
        self.heard.append((observation.trial_id, observation.step))


def reported(spec: TrialSpec, value: float, *, step: int = 1, end: bool = False) -> Batch:
    """A report at a deciding step, or with the trial's end."""
    messages: list[dict[str, Any]] = [
        {"m": "started", "step": 0, "checkpoint": None, "pid": 1},
        {"m": "report", "step": step, "metrics": {"loss": value}, "time": 1.0, "seconds": 1.0},
    ]
    if end:
        return Batch(spec.trial, spec.attempt, messages, None, ENDED)
    return Batch(spec.trial, spec.attempt, messages, decide=step)


ENDED: dict[str, Any] = {"status": "finished", "reason": "", "step": 1, "error": None}


def started(driver: Driver, number: int) -> list[TrialSpec]:
    """So many attempts."""
    specs = [driver.next() for _ in range(number)]
    assert None not in specs
    return [spec for spec in specs if spec is not None]


@pytest.fixture
def gated() -> Iterator[Callable[..., tuple[Driver, Gated]]]:
    """Drivers with gated searches; the gates are opened at the end."""
    made: list[tuple[Driver, Gated]] = []

    def make(plan: Plan, *, slots: int, free: int) -> tuple[Driver, Gated]:
        search = Gated(plan, free=free)
        made.append((Driver(plan, slots=slots, search=search), search))
        return made[-1]

    yield make
    for driver, search in made:
        search.gate.release(100)
        driver.close()


Make = Callable[..., tuple[Driver, Gated]]

# -- nobody waits ---------------------------------------------------------------------------------------------------


def test_reports_and_decisions_go_on_while_the_search_thinks(tmp_path: Path, gated: Make) -> None:
    driver, search = gated(make_plan(tmp_path, scheduler=PROMOTE), slots=3, free=2)
    first, second = started(driver, 2)
    conductor = driver.conductor
    assert conductor.next() is None
    assert conductor.thinking
    assert search.begun.acquire(timeout=10)
    assert conductor.take(reported(first, 1.0)), "paused, while the search thinks"
    assert conductor.next() is None
    assert conductor.take(reported(second, 0.5))
    assert conductor.next() is None
    assert not conductor.finished
    search.gate.release()
    third = driver.next()
    assert third is not None
    kinds = [type(event) for event in driver.events(Event) if isinstance(event, Reported | Decided | TrialAsked)]
    assert kinds == [TrialAsked, TrialAsked, Reported, Decided, Reported, Decided, TrialAsked]
    assert driver.events(TrialAsked)[-1].known == 0, "it was asked before the reports"
    assert {one.status for one in conductor.search.trials.values()} == {"pending", "paused"}, "it hears of them then"


def test_a_decision_does_not_take_as_long_as_a_proposal(tmp_path: Path) -> None:
    class Slow(Listener):
        def _propose(self, rng: np.random.Generator, number: int) -> dict[str, Any]:
            time.sleep(0.5)
            return super()._propose(rng, number)

    plan = make_plan(tmp_path, objective={"metric": "loss", "mode": "min", "max_steps": 28}, scheduler=PROMOTE)
    driver = Driver(plan, slots=2, search=Slow(plan.space, seed=1, options=Slow.Options()))
    (first,) = started(driver, 1)
    assert driver.conductor.next() is None
    began = time.monotonic()
    driver.conductor.take(reported(first, 1.0))
    took = time.monotonic() - began
    assert driver.conductor.next() is None, f"a decision took {took:.3f} s, and the search still thinks"
    assert driver.conductor.thinking
    driver.close()


def test_with_fewer_than_four_slots_nothing_is_prepared(tmp_path: Path, gated: Make) -> None:
    assert AHEAD_SLOTS == 4
    driver, _ = gated(make_plan(tmp_path), slots=3, free=100)
    specs = started(driver, 3)
    assert driver.conductor.next() is None
    assert not driver.conductor.thinking
    driver.conductor.take(reported(specs[0], 1.0, end=True))
    assert len(driver.conductor.search.trials) == 3
    started(driver, 1)
    assert [event.known for event in driver.events(TrialAsked)] == [0, 0, 0, 1]
    assert len(driver.conductor.search.trials) == 4


def test_with_four_slots_the_next_is_ready_when_one_is_free(tmp_path: Path, gated: Make) -> None:
    driver, search = gated(make_plan(tmp_path), slots=4, free=5)
    conductor = driver.conductor
    specs = started(driver, 4)
    assert len(conductor.search.trials) == 5
    assert conductor.take(reported(specs[0], 1.0, end=True))
    fifth = conductor.next()
    assert fifth is not None, "without any wait"
    assert search.begun.acquire(timeout=10), "and the search thinks about the next"
    assert conductor.take(reported(specs[1], 1.0, end=True))
    assert conductor.next() is None
    assert conductor.thinking
    search.gate.release()
    assert driver.next() is not None
    assert [event.known for event in driver.events(TrialAsked)] == [0, 0, 0, 0, 0, 1]


def test_no_more_is_prepared_than_the_budget_has(tmp_path: Path, gated: Make) -> None:
    driver, _ = gated(make_plan(tmp_path, budget={"trials": 5}), slots=4, free=100)
    specs = started(driver, 4)
    assert len(driver.conductor.search.trials) == 5
    assert driver.conductor.take(reported(specs[0], 1.0, end=True))
    assert driver.conductor.next() is not None
    assert driver.conductor.next() is None
    assert not driver.conductor.has_more
    assert len(driver.conductor.search.trials) == 5


@pytest.mark.parametrize("slots", [1, 3, 4, 6])
def test_a_search_that_waits_for_results_is_asked_again(tmp_path: Path, slots: int) -> None:
    """... when it is told more, and not before; without any more to come, it is the end."""

    questions = 0

    class Waiting(Listener):
        def _propose(self, rng: np.random.Generator, number: int) -> dict[str, Any] | None:
            nonlocal questions
            questions += 1
            ended = sum(trial.status in ("finished", "failed") for trial in self.trials.values())
            return super()._propose(rng, number) if number <= 2 * ended and number < 7 else None

    plan = make_plan(tmp_path, budget={"trials": 50})
    search = Waiting(plan.space, seed=1, options=Waiting.Options())
    driver = Driver(plan, slots=slots, search=search).run()
    assert len(driver.trials) == 7
    assert driver.conductor.proposals.spent
    assert questions <= 7 + 7 + 1, "at most once for nothing after each result"


# -- the record -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2, 4, 5])
def test_each_proposal_follows_from_the_record(tmp_path: Path, slots: int) -> None:
    """From the trials asked for before, and so many observations as the record says."""
    plan = make_plan(tmp_path, scheduler=PROMOTE, budget={"trials": 14})
    driver = Driver(plan, slots=slots, search=Chronicler(plan)).run()
    live = driver.conductor.search
    assert isinstance(live, Chronicler)
    again = Driver(plan, slots=slots, search=Chronicler(plan))
    replayed = again.conductor.search
    again.close()
    assert isinstance(replayed, Chronicler)
    assert replayed.heard == live.heard, "a resume brings tells and asks in the order in which they came"
    assert replayed.state_dict() == live.state_dict()
    told = 0
    for event in driver.events(Event):
        if isinstance(event, TrialEnded) or (isinstance(event, Decided) and event.action == "continue"):
            told += 1
        if isinstance(event, TrialAsked):
            assert event.known == told if slots < AHEAD_SLOTS else event.known <= told
            fresh = Chronicler(plan)
            fresh.heard = live.heard[: live.heard.index((event.trial, 0))]
            assert event.known == sum(step > 0 for _, step in fresh.heard)
            assert fresh.ask(event.trial) == event.config


def test_what_was_prepared_and_not_used_leaves_no_trace(tmp_path: Path, gated: Make) -> None:
    """Whether or not one was prepared when a driver died, the next proposals are the same."""
    proposed = []
    for name, slots in (("prepared", 4), ("not prepared", 3)):
        (tmp_path / name).mkdir()
        plan = make_plan(tmp_path / name)
        driver, _ = gated(plan, slots=slots, free=100)
        specs = started(driver, 3)
        if slots == 4:
            wait_until(lambda driver=driver: driver.conductor.proposals.wait(0.1), 10, "one is prepared")
        driver.conductor.take(reported(specs[1], 0.3, end=True))
        assert len(driver.conductor.search.trials) == (4 if slots == 4 else 3)
        assert len(driver.events(TrialAsked)) == 3
        driver.close()
        again, _ = gated(plan, slots=4, free=100)
        assert list(again.conductor.search.trials) == ["000001", "000002", "000003"]
        following = started(again, 4)
        assert [spec.trial for spec in following] == ["000001", "000003", "000004", "000005"]
        proposed.append([(spec.trial, spec.config) for spec in following])
        assert [event.known for event in again.events(TrialAsked)[3:]] == [1, 1]
    assert proposed[0] == proposed[1]


@pytest.mark.parametrize("cut", [9, 14, 21, 30, 38])
def test_two_resumes_of_one_record_propose_the_same(tmp_path: Path, cut: int) -> None:
    """The driver dies with a proposal prepared, in the making, or none, which no record tells."""

    def asked_next(plan: Plan, slots: int) -> tuple[list[tuple[str, int]], list[Any]]:
        driver = Driver(plan, slots=slots, search=Chronicler(plan))
        search = driver.conductor.search
        assert isinstance(search, Chronicler)
        heard = list(search.heard)
        driver.conductor._queue.clear()  # what was cut off is another matter
        proposed = [spec.config for spec in started(driver, 2)]
        driver.close()
        driver.journal.path.unlink()
        return heard, proposed

    plan = make_plan(tmp_path, budget={"trials": 40})
    driver = Driver(plan, slots=5, cut=cut, search=Chronicler(plan))
    with pytest.raises(CutError):
        driver.run()
    driver.close()
    assert asked_next(plan, 5) == asked_next(plan, 5) == asked_next(plan, 2)


# -- the end --------------------------------------------------------------------------------------------------------


class Failing(Listener):
    """Fails when it is asked for, or told of, trial 3."""

    def __init__(self, plan: Plan, where: str) -> None:
        super().__init__(plan.space, seed=1, options=Listener.Options())
        self.where = where

    def _propose(self, rng: np.random.Generator, number: int) -> dict[str, Any]:
        if self.where == "ask" and number == 2:
            raise SearchError("no idea")
        return super()._propose(rng, number)

    def _learn(self, observation: Observation) -> None:
        if self.where == "tell" and observation.trial_id == "000003":
            raise SearchError("no idea")


@pytest.mark.parametrize("where", ["ask", "tell"])
@pytest.mark.parametrize("slots", [1, 4])
def test_a_search_that_fails_says_so(tmp_path: Path, slots: int, where: str) -> None:
    plan = make_plan(tmp_path)
    driver = Driver(plan, slots=slots, search=Failing(plan, where))
    with pytest.raises(SearchError, match="no idea"):
        driver.run()
    with pytest.raises(SearchError, match="no idea"):
        driver.conductor.proposals.check()
    driver.conductor.stop("that was it", "failed")
    assert driver.conductor.next() is None
    driver.close()


def test_a_record_that_the_search_refuses_is_refused_at_once(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, budget={"trials": 4})
    Driver(plan).run()
    with pytest.raises(SearchError, match="no idea"):
        Driver(plan, search=Failing(plan, "tell"))


def test_a_stop_does_not_wait_for_the_search(tmp_path: Path, gated: Make) -> None:
    driver, search = gated(make_plan(tmp_path), slots=2, free=1)
    conductor = driver.conductor
    (spec,) = started(driver, 1)
    assert conductor.next() is None
    assert search.begun.acquire(timeout=10)
    conductor.stop("Ctrl-C", "interrupted")
    assert not conductor.thinking
    assert conductor.next() is None
    assert not conductor.thinking
    assert not conductor.has_more
    assert conductor.take(reported(spec, 1.0, end=True))
    assert conductor.finished
    conductor.proposals.close()
    assert len(driver.events(TrialAsked)) == 1
    assert len(driver.events(TrialEnded)) == 1


def test_the_thread_ends_with_the_search(tmp_path: Path) -> None:
    before = set(threading.enumerate())

    def threads() -> list[threading.Thread]:
        return [thread for thread in set(threading.enumerate()) - before if thread.name == "search"]

    driver = Driver(make_plan(tmp_path))
    assert not threads(), "there is none before the first question"
    assert driver.next() is not None
    assert len(threads()) == 1
    driver.close()
    wait_until(lambda: not threads(), 10, "the thread has ended")


def test_a_search_that_never_answers_keeps_no_process_alive() -> None:
    code = """if True:
        import time
        from raytuner.engine.proposals import Proposals

        class Endless:
            def ask(self, trial):
                time.sleep(600)

        proposals = Proposals(Endless())
        assert proposals.take("000001") is None
        assert not proposals.wait(0.1)
        proposals.close()
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_question_is_put_once() -> None:
    class Counting:
        asks = 0
        why = ""

        def ask(self, trial_id: str) -> dict[str, Any]:
            self.asks += 1
            return {"x": self.asks}

    search = Counting()
    proposals = Proposals(search)  # type: ignore[arg-type]  # all that it needs of one
    assert isinstance(proposals.settled(), Counting)
    for trial_id in ("000001", "000002"):
        for _ in range(3):
            proposals.prepare(trial_id)
        assert proposals.wait(10)
        proposal = proposals.take(trial_id)
        assert proposal is not None
        assert proposal.known == 0
    assert search.asks == 2
    proposals.close()
    assert proposals.settled() is search  # type: ignore[comparison-overlap]
