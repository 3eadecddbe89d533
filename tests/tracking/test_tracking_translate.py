"""Events to updates, without any store."""

import json
from pathlib import Path

import pytest
from made_journals import driver_started, experiment_events, make_folder

from raytuner import journal
from raytuner.journal import (
    CheckpointWritten,
    DriverEnded,
    Folder,
    Logged,
    Reported,
    TrialAsked,
    TrialEnded,
    TrialStarted,
    Usage,
)
from raytuner.tracking.store import MODEL, PARENT, Update
from raytuner.tracking.translate import Translator

ONE = "000001"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return make_folder(tmp_path)


def feed(translator: Translator, *events) -> dict[str, Update]:
    for event in events:
        translator.apply(event)
    return translator.take()


def begun(folder: Folder) -> Translator:
    translator = Translator(folder)
    feed(
        translator,
        driver_started(at=10.0),
        TrialAsked(trial=ONE, config={"lr": 0.1, "layers": [1, 2]}, at=11.0),
        TrialStarted(trial=ONE, attempt=1, at=12.0),
    )
    return translator


def ended(status: str, at: float = 20.0, **fields) -> TrialEnded:
    return TrialEnded(trial=ONE, attempt=1, status=status, step=2, at=at, **fields)


def test_the_parent(folder: Folder) -> None:
    translator = Translator(folder)
    parent = feed(translator, driver_started(at=10.0))[PARENT]
    assert parent.params == {"objective": "max val_accuracy", "search": "hyperopt", "scheduler": "asha"}
    assert parent.status == "RUNNING"
    tags = parent.tags
    assert (tags["team"], tags["mlflow.note.content"]) == ("vision", "A small network on real images.")
    assert (tags["raytuner.seed"], tags["raytuner.budget"], tags["raytuner.git.dirty"]) == ("7", "50 trials", "true")
    assert tags["mlflow.source.git.commit"].startswith("01234567")
    assert set(parent.artifacts) == {"experiment.yaml", "plan.json"}
    birth = translator.birth(PARENT)
    assert (birth.name, birth.started) == ("digits", 10_000)
    assert birth.tags["raytuner.experiment"] == translator.key
    assert translator.key.startswith("digits-")


def test_a_later_driver_has_the_same_key(folder: Folder) -> None:
    translator = Translator(folder)
    feed(translator, driver_started(at=10.0))
    key = translator.key
    feed(translator, driver_started(at=99.0, driver=2, pid=1))
    assert translator.key == key
    other = Translator(folder)
    feed(other, driver_started(at=11.0))
    assert other.key != key


def test_a_trial_is_there_when_it_starts(folder: Folder) -> None:
    translator = Translator(folder)
    assert ONE not in feed(translator, driver_started(), TrialAsked(trial=ONE, config={"lr": 0.1}, at=11.0))
    update = feed(translator, TrialStarted(trial=ONE, attempt=1, at=12.0))[ONE]
    assert (update.params, update.status) == ({"lr": "0.1"}, "RUNNING")
    assert translator.birth(ONE).started == 12_000
    assert translator.birth(ONE).tags["raytuner.trial"] == ONE
    assert "raytuner.trial" not in translator.birth(PARENT).tags


def test_reports(folder: Folder) -> None:
    translator = begun(folder)
    metrics = {"val_accuracy": 0.5, "lo@ss": 1.0}
    report = Reported(trial=ONE, attempt=1, step=3, metrics=metrics, time=13.5, at=14.0)
    updates = feed(translator, report)
    assert updates[ONE].metrics == [("val_accuracy", 0.5, 13_500, 3), ("lo_ss", 1.0, 13_500, 3)]
    assert updates[PARENT].metrics == [("best/val_accuracy", 0.5, 13_500, 1)]
    worse = Reported(trial=ONE, attempt=1, step=4, metrics={"val_accuracy": 0.4}, time=15.0, at=15.0)
    assert PARENT not in feed(translator, worse)


@pytest.mark.parametrize(
    ("status", "state", "end"),
    [
        ("finished", "FINISHED", 20_000),
        ("stopped", "KILLED", 20_000),
        ("failed", "FAILED", 20_000),
        ("paused", "RUNNING", None),
    ],
)
def test_end_states(folder: Folder, status: str, state: str, end: int | None) -> None:
    updates = feed(begun(folder), ended(status, reason="because"))
    assert (updates[ONE].status, updates[ONE].ended) == (state, end)
    assert updates[ONE].tags["raytuner.status"] == status
    assert updates[ONE].tags["raytuner.reason"] == "because"
    if end:
        assert updates[PARENT].metrics == [(f"trials/{status}", 1.0, 20_000, 0)]


def test_the_lineage_is_drawn_now_and_then(folder: Folder) -> None:
    translator = begun(folder)
    drawn = []
    for step, at in enumerate((100.0, 130.0, 161.0), start=1):
        exploited = journal.Exploited(
            trial=ONE, step=step, source=ONE, source_step=step, source_phase=0, config={"lr": 0.1 / step}, at=at
        )
        parent = feed(translator, exploited).get(PARENT, Update())
        drawn.append({"lineage.json", "lineage.svg"} <= set(parent.artifacts))
    assert drawn == [True, False, True], "at most once a minute"


def test_what_is_cut_off_was_not_stopped(folder: Folder) -> None:
    updates = feed(begun(folder), ended("stopped", reason="interrupted: Ctrl-C"))
    assert (updates[ONE].status, updates[ONE].tags["raytuner.status"]) == ("KILLED", "interrupted")
    assert PARENT not in updates


def test_a_failure_tells_why(folder: Folder) -> None:
    error = {"kind": "ValueError", "message": "x" * 9000, "traceback": "Traceback\n  line"}
    update = feed(begun(folder), ended("failed", error=error))[ONE]
    assert len(update.tags["raytuner.error"]) == 500
    assert update.artifacts["error.txt"].text.startswith("Traceback\n  line\nValueError: xxx")


def test_totals_of_a_trial(folder: Folder) -> None:
    report = Reported(trial=ONE, attempt=1, step=2, metrics={"val_accuracy": 0.5}, time=13.0, seconds=1.5, at=13.0)
    update = feed(begun(folder), report, ended("finished"))[ONE]
    totals = {metric.key: (metric.value, metric.step) for metric in update.metrics}
    assert totals == {
        "val_accuracy": (0.5, 2),
        "best/val_accuracy": (0.5, 2),
        "best/step": (2.0, 2),
    }


@pytest.mark.parametrize(
    ("status", "state"), [("finished", "FINISHED"), ("interrupted", "KILLED"), ("failed", "FAILED")]
)
def test_the_end_of_a_driver(folder: Folder, status: str, state: str) -> None:
    translator = begun(folder)
    feed(translator, TrialAsked(trial="000002", config={}, at=1.0), TrialStarted(trial="000002", attempt=1, at=1.0))
    feed(translator, TrialEnded(trial="000002", attempt=1, status="paused", step=1, reason="rung 1", at=2.0))
    updates = feed(translator, DriverEnded(status=status, reason="so", at=30.0))
    assert (updates[PARENT].status, updates[PARENT].ended) == (state, 30_000)
    assert (updates[ONE].status, updates[ONE].tags["raytuner.status"]) == ("KILLED", "interrupted")
    assert (updates["000002"].status, updates["000002"].tags["raytuner.status"]) == ("KILLED", "paused")
    assert updates["000002"].tags["raytuner.reason"] == "rung 1"
    again = feed(translator, driver_started(driver=2, at=50.0), TrialStarted(trial=ONE, attempt=2, at=51.0))
    assert (again[PARENT].status, again[ONE].status) == ("RUNNING", "RUNNING")


def test_a_killed_driver_leaves_its_trials_running(folder: Folder) -> None:
    translator = begun(folder)
    updates = feed(translator, driver_started(driver=2, at=50.0))
    assert ONE not in updates


def test_the_use_of_the_devices(folder: Folder) -> None:
    translator = begun(folder)
    device = {"node": "10.0.0.2", "gpu": "0", "use": 0.87, "memory": 3 * 2**30, "total": 24 * 2**30}
    usage = Usage(unit="GPU", total=100.0, busy=93.0, idle={"search": 3.0, "start-up": 4.0}, devices=[device], at=372.0)
    metrics = feed(translator, ended("finished", at=100.0), usage)[PARENT].metrics
    values = {metric.key: metric.value for metric in metrics}
    assert values == {
        "trials/finished": 1.0,
        "usage/busy_share": 0.93,
        "usage/trials_per_hour": pytest.approx(3600 / 360),
        "usage/idle_seconds_search": 3.0,
        "usage/idle_seconds_start-up": 4.0,
        "device/10.0.0.2-0-use": 0.87,
        "device/10.0.0.2-0-GiB": 3.0,
    }


def test_the_best_model(folder: Folder) -> None:
    translator = begun(folder)
    path = folder.checkpoint(ONE, 1, 1)
    feed(
        translator,
        Reported(trial=ONE, attempt=1, step=1, metrics={"val_accuracy": 0.5}, time=13.0, at=13.0),
        CheckpointWritten(trial=ONE, attempt=1, step=1, path=str(path), at=13.0),
    )
    tested = journal.Tested(trial=ONE, step=1, metrics={"test_accuracy": 0.4, "auc": 0.3}, at=14.0)
    updates = feed(translator, tested)
    for run in (ONE, PARENT):
        assert updates[run].metrics == [("test_accuracy", 0.4, 14_000, 1), ("test/auc", 0.3, 14_000, 1)]
    updates = feed(translator, DriverEnded(status="finished", at=15.0))
    parent = updates[PARENT]
    assert parent.artifacts[f"{MODEL}/checkpoint"].source == path
    assert json.loads(parent.artifacts[f"{MODEL}/config.json"].text) == {"lr": 0.1, "layers": [1, 2]}
    assert json.loads(parent.artifacts[f"{MODEL}/MLmodel"].text)["flavors"]["raytuner"]["trial"] == ONE
    assert parent.model == {"raytuner.trial": ONE, "raytuner.step": "1", "raytuner.val_accuracy": "0.5"}
    assert parent.tags["raytuner.best_trial"] == ONE
    assert updates[ONE].tags["raytuner.best"] == "true"
    feed(
        translator,
        driver_started(driver=2, at=20.0),
        TrialAsked(trial="000002", config={}, at=21.0),
        TrialStarted(trial="000002", attempt=1, at=21.0),
        Reported(trial="000002", attempt=1, step=1, metrics={"val_accuracy": 0.9}, time=22.0, at=22.0),
    )
    updates = feed(translator, DriverEnded(status="finished", at=25.0))
    assert (updates[ONE].tags["raytuner.best"], updates["000002"].tags["raytuner.best"]) == ("false", "true")
    assert updates[PARENT].model is None  # it kept no checkpoint


@pytest.mark.parametrize(
    ("name", "place"),
    [("plots/roc", "plots/roc.png"), ("roc.svg", "roc.svg"), ("../../etc/x", "etc/x.png"), ("/abs", "abs.png")],
)
def test_logged_files(folder: Folder, name: str, place: str) -> None:
    logged = Logged(trial=ONE, attempt=1, step=1, name=name, path="/files/roc.png", at=13.0)
    update = feed(begun(folder), logged)[ONE]
    assert {key: artifact.source for key, artifact in update.artifacts.items()} == {place: Path("/files/roc.png")}


def test_the_same_events_give_the_same_updates_wherever_one_starts(folder: Folder) -> None:
    events = experiment_events(folder, 12)
    whole = feed(Translator(folder), *events)
    parts = Translator(folder)
    metrics: dict[str, list] = {}
    for event in events:
        for trial, update in feed(parts, event).items():
            metrics.setdefault(trial, []).extend(update.metrics)
    assert metrics == {trial: update.metrics for trial, update in whole.items()}


def test_no_plan_no_details(tmp_path: Path) -> None:
    parent = feed(Translator(Folder(tmp_path)), driver_started())[PARENT]
    assert parent.params == {"objective": "max val_accuracy"}
    tmp_path.joinpath("plan.json").write_text("[]")
    assert "mlflow.note.content" not in feed(Translator(Folder(tmp_path)), driver_started())[PARENT].tags


SPACE = {
    "lr": {"type": "float", "low": 1e-4, "high": 1.0},
    "kind": {"type": "choice", "values": ["a", "b", True]},
    "width": {"type": "int", "low": 1, "high": 64},
    "momentum": {"type": "float", "low": 0.0, "high": 1.0, "when": {"kind": "a"}},
}


def test_all_that_a_copy_changes_is_measured(tmp_path: Path) -> None:
    """Also what is not mutated: the state that is copied brings its width along."""
    folder = make_folder(tmp_path)
    plan = json.loads(folder.plan.read_text())
    plan["experiment"] |= {"space": SPACE, "scheduler": {"type": "pbt", "mutate": ["kind"]}}
    folder.plan.write_text(json.dumps(plan))
    translator = Translator(folder)
    asked = {"lr": 0.1, "kind": "b", "width": 21}
    copied = {"lr": 0.1, "kind": "a", "width": 26, "momentum": 0.5}
    feed(
        translator,
        driver_started(at=10.0),
        TrialAsked(trial=ONE, config=asked, at=11.0),
        TrialStarted(trial=ONE, attempt=1, at=12.0),
        Reported(trial=ONE, attempt=1, step=2, metrics={"val_accuracy": 0.5}, time=13.0, at=13.0),
    )
    exploited = journal.Exploited(
        trial=ONE, step=2, source="000002", source_step=3, source_phase=0, config=copied, at=14.0
    )
    update = feed(translator, exploited)[ONE]
    measured = {(metric.key, metric.step): metric.value for metric in update.metrics}
    assert measured == {
        ("config/kind-index", 2): 1.0,
        ("config/kind-index", 4): 0.0,
        ("config/width", 1): 21.0,
        ("config/width", 2): 21.0,
        ("config/width", 4): 26.0,
        ("config/momentum", 4): 0.5,
    }
    assert json.loads(update.tags["raytuner.config"]) == copied
    last = {metric.key: metric.value for metric in feed(translator, ended("finished"))[ONE].metrics}
    assert {key: last[key] for key in ("config/kind-index", "config/width", "config/momentum")} == {
        "config/kind-index": 0.0,
        "config/width": 26.0,
        "config/momentum": 0.5,
    }
    again = dict(copied, kind=True)
    exploited = journal.Exploited(
        trial=ONE, step=4, source="000002", source_step=4, source_phase=0, config=again, at=15.0
    )
    measured = {(metric.key, metric.step): metric.value for metric in feed(translator, exploited)[ONE].metrics}
    assert measured[("config/kind-index", 5)] == 2.0
    assert ("config/width", 1) not in measured, "it is there already"
