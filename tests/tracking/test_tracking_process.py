"""The tracker's process: it follows, survives, catches up, and ends by itself."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from made_journals import driver_started, experiment_events, make_experiment, make_folder, write_files, write_journal

from raytuner.errors import TrackingError
from raytuner.journal import DriverEnded, Folder, JournalWriter
from raytuner.tracking import start_tracker, sync
from raytuner.tracking.follow import Follower
from raytuner.tracking.sqlite_store import SqliteStore


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def counts(path: Path) -> dict[str, int]:
    connection = sqlite3.connect(path)
    queries = {
        "runs": "SELECT count(*) FROM runs",
        "trials": "SELECT count(DISTINCT value) FROM tags WHERE key = 'raytuner.trial'",
        "metrics": "SELECT count(*) FROM metrics",
        "params": "SELECT count(*) FROM params",
        "ended": "SELECT count(*) FROM runs WHERE status != 'RUNNING'",
    }
    found = {name: connection.execute(query).fetchone()[0] for name, query in queries.items()}
    connection.close()
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What 30 trials come to in a store, tracked without trouble."""
    root = tmp_path_factory.mktemp("expected")
    sync(make_experiment(root, 30), f"sqlite:///{root}/mlflow.db")
    return counts(root / "mlflow.db")


def test_it_follows_and_ends(tmp_path: Path, expected: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}")  # the empty entry would be the tracker's own folder
    folder, path = make_folder(tmp_path), tmp_path / "mlflow.db"
    events = experiment_events(folder, 30, pid=os.getpid())
    write_files(events)
    (folder.path / "json.py").write_text("raise RuntimeError('what lies there is not imported')")
    tracker = start_tracker(folder, f"sqlite:///{path}")
    try:
        writer = JournalWriter(folder.journal)
        half = len(events) // 2
        for event in events[:half]:
            writer.append(event)
        until(lambda: tracker.progress() == 0 and path.exists())
        assert tracker.running
        assert os.getpriority(os.PRIO_PROCESS, tracker.pid) == 10
        os.kill(tracker.pid, signal.SIGINT)  # Ctrl-C is for the driver
        for event in events[half:]:
            writer.append(event)
        writer.close()
        folder.report.write_text("# The last word\n")
        assert tracker.wait(20)
        assert not tracker.running
    finally:
        tracker.kill()
    assert counts(path) == expected
    (report,) = tmp_path.glob("mlartifacts/*/*/artifacts/report.md")
    assert report.read_text() == "# The last word\n"
    assert (tracker.progress(), tracker.problem()) == (0, "")
    assert (folder.path / "tracking.log").read_text() == ""


def test_nothing_doubles_when_it_is_killed_again_and_again(tmp_path: Path, expected: dict[str, int]) -> None:
    folder, path = make_folder(tmp_path), tmp_path / "mlflow.db"
    events = experiment_events(folder, 30)
    write_files(events)
    writer, rng = JournalWriter(folder.journal), random.Random(3)
    command = [sys.executable, "-m", "raytuner.tracking", str(folder.path), "--uri", f"sqlite:///{path}"]
    command += ["--follow-pid", str(os.getpid())]
    rounds = 14
    for part in range(rounds):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        share = events[len(events) * part // rounds : len(events) * (part + 1) // rounds]
        for event in share:
            writer.append(event)
            time.sleep(0.3 * rng.random() / len(share))
        if part % 3:  # at any instant: as it starts, as it creates, as it writes
            time.sleep(0.5 * rng.random())
        process.kill()
        process.wait()
    writer.close()
    assert subprocess.run(command[:-2], check=False, timeout=30).returncode == 0
    assert counts(path) == expected


@pytest.mark.parametrize("broken", ["create", "write", "upload"])
def test_nothing_doubles_when_it_dies_between_two_writes(
    broken: str, tmp_path: Path, expected: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, uri = make_experiment(tmp_path, 30), f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setattr("raytuner.tracking.follow._CHUNK", 40)
    real = getattr(SqliteStore, broken)
    lives = 0

    def dying(*arguments) -> object:
        nonlocal left
        left -= 1
        result = real(*arguments)
        if left < 0:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(SqliteStore, broken, dying)
    while True:
        follower, left = Follower(folder, uri), lives
        try:
            follower.step()
            break
        except KeyboardInterrupt:
            lives += 1  # each life gets one write further than the one before
        finally:
            follower.close()
    assert lives > 3
    assert counts(tmp_path / "mlflow.db") == expected


def test_it_outlives_its_driver_and_catches_up(tmp_path: Path) -> None:
    folder, path = make_folder(tmp_path), tmp_path / "mlflow.db"
    write_journal(folder, experiment_events(folder, 5, end=False))
    program = (
        "import os, sys; from pathlib import Path\n"
        "from raytuner.journal import Folder; from raytuner.tracking import start_tracker\n"
        "print(start_tracker(Folder(Path(sys.argv[1])), sys.argv[2]).pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", program, str(folder.path), f"sqlite:///{path}"]
    pid = int(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    until(lambda: not Path(f"/proc/{pid}").exists() or "(zombie)" in Path(f"/proc/{pid}/status").read_text())
    assert counts(path)["runs"] == 6
    assert counts(path)["ended"] == 5  # the parent waits for a resume


def test_it_gives_up_in_time_and_says_how_to_finish(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path, 2)
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"this is no database, and never will be one" * 100)
    tracker = start_tracker(folder, f"sqlite:///{path}", patience=0.5)
    try:
        assert not tracker.wait(30)
        assert tracker.progress() > 10
        assert "mlflow.db" in tracker.problem()
        assert f"finish later with `raytuner sync {folder.path}`" in (folder.path / "tracking.log").read_text()
    finally:
        tracker.kill()
    path.unlink()
    sync(folder, f"sqlite:///{path}")
    assert tracker.progress() == 0


def test_a_tracker_that_was_killed_is_made_up_for(tmp_path: Path) -> None:
    folder, path = make_experiment(tmp_path, 3), tmp_path / "mlflow.db"
    tracker = start_tracker(folder, f"sqlite:///{path}")
    os.kill(tracker.pid, signal.SIGKILL)
    until(lambda: not tracker.running)
    assert "ended with code -9" in tracker.problem()
    assert tracker.wait(20)
    assert counts(path)["runs"] == 4


def test_one_at_a_time(tmp_path: Path) -> None:
    folder: Folder = make_experiment(tmp_path, 1)
    follower = Follower(folder, f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(TrackingError, match="another process is writing this experiment"):
        sync(folder, f"sqlite:///{tmp_path}/mlflow.db")
    follower.close()
    sync(folder, f"sqlite:///{tmp_path}/mlflow.db")


def test_the_tracker_of_a_driver_that_died_is_waited_for(tmp_path: Path, expected: dict[str, int]) -> None:
    folder, path = make_experiment(tmp_path, 30), tmp_path / "mlflow.db"
    uri = f"sqlite:///{path}"
    before = Follower(folder, uri)
    tracker = start_tracker(folder, uri)
    assert not tracker.wait(2.0)
    assert tracker.running, "and asking it to end does not keep it from writing what is left"
    before.step()
    before.close()
    assert tracker.wait(20)
    assert counts(path) == expected


def test_an_experiment_that_is_renamed_keeps_its_runs(tmp_path: Path) -> None:
    folder, path = make_experiment(tmp_path, 3), tmp_path / "mlflow.db"
    sync(folder, f"sqlite:///{path}")
    before = counts(path)
    renamed = Folder(folder.path.with_name("renamed"))
    folder.path.rename(renamed.path)
    writer = JournalWriter(renamed.journal)
    writer.append(driver_started(name="renamed", driver=2))
    writer.append(DriverEnded(status="finished"))
    writer.close()
    sync(renamed, f"sqlite:///{path}")
    assert counts(path)["runs"] == before["runs"]


def test_mlflow_stays_outside() -> None:
    program = (
        "import sys, raytuner.tracking.__main__; print([m for m in ('mlflow', 'ray', 'torch') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def test_a_password_in_the_stores_address_is_seen_by_nobody(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path, 3)
    tracker = start_tracker(folder, "http://me:hush@127.0.0.1:1", patience=60.0)
    try:
        until(lambda: list(folder.cursors.glob("*.status.json")))
        assert b"hush" not in Path(f"/proc/{tracker.pid}/cmdline").read_bytes()
        assert tracker.running
        written = [
            path.read_text(errors="replace") for path in (*folder.cursors.iterdir(), folder.path / "tracking.log")
        ]
        assert any("me:***@127.0.0.1" in text for text in written)
        assert not any("hush" in text for text in written)
    finally:
        tracker.kill()
