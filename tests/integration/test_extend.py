"""``raytuner extend``: what is refused beforehand, and a real experiment that gets more to do."""

from __future__ import annotations

import errno
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import HERE, events_of, raytuner, start_driver, wait_until

from raytuner.cli import main
from raytuner.definition import Experiment
from raytuner.errors import JournalError, LaunchError
from raytuner.journal import (
    DriverStarted,
    Extended,
    Folder,
    JournalWriter,
    Lock,
    TrialAsked,
    TrialStarted,
    replay,
)
from raytuner.journal.events import DriverEnded, Reported, TrialEnded
from raytuner.launch import local
from raytuner.launch.extension import plan_extension
from raytuner.launch.files import create, stage
from raytuner.launch.local import _driver_started
from raytuner.plan import compile as compile_plan

SPACE = {"x": {"type": "float", "low": -10.0, "high": 10.0}, "seconds": {"type": "choice", "values": [0.0]}}
OBJECTIVE = {"metric": "loss", "mode": "min", "max_steps": 3}


def made(tmp_path: Path, root: Path = HERE, *, cut_off: str = "", **fields: Any) -> Folder:
    """The folder of an experiment of two trials, as if it had run: one has finished, one has failed, or was
    stopped for the reason ``cut_off``.
    """
    definition = {
        "name": "own",
        "train": "objectives:curve",
        "space": SPACE,
        "objective": OBJECTIVE,
        "search": "random",
        "budget": {"trials": 2},
        "tracking": "none",
        "storage": str(tmp_path / "results"),
        **fields,
    }
    plan = compile_plan(Experiment(**definition), import_root=root)
    folder = Folder(Path(plan.storage))
    folder.path.mkdir(parents=True)
    create(plan, folder, print)
    journal = JournalWriter(folder.journal)
    journal.append(_driver_started(plan, 1))
    error = {"kind": "error", "message": "ValueError: no", "traceback": ""}
    for trial, status in (("000001", "finished"), ("000002", "stopped" if cut_off else "failed")):
        journal.append(TrialAsked(trial=trial, config={"x": float(trial), "seconds": 0.0}))
        journal.append(TrialStarted(trial=trial, attempt=1))
        for step in (1, 2, 3):
            journal.append(Reported(trial=trial, attempt=1, step=step, metrics={"loss": 1.0}))
        failed = error if status == "failed" else None
        journal.append(TrialEnded(trial=trial, attempt=1, status=status, step=3, reason=cut_off, error=failed))
    journal.append(DriverEnded(status="finished", reason="the budget is used up"))
    journal.close()
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "an extension needs something more to do, and nothing is new"),
        (["--set", "objective.mode=max"], "objective.mode: cannot change in an extension: the values of the earlier"),
        (["--set", "seed=4"], "seed: cannot change in an extension"),
        (["--set", "objective.max_steps=2"], "must be no less than what trials have done already, got 2, and trial"),
        (["--trials", "1"], "budget.trials: must be no less than the trials that there are, got 1 with 2 trials"),
        (["--trials", "many"], "budget.trials"),
        (["--set", "space.y=[1, 2]"], "space.y: the trials so far have no such parameter: what were they trained"),
        (["--set", "space.y=[1, 2]", "--fill", "y=3"], "--fill y: "),
        (["--set", "space.y=[1, 2]", "--fill", "z=3"], "--fill: must be name=value of a parameter, got z=3; one of"),
        (["--set", "space.y=[1, 2]", "--fill", "y=1", "--fill", "x=3"], "--fill: the trials so far have a value"),
        (["--time", "+5s"], "--time: the budget has no limit of time to add to, got +5s; give a whole"),
        (["--time", "0.000001s"], "budget.time: must be more than what is used up already, got 1e-06s"),
        (["--set", "serch=random"], "did you mean"),
        (["--enqueue", "{tmp}/none.yaml"], "none.yaml: the file must exist"),
        (["--enqueue", "{tmp}/list.yaml"], "list.yaml: a configuration is a mapping, got list"),
        (["--enqueue", "{tmp}/far.yaml"], "far.yaml: x: must be from -10.0 to 10.0, got 11"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_beforehand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    folder = made(tmp_path)
    (tmp_path / "list.yaml").write_text("[1]")
    (tmp_path / "far.yaml").write_text("{x: 11, seconds: 0.0}")
    before = [path.read_bytes() for path in sorted(folder.journal.iterdir())]
    assert main(["extend", str(folder.path), *(argument.format(tmp=tmp_path) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert [path.read_bytes() for path in sorted(folder.journal.iterdir())] == before


def test_more_of_a_budget_without_that_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path, budget={"time": 9})
    assert main(["extend", str(folder.path), "--trials", "+4"]) == 2
    assert "--trials: the budget has no limit of trials to add to, got +4; give a whole" in capsys.readouterr().err
    assert main(["extend", str(folder.path), "--trials", "1"]) == 2
    assert "beyond None" not in capsys.readouterr().err


def test_what_the_time_had_cut_off_goes_on_with_more_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path, cut_off="the time budget is used up", budget={"trials": 4, "time": 1e-6})
    assert main(["extend", str(folder.path), "--trials", "+4"]) == 2
    assert "budget.time: must be more than what is used up already" in capsys.readouterr().err
    extension = plan_extension(folder, time="+1h")
    assert (extension.event.reopened, extension.event.anew) == (["000002"], False)
    assert "trials that the budget had cut off, and that go on: 1" in extension.notes


@pytest.mark.parametrize("died", ["staged", "on record", "in the middle"])
def test_an_extension_that_is_cut_off_holds_once_it_is_on_record(tmp_path: Path, died: str) -> None:
    """And its files and its code take their places then, at the latest when somebody goes on."""
    root = tmp_path / "code"
    root.mkdir()
    (root / "user.py").write_text("def curve(trial): ...\n")
    folder = made(tmp_path, root, train="user:curve")
    (root / "user.py").write_text("def curve(trial): ...  # mended\n")
    extension = plan_extension(folder, trials="+2")
    with closing(JournalWriter(folder.journal)) as journal:
        stage(extension.plan, folder, journal.segment)
        if died != "staged":
            journal.append(_driver_started(extension.plan, journal.segment))
            journal.append(extension.event)
    if died == "in the middle":
        folder.code.rename(folder.path / "code.1")
    (root / "user.py").write_text("def curve(trial): ...  # later\n")
    more = plan_extension(folder, trials="+1").plan.experiment.budget.trials
    code = (folder.code / "user.py").read_text()
    assert (more, code) == (
        (3, "def curve(trial): ...\n") if died == "staged" else (5, "def curve(trial): ...  # mended\n")
    )
    assert yaml.safe_load(folder.definition.read_text())["budget"]["trials"] == (2 if died == "staged" else 4)
    assert (folder.path / "code.1").exists() == (died != "staged")
    assert not list(folder.path.glob("extension-*"))


def test_an_extension_waits_for_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path)
    extension = plan_extension(folder, trials="+2")
    looks = [0]

    def staged_once_there_is_room(*arguments: Any) -> None:
        if looks[0] < 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        stage(*arguments)

    def wait(path: Path) -> bool:
        looks[0] += 1
        return True

    monkeypatch.setattr(local, "stage", staged_once_there_is_room)
    monkeypatch.setattr(local, "has_room", lambda path: looks[0] >= 2)
    monkeypatch.setattr(local, "LOOK_SECONDS", 0.01)
    with closing(JournalWriter(folder.journal)) as journal:
        new = local._put_on_record(extension, folder, journal, wait)
        assert [type(event) for event in new] == [DriverStarted, Extended]
        assert yaml.safe_load(folder.definition.read_text())["budget"]["trials"] == 4
        looks[0] = 0
        with pytest.raises(LaunchError, match="must be writable"):
            local._put_on_record(extension, folder, journal, lambda path: False)


def test_of_two_runs_of_one_name_the_one_without_the_lock_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text("def curve(trial): ...\n")
    definition = {"name": "own", "train": "user:curve", "space": SPACE, "objective": OBJECTIVE, "budget": {"trials": 2}}
    plan = compile_plan(Experiment(**definition, storage=str(tmp_path / "results")), import_root=tmp_path)
    folder = Folder(Path(plan.storage))
    folder.path.mkdir(parents=True)
    with Lock(folder), pytest.raises(JournalError, match="only one driver at a time"):
        local.drive(plan, quiet=True)
    assert [path.name for path in folder.path.iterdir()] == ["lock"]


def test_planning_an_extension_leaves_the_definition_as_it_is(tmp_path: Path) -> None:
    folder = made(tmp_path)
    folder.definition.write_text("# mine\n" + folder.definition.read_text())
    before = folder.definition.read_bytes()
    plan_extension(folder, trials="+2")
    assert folder.definition.read_bytes() == before


@pytest.mark.parametrize("text", [None, "", "[1]"])
@pytest.mark.parametrize("command", ["resume", "extend", "sync"])
def test_a_definition_that_is_gone_or_damaged_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, command: str
) -> None:
    folder = made(tmp_path)
    folder.definition.unlink() if text is None else folder.definition.write_text(text)
    assert main([command, str(folder.path)]) != 0
    assert str(folder.definition) in capsys.readouterr().err


def test_a_population_cannot_be_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scheduler = {"type": "pbt", "mutate": ["x"], "population": 4, "perturbation_interval": 1}
    folder = made(tmp_path, scheduler=scheduler, budget={})
    assert main(["extend", str(folder.path), "--set", "objective.max_steps=9"]) == 2
    assert "objective.max_steps: trials that have changed on their way" in capsys.readouterr().err


def runs_of(database: Path) -> list[tuple[str, str]]:
    query = (
        "select value, status from runs join tags on tags.run_uuid = runs.run_uuid and tags.key = 'mlflow.runName' "
        "order by value"
    )
    with closing(sqlite3.connect(database)) as connection:
        return list(connection.execute(query))


def test_more_trials_steps_and_parameters(tmp_path: Path) -> None:
    driver, folder = start_driver(
        tmp_path,
        train="objectives:curve",
        space=SPACE,
        objective=OBJECTIVE,
        budget={"trials": 4},
        scheduler={"type": "asha", "form": "promote", "grace_steps": 1, "reduction_factor": 2},
        tracking={"mlflow": f"sqlite:///{tmp_path}/mlflow.db"},
    )
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, output
    first = replay(folder)
    done = [trial.id for trial in first.trials.values() if trial.status == "finished"]
    assert done
    own = tmp_path / "own.yaml"
    own.write_text("{x: 2.0, seconds: 0.0, momentum: 0.5}")
    raytuner(
        "extend", str(folder.path), "--trials", "+3", "--set", "objective.max_steps=6", "--set",
        "space.momentum={type: float, low: 0, high: 1}", "--fill", "momentum=0.9", "--set", "search=genetic",
        "--enqueue", str(own),
    )  # fmt: skip
    after = replay(folder)
    assert after.status == "finished"
    assert len(after.trials) == 4 + 3 + 1
    assert {trial.config["momentum"] for trial in list(after.trials.values())[:4]} == {0.9}
    assert [trial.config for trial in after.trials.values() if trial.source == "user"] == [
        {"x": 2.0, "seconds": 0.0, "momentum": 0.5}
    ]
    (event,) = events_of(folder, Extended)
    assert event.reopened == done
    assert after.steps == sum(trial.step for trial in after.trials.values()), "nothing is trained again"
    assert max(trial.step for trial in after.trials.values()) > 3
    assert yaml.safe_load(folder.definition.read_text())["objective"]["max_steps"] == 6
    runs = runs_of(tmp_path / "mlflow.db")
    assert len(runs) == 8 + 1, "a run a trial, and the experiment's"
    assert {status for _, status in runs} <= {"FINISHED", "KILLED"}
    said = subprocess.run(
        [sys.executable, "-m", "raytuner", "resume", str(folder.path)], capture_output=True, text=True, check=False
    )
    assert "there is nothing to resume" in said.stdout


def test_a_configuration_while_it_runs(tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    fixed = {"seconds": 0.2, "held_by": str(hold)}
    space = {**SPACE, **{name: {"type": "choice", "values": [value]} for name, value in fixed.items()}}
    driver, folder = start_driver(
        tmp_path,
        train="objectives:held_curve",
        space=space,
        objective={**OBJECTIVE, "max_steps": 9},
        budget={"trials": 4},
    )
    try:
        wait_until(lambda: folder.journal.exists() and replay(folder).steps >= 3, 90, "some steps are on record")
        hold.touch()  # it must not end before it was asked
        own = tmp_path / "own.yaml"
        own.write_text(yaml.safe_dump({"x": 2.0, **fixed}))
        done = subprocess.run(
            [sys.executable, "-m", "raytuner", "extend", str(folder.path), "--enqueue", str(own)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, f"{own}: it is tried next\n")
        refused = subprocess.run(
            [sys.executable, "-m", "raytuner", "extend", str(folder.path), "--trials", "+1"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert refused.returncode == 1
        assert "a driver is at work on this experiment, which takes no more than --enqueue" in refused.stderr
        hold.unlink()
        output, _ = driver.communicate(timeout=120)
    finally:
        driver.kill()
        driver.communicate()
    assert driver.returncode == 0, output
    state = replay(folder)
    assert len(state.trials) == 5
    (by_hand,) = [trial for trial in state.trials.values() if trial.source == "user"]
    assert (by_hand.config["x"], by_hand.status) == (2.0, "finished")
    assert state.best is by_hand
