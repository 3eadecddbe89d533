"""What a laptop sees of a job or a trial that goes on: across lost connections, until the end, and no longer."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raytuner.cli import main
from raytuner.cli.cluster import _status_of, elsewhere
from raytuner.engine import jobs
from raytuner.engine.jobs import Job, JobServer
from raytuner.errors import LaunchError
from raytuner.journal import DriverStarted, Folder, JournalWriter, Lock, TrialAsked, TrialEnded, TrialStarted
from raytuner.launch.answer import ANSWER_MARK
from raytuner.launch.remote import STREAM_SECONDS, RemoteCluster

Tail = Callable[[], AsyncIterator[str]]


def server_of(*tails: Tail, ended: bool = True) -> JobServer:
    """A cluster whose connections tell what ``tails`` say, one after the other."""
    server, left = object.__new__(JobServer), list(tails)
    server.address, server._headers = "http://head:8265", {}
    server._client = SimpleNamespace(tail_job_logs=lambda id: left.pop(0)() if left else dropping())
    status = "SUCCEEDED" if ended else "RUNNING"
    server.job = lambda id: Job(id, status, "", {}, 0.0)  # type: ignore[method-assign]
    return server


def telling(*parts: str) -> Tail:
    async def tail() -> AsyncIterator[str]:
        for part in parts:
            yield part

    return tail


async def dropping(*parts: str) -> AsyncIterator[str]:
    for part in parts:
        yield part
    raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "AGAIN_SECONDS", 0.01)


def test_a_lost_connection_is_made_again_and_nothing_is_shown_twice() -> None:
    server = server_of(lambda: dropping("one\ntw", "o\n"), dropping, telling("one\n", "two\nthree\n"))
    assert "".join(server.follow("a-job")) == "one\ntwo\nthree\n"


def test_a_connection_that_says_nothing_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent() -> AsyncIterator[str]:
        yield "one\n"
        await asyncio.sleep(600)

    monkeypatch.setattr(jobs, "SILENT_SECONDS", 0.05)
    server = server_of(silent, telling("one\ntwo\n"))
    running = iter([False, True])
    server.job = lambda id: SimpleNamespace(ended=next(running))  # type: ignore[assignment,method-assign]
    assert "".join(server.follow("a-job")) == "one\ntwo\n"


def test_a_connection_that_stays_lost_says_that_the_job_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "RECONNECT_SECONDS", 0.05)
    with pytest.raises(LaunchError, match=r"not there again after 0\.05 s \(.*code 1006\); job a-job goes on without"):
        list(server_of().follow("a-job"))


def test_ctrl_c_is_not_lost_in_a_connection_that_fails_when_it_is_closed() -> None:
    """It comes in the middle of a step of the library that holds the connection."""

    async def fragile() -> AsyncIterator[str]:
        yield "one\n"
        try:
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(600)
        finally:
            raise RuntimeError("Cannot write to closing transport")

    with pytest.raises(KeyboardInterrupt):
        list(server_of(fragile, telling("one\ntwo\n")).follow("a-job"))


def test_ctrl_c_leaves_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    closed, told = [], []

    async def endless() -> AsyncIterator[str]:
        try:
            yield "one\n"
            await asyncio.sleep(600)
        finally:
            closed.append(True)

    monkeypatch.setattr(sys, "unraisablehook", told.append)
    following = server_of(endless, ended=False).follow("a-job")
    assert next(following) == "one\n"
    threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        next(following)
    del following
    assert closed == [True]
    assert told == []


def test_what_has_become_of_an_experiment_is_told_by_its_driver() -> None:
    def told(status: str, exit_code: int | None = None) -> str:
        return _status_of(Job("a-job", status, "", {}, 0.0, exit_code))

    assert told("SUCCEEDED", 0) == "finished"
    assert told("FAILED", 130) == told("STOPPED") == "interrupted"
    assert told("FAILED", 1) == told("FAILED") == "failed"
    assert told("RUNNING") == "running"


@pytest.mark.parametrize(
    ("arguments", "there"),
    [(["status"], True), (["status", "toy"], True), (["status", "here"], False), (["report"], False)],
)
def test_who_is_asked_with_a_cluster_in_the_environment(
    arguments: list[str], there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    (tmp_path / "here").mkdir()
    named = arguments[1] if len(arguments) > 1 else None
    options = argparse.Namespace(address=None, dir=named, arguments=arguments)
    assert elsewhere(options) == ("http://head:8265" if there else None)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path / "toy")
    with closing(JournalWriter(folder.journal)) as journal:
        objective = {"metric": "loss", "mode": "min", "max_steps": 3, "select": "best"}
        budget = {"trials": 2, "time": None, "gpu_hours": None}
        journal.append(
            DriverStarted(name="toy", driver=1, objective=objective, budget=budget, pid=1, host="x", slots=1)
        )
        for trial in ("000001", "000002"):
            journal.append(TrialAsked(trial=trial, config={"x": 1}))
            journal.append(TrialStarted(trial=trial, attempt=1, node="n", pid=1, cpu=1.0))
            folder.trial(trial).mkdir(parents=True)
            (folder.trial(trial) / "stdout.log").write_text("step 1\nstep")
        journal.append(TrialEnded(trial="000001", attempt=1, status="finished", step=3))
    return folder


@contextmanager
def driven(folder: Folder) -> Iterator[None]:
    with Lock(folder):
        yield


@pytest.mark.timeout(30)
def test_following_a_log_ends_with_the_trial_and_with_the_experiment(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    with driven(folder):
        assert main(["logs", str(folder.path), "1", "--follow"]) == 0
    assert main(["logs", str(folder.path), "2", "--follow"]) == 0  # whose driver is gone
    assert capsys.readouterr().out == "step 1\nstep" * 2


@pytest.mark.timeout(30)
def test_a_job_that_follows_ends_after_a_while_and_says_how_far_it_came(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    with driven(folder):
        assert main(["logs", str(folder.path), "2", "--follow", "--after=5", "--within=0.1"]) == 0
    shown, _, answer = capsys.readouterr().out.partition(ANSWER_MARK)
    assert shown == "1\n"
    assert '"out": "7"' in answer


def test_the_next_job_goes_on_where_the_last_one_came_to() -> None:
    outputs = [f'step 1\n{ANSWER_MARK}{{"code": 0, "out": "7", "err": ""}}\n', "step 2\n"]
    submitted: list[str] = []
    server = SimpleNamespace(
        submit=lambda command, id: submitted.append(command), follow=lambda id: [outputs.pop(0)], stop=lambda id: None
    )
    cluster: Any = object.__new__(RemoteCluster)
    cluster._server = server
    assert list(cluster.stream(["logs", "/shared/toy", "2", "--follow"])) == ["step 1\n", "step 2\n"]
    first, second = submitted
    assert first.endswith(f"--follow --after=0 --within={STREAM_SECONDS}")
    assert second.endswith(f"--follow --after=7 --within={STREAM_SECONDS}")
