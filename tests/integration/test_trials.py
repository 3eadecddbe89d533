"""Trials on real Ray: every kind of training function, every way to fail, ASHA in both forms."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Run, events_of

from raytuner.journal import Retried

pytestmark = pytest.mark.usefixtures("ray")


def test_a_function_that_returns_its_objective(run: Run) -> None:
    state, _ = run(train="objectives:quadratic", budget={"trials": 12}, seed=3)
    assert state.status == "finished"
    assert [t.status for t in state.trials.values()] == ["finished"] * 12
    assert list(state.trials) == [f"{n:06d}" for n in range(1, 13)]
    assert all(t.value == pytest.approx((t.config["x"] - 2.0) ** 2) for t in state.trials.values())
    assert state.best is not None
    assert state.best.value == min(t.value for t in state.trials.values() if t.value is not None)
    used = {(t.node, tuple(t.gpus)) for t in state.trials.values()}
    assert {gpus for _, gpus in used} == {()}, "no GPU was asked for"


def test_asha_stops_trials_at_rungs_and_tests_the_best_checkpoint(run: Run) -> None:
    state, _ = run(
        train="objectives:curve",
        test="objectives:curve_test",
        objective={"metric": "loss", "mode": "min", "max_steps": 9},
        scheduler={"type": "asha", "grace_steps": 1, "reduction_factor": 3},
        budget={"trials": 18},
        defaults={"x": 2.0},
    )
    assert state.status == "finished"
    best = state.best
    assert best is not None
    assert (best.id, best.step, best.value_step) == ("000001", 9, 9)
    stopped = [t for t in state.trials.values() if t.status == "stopped"]
    assert len(stopped) >= 9
    assert {t.step for t in stopped} <= {1, 3}, "trials end at rungs only"
    for trial in stopped:
        assert [s.step for s in trial.steps] == list(range(1, trial.step + 1)), "every step is on record, once"
        assert "rung" in trial.reason
    assert best.best_checkpoint is not None
    assert Path(best.best_checkpoint.path, "manifest.json").exists()
    assert [(t.trial, t.step, t.metrics) for t in state.tests] == [("000001", 9, {"test_loss": 9.0})]


def test_promotion_with_more_paused_trials_than_slots_comes_to_its_end(run: Run) -> None:
    state, _ = run(
        train="objectives:curve",
        objective={"metric": "loss", "mode": "min", "max_steps": 9},
        scheduler={"type": "asha", "form": "promote", "grace_steps": 1, "reduction_factor": 3},
        budget={"trials": 18},
    )
    assert state.status == "finished"
    paused = [t for t in state.trials.values() if t.status == "paused"]
    finished = [t for t in state.trials.values() if t.status == "finished"]
    assert len(paused) > 2
    assert len(paused) + len(finished) == 18
    promoted = [t for t in state.trials.values() if t.attempt > 1]
    assert promoted, "some were resumed from their checkpoint"
    for trial in state.trials.values():
        assert [s.step for s in trial.steps] == list(range(1, trial.step + 1))
    # Nothing was trained twice: a promoted trial goes on where it was paused.
    assert state.steps == sum(t.step for t in state.trials.values())
    reached = [sum(t.step >= rung for t in state.trials.values()) for rung in (1, 3, 9)]
    assert reached[0] == 18
    assert reached[1] >= 6, "at the end, at least the best third of each rung has gone on"
    assert reached[2] >= 2


WAYS = ["raise", "exit", "segfault", "nan", "missing", "kill", "good"]


def test_a_failure_stays_with_its_trial(run: Run) -> None:
    state, folder = run(
        train="objectives:bad",
        space={"way": {"type": "choice", "values": WAYS}},
        search="grid",
        budget={"trials": len(WAYS)},
    )
    assert state.status == "finished"
    by_way = {t.config["way"]: t for t in state.trials.values()}
    assert {way: t.status for way, t in by_way.items()} == {
        **dict.fromkeys(WAYS, "failed"),
        "good": "finished",
    }
    kinds = {way: t.error["kind"] for way, t in by_way.items() if t.error}
    assert kinds == {
        "raise": "error",
        "exit": "exit",
        "segfault": "signal",
        "nan": "report",
        "missing": "report",
        "kill": "killed",
    }
    raised = by_way["raise"].error
    assert raised is not None
    assert raised["message"] == "ValueError: no such luck"
    assert "objectives.py" in raised["traceback"]
    assert "raytuner/" not in raised["traceback"], "what a user sees begins in their own code"
    assert "no such luck" in (folder.trial(by_way["raise"].id) / "stderr.log").read_text()
    assert "'accuracy'" in by_way["missing"].reason
    assert "'loss' is missing" in by_way["missing"].reason
    assert by_way["nan"].value is None
    assert by_way["kill"].reason.endswith("that was 4 times without another step done")
    assert {event.trial for event in events_of(folder, Retried)} == {by_way["kill"].id}, "the others had their go"


@pytest.mark.parametrize("form", ["stop", "promote"])
def test_a_plain_ray_tune_function_runs_unchanged(run: Run, form: str) -> None:
    state, _ = run(
        train="objectives:ray_function",
        objective={"metric": "loss", "mode": "min", "max_steps": 4},
        scheduler={"type": "asha", "form": form, "grace_steps": 1, "reduction_factor": 2},
        budget={"trials": 6},
    )
    assert state.status == "finished"
    assert not [t for t in state.trials.values() if t.status == "failed"]
    for trial in state.trials.values():
        assert [s.metrics["at"] for s in trial.steps] == [float(s.step) for s in trial.steps]
    assert max(t.step for t in state.trials.values()) == 4


def test_a_ray_trainable_class_runs_unchanged(run: Run) -> None:
    state, _ = run(
        train="rayclass:Climber",
        objective={"metric": "loss", "mode": "min", "max_steps": 4},
        scheduler={"type": "asha", "form": "promote", "grace_steps": 1, "reduction_factor": 2},
        budget={"trials": 6},
    )
    assert state.status == "finished"
    assert not [t for t in state.trials.values() if t.status == "failed"]
    for trial in state.trials.values():
        assert [s.metrics["height"] for s in trial.steps] == [float(s.step) for s in trial.steps]
    assert [t for t in state.trials.values() if t.attempt > 1]


def test_a_function_that_needs_ray_runs_in_the_actor(run: Run) -> None:
    state, _ = run(train="objectives:uses_ray", isolation="actor", budget={"trials": 3})
    assert [t.status for t in state.trials.values()] == ["finished"] * 3


def test_devices_are_given_explicitly(run: Run) -> None:
    state, _ = run(train="objectives:quadratic", resources={"cpu": 1, "gpu": 1}, budget={"trials": 4})
    assert {tuple(t.gpus) for t in state.trials.values()} <= {(str(n),) for n in range(6)}
    assert all(len(t.gpus) == 1 for t in state.trials.values())


def test_an_import_that_fails_ends_the_experiment_with_its_traceback(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import not_installed_anywhere\n\n\ndef train(trial):\n    pass\n")
    state, _ = run(train=f"{tmp_path}/broken.py:train", budget={"trials": 50})
    assert state.status == "failed"
    assert "not_installed_anywhere" in state.reason
    assert len(state.trials) <= 4, "it makes no sense to go on"
