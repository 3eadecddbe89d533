"""``raytuner.simulate`` and its command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raytuner
from raytuner.cli import main
from raytuner.errors import PlanError, SearchError

DEFINITION = """
name: simulated
train: objectives.py:train
objective: {metric: loss, mode: min, max_steps: 27}
space:
  lr: {type: float, low: 1.0e-4, high: 1.0e-1, log: true}
  momentum: {type: float, low: 0.0, high: 0.9}
  width: {type: int, low: 32, high: 256, log: true}
  depth: [2]
  dropout: [0.25]
  activation: {type: choice, values: [relu, tanh]}
search: random
scheduler: asha
budget: {trials: 30}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "objectives.py").write_text("def train(trial):\n    raise SystemExit('not here')\n")
    path = tmp_path / "experiment.yaml"
    path.write_text(DEFINITION)
    return path


def told(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    assert main(["simulate", *map(str, arguments), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_the_command_tells_regret_against_budget(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = told(capsys, file, "--table", "made/curves", "--workers", 4, "--seeds", 3)
    assert result["schema"] == "raytuner.simulate/1"
    assert result["notes"] == []  # the table answers for the experiment's own space
    assert result["seeds"] == [0, 1, 2]
    assert result["median"]["trials"] == 30
    for axis in ("trials", "steps", "seconds"):
        regrets = [mark["regret"] for mark in result[f"by_{axis}"]]
        assert regrets == sorted(regrets, reverse=True)
        assert regrets[-1] == result["median"]["regret"]
    assert told(capsys, file, "--table", "made/curves", "--workers", 4, "--seeds", 3)["by_steps"] == result["by_steps"]
    assert main(["simulate", str(file), "--table", "made/curves", "--seeds", "2"]) == 0
    shown = capsys.readouterr().out
    assert "random and asha on made/curves: 8 workers, 2 seeds" in shown
    assert "workers in use" in shown


def test_each_run_is_told_when_it_begins(file: Path) -> None:
    told: list[int] = []
    raytuner.simulate(file, "made/curves", seeds=3, overrides=("budget.trials=2",), watch=told.append)
    assert told == [1, 2, 3]


def test_more_workers_take_less_time(file: Path) -> None:
    one, many = (raytuner.simulate(file, "made/curves", workers=n, seeds=2) for n in (1, 16))
    assert np.median([r.seconds for r in one.runs]) > 3 * np.median([r.seconds for r in many.runs])


def test_a_space_that_the_table_does_not_have_is_replaced_and_said(file: Path) -> None:
    result = raytuner.simulate(file, "made/branches", seeds=1, overrides=("scheduler=none",))
    assert len(result.notes) == 2
    assert "optimizer" in result.notes[0]
    assert "max_steps is 1" in result.notes[1]


def test_a_picture_is_drawn(file: Path, tmp_path: Path) -> None:
    raytuner.simulate(file, "made/curves", seeds=3).plot(tmp_path / "regret.png")
    assert (tmp_path / "regret.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_is_refused_first(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, message in (("nowhere/regret.png", "folder must exist"), ("regret.foo", "must end in .png, .svg, .pdf")):
        assert main(["simulate", str(file), "--table", "made/curves", "--plot", str(file.parent / name)]) == 2
        said = capsys.readouterr()
        assert message in said.err
        assert said.out == ""


def test_a_picture_of_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = file.parent / "regret.png"
    arguments = ["--set", "budget={trials: null, time: 1}", "--seeds", "1", "--plot", str(picture)]
    assert main(["simulate", str(file), "--table", "made/curves", *arguments]) == 0
    assert "0 steps in 1 s of virtual time" in capsys.readouterr().out
    assert picture.exists()


def test_bounds_and_values_are_compared_exactly(file: Path) -> None:
    def note(*overrides: str) -> str:
        return " ".join(raytuner.simulate(file, "made/curves", seeds=1, overrides=overrides).notes)

    assert note("space.momentum.high=0.99") == ""
    assert "momentum must be from 0.0 to 0.99, got 0.991)" in note("space.momentum.high=0.991")
    assert "depth must be from 1 to 5, got 6)" in note("space.depth=[1, 2, 3, 4, 5, 6]")
    assert "it has no extra)" in note("space.extra=[1]")
    given = "defaults={lr: 0.01, momentum: 0.5, width: 64, depth: 7, dropout: 0.25, activation: relu}"
    both = note("space.depth=[7]", "constraints=['lr < 0.05']", given)
    assert both.endswith("activation), without the constraints and the defaults")


def test_options_are_told(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--set", "search={type: hyperopt, startup: 20}", "--set", "budget.trials=1", "--seeds", "1"]
    assert main(["simulate", str(file), "--table", "made/curves", "--workers", "1", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "hyperopt (startup=20) and asha on made/curves: 1 worker, 1 seed; medians" in shown
    assert "1 trial (" in shown
    result = told(capsys, file, "--table", "made/curves", *arguments)
    assert (result["search"], result["search_options"]) == ("hyperopt", {"startup": 20})
    assert (result["scheduler"], result["scheduler_options"]) == ("asha", {})


def test_what_cannot_be_simulated_is_said(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SearchError, match=r"asha needs objective\.max_steps above") as one_step:
        raytuner.simulate(file, "made/branches")
    assert "the table's trainings have 1 step, whatever" in str(one_step.value)
    assert str(one_step.value).endswith("add --set scheduler=none")
    for fields in ({"workers": -1}, {"workers": 0}, {"seeds": 0}, {"failures": 1.0}, {"stragglers": -0.1}):
        with pytest.raises(PlanError, match=next(iter(fields))):
            raytuner.simulate(file, "made/curves", **fields)
    assert main(["simulate", str(file), "--table", "nothing/here"]) == 2
    assert "made/curves" in capsys.readouterr().err


def test_a_plug_in_beside_the_definition_is_found(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = file.parent / "plug_in_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "own.py").write_text(
        "from raytuner.components import Options\n"
        "from raytuner.schedulers import NoneScheduler\n"
        "from raytuner.search import RandomSearch\n"
        "class Mine(RandomSearch):\n    Options = Options\n"
        "class Lenient(NoneScheduler):\n    Options = Options\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    overrides = ("search=plug_in_of_a_test.own:Mine", "scheduler=plug_in_of_a_test.own:Lenient", "budget.trials=3")
    result = raytuner.simulate(file, "made/curves", seeds=1, overrides=overrides)
    assert result.runs[0].trials == 3
