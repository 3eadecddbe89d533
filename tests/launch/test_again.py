"""A trial that is trained again, and what is said of it."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from raytuner.definition import Experiment, Replay, to_yaml
from raytuner.errors import JournalError
from raytuner.journal import DriverStarted, Folder, JournalWriter, Reported, TrialAsked, TrialStarted, replay
from raytuner.launch import plan_again
from raytuner.launch.summary import print_summary
from raytuner.plan import Machine
from raytuner.plan import compile as compile_plan


def made(root: Path, source: str = "search") -> Folder:
    """An experiment of one trial with a value, and one without."""
    (root / "user.py").write_text("def train(trial): ...\n")
    experiment = Experiment(
        name="test",
        train="user:train",
        objective={"metric": "loss", "mode": "min", "max_steps": 3},
        space={"x": {"type": "float", "low": 0.0, "high": 1.0}},
        search="random",
        budget={"trials": 2},
        storage=str(root / "results"),
    )
    plan = compile_plan(experiment, import_root=root, machine=Machine(2, 0))
    folder = Folder(Path(plan.storage))
    journal = JournalWriter(folder.journal)
    folder.definition.write_text(to_yaml(plan.experiment))
    folder.plan.write_text(json.dumps(plan.to_dict()))
    objective = experiment.objective.model_dump()
    journal.append(DriverStarted(name="test", driver=1, objective=objective, budget={}, pid=1, host="here"))
    for trial in ("000001", "000002"):
        journal.append(TrialAsked(trial=trial, config={"x": 0.5}, source=source))
        journal.append(TrialStarted(trial=trial, attempt=1))
    journal.append(Reported(trial="000001", attempt=1, step=2, metrics={"loss": 0.25}))
    journal.close()
    return folder


def test_the_plan_says_what_is_trained_again(tmp_path: Path) -> None:
    folder = made(tmp_path)
    again = plan_again(folder).experiment
    assert again.replay == Replay(experiment=str(folder.path), trial="000001", value=0.25, step=2)
    assert again.defaults == {"x": 0.5}
    assert Experiment.from_yaml(to_yaml(again)).replay == again.replay


@pytest.mark.parametrize(
    ("trial", "said"), [("99", "there is no trial 99"), ("2", "trial 2 must have a value to be trained again")]
)
def test_what_cannot_be_trained_again(tmp_path: Path, trial: str, said: str) -> None:
    with pytest.raises(JournalError, match=said):
        plan_again(made(tmp_path), trial=trial)


@pytest.mark.parametrize(("source", "head"), [("replay", "best (trial 000001)"), ("defaults", "000001, the defaults)")])
def test_the_summary_compares_nothing_with_itself(tmp_path: Path, source: str, head: str) -> None:
    folder = made(tmp_path, source)
    console = Console(file=StringIO(), width=200)
    original = Replay(experiment="results/old", trial="000007", value=0.125, step=2) if source == "replay" else None
    print_summary(console, replay(folder), folder, tracking_uri=None, replay=original)
    said = console.file.getvalue()
    assert head in said
    assert said.count("0.25") == 1
    assert ("again     trial 000007 of results/old, which had loss 0.125 at step 2" in said) == (source == "replay")
