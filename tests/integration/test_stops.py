"""Stops reach a trial in the middle of a ten-minute step, and what was killed leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Run, events_of, processes_of, raytuner, start_driver, wait_until

from raytuner.journal import Folder, TrialEnded, TrialStarted, replay
from raytuner.launch.control import request_stop

STEPS = {"metric": "loss", "mode": "min", "max_steps": 3}
OWN: dict[str, Any] = {"objective": STEPS, "space": {"x": {"type": "float", "low": -10.0, "high": 10.0}}}


@pytest.mark.parametrize("workers", [1, 2])
def test_the_time_budget_reaches_a_long_step(run: Run, workers: int) -> None:
    resources = {"workers": workers, "cpu": 1 / workers}
    state, folder = run(train="objectives:endless", objective=STEPS, budget={"time": 3}, resources=resources)
    assert (state.status, state.reason) == ("failed", "no trial reported a result")
    began = events_of(folder, TrialStarted)[0].at
    ended = [event.at - began for event in events_of(folder, TrialEnded)]
    assert ended, "trials had started"
    assert all(3.0 <= after < 4.2 for after in ended), ended
    assert {t.status for t in state.trials.values()} == {"stopped"}
    assert "time budget" in next(iter(state.trials.values())).reason


def test_step_timeout_fails_the_trial(run: Run) -> None:
    _, folder = run(train="objectives:endless", objective=STEPS, step_timeout=1, budget={"trials": 2})
    started = {event.trial: event.at for event in events_of(folder, TrialStarted)}
    for event in events_of(folder, TrialEnded):
        assert event.status == "failed"
        assert event.error["kind"] == "timeout"
        assert "step 1 took longer than step_timeout=1s" in event.reason
    assert set(started) == {"000001", "000002"}


def test_one_trial_is_stopped_from_another_shell(run: Run, tmp_path: Path) -> None:
    """The other trial goes on, until the whole experiment is stopped."""
    folder = Folder(tmp_path / "results" / "test")
    asked: dict[str, float] = {}

    def ask() -> None:
        def running(state_of: str) -> bool:
            return folder.journal.exists() and replay(folder).trials.get(state_of, None) is not None

        wait_until(lambda: running("000002") and replay(folder).count("running") == 2, 60, "two trials run")
        asked["000001"] = time.time()
        request_stop(folder, "1")
        wait_until(lambda: replay(folder).trials["000001"].ended, 5, "the trial has ended")
        assert not replay(folder).trials["000002"].ended
        asked["all"] = time.time()
        request_stop(folder, None)

    thread = threading.Thread(target=ask)
    thread.start()
    state, _ = run(train="objectives:endless", objective=STEPS, budget={"trials": 2})
    thread.join()
    ends = {event.trial: event for event in events_of(folder, TrialEnded)}
    assert ends["000001"].at - asked["000001"] < 1.2
    assert ends["000002"].at - asked["all"] < 1.2
    assert ends["000001"].status == "stopped"
    assert "raytuner stop" in ends["000001"].reason
    assert state.status == "interrupted"


def running_children(folder: Folder, count: int) -> list[int]:
    """The processes of ``count`` running trials."""

    def found() -> list[int] | None:
        if not folder.journal.exists():
            return None
        started = [e.pid for e in events_of(folder, TrialStarted)]
        return started if len(started) >= count else None

    pids: list[int] = wait_until(found, 90, f"{count} trials run")
    return pids


def gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in pids)


def wait_until_gone(tmp_path: Path) -> None:
    """Until no process of the driver's is left, its Ray's included; names those that stay."""
    limit = time.monotonic() + 15
    while left := processes_of(str(tmp_path)):
        assert time.monotonic() < limit, f"still there: {[(p, p.cmdline()) for p in left if p.is_running()]}"
        time.sleep(0.05)


@pytest.mark.parametrize(("victim", "workers"), [("driver", 1), ("driver", 2), ("actor", 1)])
def test_a_kill_leaves_no_process_behind(tmp_path: Path, victim: str, workers: int) -> None:
    resources = {"workers": workers, "cpu": 1 / workers, "concurrent_trials": 2}
    process, folder = start_driver(
        tmp_path, **OWN, train="objectives:with_helper", budget={"trials": 2}, resources=resources
    )
    try:
        pids = running_children(folder, 2)

        def found() -> list[int]:
            lines = [line for log in folder.path.glob("trials/**/stdout.log") for line in log.read_text().splitlines()]
            return [int(line.split()[1]) for line in lines if line.startswith("helper")]

        helpers = wait_until(lambda: len(found()) == 2 * workers and found(), 10, "helpers run")
        if victim == "driver":
            os.kill(process.pid, signal.SIGKILL)
            wait_until(lambda: gone(pids + helpers), 1.5, "the trials and their helpers are gone")
            wait_until_gone(tmp_path)
        else:
            slots = [p for p in processes_of(str(tmp_path)) if "ray::Slot" in " ".join(p.cmdline())]
            assert len(slots) == 2
            for slot in slots:
                slot.kill()
            wait_until(lambda: gone(pids + helpers), 1.5, "the trials and their helpers are gone")
            again = running_children(folder, 4)[2:]
            assert {e.attempt for e in events_of(folder, TrialStarted)} == {1, 2}
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
            wait_until(lambda: gone(again), 1.0, "the second attempts are gone")
            wait_until_gone(tmp_path)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("starting", ["agent.py", "default_worker.py"])
def test_a_kill_while_ray_starts_leaves_no_process_behind(tmp_path: Path, starting: str) -> None:
    """What is just starting would look for its Ray for up to half a minute."""

    def found() -> bool:
        with suppress(psutil.Error):  # one of them has ended meanwhile
            return any(starting in " ".join(p.cmdline()) for p in processes_of(str(tmp_path)))
        return False

    process, _ = start_driver(tmp_path, **OWN, train="objectives:endless", budget={"trials": 2})
    try:
        wait_until(found, 90, f"a {starting} starts")
    finally:
        process.kill()
        process.communicate()
    wait_until(lambda: not processes_of(str(tmp_path)), 3, "nothing is left")


@pytest.mark.parametrize("twice", [False, True])
def test_ctrl_c_ends_cleanly_or_asked_twice_at_once_and_a_resume_finishes(tmp_path: Path, twice: bool) -> None:
    hold = tmp_path / "hold"
    process, folder = start_driver(
        tmp_path,
        train="objectives:held_curve",
        test="objectives:curve_test",
        space={
            "x": {"type": "float", "low": -10.0, "high": 10.0},
            "seconds": {"type": "choice", "values": [0.3]},
            "held_by": {"type": "choice", "values": [str(hold)]},
        },
        objective={"metric": "loss", "mode": "min", "max_steps": 9},
        budget={"trials": 4},
        defaults={"x": 2.0, "seconds": 0.3, "held_by": str(hold)},
        checkpoints={"every_steps": 1},
    )
    try:
        wait_until(lambda: folder.journal.exists() and replay(folder).steps >= 4, 90, "some steps are on record")
        if twice:
            hold.touch()  # no step ends now: a stop that waits for one has nothing to show
            process.send_signal(signal.SIGSTOP)  # both are there before it can be done with the first
            process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "stopping" in output
        assert "Traceback" not in output
        assert twice or "raytuner resume" in output
    finally:
        process.kill()
        process.wait()
    before = replay(folder)
    if twice:
        assert before.status != "interrupted", "it waited for the trials and wrote its end down"
        wait_until_gone(tmp_path)
        hold.unlink()
    else:
        assert before.status == "interrupted"
        cut = [t for t in before.trials.values() if t.reason.startswith("interrupted")]
        assert cut
        assert all(t.last_checkpoint is not None and t.last_checkpoint.step == t.step for t in cut if t.step)
    raytuner("run", str(tmp_path / "experiment.yaml"), "--resume")  # where it is there, what `resume DIR` does
    after = replay(folder)
    assert after.status == "finished"
    assert [t.status for t in after.trials.values()] == ["finished"] * 4
    assert all([s.step for s in t.steps] == list(range(1, 10)) for t in after.trials.values())
    again = 2 if twice else 0  # the step of each slot: nothing that was checkpointed is trained twice
    assert 4 * 9 <= after.steps <= 4 * 9 + again
    assert [(t.trial, t.metrics) for t in after.tests] == [("000001", {"test_loss": 9.0})]
    assert raytuner("status", "--json", str(folder.path))["schema"] == "raytuner.status/1"


def test_a_test_that_is_cut_off_is_made_up_for(tmp_path: Path) -> None:
    """One that is killed starts again; one that is stopped is left to a resume; requests are for one driver alone."""
    hold = tmp_path / "hold"
    hold.touch()
    space = {"x": {"type": "choice", "values": [2.0]}, "held_by": {"type": "choice", "values": [str(hold)]}}
    process, folder = start_driver(
        tmp_path,
        train="objectives:curve",
        test="objectives:held_test",
        space=space,
        objective={"metric": "loss", "mode": "min", "max_steps": 3},
        budget={"trials": 2},
    )

    def tests() -> list[int]:
        pids = hold.with_suffix(".pids")
        return [int(line) for line in pids.read_text().splitlines()] if pids.exists() else []

    try:
        wait_until(lambda: len(tests()) == 1, 90, "the test runs")
        os.kill(tests()[0], signal.SIGKILL)
        wait_until(lambda: len(tests()) == 2, 20, "it runs again")
        assert request_stop(folder, None) == "the experiment is being stopped"
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, output
    assert "raytuner resume" in output
    assert "killed from outside; it starts again" in output
    state = replay(folder)
    assert (state.status, state.tests) == ("interrupted", [])
    hold.unlink()
    (folder.control / "1.json").write_text('{"stop": null}')  # as one that came too late
    raytuner("resume", str(folder.path))
    state = replay(folder)
    assert state.status == "finished"
    (test,) = state.tests
    assert (test.error, test.metrics) == (None, {"test_loss": 3.0})
    assert not list(folder.control.iterdir())

    best = state.best
    assert best is not None
    assert best.best_checkpoint is not None
    damage(Path(best.best_checkpoint.path))
    (folder.control / "2.json").write_text(json.dumps({"enqueue": {"x": 2.0, "held_by": str(hold)}}))
    forget_the_test(folder)
    command = [sys.executable, "-m", "raytuner", "resume", str(folder.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SHA-256 differs" in done.stdout
    assert "the last 20 bytes are torn and were skipped" in done.stdout
    state = replay(folder)
    assert [trial.source for trial in state.trials.values()] == ["search", "user"]
    (test,) = state.tests
    assert test.error is not None
    assert "SHA-256 differs" in test.error["message"]


def damage(checkpoint: Path) -> None:
    """Flip a byte of it."""
    file = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.suffix != ".json")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def forget_the_test(folder: Folder) -> None:
    """As if the driver had died as it wrote the test down."""
    last = max(folder.journal.iterdir())
    lines = last.read_bytes().splitlines(keepends=True)
    place = next(number for number, line in enumerate(lines) if b'"type":"tested"' in line)
    last.write_bytes(b"".join(lines[:place]) + lines[place][:20])
