"""Drivers, nodes and disks that fail, and what is there afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import events_of, processes_of, raytuner, start_driver, wait_until

from raytuner.engine.runner import quiet_ray
from raytuner.journal import Folder, Retried, TrialEnded, TrialStarted, replay

SPACE = {"x": {"type": "float", "low": -10.0, "high": 10.0}, "seconds": {"type": "choice", "values": [0.2]}}
OBJECTIVE = {"metric": "loss", "mode": "min", "max_steps": 12}
ONE: dict[str, Any] = {"space": SPACE, "objective": OBJECTIVE, "budget": {"trials": 1}}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_what_was_frozen_and_wakes_after_the_resume_changes_nothing(tmp_path: Path) -> None:
    driver, folder = start_driver(tmp_path, **ONE, train="objectives:curve", checkpoints={"every_steps": 1})
    frozen: list[psutil.Process] = []
    try:
        wait_until(lambda: folder.journal.exists() and replay(folder).steps >= 3, 90, "some steps are on record")
        trial = psutil.Process(events_of(folder, TrialStarted)[0].pid)
        frozen = [trial.parent(), trial]
        for process in frozen:
            process.suspend()
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate()
    raytuner("resume", str(folder.path))
    after = replay(folder)
    assert after.status == "finished"
    assert [step.step for step in after.trials["000001"].steps] == list(range(1, 13))
    assert after.steps == 12, "no step that was checkpointed is trained twice"
    before = contents(folder.path)
    for process in reversed(frozen):
        assert process.status() == psutil.STATUS_STOPPED
        process.resume()
        time.sleep(0.5)
    wait_until(lambda: not any(map(alive, frozen)), 5, "what was frozen is gone")
    assert contents(folder.path) == before
    wait_until(lambda: not processes_of(str(tmp_path)), 15, "nothing is left")


# -- a disk that is full --------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all that is left of a disk."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 2**12):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return filler


def test_a_full_disk_is_waited_for(tmp_path: Path, small_disk: Path) -> None:
    """Trials print, report and write checkpoints of a megabyte; nothing fails, and nothing is lost."""
    space = {"x": {"type": "float", "low": -10.0, "high": 10.0}, "seconds": {"type": "choice", "values": [0.2]}}
    driver, folder = start_driver(
        tmp_path,
        train="objectives:weighty",
        space=space,
        objective={"metric": "loss", "mode": "min", "max_steps": 9},
        scheduler={"type": "asha", "form": "promote", "grace_steps": 1, "reduction_factor": 3},
        budget={"trials": 6},
        storage=str(small_disk / "results"),
        tracking={"mlflow": f"sqlite:///{small_disk}/mlflow.db"},
    )
    folder = Folder(small_disk / "results" / "own")
    try:
        wait_until(lambda: folder.journal.exists() and replay(folder).steps >= 4, 90, "some steps are on record")
        filler = fill(small_disk)
        time.sleep(4.0)
        full = replay(folder)
        assert driver.poll() is None, "the driver waits"
        filler.unlink()
        output, _ = driver.communicate(timeout=120)
    finally:
        driver.kill()
        driver.communicate()
    assert driver.returncode == 0, output
    assert "the disk is full: it waits for room" in output
    assert "there is room on the disk again: it goes on" in output
    assert "Traceback" not in output
    after = replay(folder)
    assert full.count("failed") == after.count("failed") == 0
    assert len(after.trials) == after.count("finished", "paused") == 6
    for trial in after.trials.values():
        assert [step.step for step in trial.steps] == list(range(1, trial.step + 1))
    again = after.steps - sum(trial.step for trial in after.trials.values())
    assert again <= len(events_of(folder, Retried)), "only what could not be written is trained again"
    raytuner("sync", str(folder.path))


def test_on_a_full_disk_commands_say_so_and_an_extension_waits(tmp_path: Path, small_disk: Path) -> None:
    driver, _ = start_driver(
        tmp_path,
        train="objectives:curve",
        space={"x": {"type": "float", "low": -10.0, "high": 10.0}, "seconds": {"type": "choice", "values": [0.2]}},
        objective={"metric": "loss", "mode": "min", "max_steps": 9},
        budget={"trials": 90},
        storage=str(small_disk / "results"),
    )
    folder = Folder(small_disk / "results" / "own")
    try:
        wait_until(lambda: folder.journal.exists() and replay(folder).steps >= 4, 90, "some steps are on record")
        filler = fill(small_disk)
        driver.send_signal(signal.SIGINT)
        output, _ = driver.communicate(timeout=60)
    finally:
        driver.kill()
        driver.communicate()
    assert driver.returncode == 130, output
    assert "Traceback" not in output
    definition = str(tmp_path / "experiment.yaml")
    for command in (["report", str(folder.path)], ["run", definition, "--name", "other"]):
        done = subprocess.run(
            [sys.executable, "-m", "raytuner", *command], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 1
        assert "must be writable" in done.stderr
        assert "Traceback" not in done.stderr
    more = str(1 + len(replay(folder).trials))
    command = [sys.executable, "-m", "raytuner", "extend", str(folder.path), "--trials", more]
    extending = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    time.sleep(6.0)
    assert extending.poll() is None, "it waits"
    filler.unlink()
    output, _ = extending.communicate(timeout=120)
    assert extending.returncode == 0, output
    assert "the disk is full: it waits for room" in output
    assert len(replay(folder).trials) == int(more)


# -- nodes that go away ---------------------------------------------------------------------------------------------


class Nodes:
    """A Ray cluster of several nodes on this machine, each for one trial, and a head that runs none."""

    def __init__(self, count: int) -> None:
        quiet_ray()
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.address = self._cluster.address
        self._nodes = [self.add() for _ in range(count)]

    def add(self) -> Any:
        return self._cluster.add_node(num_cpus=1)

    def kill(self) -> None:
        """The first of them is gone at once, and another comes instead."""
        self._cluster.remove_node(self._nodes.pop(0), allow_graceful=False)
        self._nodes.append(self.add())

    def drain(self, seconds: float) -> str:
        """The first is told to go away within so many seconds, and another comes instead; its name."""
        from ray._raylet import GcsClient
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        node = self._nodes.pop(0)
        by = int((time.time() + seconds) * 1000)
        reason = DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
        accepted, message = GcsClient(address=self.address).drain_node(node.node_id, reason, "spot", by)
        assert accepted, message
        self._nodes.append(self.add())
        return str(node.node_id)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    made = Nodes(2)
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    made.close()


LONG = {"x": {"type": "float", "low": -10.0, "high": 10.0}, "seconds": {"type": "choice", "values": [1.0]}}


def test_a_trial_leaves_a_node_that_goes_away_after_a_checkpoint(tmp_path: Path, nodes: Nodes) -> None:
    """... at the end of its step, though a step is longer than a stop may usually take; nothing is trained twice."""
    driver, folder = start_driver(
        tmp_path,
        train="objectives:curve",
        space=LONG,
        objective={"metric": "loss", "mode": "min", "max_steps": 10},
        budget={"trials": 2},
        checkpoints={"best": False, "every_time": None},
        resources={"cpu": 1},
    )
    try:
        wait_until(
            lambda: folder.journal.exists() and all(t.step >= 2 for t in replay(folder).trials.values())
            and replay(folder).count("running") == 2, 90, "two trials run",
        )  # fmt: skip
        nodes.drain(20.0)
        output, _ = driver.communicate(timeout=90)
    finally:
        driver.kill()
        driver.communicate()
    assert driver.returncode == 0, output
    assert "Traceback" not in output
    (moved,) = events_of(folder, Retried)
    assert moved.reason == "its node is going away"
    state = replay(folder)
    assert [trial.status for trial in state.trials.values()] == ["finished"] * 2
    assert state.steps == 20, "no step is trained twice"
    started = {(event.trial, event.attempt): event for event in events_of(folder, TrialStarted)}
    assert started[moved.trial, moved.attempt + 1].step == moved.step
    assert len(started) == 3, "the other trial does not notice"


def test_trials_of_a_node_that_dies_go_on_elsewhere(tmp_path: Path, nodes: Nodes) -> None:
    driver, folder = start_driver(
        tmp_path,
        train="objectives:curve",
        space=SPACE,
        objective=OBJECTIVE,
        budget={"trials": 6},
        checkpoints={"every_steps": 1},
        resources={"cpu": 1},
    )
    try:
        for after in (3, 25):
            wait_until(
                lambda after=after: folder.journal.exists() and replay(folder).steps >= after, 90, f"{after} steps"
            )
            nodes.kill()
        output, _ = driver.communicate(timeout=120)
    finally:
        driver.kill()
        driver.communicate()
    assert driver.returncode == 0, output
    assert "Traceback" not in output
    state = replay(folder)
    assert [trial.status for trial in state.trials.values()] == ["finished"] * 6
    for trial in state.trials.values():
        assert [step.step for step in trial.steps] == list(range(1, 13))
    lost = events_of(folder, Retried)
    assert 1 <= len(lost) <= 2
    assert state.steps <= 6 * 12 + 2 * len(lost), "only the step in progress is trained again"
    assert not [event for event in events_of(folder, TrialEnded) if event.status == "failed"]


# -- all of it together ---------------------------------------------------------------------------------------------


def test_nothing_is_lost_whatever_is_killed() -> None:
    """A short turn of the benchmark, which kills drivers, trials and nodes, in the middle of writes too."""
    script = Path(__file__).parents[2] / "benchmarks" / "chaos.py"
    command = [sys.executable, str(script), "--kills", "6", "--rounds", "1", "--trials", "14", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| nothing |" in done.stdout
