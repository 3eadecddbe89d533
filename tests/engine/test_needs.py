"""What trials take: by their configurations, by what they were seen to need, and by what they ran out of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conductor_tools import Driver, make_plan, run_until_cut

from raytuner.engine.batch import Batch
from raytuner.engine.needs import Books, larger_share, share_for
from raytuner.errors import LaunchError, PlanError
from raytuner.journal import ExperimentState, Measured, Retried, TrialAsked, TrialStarted, TrialState
from raytuner.plan import Machine, Node
from raytuner.training import Trial

GB = 10**9
WIDE = {"width": {"type": "choice", "values": [1, 2, 8]}}
BY_WIDTH = {"cpu": 0.5, "gpu": "1 if width <= 1 else width"}


def books(tmp_path: Path, machine: Machine, **fields: Any) -> Books:
    found = Books(make_plan(tmp_path, machine, **fields), ExperimentState())
    found.resize(machine)
    return found


def trial(name: str, **config: Any) -> TrialState:
    return TrialState(name, config, "search")


def test_shares_are_whole_parts_that_fit() -> None:
    for peak in (0.1, 1.0, 3.0, 5.0, 11.0, 20.0, 40.0):
        share = share_for(peak * GB, 24 * GB)
        parts = round(1 / share)
        assert parts * share <= 1.0
        assert parts == 1 or share * 24 * GB >= peak * 1.2 * GB + 0.6 * GB - 24 * GB / 10_000
    assert share_for(GB / 100, 200 * GB) == 1 / 16, "not more than sixteen"
    assert [larger_share(share) for share in (1 / 16, 0.1, 0.3333, 0.5)] == [0.125, 0.2, 1.0, 1.0]


class TestBooks:
    def test_slots_are_those_of_the_smallest_trial_on_nodes_that_suit(self, tmp_path: Path) -> None:
        nodes = (
            Node(8, 4, frozenset({"H100"}), {"zone": "a"}),
            Node(8, 4, frozenset({"H100"}), {"zone": "b"}),
            Node(8, 8, frozenset({"A100"}), {"zone": "a"}),
        )
        machine = Machine(24, 16, nodes)
        one = {"gpu": 1, "cpu": 0.5}
        assert books(tmp_path, machine, resources=one).slots == 16
        assert books(tmp_path, machine, resources={**one, "workers": 3}).slots == 5
        assert books(tmp_path, machine, resources={**one, "accelerator": "H100"}).slots == 8
        assert books(tmp_path, machine, resources={**one, "labels": {"zone": "b"}}).slots == 4
        assert books(tmp_path, machine, resources={"gpu": 8, "cpu": 0.5}).slots == 1
        assert books(tmp_path, machine, resources={**one, "gpu": 1, "cpu": 8}).slots == 3
        shrunk = books(tmp_path, machine, resources={**one, "accelerator": "A100"})
        with pytest.raises(
            LaunchError, match=r"resources.accelerator: some node must have it.* there are H100, got A100"
        ):
            shrunk.resize(Machine(16, 8, nodes[:2]))
        with pytest.raises(PlanError, match=r"resources.accelerator: some node must have it.*A100, H100, got V100"):
            books(tmp_path, machine, resources={**one, "accelerator": "V100"})
        labelled = books(tmp_path, machine, resources={**one, "labels": {"zone": "b"}})
        with pytest.raises(
            LaunchError, match=r"resources.labels: some node must have it.* there are zone=a, got zone=b"
        ):
            labelled.resize(Machine(8, 8, nodes[2:]))
        with pytest.raises(LaunchError, match=r"resources.cpu: there must be room for one trial, and there are 2 CPUs"):
            books(tmp_path, machine, resources={"cpu": 4}).resize(Machine(2, 0))

    def test_nobody_overtakes_a_trial_that_waits_for_room(self, tmp_path: Path) -> None:
        machine = Machine(64, 8, (Node(32, 4), Node(32, 4)))
        found = books(tmp_path, machine, space={"width": {"type": "choice", "values": [1, 2, 4]}}, resources=BY_WIDTH)
        assert found.slots == 8
        assert found.start(trial("1", width=4)).gpu == 4
        assert found.start(trial("2", width=2)).gpu == 2
        assert found.waiting is None
        found.start(trial("3", width=4))
        assert found.waiting == "3", "there are two free GPUs"
        found.end("1")
        assert found.waiting == "3", "until it has started"
        found.started("3")
        assert found.waiting is None
        found.start(trial("4", width=1))
        found.start(trial("5", width=1))
        assert found.waiting is None
        found.start(trial("6", width=1))
        assert found.waiting == "6"

    def test_what_no_node_can_hold_is_refused(self, tmp_path: Path) -> None:
        machine = Machine(64, 8, (Node(32, 4), Node(32, 4)))
        found = books(tmp_path, Machine(64, 8), space=WIDE, resources=BY_WIDTH)
        found._first = machine
        found.resize(machine)
        with pytest.raises(PlanError, match=r"needs 0.5 CPU, 8 GPU, for which no node has room"):
            found.start(trial("1", width=8))


def run_some(driver: Driver, count: int) -> list[tuple[str, float]]:
    started = []
    for _ in range(count):
        spec = driver.next()
        if spec is None:
            break
        started.append((spec.trial, spec.gpu))
        say(driver, spec, {"m": "started", "step": 0, "checkpoint": None, "pid": 1})
    return started


def say(driver: Driver, spec: Any, *messages: dict[str, Any], end: dict[str, Any] | None = None) -> bool:
    return driver.conductor.take(Batch(spec.trial, spec.attempt, list(messages), end=end))


def report(step: int) -> dict[str, Any]:
    return {"m": "report", "step": step, "metrics": {"loss": 1.0}, "time": 1.0, "seconds": 1.0}


def done(step: int) -> dict[str, Any]:
    return {"status": "finished", "reason": "done", "step": step, "error": None}


def no_memory(step: int) -> dict[str, Any]:
    error = {"kind": "gpu_memory", "message": "OutOfMemoryError: CUDA out of memory", "traceback": ""}
    return {"status": "failed", "reason": error["message"], "step": step, "error": error}


def test_auto_packs_by_the_most_that_was_seen(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path, Machine(16, 2), resources={"gpu": "auto", "cpu": 0.1}, budget={"trials": 40}))
    driver.conductor.books.resize(Machine(16, 2))
    first, second = driver.next(), driver.next()
    assert first is not None
    assert second is not None
    assert (first.gpu, second.gpu, driver.next()) == (1.0, 1.0, None), "alone, until it is known what they take"
    for spec, peak in ((first, 3 * GB), (second, 5 * GB)):
        say(driver, spec, {"m": "started", "step": 0, "checkpoint": None, "pid": 1}, report(1))
        say(driver, spec, {"m": "memory", "step": 1, "gpu_memory": peak, "gpu_total": 24 * GB})
        assert say(driver, spec, end=done(1))
    packed = run_some(driver, 40)
    assert {gpu for _, gpu in packed} == {share_for(5 * GB, 24 * GB)} == {0.3333}
    assert len(packed) == 6, "three on each of two"
    assert [e.gpu for e in driver.events(TrialStarted)] == [1.0, 1.0] + [0.3333] * 6
    assert len(driver.events(Measured)) == 2
    driver.close()


def test_out_of_memory_is_tried_again_with_a_larger_share(tmp_path: Path) -> None:
    def hungry(trial: Trial) -> None:
        torch = pytest.importorskip("torch")
        for step in trial.steps(nothing=[0]):
            if step == 3 and trial._spec.gpu < 0.5:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
            trial.report(loss=1.0 / step)

    fields = {"resources": {"gpu": 0.2, "cpu": 0.1}, "budget": {"trials": 2}, "checkpoints": {"every_steps": 1}}
    driver = Driver(make_plan(tmp_path, Machine(4, 1), **fields), train=hungry).run()
    assert [(t.status, t.step, t.gpu) for t in driver.trials] == [("finished", 9, 0.5)] * 2
    retried = driver.events(Retried)
    assert [(e.trial, e.step, e.gpu) for e in retried] == [("000001", 2, 0.5), ("000002", 2, 0.5)]
    assert "out of memory with 0.2 of a GPU, once more with 0.5: " in retried[0].reason
    steps = [(e.trial, e.attempt, e.step) for e in driver.events(TrialStarted)]
    assert steps == [("000001", 1, 0), ("000001", 2, 2), ("000002", 1, 0), ("000002", 2, 2)], "from its checkpoint"


def test_a_whole_gpu_that_is_too_small_is_a_failure(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path, Machine(4, 1), resources={"gpu": 0.5, "cpu": 0.1}, budget={"trials": 1}))
    for expected in (0.5, 1.0):
        spec = driver.next()
        assert spec is not None
        assert spec.gpu == expected
        say(driver, spec, {"m": "started", "step": 0, "checkpoint": None, "pid": 1})
        assert say(driver, spec, end=no_memory(0))
    assert driver.next() is None
    assert [(t.status, t.error and t.error["kind"]) for t in driver.trials] == [("failed", "gpu_memory")]
    driver.close()


def test_a_larger_share_outlives_the_driver(tmp_path: Path) -> None:
    def hungry(trial: Trial) -> None:
        torch = pytest.importorskip("torch")
        for step in trial.steps(nothing=[0]):
            if step == 2 and trial._spec.gpu < 0.5:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            trial.report(loss=1.0 / step)

    fields = {"resources": {"gpu": 0.2, "cpu": 0.1}, "budget": {"trials": 1}, "checkpoints": {"every_steps": 1}}
    cut = 0
    while True:
        cut += 1
        folder = tmp_path / str(cut)
        folder.mkdir()
        plan = make_plan(folder, Machine(4, 1), **fields)
        whole = run_until_cut(plan, cut, hungry)
        after = Driver(plan, train=hungry).run() if whole is None else whole
        (one,) = after.trials
        if whole is None:
            assert (one.status, one.step, one.gpu) == ("finished", 9, 0.5)
            assert len(after.events(Retried)) == 1
            assert len(after.events(TrialAsked)) == 1
        else:
            break


def test_a_configuration_that_fits_nowhere_fails_and_the_others_go_on(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        for _ in trial.steps():
            trial.report(loss=float(trial.config["width"]))

    plan = make_plan(tmp_path, Machine(64, 0), space=WIDE, resources={"cpu": "width"}, search="grid", budget={})
    driver = Driver(replace(plan, machine=Machine(4, 0)), train=train)
    driver.conductor.books.resize(Machine(4, 0))
    driver.conductor.books.slots = 1
    driver.run()
    ends = {t.config["width"]: t for t in driver.trials}
    assert {width: t.status for width, t in ends.items()} == {1: "finished", 2: "finished", 8: "failed"}
    assert ends[8].error is not None
    assert ends[8].error["kind"] == "resources"
    assert "needs 8 CPU, for which no node has room" in ends[8].reason
