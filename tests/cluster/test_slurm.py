"""The batch script on a real Slurm: two nodes, which are two slurmd on this machine."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from cluster_tools import CLUSTER, ROOT, options_of

from raytuner.journal import DriverStarted, Folder, JournalReader, replay

SCRIPT = CLUSTER / "slurm" / "raytuner.sbatch"
SMALL = ("--cpus-per-task=2", "--gpus-per-node=1", "--time=10", "--parsable")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "sinfo")

OBJECTIVE = """
import time


def train(trial):
    for step in trial.steps(done=0):
        time.sleep(0.5)
        trial.state["done"] = step
        trial.report(loss=abs(trial.config["x"]) + 1 / step)
"""


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _configuration(folder: Path) -> str:
    host, user = socket.gethostname().split(".")[0], getpass.getuser()
    has = "CPUs=2 RealMemory=1000 Gres=gpu:1"
    nodes = "".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={_free_port()} {has}\n" for name in ("n1", "n2")
    )
    return f"""
ClusterName=test
FirstJobId={100_000 + secrets.randbelow(900_000)}
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={_free_port()}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2
GresTypes=gpu
{nodes}PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


Slurm = Callable[..., str]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Run one of Slurm's commands against a cluster of two nodes, each with a GPU that is declared and not there."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here; Debian's packages slurm-wlm and munge have them")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "slurm.conf").write_text(_configuration(folder))
    (folder / "gres.conf").write_text("".join(f"NodeName={n} Name=gpu File=/dev/null\n" for n in ("n1", "n2")))
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o400)
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": path, "PYTHONPATH": python_path}
    munge = {name: str(folder / f"munge.{name}") for name in ("socket", "pid", "log", "seed", "key")}

    def run(*command: str, cwd: Path = folder) -> str:
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    with contextlib.ExitStack() as daemons:

        def start(name: str, *command: str) -> None:
            log = daemons.enter_context((folder / f"{name}.out").open("w"))
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            daemons.callback(process.wait, 20)
            daemons.callback(process.terminate)

        start(
            "munged",
            *("munged", "--foreground", "--force", "--key-file", munge["key"], "--socket", munge["socket"]),
            *("--pid-file", munge["pid"], "--log-file", munge["log"], "--seed-file", munge["seed"]),
        )
        _wait_until(Path(munge["socket"]).exists, 20, "munged is up")
        start("slurmctld", "slurmctld", "-D")
        for node in ("n1", "n2"):
            start(node, "slurmd", "-D", "-N", node)
        _wait_until(lambda: _quietly(run, "sinfo", "-h", "-t", "idle", "-o", "%D") == "2", 40, "both nodes are idle")
        try:
            yield run
        finally:
            run("scancel", "--user", getpass.getuser())


def _quietly(run: Slurm, *command: str) -> str:
    try:
        return run(*command)
    except AssertionError:
        return ""


def _wait_until(condition: Callable[[], Any], seconds: float, what: str) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not within {seconds} s: {what}"
        time.sleep(0.2)


def _processes_of(job: str, folder: Path) -> list[psutil.Process]:
    """What the job has started and lives, by its environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if environment.get("SLURM_JOB_ID") == job and environment.get("SLURM_SUBMIT_DIR") == str(folder):
                found.append(process)
    return found


@pytest.mark.timeout(420)
def test_a_job_ends_in_order_before_its_time_limit_and_queues_itself_to_go_on(slurm: Slurm, tmp_path: Path) -> None:
    definition = {
        "name": "tiny",
        "train": "objective:train",
        "objective": {"metric": "loss", "mode": "min", "max_steps": 6},
        "space": {"x": {"type": "float", "low": -10.0, "high": 10.0}},
        "search": "random",
        "budget": {"trials": 4},
        "resources": {"gpu": 1},
        "tracking": "none",
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(definition))
    (tmp_path / "objective.py").write_text(OBJECTIVE)
    job = slurm("sbatch", *SMALL, str(SCRIPT), "experiment.yaml", "--set", f"storage={tmp_path}/results", cwd=tmp_path)
    log, folder = tmp_path / f"raytuner-{job}.log", Folder(tmp_path / "results" / "tiny")

    def trained() -> int:
        return len([event for event in JournalReader(folder.journal).read() if event.type == "reported"])

    _wait_until(lambda: folder.journal.exists() and trained() >= 2, 120, "two steps are done")
    token = tmp_path / f".raytuner-{job}" / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    secret = token.read_text()
    assert len(secret) == 64
    assert len([p for p in _processes_of(job, tmp_path) if "raylet" in p.name()]) == 2
    for process in _processes_of(job, tmp_path):
        with contextlib.suppress(psutil.Error):
            assert secret not in " ".join(process.cmdline())

    slurm(
        "scancel", "--batch", "--signal=USR1", job
    )  # what Slurm sends before the time limit, by `--signal=B:USR1@240`
    _wait_until(lambda: not slurm("squeue", "-h"), 200, "the job has ended")

    text = log.read_text()
    assert "DUE TO JOB REQUEUE" in text
    assert "raytuner run experiment.yaml --resume --set storage=" in text
    assert secret not in text
    state = replay(folder)
    assert state.status == "finished"
    assert [trial.status for trial in state.trials.values()] == ["finished"] * 4
    assert [trial.step for trial in state.trials.values()] == [6] * 4
    assert state.steps <= 4 * 6 + 2  # nothing began anew; a step that was cut off may have been reported twice
    drivers = [event for event in JournalReader(folder.journal).read() if isinstance(event, DriverStarted)]
    assert [driver.slots for driver in drivers] == [2, 2]  # a GPU on each of the two nodes
    assert _processes_of(job, tmp_path) == []
    assert not token.parent.exists()
    assert list(Path("/tmp").glob(f"ray-{job}-*")) == []


def test_a_job_whose_ray_does_not_start_ends_and_says_so(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "ray").write_text("#!/bin/sh\necho no room for Ray here\nexit 1\n")
    (tmp_path / "ray").chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    job = slurm("sbatch", *SMALL, f"--export=ALL,PATH={path}", str(SCRIPT), "experiment.yaml", cwd=tmp_path)
    _wait_until(lambda: not slurm("squeue", "-h"), 60, "the job has ended")
    text = (tmp_path / f"raytuner-{job}.log").read_text()
    assert "no room for Ray here" in text
    assert "Ray did not start" in text
    assert "JobState=FAILED" in slurm("scontrol", "show", "job", job)
    assert not (tmp_path / f".raytuner-{job}").exists()


def test_the_script_is_sound() -> None:
    """By bash's own reading, and shellcheck's where it is installed."""
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--severity=warning", str(SCRIPT)], check=True)


def test_ray_start_knows_the_options() -> None:
    script = SCRIPT.read_text()
    node = script[script.index("ray_node() {") : script.index("\n}\n")]
    assert set(re.findall(r"(?<![\w-])--[a-z-]+", node)) <= options_of("ray", "start")
