"""Experiments made in Python."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from raytuner.definition import (
    Budget,
    Experiment,
    Objective,
    Resources,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)
from raytuner.errors import DefinitionError, Problem
from raytuner.search import GridOptions, SobolOptions
from raytuner.space import Choice, Float, Int


def train(trial: object) -> None:
    """A function that trials can import."""


def test(trial: object) -> dict[str, float]:
    """Named as users name it; pytest must not take it for a test."""
    return {}


test.__test__ = False  # type: ignore[attr-defined]


class Task:
    @staticmethod
    def train(trial: object) -> None: ...


def make(**changed: Any) -> Experiment:
    given: dict[str, Any] = {
        "name": "digits",
        "train": train,
        "objective": {"metric": "loss", "mode": "min"},
        "space": {
            "lr": Float(low=1e-4, high=1e-1, log=True),
            "depth": Int(low=1, high=4),
            "optimizer": ["sgd", "adam"],
        },
        "budget": {"trials": 5},
    }
    return Experiment(**(given | changed))


def refused(**changed: Any) -> tuple[Problem, ...]:
    with pytest.raises(DefinitionError) as caught:
        make(**changed)
    return caught.value.problems


class TestMaking:
    def test_sections_may_be_dicts_or_models(self) -> None:
        models = make(
            objective=Objective(metric="loss", mode="min"),
            budget=Budget(trials=5),
            resources=Resources(cpu=2),
            search=SobolOptions(),
            space={
                "lr": Float(low=1e-4, high=1e-1, log=True),
                "depth": {"type": "int", "low": 1, "high": 4},
                "optimizer": Choice(values=("sgd", "adam")),
            },
        )
        assert models == make(resources={"cpu": 2.0}, search={"type": "sobol"})
        assert models.search == SobolOptions()

    def test_what_is_left_out(self) -> None:
        experiment = make()
        plain = experiment.model_dump()
        assert plain["search"]["type"] == "auto"
        assert plain["scheduler"] == {"type": "none"}
        assert plain["checkpoints"] == {
            "best": True,
            "every_steps": None,
            "every_time": 60.0,
            "keep": 1,
            "trials": None,
            "disk": None,
        }
        assert plain["tracking"] == {"mlflow": None, "register": None}
        assert (experiment.storage, experiment.seed, experiment.isolation) == ("results/", 0, "process")

    def test_is_frozen_and_can_be_pickled(self) -> None:
        experiment = make()
        with pytest.raises(Exception, match="frozen"):
            experiment.seed = 3  # type: ignore[misc]
        assert pickle.loads(pickle.dumps(experiment)) == experiment

    def test_a_grid_needs_no_budget(self) -> None:
        assert make(search=GridOptions(), budget={}).budget == Budget()

    def test_validation_through_pydantic_gives_the_same_error(self) -> None:
        with pytest.raises(DefinitionError, match="seed"):
            Experiment.model_validate(make().model_dump() | {"seed": -1})


class TestProblems:
    def test_are_definition_errors_and_all_told_at_once(self) -> None:
        problems = refused(seed=-1, budget={"trials": 0}, constraints=["depht > 1"], stroage="x")
        assert {problem.where for problem in problems} == {"seed", "budget.trials", "constraints[0]", "stroage"}
        assert all(problem.file == "" and problem.remedy for problem in problems)

    def test_missing_arguments(self) -> None:
        with pytest.raises(DefinitionError) as caught:
            Experiment()
        assert [problem.where for problem in caught.value.problems] == ["name", "train", "objective", "space", "budget"]

    def test_between_sections_when_all_are_right_in_themselves(self) -> None:
        problems = refused(defaults={"lr": 1.0}, budget={}, scheduler="asha")
        assert {problem.where for problem in problems} == {
            "defaults.lr",
            "defaults.depth",
            "defaults.optimizer",
            "budget",
            "scheduler",
        }

    def test_no_pydantic_words(self) -> None:
        (problem,) = refused(space=3)
        assert str(problem) == "space: a mapping (key: value) is needed, got 3; write keys and values below it"

    @pytest.mark.parametrize("space", [{1: [1, 2]}, {None: [1]}, [1], "x"])
    def test_odd_spaces(self, space: Any) -> None:
        assert refused(space=space)


class TestCallables:
    def test_become_text(self) -> None:
        assert make().train == f"{__name__}:train"
        assert make(train=Task.train).train == f"{__name__}:Task.train"
        assert make(test=test).test == f"{__name__}:test"

    def test_a_class_is_a_callable_too(self) -> None:
        assert make(train=Task).train == f"{__name__}:Task"

    def test_that_nobody_could_import_are_refused(self) -> None:
        def inner(trial: object) -> None: ...

        for given, words in (
            (lambda trial: None, "lambda"),
            (inner, "within a function"),
            (__import__("functools").partial(train, 1), "with a name"),
        ):
            (problem,) = refused(train=given)
            assert problem.where == "train"
            assert words in problem.rule
            assert "def" in problem.remedy

    def test_that_were_rebound_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = train
        monkeypatch.setattr(sys.modules[__name__], "train", Task.train)
        (problem,) = refused(train=original)
        assert "must be what" in problem.rule

    SCRIPT = """
from raytuner.definition import Experiment
def train(trial): ...
if __name__ == "__main__":
    experiment = Experiment(name="a", train=train, objective={"metric": "a", "mode": "min"},
                            space={"x": [1, 2]}, budget={"trials": 1})
    print(experiment.train)
"""

    def test_of_a_script_are_named_by_its_file(self, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(self.SCRIPT)
        output = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
        assert output.strip() == f"{script}:train"

    def test_of_a_module_run_as_a_script_are_named_by_the_module(self, tmp_path: Path) -> None:
        (tmp_path / "script.py").write_text(self.SCRIPT)
        command = [sys.executable, "-m", "script"]
        output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
        assert output.strip() == "script:train"

    def test_of_an_interactive_session_are_refused(self) -> None:
        command = [sys.executable, "-c", self.SCRIPT]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "interactive session" in done.stderr
        assert "save it in a file" in done.stderr


class TestQuantities:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("45s", 45),
            ("30m", 1800),
            ("1h30m", 5400),
            ("2d", 172800),
            ("1d2h3m4s", 93784),
            ("1.5h", 5400),
            (7, 7),
            (0.5, 0.5),
        ],
    )
    def test_durations(self, text: object, seconds: float) -> None:
        assert parse_duration(text) == seconds
        assert parse_duration(format_duration(seconds)) == pytest.approx(seconds)

    @pytest.mark.parametrize(
        "text", ["", "h", "1", "1h 30m", "30m1h", "1w", "-1s", 0, -1, True, None, [], float("inf")]
    )
    def test_other_durations_are_refused(self, text: object) -> None:
        with pytest.raises(Exception, match="a duration above 0 is needed"):
            parse_duration(text)

    def test_durations_for_people(self) -> None:
        assert [format_duration(each) for each in (0.25, 59.9, 60, 3661, 90061)] == [
            *("0.25s", "59.9s", "1m", "1h1m1s", "1d1h1m1s"),
        ]

    @pytest.mark.parametrize(
        ("text", "size"),
        [("10GB", 10**10), ("1.5 GB", 15 * 10**8), ("2GiB", 2**31), ("500kB", 500_000), ("7B", 7), (9, 9)],
    )
    def test_sizes(self, text: object, size: int) -> None:
        assert parse_size(text) == size

    @pytest.mark.parametrize("text", ["", "GB", "10", "10 gb", "-1GB", 0, -1, 1.5, True, None])
    def test_other_sizes_are_refused(self, text: object) -> None:
        with pytest.raises(Exception, match="a size above 0 is needed"):
            parse_size(text)

    def test_sizes_for_people(self) -> None:
        assert [format_size(each) for each in (12, 1500, 12_300_000, 10**10)] == ["12 B", "1.5 kB", "12.3 MB", "10 GB"]


def test_every_field_is_described() -> None:
    seen: list[type[BaseModel]] = [Experiment]
    for model in seen:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
