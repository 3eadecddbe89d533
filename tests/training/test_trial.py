"""The trial object is strict: what it accepts is recorded as meant, and everything else says what to do."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trial_tools import Tape, attempt, make_spec

from raytuner.errors import ReportError, TrialError
from raytuner.training import Trial, TrialSpec

WITHOUT_END = {"max_steps": None}


def fails(tmp_path: Path, function: Any, message: str, *, kind: str = "report", **changes: Any) -> Tape:
    end, tape = attempt(make_spec(tmp_path, **changes), function)
    assert end["status"] == "failed", end
    assert end["error"]["kind"] == kind, end
    assert re.search(message, end["reason"]), end["reason"]
    assert end["reason"] in end["error"]["message"]
    return tape


# -- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0),
        (0.25, 0.25),
        (Fraction(1, 4), 0.25),
        (np.float32(0.25), 0.25),
        (np.int64(3), 3.0),
        (np.array(2.0), 2.0),
        (np.array([2.0]), 2.0),
    ],
)
def test_numbers_are_numbers(tmp_path: Path, value: Any, number: float) -> None:
    end, tape = attempt(make_spec(tmp_path, **WITHOUT_END), lambda trial: trial.report(loss=value))
    assert end["status"] == "finished"
    assert tape.values() == {1: number}
    assert type(tape.values()[1]) is float


def test_tensors_are_numbers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    value = torch.nn.Parameter(torch.tensor([1.5])) * 2
    _, tape = attempt(make_spec(tmp_path, **WITHOUT_END), lambda trial: trial.report(loss=value))
    assert tape.values() == {1: 3.0}


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(True), "0.5", None, [0.5], np.zeros(2), 1j, {"a": 1}, object()],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_number_is_refused(tmp_path: Path, value: Any) -> None:
    for name in ("loss", "extra"):
        tape = fails(
            tmp_path,
            lambda trial, name=name: trial.report({"loss": 1.0, name: value}),
            f"step 1: the metric '{name}' must be a number, got {type(value).__name__.rstrip('_')}.*float",
            **WITHOUT_END,
        )
        assert tape.of("report") == []


def test_other_metrics_need_not_be_finite(tmp_path: Path) -> None:
    end, tape = attempt(
        make_spec(tmp_path, **WITHOUT_END), lambda trial: trial.report(loss=1.0, ratio=math.nan, norm=math.inf)
    )
    assert end["status"] == "finished"
    assert math.isnan(tape.values("ratio")[1])
    assert tape.values("norm")[1] == math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_an_objective_that_is_not_finite_fails_the_trial_and_is_told(tmp_path: Path, value: float) -> None:
    def train(trial: Trial) -> None:
        for step in trial.steps():
            trial.report(loss=1.0 if step < 2 else value)

    tape = fails(tmp_path, train, r"step 2 reported loss=(nan|-?inf); the objective must be a finite number")
    assert list(tape.values()) == [1, 2], "the value is on record"


def test_a_failure_cannot_be_swallowed(tmp_path: Path) -> None:
    """Code that catches everything around its report must not make a finished trial of a failed one."""

    def train(trial: Trial) -> None:
        for _ in trial.steps():
            with suppress(Exception):
                trial.report(loss=math.nan)

    def by_itself(trial: Trial) -> None:
        for _ in range(3):
            with suppress(Exception):
                trial.report(loss=math.nan)

    for function in (train, by_itself):
        tape = fails(tmp_path, function, "step 1 reported loss=nan", decides=(1, 2))
        assert tape.of("decide") == [], "nobody can decide on that"
        assert list(tape.values()) == [1]


# -- reports and steps ----------------------------------------------------------------------------------------------


def test_the_objective_must_be_reported(tmp_path: Path) -> None:
    tape = fails(
        tmp_path, lambda trial: trial.report(acc=1.0), r"step 1 reported \['acc'\]; the objective 'loss' is missing"
    )
    assert tape.of("report") == []
    fails(tmp_path, lambda trial: trial.report(), r"step 1 reported \[\]; the objective 'loss' is missing")


def test_a_name_must_be_a_string(tmp_path: Path) -> None:
    fails(
        tmp_path, lambda trial: trial.report({"loss": 1.0, 5: 2.0}), "step 1: a metric's name must be a string, got 5"
    )


def test_two_reports_in_a_step_are_refused(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        for _ in trial.steps():
            trial.report(loss=1.0)
            trial.report(loss=2.0)

    tape = fails(tmp_path, train, "step 1 has reported already")
    assert tape.values() == {1: 1.0}


def test_a_report_after_the_loop_is_refused(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        for _ in trial.steps():
            trial.report(loss=1.0)
        trial.report(loss=2.0)

    fails(tmp_path, train, "step 5 has reported already")


def test_a_step_without_a_report_is_refused(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        for step in trial.steps():
            if step != 3:
                trial.report(loss=1.0)

    tape = fails(tmp_path, train, r"step 3 ended without a report; call trial.report\(loss=...\)")
    assert list(tape.values()) == [1, 2]


def test_steps_need_their_number(tmp_path: Path) -> None:
    fails(tmp_path, lambda trial: list(trial.steps()), "objective.max_steps must be set", kind="error", max_steps=None)


def test_steps_can_be_used_once(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        for _ in trial.steps():
            trial.report(loss=1.0)
        next(iter(trial.steps()))

    fails(tmp_path, train, "steps.. may be used once", kind="error")


def test_steps_are_counted_from_one_to_max_steps(tmp_path: Path) -> None:
    seen = []

    def train(trial: Trial) -> None:
        for step in trial.steps():
            assert trial.step == step
            trial.report(loss=step)
            seen.append(step)

    end, tape = attempt(make_spec(tmp_path), train)
    assert seen == list(tape.values()) == [1, 2, 3, 4, 5]
    assert end == {"status": "finished", "reason": "all 5 steps done", "step": 5, "error": None}


def test_reports_outside_steps_are_steps_up_to_the_last(tmp_path: Path) -> None:
    """The function is unwound at its last step, with its own clean-up, however long it would go on."""
    done = []

    def train(trial: Trial) -> None:
        try:
            while True:
                trial.report(loss=trial.step)
        finally:
            done.append(trial.step)

    end, tape = attempt(make_spec(tmp_path), train)
    assert list(tape.values()) == [1, 2, 3, 4, 5]
    assert (end["status"], end["reason"], done) == ("finished", "all 5 steps done", [5])


def test_no_report_comes_after_the_last_one(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        for _ in range(9):
            with suppress(BaseException):
                trial.report(loss=1.0)

    end, tape = attempt(make_spec(tmp_path), train)
    assert list(tape.values()) == [1, 2, 3, 4, 5]
    assert end["status"] == "finished"


def test_leaving_the_loop_early_is_a_finished_trial(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        for step in trial.steps(weights=np.zeros(1)):
            trial.report(loss=step)
            if step == 2:
                break

    end, tape = attempt(make_spec(tmp_path), train)
    assert (end["status"], end["step"]) == ("finished", 2)
    assert end["reason"] == "the function returned after step 2"
    assert tape.of("checkpoint")[-1]["step"] == 2


# -- what a function may return -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "metrics"),
    [
        (0.5, {"loss": 0.5}),
        (2, {"loss": 2.0}),
        (np.float64(0.5), {"loss": 0.5}),
        (np.array(0.5), {"loss": 0.5}),
        ({"loss": 0.5, "acc": 1}, {"loss": 0.5, "acc": 1.0}),
    ],
)
@pytest.mark.parametrize("max_steps", [None, 1, 5])
def test_a_result_is_a_report(tmp_path: Path, result: Any, metrics: dict[str, float], max_steps: int | None) -> None:
    end, tape = attempt(make_spec(tmp_path, max_steps=max_steps), lambda trial: result)
    assert (end["status"], end["step"]) == ("finished", 1)
    assert [m["metrics"] for m in tape.of("report")] == [metrics]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "returned without a report; call trial.report"),
        ("0.5", "may return nothing, a number .* or a dict of metrics, got str"),
        (True, "got bool"),
        ([0.5], "got list"),
        (np.zeros(3), "must be a number, got ndarray"),
        ({"acc": 1.0}, "the objective 'loss' is missing"),
        (math.nan, "must be a finite number"),
    ],
)
def test_other_results_are_refused(tmp_path: Path, result: Any, message: str) -> None:
    fails(tmp_path, lambda trial: result, message)


@pytest.mark.parametrize("result", [0.5, {"loss": 0.5}])
def test_a_result_beside_reports_is_refused(tmp_path: Path, result: Any) -> None:
    def train(trial: Trial) -> Any:
        for _ in trial.steps():
            trial.report(loss=1.0)
        return result

    fails(tmp_path, train, "reported its steps and returned a result too")


# -- decisions ------------------------------------------------------------------------------------------------------


def test_a_decision_is_asked_for_at_the_head_of_the_loop(tmp_path: Path) -> None:
    """After the body: what stands below the report belongs to the step. Not after the last step: nothing is left."""
    tape = Tape()
    below = []

    def train(trial: Trial) -> None:
        for step in trial.steps():
            trial.report(loss=1.0)
            below.append((step, tape.kinds.count("decide")))

    end, _ = attempt(make_spec(tmp_path, decides=(1, 3, 5)), train, tape)
    assert [m["step"] for m in tape.of("decide")] == [1, 3]
    assert below == [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)]
    assert end["status"] == "finished"


def test_other_steps_do_not_wait(tmp_path: Path) -> None:
    class Deaf(Tape):
        def wait(self) -> Any:
            raise AssertionError("nobody answers")

    end, tape = attempt(
        make_spec(tmp_path, decides=()), lambda trial: [trial.report(loss=1.0) for _ in trial.steps()] and None, Deaf()
    )
    assert end["status"] == "finished"
    assert len(tape.values()) == 5


def test_none_means_every_step(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        for _ in trial.steps():
            trial.report(loss=1.0)

    _, tape = attempt(make_spec(tmp_path, decides=None), train)
    assert [m["step"] for m in tape.of("decide")] == [1, 2, 3, 4]


@pytest.mark.parametrize("in_steps", [True, False])
def test_a_stop_ends_the_trial_there(tmp_path: Path, in_steps: bool) -> None:
    after = []

    def train(trial: Trial) -> None:
        try:
            for _ in trial.steps(weights=np.zeros(1)) if in_steps else range(9):
                trial.report(loss=1.0)
        except Exception:
            after.append("caught")  # a stop is no error that a function could catch by mistake
        finally:
            after.append("cleaned")

    answers = [{"op": "go"}, {"op": "stop", "reason": "rung 2: 3rd of 4"}]
    end, tape = attempt(make_spec(tmp_path, decides=None), train, Tape(answers=answers))
    assert end == {"status": "stopped", "reason": "rung 2: 3rd of 4", "step": 2, "error": None}
    assert after == ["cleaned"]
    assert [m["step"] for m in tape.of("checkpoint")][-1:] == ([2] if in_steps else [])


def test_a_stop_cannot_be_swallowed(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        try:
            for _ in trial.steps():
                trial.report(loss=1.0)
        except BaseException:
            return

    end, _ = attempt(make_spec(tmp_path), train, Tape(stop_at=2))
    assert (end["status"], end["reason"]) == ("stopped", "asked to")


# -- what it knows --------------------------------------------------------------------------------------------------


def test_a_trial_knows_itself(tmp_path: Path) -> None:
    config = {"lr": 0.1, "layers": [8, 8]}

    def train(trial: Trial) -> float:
        assert trial.config == config
        trial.config["lr"] = 5.0  # its own copy
        assert (trial.id, trial.attempt, trial.seed, trial.max_steps) == ("000001", 1, 7, 5)
        assert (trial.rank, trial.world_size) == (0, 1)
        assert trial.device == "cpu"
        assert trial.dir.is_dir()
        assert trial.step == 0
        assert trial.checkpoint is None
        return 1.0

    spec = make_spec(tmp_path / "new", config=config)
    end, _ = attempt(spec, train)
    assert end["status"] == "finished"
    assert spec.config["lr"] == 0.1
    end, _ = attempt(make_spec(tmp_path, gpus=("1",)), lambda trial: float(trial.device == "cuda"))
    assert end["status"] == "finished"


def test_the_same_seed_gives_the_same_trial(tmp_path: Path) -> None:
    def train(trial: Trial) -> dict[str, float]:
        return {"loss": random.random(), "numpy": np.random.random()}

    def metrics(seed: int) -> Any:
        return attempt(make_spec(tmp_path, seed=seed), train)[1].of("report")[0]["metrics"]

    assert metrics(1) == metrics(1)
    assert metrics(1) != metrics(2)
    assert metrics(2**40 + 1) == metrics(2**40 + 1)


def test_a_spec_survives_a_trip_through_json(tmp_path: Path) -> None:
    lists = {"decides": (1, 3), "gpus": ("0",), "checkpoints": ("a",), "best": (0.5, 2)}
    spec = make_spec(tmp_path, config={"layers": [1, 2]}, **lists)
    assert TrialSpec.from_dict(json.loads(json.dumps(asdict(spec)))) == spec


# -- what it shows --------------------------------------------------------------------------------------------------


def in_a_trial(tmp_path: Path, use: Any) -> Tape:
    def train(trial: Trial) -> None:
        for step in trial.steps():
            if step == 2:
                use(trial)
            trial.report(loss=1.0)

    end, tape = attempt(make_spec(tmp_path, max_steps=2), train)
    if end["error"]:
        raise TrialError(end["reason"])
    return tape


def test_texts_and_figures_are_kept_by_step(tmp_path: Path) -> None:
    class Figure:
        def savefig(self, path: Path, bbox_inches: str) -> None:
            path.write_bytes(b"drawn")

    def use(trial: Trial) -> None:
        trial.log_text("notes/first.txt", "naïve ✓")
        trial.log_figure("curve.svg", Figure())

    logged = in_a_trial(tmp_path, use).of("logged")
    assert [(m["step"], m["name"]) for m in logged] == [(2, "notes/first.txt"), (2, "curve.svg")]
    assert Path(logged[0]["path"]).read_text(encoding="utf-8") == "naïve ✓"
    assert Path(logged[1]["path"]).read_bytes() == b"drawn"
    assert all(Path(m["path"]).is_relative_to(tmp_path) for m in logged)


@pytest.mark.parametrize(
    "array",
    [
        np.linspace(0, 1, 48).reshape(6, 8),
        np.linspace(0, 255, 48).astype(np.uint8).reshape(6, 8),
        np.full((6, 8, 3), 0.5, dtype=np.float32),
        np.full((6, 8, 4), 255, dtype=np.uint8),
        np.full((6, 8), 9.0),
    ],
    ids=["grey floats", "grey bytes", "colours", "with transparency", "too bright"],
)
def test_arrays_are_images(tmp_path: Path, array: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    logged = in_a_trial(tmp_path, lambda trial: trial.log_image("seen.png", array)).of("logged")
    with image.open(logged[0]["path"]) as seen:
        assert seen.size == (8, 6)
        pixels = np.asarray(seen)
    expected = array if array.dtype == np.uint8 else (np.clip(array, 0, 1) * 255).round()
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("name", ["../escape.txt", "a/../../b.txt", "/etc/passwd", "", "  ", ".."])
def test_an_artifact_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    for use in (
        lambda trial: trial.log_text(name, "x"),
        lambda trial: trial.log_image(name, np.zeros((2, 2))),
        lambda trial: trial.log_figure(name, None),
    ):
        with pytest.raises(TrialError, match=r"must be a relative path without '..', got"):
            in_a_trial(tmp_path, use)
    assert not (tmp_path.parent / "escape.txt").exists()


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    """A trial that needs neither Ray, MLflow nor torch pays for none of them."""
    code = """
import sys, raytuner.training.child, raytuner.engine.forkserver, raytuner.engine.host
print([name for name in ("ray", "mlflow", "torch", "pydantic", "raytuner.plan") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_report_errors_are_trial_errors() -> None:
    assert issubclass(ReportError, TrialError)
