"""The command line as far as it needs no Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from raytuner.cli import main
from raytuner.definition import schema

ROOT = Path(__file__).parents[1]
DIGITS = str(ROOT / "experiments/digits_mlp.yaml")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_validate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", DIGITS]) == 0
    assert capsys.readouterr().out.strip().endswith("valid")


def test_every_problem_at_once_and_no_traceback(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = Path(DIGITS).read_text().replace("high: 1.0e-1, log", "high: 1.0e-9, log").replace("trials: 50", "trial: 50")
    broken = tmp_path / "broken.yaml"
    broken.write_text(text.replace("experiments.objectives.digits:train", "no_such_module:train"))
    for command in ("validate", "plan", "run", "try"):
        assert main([command, str(broken)]) == 2
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        assert "space.lr" in said.err
        assert "budget.trial" in said.err
        assert "trials" in said.err, "the nearest known key"
        assert "no_such_module" in said.err
        assert said.err.count("broken.yaml:") >= 3
    assert not (tmp_path / "results").exists(), "nothing was started"


def test_what_only_the_sampler_knows_is_a_mistake_in_the_definition_too(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "search={type: optuna, options: {gama: 1}}"
    assert main(["simulate", DIGITS, "--table", "made/curves", "--set", wrong]) == 2
    assert "search.options: must be options of TPESampler" in capsys.readouterr().err


def test_problems_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--json", DIGITS, "--set", "budget.trials=0"]) == 2
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "raytuner.error/1"
    assert [p["where"] for p in data["problems"]] == ["budget.trials"]


def test_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", DIGITS, "--json", "--set", "budget.trials=10"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["schema"] == "raytuner.plan/1"
    assert plan["trials"] == 10
    assert [rung["step"] for rung in plan["rungs"]] == [1, 3, 9, 27]
    assert plan["storage"] == str(tmp_path / "results" / "digits-mlp")
    assert main(["plan", DIGITS]) == 0
    assert "50 trials" in capsys.readouterr().out
    assert not list(tmp_path.iterdir()), "a plan writes nothing"


def test_shipped_experiments_validate_and_the_shipped_schema_is_todays() -> None:
    shipped = json.loads((ROOT / "experiments/raytuner.schema.json").read_text())
    assert shipped == json.loads(json.dumps(schema())), "run: raytuner schema --output experiments/raytuner.schema.json"
    experiments = sorted((ROOT / "experiments").glob("*.yaml"))
    assert experiments
    for path in experiments:
        jsonschema.validate(yaml.safe_load(path.read_text()), shipped)
        assert main(["validate", str(path)]) == 0


def test_schema_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert main(["schema", "--output", "here.json"]) == 0
    assert json.loads((tmp_path / "here.json").read_text()) == printed


@pytest.mark.parametrize("command", ["status", "best", "report", "resume", "stop", "ui", "sync"])
def test_a_folder_that_is_none(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "nowhere"]) == 1
    said = capsys.readouterr()
    assert "nowhere" in said.err
    assert "no such folder" in said.err


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "validate" in capsys.readouterr().out


def test_try_trains_the_defaults_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def train(trial):\n    for step in trial.steps():\n        trial.report(loss=trial.config['x'] / step)\n"
    )
    definition = {
        "name": "mine",
        "train": "mine.py:train",
        "objective": {"metric": "loss", "mode": "min", "max_steps": 9},
        "space": {"x": {"type": "float", "low": 0.0, "high": 8.0}},
        "defaults": {"x": 4.0},
        "search": "random",
        "budget": {"trials": 5},
    }
    Path("mine.yaml").write_text(yaml.safe_dump(definition))
    assert main(["try", "mine.yaml", "--steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "step 1: loss 4" in said
    assert "step 2: loss 2" in said
    assert "step 3" not in said
    assert not (tmp_path / "results").exists()
    Path("theirs.py").write_text("def train(trial):\n    raise RuntimeError('of my own')\n")

    assert main(["try", "mine.yaml", "--set", "train=theirs.py:train"]) == 1
    assert "of my own" in capsys.readouterr().err


def test_try_lets_code_of_many_processes_find_a_process_group(tmp_path: Path) -> None:
    source = """import torch.distributed as dist


def train(trial):
    for _ in trial.steps():
        trial.report(loss=float(dist.get_world_size()))
"""
    Path("ranks.py").write_text(source)
    definition = {
        "name": "ranks",
        "train": "ranks.py:train",
        "objective": {"metric": "loss", "mode": "min", "max_steps": 2},
        "space": {"x": {"type": "float", "low": 0.0, "high": 8.0}},
        "search": "random",
        "budget": {"trials": 5},
        "resources": {"workers": 2, "cpu": 0.1},
    }
    Path("ranks.yaml").write_text(yaml.safe_dump(definition))
    # In a process of its own, in which the group may stay.
    command = [sys.executable, "-m", "raytuner", "try", "ranks.yaml"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 1: loss 1" in done.stdout


def test_an_empty_change_is_told_as_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    schedule = "scheduler={type: schedule, changes: [{after: 2, config: {}}]}"
    assert main(["validate", DIGITS, "--set", schedule]) == 2
    assert "at least one key with its value is needed" in capsys.readouterr().err
