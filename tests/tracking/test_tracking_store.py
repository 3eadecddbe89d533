"""The two ways into a store agree, write nothing twice, and MLflow reads what was written without it."""

import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from made_journals import driver_started, experiment_events, make_experiment, make_folder, write_files, write_journal
from mlflow.tracking import MlflowClient

from raytuner.errors import TrackingError
from raytuner.journal import DriverEnded, Folder, Reported, TrialEnded, TrialStarted
from raytuner.tracking import behind, follow, sync, ui_address
from raytuner.tracking.client_store import ClientStore
from raytuner.tracking.progress import cursor_file, read_status
from raytuner.tracking.schema import REVISION, create_database, dump, newest_revision, revision_of
from raytuner.tracking.sqlite_store import SqliteStore
from raytuner.tracking.store import open_store

TRIALS = 8

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own use of SQLAlchemy


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracking")


@pytest.fixture(scope="module")
def folder(room: Path) -> Folder:
    return make_experiment(room, TRIALS, register="digits-net")


@pytest.fixture(scope="module")
def by_client(room: Path, folder: Folder) -> str:
    """A store that MLflow made, and wrote the experiment into."""
    uri = f"sqlite:///{room}/client/mlflow.db"
    (room / "client").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(follow, "open_store", ClientStore)
        sync(folder, uri)
    return uri


@pytest.fixture(scope="module")
def direct(room: Path, folder: Folder) -> str:
    """A store that was made and written without MLflow."""
    uri = f"sqlite:///{room}/direct/mlflow.db"
    assert isinstance(open_store(uri), SqliteStore)
    sync(folder, uri)
    return uri


def rows(uri: str, root: Path) -> dict[str, list[tuple[Any, ...]]]:
    """What stands in a store: run ids as their names, paths below ``root``, and no creation times."""
    connection = sqlite3.connect(uri.removeprefix("sqlite:///"))
    names = dict(connection.execute("SELECT run_uuid, name FROM runs"))

    def plain(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        for run_id, name in names.items():
            value = value.replace(run_id, f"<{name}>")
        return value.replace(str(root), "<root>")

    columns = {
        "experiments": "name, artifact_location, lifecycle_stage, workspace",
        "experiment_tags": "*",
        "runs": "*",
        "params": "*",
        "tags": "*",
        "metrics": "*",
        "latest_metrics": "key, value, timestamp, step, is_nan, run_uuid",
        "registered_models": "name, description, workspace",
        "model_versions": "name, version, source, run_id, status, current_stage",
        "model_version_tags": "*",
    }
    found = {
        table: sorted((tuple(map(plain, row)) for row in connection.execute(f"SELECT {some} FROM {table}")), key=repr)
        for table, some in columns.items()
    }
    connection.close()
    found["experiments"] = [row for row in found["experiments"] if row[0] != "Default"]
    return found


def client(uri: str) -> MlflowClient:
    return MlflowClient(uri, registry_uri=uri)


def forget(folder: Folder) -> None:
    shutil.rmtree(folder.cursors)


def schema(path: Path) -> dict[str, list[str]]:
    """The statements of a store; MLflow's migrations leave the lines of one statement in a random order."""
    statements = dump(path).split(";\n")
    named = {re.sub(r"\s+", " ", text)[:70]: text for text in statements}
    return {name: sorted(line.strip().rstrip(",") for line in text.splitlines()) for name, text in named.items()}


def test_our_schema_is_the_one_that_mlflow_makes(by_client: str, tmp_path: Path) -> None:
    path = tmp_path / "fresh.db"
    assert newest_revision() == REVISION
    assert create_database(path)
    assert schema(path) == schema(Path(by_client.removeprefix("sqlite:///")))
    assert revision_of(path) == REVISION


def test_a_store_is_created_once(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    assert create_database(path)
    before = path.stat()
    assert create_database(path)
    assert path.stat().st_ino == before.st_ino
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]
    empty = tmp_path / "empty.db"
    empty.touch()
    assert revision_of(empty) is None


def test_a_store_whose_writer_was_killed_is_put_right(tmp_path: Path) -> None:
    path, killed = tmp_path / "mlflow.db", tmp_path / "killed.db"
    assert create_database(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA cache_size = 1")  # so that changes reach the file before they are final
    connection.execute("UPDATE alembic_version SET version_num = 'half'")
    connection.executemany("INSERT INTO tags VALUES (?, ?, ?)", [(f"{n}", "x" * 2000, "run") for n in range(50)])
    shutil.copy(path, killed)
    shutil.copy(f"{path}-journal", f"{killed}-journal")
    connection.close()
    assert revision_of(killed) == REVISION


def test_both_ways_write_the_same(room: Path, by_client: str, direct: str) -> None:
    theirs, ours = rows(by_client, room / "client"), rows(direct, room / "direct")
    for table in theirs:
        assert ours[table] == theirs[table], table
    assert len(ours["runs"]) == TRIALS + 1
    files = [sorted(path.relative_to(room / way).parts[3:] for path in (room / way).rglob("*.*")) for way in
             ("client", "direct")]  # fmt: skip
    assert files[0] == files[1]


def test_mlflow_reads_what_was_written_without_it(direct: str, folder: Folder) -> None:
    mlflow = client(direct)
    experiment = mlflow.get_experiment_by_name("digits")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    runs = mlflow.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.data.tags["raytuner.kind"] == "experiment"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert (len(runs), len(children)) == (TRIALS + 1, TRIALS)
    assert {run.info.status for run in children} == {"FINISHED", "KILLED", "FAILED"}
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["test_accuracy"] == 0.961
    best = max(children, key=lambda run: run.data.metrics["best/val_accuracy"])
    assert best.data.tags["raytuner.trial"] == parent.data.tags["raytuner.best_trial"]
    history = mlflow.get_metric_history(best.info.run_id, "val_accuracy")
    assert [metric.step for metric in history] == list(range(1, len(history) + 1))
    assert best.data.params["lr"] == str(float(best.data.params["lr"]))
    assert {item.path for item in mlflow.list_artifacts(parent.info.run_id)} == {
        "experiment.yaml", "plan.json", "report.md", "model",
    }  # fmt: skip
    assert [item.path for item in mlflow.list_artifacts(best.info.run_id, "plots")] == ["plots/confusion.png"]
    (version,) = mlflow.search_model_versions("name='digits-net'")
    assert version.run_id == parent.info.run_id
    assert Path(mlflow.get_model_version_download_uri("digits-net", "1"), "checkpoint", "state.pt").exists()
    page = ui_address(folder, port=7)
    assert page == f"http://127.0.0.1:7/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"


@pytest.mark.parametrize("way", ["direct", "client"])
def test_writing_all_again_changes_nothing(
    way: str, room: Path, folder: Folder, direct: str, by_client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = direct if way == "direct" else by_client
    if way == "client":
        monkeypatch.setattr(follow, "open_store", ClientStore)
    before = rows(uri, room)
    forget(folder)
    assert sync(folder, uri) > 100
    assert rows(uri, room) == before
    assert sync(folder, uri) == 0


def test_numbers_that_sql_does_not_know(tmp_path: Path, by_client: str) -> None:
    folder = make_folder(tmp_path, "odd")
    values = [0.5, float("nan"), float("inf"), float("-inf"), 1e308, 5e-324, -0.0]
    write_journal(folder, [
        *experiment_events(folder, 1, end=False)[:3],
        *(Reported(trial="000001", attempt=1, step=k, metrics={"odd": value}, time=5.0, at=5.0)
          for k, value in enumerate(values)),
        Reported(trial="000001", attempt=1, step=3, metrics={"odd": 1.0}, time=6.0, at=6.0),
    ])  # fmt: skip
    uris = [f"sqlite:///{tmp_path}/mlflow.db", by_client]
    sync(folder, uris[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(follow, "open_store", ClientStore)
        sync(folder, uris[1])
    found = []
    for uri in uris:
        connection = sqlite3.connect(uri.removeprefix("sqlite:///"))
        queries = [
            f"SELECT value, is_nan, step, timestamp FROM {table} WHERE key = 'odd' ORDER BY 3, 4"
            for table in ("metrics", "latest_metrics")
        ]
        found.append([connection.execute(query).fetchall() for query in queries])
        connection.close()
    assert found[0] == found[1]
    assert len(found[0][0]) == len(values) + 1


def test_a_resumed_experiment_goes_on_in_its_runs(tmp_path: Path) -> None:
    folder, uri = make_folder(tmp_path), f"sqlite:///{tmp_path}/mlflow.db"
    events = experiment_events(folder, 3, end=False)
    killed = next(k for k, event in enumerate(events) if isinstance(event, TrialEnded) and event.trial == "000003")
    write_journal(folder, events[:killed])
    sync(folder, uri)
    mlflow = client(uri)

    def runs() -> dict[str, Any]:
        return {run.data.tags.get("raytuner.trial", ""): run for run in mlflow.search_runs(["1"])}

    before = runs()
    assert (before[""].info.status, before["000003"].info.status) == ("RUNNING", "RUNNING")
    step = before["000003"].data.metrics["val_accuracy"]
    at = events[-1].at + 100.0
    write_journal(folder, [
        driver_started(driver=2, at=at),
        TrialStarted(trial="000003", attempt=2, step=0, at=at),
        Reported(trial="000003", attempt=2, step=40, metrics={"val_accuracy": 0.99}, time=at + 1, at=at + 1),
        TrialEnded(trial="000003", attempt=2, status="finished", step=40, at=at + 2),
        DriverEnded(status="finished", at=at + 3),
    ])  # fmt: skip
    sync(folder, uri)
    after = runs()
    assert {trial: run.info.run_id for trial, run in after.items()} == {
        trial: run.info.run_id for trial, run in before.items()
    }
    assert (after[""].info.status, after["000003"].info.status) == ("FINISHED", "FINISHED")
    assert after["000003"].data.metrics["val_accuracy"] == 0.99 != step


def test_a_store_that_was_deleted_is_filled_again(tmp_path: Path) -> None:
    folder, uri = make_experiment(tmp_path, 3), f"sqlite:///{tmp_path}/mlflow.db"
    sync(folder, uri)
    before = rows(uri, tmp_path)
    (tmp_path / "mlflow.db").unlink()
    sync(folder, uri)
    assert rows(uri, tmp_path) == before
    sync(folder, f"sqlite:///{tmp_path}/other.db")  # a cursor counts for its own store only
    assert rows(f"sqlite:///{tmp_path}/other.db", tmp_path) == before


def test_runs_that_were_deleted_stay_deleted(tmp_path: Path) -> None:
    folder, uri = make_folder(tmp_path), f"sqlite:///{tmp_path}/mlflow.db"
    events = experiment_events(folder, 3)
    write_files(events)
    cut = next(k for k, event in enumerate(events) if isinstance(event, TrialStarted) and event.trial == "000003") + 2
    write_journal(folder, events[:cut])
    sync(folder, uri)
    mlflow = client(uri)
    (run,) = mlflow.search_runs(["1"], "tags.`raytuner.trial` = '000003'")
    mlflow.delete_run(run.info.run_id)
    write_journal(folder, events[cut:])
    with pytest.raises(TrackingError, match="1 runs were deleted"):
        sync(folder, uri)
    assert behind(folder) == 0
    assert len(mlflow.search_runs(["1"])) == 3
    assert len(mlflow.search_runs(["1"], run_view_type=3)) == 4
    assert mlflow.get_run(read_status(folder)["run_id"]).info.status == "FINISHED"


def test_a_deleted_experiment_is_refused(tmp_path: Path) -> None:
    folder, uri = make_experiment(tmp_path, 1), f"sqlite:///{tmp_path}/mlflow.db"
    sync(folder, uri)
    client(uri).delete_experiment("1")
    forget(folder)
    with pytest.raises(TrackingError, match=r"must not be deleted.*mlflow experiments restore -x 1"):
        sync(folder, uri)


def test_other_experiments_in_the_same_store_are_left_alone(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for root, seed in (("a", 1), ("b", 2)):  # the same name twice, as from two folders
        sync(make_experiment(tmp_path / root, 2, seed=seed, pid=seed), uri)
    sync(make_experiment(tmp_path, 2, name="another"), uri)
    mlflow = client(uri)
    assert len(mlflow.search_runs([mlflow.get_experiment_by_name("digits").experiment_id])) == 6
    assert len(mlflow.search_runs([mlflow.get_experiment_by_name("another").experiment_id])) == 3


def test_a_locked_store_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raytuner.tracking.sqlite_store._BUSY", 0.05)
    folder, path = make_experiment(tmp_path, 2), tmp_path / "mlflow.db"
    create_database(path)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(TrackingError, match=r"\d+ events are not in MLflow yet: .*database is locked"):
        sync(folder, f"sqlite:///{path}", patience=0.1)
    assert "locked" in read_status(folder)["error"]
    assert not cursor_file(folder).exists()
    connection.execute("COMMIT")
    connection.close()
    sync(folder, f"sqlite:///{path}")
    assert (behind(folder), read_status(folder)["error"]) == (0, "")


def test_a_server_that_is_away(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path, 1)
    with pytest.raises(
        TrackingError, match=r"not in MLflow yet: http://127\.0\.0\.1:9: the MLflow store must answer.*refused$"
    ):
        sync(folder, "http://127.0.0.1:9", patience=0.1)
    assert behind(folder) > 0


def test_a_store_of_an_unknown_schema_is_left_to_mlflow(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    create_database(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '97727af70f4d'")
    with pytest.raises(TrackingError, match=r"older MLflow.*mlflow db upgrade"):
        open_store(f"sqlite:///{path}")


def test_what_the_store_refuses_does_not_hold_up_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, uri = make_experiment(tmp_path, 2, register="digits-net"), f"sqlite:///{tmp_path}/mlflow.db"

    def refuse(*_) -> None:
        raise TrackingError("no such name here")

    monkeypatch.setattr(SqliteStore, "register", refuse)
    with pytest.raises(TrackingError, match="no such name here"):
        sync(folder, uri)
    assert behind(folder) == 0
    assert {run.info.status for run in client(uri).search_runs(["1"])} <= {"FINISHED", "KILLED"}
