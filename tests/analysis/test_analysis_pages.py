"""Status, best and report: whatever an experiment has come to, they say it, and they keep to their schemas."""

import json
import os
from importlib.resources import files
from io import StringIO
from pathlib import Path

import jsonschema
import pytest
from made_journals import driver_started, experiment_events, make_experiment, make_folder, write_journal
from rich.console import Console

from raytuner import journal
from raytuner.analysis import best, best_lines, report, status, status_lines, write_report
from raytuner.analysis.text import duration, markdown_table, number
from raytuner.journal import (
    READ_AT,
    DriverEnded,
    Event,
    Folder,
    JournalWriter,
    Lock,
    Reported,
    TrialAsked,
    TrialEnded,
    TrialStarted,
    Usage,
    replay,
)
from raytuner.launch.summary import print_summary


def checked(name: str, answer: dict) -> dict:
    schema = json.loads(files("raytuner.analysis").joinpath(f"schemas/{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"] == answer["schema"]
    jsonschema.validate(json.loads(json.dumps(answer, allow_nan=False)), schema)
    return answer


def nothing(folder: Folder) -> None:
    folder.journal.mkdir()


def only_a_driver(folder: Folder) -> None:
    write_journal(folder, [driver_started()])


def only_asked(folder: Folder) -> None:
    write_journal(folder, [driver_started(), TrialAsked(trial="000001", config={}, at=1.0)])


def no_plan(folder: Folder) -> None:
    write_journal(folder, experiment_events(folder, 3))
    folder.plan.unlink()


def odd_plan(folder: Folder) -> None:
    write_journal(folder, experiment_events(folder, 3))
    folder.plan.write_text('{"search": "random", "experiment": [], "scheduler": {"type": "none", "x": null}}')


def all_failed(folder: Folder) -> None:
    error = {"kind": "RuntimeError", "message": "no | data\nhere", "traceback": "..."}
    events = [driver_started()]
    for trial in ("000001", "000002"):
        events += [
            TrialAsked(trial=trial, config={"x": 1}, at=1.0),
            TrialStarted(trial=trial, attempt=1, at=1.0),
            TrialEnded(trial=trial, attempt=1, status="failed", step=0, reason="RuntimeError", error=error, at=2.0),
        ]
    write_journal(folder, [*events, DriverEnded(status="failed", reason="no trial reported a result", at=3.0)])


def odd_values(folder: Folder) -> None:
    write_journal(folder, [
        driver_started(objective={"metric": "loss", "mode": "min", "max_steps": None}, budget={}),
        TrialAsked(trial="000001", config={"on": True, "layers": [1, 2], "none": None, "huge": 1e300}, at=1.0),
        TrialStarted(trial="000001", attempt=1, gpus=["0"], at=1.0),
        Reported(trial="000001", attempt=1, step=1, metrics={"loss": 1e-12}, at=2.0),
        Reported(trial="000001", attempt=1, step=2, metrics={"loss": float("nan")}, at=2.0),
        journal.Tested(trial="000001", step=1, metrics={"test": float("inf")}, at=2.0),
    ])  # fmt: skip


def interrupted(folder: Folder) -> None:
    write_journal(folder, experiment_events(folder, 12)[:-30])


def resumed(folder: Folder) -> None:
    write_journal(folder, experiment_events(folder, 12)[:-30])
    write_journal(
        folder, [driver_started(driver=2, at=2e9), DriverEnded(status="interrupted", reason="Ctrl-C", at=2e9)]
    )


def of_a_population(folder: Folder) -> None:
    """As Ctrl-C leaves it: one waits for the others, one was cut off."""
    events = [driver_started(spares=False)]
    for trial, end, reason in (("000001", "paused", "waits"), ("000002", "stopped", "interrupted: Ctrl-C")):
        events += [
            TrialAsked(trial=trial, config={"x": 1}, at=1.0),
            TrialStarted(trial=trial, attempt=1, at=1.0),
            Reported(trial=trial, attempt=1, step=1, metrics={"val_accuracy": 0.5}, at=2.0),
            TrialEnded(trial=trial, attempt=1, status=end, step=1, reason=reason, at=3.0),
        ]
    write_journal(folder, [*events, DriverEnded(status="interrupted", reason="Ctrl-C", at=4.0)])


CASES = [
    of_a_population,
    nothing,
    only_a_driver,
    only_asked,
    no_plan,
    odd_plan,
    all_failed,
    odd_values,
    interrupted,
    resumed,
]


@pytest.mark.parametrize("case", CASES)
def test_nothing_makes_them_fail(case, tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    case(folder)
    found = checked("status", status(folder))
    assert report(folder).startswith("# digits\n")
    assert status_lines(folder)[0].startswith(f"digits: {found['status']}")
    if found["best"] is not None:
        assert checked("best", best(folder))["value"] == found["best"]["value"]
        assert best_lines(folder)


def test_pauses_of_a_population_save_nothing_and_who_is_cut_off_is_not_stopped_early(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    of_a_population(folder)
    found = checked("status", status(folder))
    assert (found["trials"]["paused"], found["trials"]["interrupted"], found["trials"]["stopped"]) == (1, 1, 0)
    assert found["steps"]["saved"] == 0
    console = Console(file=StringIO(), width=200)
    print_summary(console, replay(folder), folder, tracking_uri=None)
    for text in ("\n".join(status_lines(folder)), report(folder), console.file.getvalue()):
        assert "saved" not in text
        assert "stopped early" not in text


def test_whom_the_budget_cut_off_saved_nothing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    events = [driver_started(objective={"metric": "loss", "mode": "min", "max_steps": 9})]
    ends = {"000001": "the time budget is used up", "000002": "rung 3: value 1 is 3rd of 3"}
    for trial, reason in ends.items():
        events += [
            TrialAsked(trial=trial, config={"x": 1}, at=1.0),
            TrialStarted(trial=trial, attempt=1, at=1.0),
            Reported(trial=trial, attempt=1, step=1, metrics={"loss": 1.0}, at=1.5),
            TrialEnded(trial=trial, attempt=1, status="stopped", step=1, reason=reason, at=2.0),
        ]
    write_journal(folder, [*events, DriverEnded(status="finished", reason="the time budget is used up", at=3.0)])
    assert checked("status", status(folder))["steps"] == {"trained": 2, "full": 18, "saved": 8}


def test_the_summary_and_the_status_agree_on_what_was_saved(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path, 30)
    console = Console(file=StringIO(), width=200)
    print_summary(console, replay(folder), folder, tracking_uri=None)
    steps = status(folder)["steps"]
    assert f"early stopping saved {steps['saved']} of {steps['full']} steps" in console.file.getvalue()


def test_status_of_a_whole_experiment(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path, 30)
    found = checked("status", status(folder))
    assert (found["status"], found["driver"]["alive"], found["tracking"]) == ("finished", False, None)
    assert sum(found["trials"].values()) == 30
    assert found["failures"] == [{"reason": "ValueError: loss is NaN", "trials": 1, "example": "000005"}]
    assert found["test"] == {"metrics": {"test_accuracy": 0.961}, "error": None}
    text = "\n".join(status_lines(folder))
    for part in (
        "all 30 trials are done",
        "30 of 50: 1",
        "stopped early",
        "early stopping saved",
        "test_accuracy 0.961",
    ):
        assert part in text


def test_a_living_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path)
    writer = JournalWriter(folder.journal)
    for event in experiment_events(folder, 8, end=False, pid=os.getpid())[:-2]:
        writer.append(event)
    with Lock(folder):
        found = checked("status", status(folder))
        assert (found["status"], found["driver"]["alive"], found["reason"]) == ("running", True, "")
        assert found["running"]
        lines = status_lines(folder)
        assert lines[0] == f"digits: running (process {os.getpid()} on somewhere)"
        assert any(line.startswith("  running  0000") for line in lines)
        assert not any("raytuner resume" in line for line in lines)
    found = checked("status", status(folder))  # it was killed
    assert (found["status"], found["driver"]["alive"]) == ("interrupted", False)
    assert f"process {os.getpid()} on somewhere) is gone" in found["reason"]
    assert f"  next     raytuner resume {folder.path}" in status_lines(folder)
    monkeypatch.setenv(READ_AT, "http://head:8265")
    assert f"  next     raytuner resume {folder.path.name} --address http://head:8265" in status_lines(folder)
    writer.close()


def test_the_use_of_the_devices(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    nodes = [("10.0.0.2", 0.87), ("10.0.0.3", 0.5)]
    devices = [{"node": n, "gpu": "0", "use": use, "memory": 3 * 2**30, "total": 24 * 2**30} for n, use in nodes]
    usage = Usage(
        unit="GPU", total=1000.0, busy=930.0, idle={"search": 0.2, "start-up": 69.8}, devices=devices, at=100.0
    )
    write_journal(folder, [*experiment_events(folder, 3), usage])
    found = checked("status", status(folder))["usage"]
    assert (found["busy"], found["idle"], len(found["devices"])) == (930.0, {"search": 0.2, "start-up": 69.8}, 2)
    time = "93% of the GPUs' time used, idle 70 s for start-up; "
    gpus = "GPU 10.0.0.2/0: 87%, 3/24 GiB  10.0.0.3/0: 50%, 3/24 GiB"
    lines = "\n".join(status_lines(folder))
    assert time in lines
    assert gpus in lines
    assert time in report(folder)


def test_what_trackers_left_is_told(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path, 3)
    folder.cursors.mkdir()
    folder.cursors.joinpath("mlflow.status.json").write_text('{"behind": 0, "error": "the server is away"}')
    found = checked("status", status(folder))["tracking"]
    assert (found["to"], found["error"]) == ("mlflow", "the server is away")
    assert found["behind"] > 10
    assert any("events behind; the server is away" in line for line in status_lines(folder))
    folder.cursors.joinpath("mlflow.status.json").write_text("half a f")
    assert checked("status", status(folder))["tracking"]["error"] == ""


def test_best(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path, 30)
    found = checked("best", best(folder))
    assert found["defaults"]["trial"] == "000001"
    assert found["value"] > found["defaults"]["value"]
    assert Path(found["checkpoint"]).is_dir()
    lines = best_lines(folder)
    assert lines[0] == f"digits: val_accuracy {found['value']:.5g} (trial {found['trial']}, step {found['step']})"
    assert any(line.split() == ["test_accuracy", "0.961"] for line in lines)


def test_the_report_tells_it_all(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path, 30)
    text = report(folder)
    found = best(folder)
    for part in (
        "A small network on real images.",
        "**finished** (all 30 trials are done): 30 trials",
        "| search | hyperopt (startup 10) |",
        f"**val_accuracy {found['value']:.5g}** at step {found['step']}",
        f"| best ({found['trial']}) | defaults (000001) |",
        "**test_accuracy 0.961**",
        "## The best of 30 trials",
        "* 1 trial (000005): ValueError: loss is NaN",
        "`raytuner run digits.yaml`",
        "commit `0123456789abcdef0123456789abcdef01234567`, with changes that were not committed",
        "seed 7",
    ):
        assert part in text, part
    assert text.index("## The best trial") < text.index("## Where the good ones lie") < text.index("## Failures")
    ranking = text.split("## The best of")[1].split("##")[0].strip().splitlines()
    assert len(ranking) == 4 + 10  # the title's end, an empty line, the head, the rule
    assert ranking[4].startswith(f"| {found['trial']} |")
    curve = text.split("## How the best value came about")[1].split("##")[0]
    assert f"| {found['trial']} | {found['value']:.5g} |" in curve
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_tables_of_the_report_are_tables(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    all_failed(folder)
    assert "* 2 trials (000001, 000002): RuntimeError: no | data here" in report(folder)
    table = markdown_table(["a|b", "c"], [["x\ny", "1"]])
    assert table == ["| a\\|b | c |", "| --- | ---: |", "| x y | 1 |"]


def test_the_report_is_written_whole(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path, 3)
    assert write_report(folder) == folder.report
    assert folder.report.read_text() == report(folder)
    assert not [path for path in folder.path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (0.44, "0.4 s"), (42, "42 s"), (200, "3 min 20 s"), (3599.9, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_numbers() -> None:
    assert [number(value) for value in (None, 0.123456789, 3, 1e-9, 123456.0, 27)] == [
        "–", "0.12346", "3", "1e-09", "123456", "27",
    ]  # fmt: skip


def test_reasons_beyond_the_first_are_counted(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    events: list[Event] = [driver_started()]
    for place in range(7):
        trial = f"{place + 1:06d}"
        error = {"kind": "error", "message": f"no {place}", "traceback": ""}
        events.append(TrialAsked(trial=trial, config={}))
        events.append(TrialEnded(trial=trial, attempt=1, status="failed", step=0, reason="", error=error))
    write_journal(folder, events)
    lines = status_lines(folder)
    assert sum("such as" in line for line in lines) == 5
    assert any("and 2 trials for 2 other reasons" in line for line in lines)
