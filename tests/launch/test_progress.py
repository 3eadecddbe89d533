"""The live view: what it says of a population in the middle of its way, and of failures."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from raytuner.definition import Experiment
from raytuner.journal import DriverStarted, Folder, JournalWriter, Reported, TrialAsked, TrialEnded, TrialStarted
from raytuner.launch.progress import Progress
from raytuner.plan import Machine
from raytuner.plan import compile as compile_plan


def test_members_that_wait_are_half_way_and_not_done(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text("def train(trial): ...\n")
    experiment = Experiment(
        name="test",
        train="user:train",
        objective={"metric": "loss", "mode": "min", "max_steps": 10},
        space={"x": {"type": "float", "low": 0.0, "high": 1.0}},
        search="random",
        scheduler={"type": "pbt", "mutate": ["x"], "population": 4},
        storage=str(tmp_path / "results"),
    )
    plan = compile_plan(experiment, import_root=tmp_path, machine=Machine(2, 0))
    folder = Folder(Path(plan.storage))
    journal = JournalWriter(folder.journal)
    objective = experiment.objective.model_dump()
    journal.append(
        DriverStarted(name="test", driver=1, objective=objective, budget={}, pid=1, host="here", spares=False)
    )
    for trial in ("000001", "000002", "000003", "000004"):
        journal.append(TrialAsked(trial=trial, config={"x": 0.5}))
        journal.append(TrialStarted(trial=trial, attempt=1))
        journal.append(Reported(trial=trial, attempt=1, step=5, metrics={"loss": 1.0}))
        journal.append(TrialEnded(trial=trial, attempt=1, status="paused", step=5))
    journal.close()
    out = StringIO()
    progress = Progress(plan, folder, file=out)
    progress._catch_up()
    assert progress._counts() == "0/4 trials, 4 steps"
    assert progress._share() == 0.5


def test_errors_that_differ_in_their_details_are_shown_once(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text("def train(trial): ...\n")
    plan = compile_plan(
        Experiment(
            name="test",
            train="user:train",
            objective={"metric": "loss", "mode": "min"},
            space={"x": {"type": "float", "low": 0.0, "high": 1.0}},
            budget={"trials": 9},
            storage=str(tmp_path / "results"),
        ),
        import_root=tmp_path,
    )
    folder = Folder(Path(plan.storage))
    journal = JournalWriter(folder.journal)
    output = StringIO()
    progress = Progress(plan, folder, file=output)
    progress.start()
    for number, message in enumerate(["KeyError: 1", "KeyError: 2", "ValueError: 1", "KeyError: 3"], start=1):
        trial = f"{number:06d}"
        error = {"kind": "error", "message": message, "traceback": ""}
        journal.append(TrialAsked(trial=trial, config={}))
        journal.append(TrialEnded(trial=trial, attempt=1, status="failed", step=0, reason=message, error=error))
    journal.close()
    progress.stop()
    shown = [line for line in output.getvalue().splitlines() if "failed" in line]
    assert shown == ["trial 000001 failed KeyError: 1", "trial 000003 failed ValueError: 1"]
