"""Trials that go on from the checkpoints of others, with other configurations. No Ray in here."""

from __future__ import annotations

import os
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conductor_tools import PBT, TOGETHER, Driver, make_plan, result

from raytuner.journal import CheckpointWritten, Decided, Exploited, Reported, replay
from raytuner.training import Trial
from raytuner.training.checkpoint import adopt_checkpoint

SPACE = {
    "rate": {"type": "float", "low": 0.0, "high": 1.0},
    "size": {"type": "choice", "values": [1, 2, 3], "ordered": True},
}
POPULATION = {**PBT, "mutate": ["rate"], "population": 6, "perturbation_interval": 2, "quantile": 0.34}
FIELDS: dict[str, Any] = {"space": SPACE, "scheduler": POPULATION, "budget": {}}


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def learn(trial: Trial) -> None:
    """What is learnt adds up, step by step, from state to state: who copies another has that one's."""
    learnt = np.zeros(trial.config["size"])
    history = [0.0] * 0
    for step in trial.steps(learnt=learnt, history=history):
        learnt += trial.config["rate"]
        history.append(trial.config["rate"])
        assert len(history) == step
        trial.report(loss=10 - float(learnt[0]), drawn=float(np.random.random()))


def test_the_state_and_the_steps_come_along(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path, **FIELDS), slots=3, train=learn).run()
    exploited = driver.events(Exploited)
    assert exploited
    for event in exploited:
        trial, source = driver.state.trials[event.trial], driver.state.trials[event.source]
        assert event.source_step >= event.step
        assert event.config["size"] == source.phases[event.source_phase].config["size"]
        assert trial.phases[0].config == trial.asked
    for trial in driver.trials:
        assert (trial.status, trial.step) == ("finished", 9)
        # What it reported last is what its lineage makes of it.
        rates = [part[3]["rate"] * (part[2] - part[1] + 1) for part in driver.state.lineage(trial.id, 9)]
        assert trial.last["loss"] == pytest.approx(10 - sum(rates))


def test_a_lineage_has_every_step_once(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path, **FIELDS), slots=3, train=learn).run()
    for trial in driver.trials:
        for step in (1, 5, trial.value_step):
            parts = driver.state.lineage(trial.id, step)
            assert parts[0][1] == 1
            assert parts[-1][2] == step
            assert all(one[2] + 1 == two[1] for one, two in pairwise(parts))
    best = driver.state.best
    assert best is not None
    assert best.config == driver.state.lineage(best.id, best.value_step)[-1][3]


def test_a_checkpoint_of_another_is_never_shown_as_its_own_best(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path, **FIELDS), slots=3, train=learn).run()
    taken = {e.path for e in driver.events(CheckpointWritten) if e.reason == "exploit"}
    assert taken
    for trial in driver.trials:
        assert trial.best_checkpoint is None or trial.best_checkpoint.path not in taken


def test_who_copies_draws_other_random_numbers(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path, **FIELDS), slots=1, train=learn).run()
    drawn = [event.metrics["drawn"] for event in driver.events(Reported)]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("scheduler", [POPULATION, {**POPULATION, "synchronous": True}], ids=["pbt", "together"])
def test_one_slot_gives_one_record(tmp_path: Path, scheduler: Any) -> None:
    results = []
    for name in "ab":
        (tmp_path / name).mkdir()
        plan = make_plan(tmp_path / name, **{**FIELDS, "scheduler": scheduler})
        results.append(result(Driver(plan, train=learn).run()))
    assert results[0] == results[1]


def test_together_all_copies_are_of_the_same_step(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, **{**FIELDS, "scheduler": {**TOGETHER, **POPULATION, "synchronous": True}})
    driver = Driver(plan, slots=4, train=learn).run()
    exploited = driver.events(Exploited)
    assert exploited
    assert all(event.step == event.source_step for event in exploited)


def test_without_a_checkpoint_to_copy_it_goes_on_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(source: Path, target: Path, **fields: Any) -> int:
        shutil.rmtree(source, ignore_errors=True)
        return adopt_checkpoint(source, target, **fields)

    monkeypatch.setattr("raytuner.engine.shelf.adopt_checkpoint", gone)
    plan = make_plan(tmp_path, **{**FIELDS, "objective": {"metric": "loss", "mode": "min", "max_steps": 4}})
    driver = Driver(plan, train=learn)
    driver.run()
    kept = [event for event in driver.events(Decided) if event.action == "keep"]
    assert kept
    assert "no checkpoint of" in kept[0].reason
    assert any("goes on as it was" in warning for warning in driver.conductor.warnings)
    assert driver.events(Exploited) == []
    assert all(len(trial.phases) == 1 for trial in driver.trials)
    again = Driver(plan, train=learn)  # a resume knows that it did not copy
    assert again.conductor.scheduler.state_dict() == driver.conductor.scheduler.state_dict()
    again.close()


def stateless(trial: Trial) -> None:
    for _ in trial.steps():
        trial.report(loss=trial.config["rate"])


def looping(trial: Trial) -> None:
    for _ in range(9):
        trial.report(loss=trial.config["rate"])


SCHEDULE = {"type": "schedule", "changes": [{"after": 2, "config": {"rate": 0.5}}]}


@pytest.mark.parametrize("train", [stateless, looping])
@pytest.mark.parametrize(
    ("scheduler", "whose"), [(POPULATION, r"trial 00000\d's"), (SCHEDULE, "its own")], ids=["pbt", "schedule"]
)
def test_without_any_state_to_go_on_from_the_experiment_ends(
    tmp_path: Path, train: Any, scheduler: Any, whose: str
) -> None:
    fields = {**FIELDS, "scheduler": scheduler, "budget": {"trials": 6}}
    driver = Driver(make_plan(tmp_path, **fields), slots=2, train=train).run()
    assert driver.conductor.stop_status == "failed"
    assert re.match(
        rf"trial 00000\d was to go on from {whose} checkpoint after step \d .* loop over trial.steps\(model=model",
        driver.conductor.fatal or "",
    )
    assert driver.events(Exploited) == []
    assert all(trial.status != "running" for trial in driver.trials)


def test_a_state_that_does_not_load_ends_the_experiment_with_a_remedy(tmp_path: Path) -> None:
    scheduler = {**POPULATION, "mutate": ["size"], "resample_probability": 0}
    driver = Driver(make_plan(tmp_path, **{**FIELDS, "scheduler": scheduler}), train=learn).run()
    assert driver.conductor.stop_status == "failed"
    assert driver.conductor.fatal is not None
    assert "does not load with other values of size; take out of scheduler.mutate" in driver.conductor.fatal


def test_the_structural_parameter_is_named_where_it_can_be_told(tmp_path: Path) -> None:
    space = {**SPACE, "size": {"type": "int", "low": 20, "high": 90}}
    scheduler = {**POPULATION, "mutate": ["rate", "size"]}
    driver = Driver(make_plan(tmp_path, **{**FIELDS, "space": space, "scheduler": scheduler}), train=learn).run()
    assert "does not load with other values of size; take out" in (driver.conductor.fatal or "")


def test_what_was_copied_outlives_its_source(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path, **FIELDS), slots=2, train=learn).run()
    state = replay(driver.folder)
    for trial in state.trials.values():
        for checkpoint in trial.checkpoints.values():
            assert Path(checkpoint.path).is_relative_to(driver.folder.trial(trial.id))
            assert Path(checkpoint.path).is_dir()


def test_fewer_configurations_than_members_are_a_smaller_population(tmp_path: Path) -> None:
    space = {"rate": {"type": "choice", "values": [0.1, 0.5, 0.9], "ordered": True}, "size": [1, 2]}
    plan = make_plan(
        tmp_path, **{**FIELDS, "space": space, "search": "grid", "scheduler": {**POPULATION, "population": 9}}
    )
    assert plan.trials == 6
    driver = Driver(plan, slots=2, train=learn).run()
    assert [(trial.status, trial.step) for trial in driver.trials] == [("finished", 9)] * 6
    assert driver.events(Exploited)


def test_the_defaults_stay_what_they_are(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path, **FIELDS, defaults={"rate": 0.0, "size": 2}), slots=2, train=learn).run()
    first = driver.trials[0]
    assert first.source == "defaults"
    assert [phase.config for phase in first.phases] == [{"rate": 0.0, "size": 2}]
    assert driver.events(Exploited)


def test_with_select_last_the_last_value_counts(tmp_path: Path) -> None:
    objective = {"metric": "loss", "mode": "min", "max_steps": 9, "select": "last"}
    driver = Driver(make_plan(tmp_path, **{**FIELDS, "objective": objective}), slots=2, train=learn).run()
    for trial in driver.trials:
        assert (trial.value, trial.value_step, trial.config) == (trial.last["loss"], 9, trial.current)
