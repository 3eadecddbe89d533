"""A real MLflow server that is stopped, started again on its store, and frozen, while an experiment goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_journals import experiment_events, make_experiment, make_folder, write_files
from test_tracking_process import counts, until

from raytuner.journal import JournalWriter
from raytuner.tracking import behind, start_tracker, sync

TRIALS = 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """``mlflow server`` on a store of its own, always at the same address."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "mlflow.db"
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._log = (folder / "server.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.database}",
            "--artifacts-destination", str(self._folder / "artifacts"),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=self._log, cwd=self._folder, start_new_session=True
        )
        until(self._answers, 90)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)  # all at once: they watch over each other

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        self._signal(signal.SIGCONT)
        until(self._answers, 90)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        self.kill()
        self._log.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    yield made
    made.close()


def test_a_server_that_is_killed_restarted_and_frozen(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event waits for it; in the end everything is there, once, and in order."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    (tmp_path / "expected").mkdir()
    sync(make_experiment(tmp_path / "expected", TRIALS), f"sqlite:///{tmp_path}/expected/mlflow.db")
    folder = make_folder(tmp_path)
    events = experiment_events(folder, TRIALS, pid=os.getpid())
    write_files(events)
    tracker = start_tracker(folder, server.uri)
    try:
        writer = JournalWriter(folder.journal)
        longest = 0.0

        def write(share: float) -> None:
            nonlocal longest
            for event in events[writer.events : int(len(events) * share)]:
                began = time.monotonic()
                writer.append(event)
                longest = max(longest, time.monotonic() - began)

        write(0.2)
        until(lambda: tracker.progress() == 0, 60)
        server.kill()
        write(0.4)
        until(lambda: "must answer" in tracker.problem(), 60)
        assert behind(folder) > 0
        server.start()
        write(0.6)
        time.sleep(1.0)  # in the middle of it
        server.freeze()
        write(0.8)
        time.sleep(8.0)  # several requests that nobody answers, and that are read when it wakes
        server.wake()
        write(1.0)
        writer.close()
        folder.report.write_text("# The last word\n")
        assert tracker.wait(90), tracker.problem()
    finally:
        tracker.kill()
    assert longest < 0.5, "the experiment does not wait for its tracker"
    assert (tracker.progress(), tracker.problem()) == (0, "")
    assert counts(server.database) == counts(tmp_path / "expected" / "mlflow.db")
    (report,) = tmp_path.glob("artifacts/*/*/artifacts/report.md")
    assert report.read_text() == "# The last word\n"


def test_what_a_driver_left_is_written_by_sync(server: Server, tmp_path: Path) -> None:
    """The server was away until after the driver's end, and the tracker gave up."""
    (tmp_path / "expected").mkdir()
    sync(make_experiment(tmp_path / "expected", 5), f"sqlite:///{tmp_path}/expected/mlflow.db")
    server.kill()
    folder = make_experiment(tmp_path, 5)
    tracker = start_tracker(folder, server.uri, patience=0.5)
    assert not tracker.wait(60)
    assert "must answer" in tracker.problem()
    server.start()
    assert sync(folder, server.uri) > 0
    assert behind(folder) == 0
    assert counts(server.database) == counts(tmp_path / "expected" / "mlflow.db")
