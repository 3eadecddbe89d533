"""Hosts of its own, a launch from one of them, and the loss of another in the middle: one command, no trace left.

    python tests/multihost/run.py [--times 20]

Needs root. Everything happens in namespaces that end with this process: a bridge, and on it five hosts, each with a
network, a name and private folders of its own: ``head``, ``worker1`` and ``worker2`` (Ray nodes; the workers declare
two GPUs each), ``services`` (PostgreSQL, MLflow's server, moto's S3) and ``laptop``, which launches an experiment by
the head's dashboard, with a token. When some trials have ended, ``worker2`` loses its network and all its processes are
killed. All trials must finish, each with every step once; the test, MLflow's runs and the fetched model must be right.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NET = "10.77.0"
HOSTS = {"head": 10, "worker1": 11, "worker2": 12, "services": 20, "laptop": 30}
APART = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
TRIALS, STEPS = 12, 8
START_SECONDS = 120.0
RAYS = "/tmp/rt-multihost"
TRAIN = """
import time

import numpy as np


def train(trial):
    weights = np.zeros(1000)
    for step in trial.steps(weights=weights):
        weights += 1.0
        assert weights[0] == step, "a trial that goes on must have its state"
        time.sleep(0.5)
        trial.report(loss=(trial.config["x"] - 0.5) ** 2 + 1.0 / step)


def test(trial):
    weights = np.zeros(1000)
    trial.restore(weights=weights)
    return {"steps": float(weights[0])}
"""


def address(host: str) -> str:
    return f"{NET}.{HOSTS[host]}"


def sh(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    limit = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > limit:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.2)
    return found


def program(name: str) -> str:
    found = sorted(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")))
    return found[-1] if found else str(shutil.which(name))


class Site:
    """The hosts, and what runs on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.project = folder / "project"
        self.token = folder / "token"
        self._private = [
            Path("/tmp/rt-multihost"),
            Path(f"/tmp/raytuner-{os.getuid()}"),
            folder / "cache",
            folder / "home",
        ]
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY", "AWS_", "MLFLOW"))},
            "HOME": str(folder / "home"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.store = {
            "AWS_ACCESS_KEY_ID": "multi",
            "AWS_SECRET_ACCESS_KEY": "host",
            "AWS_ENDPOINT_URL": f"http://{address('services')}:9000",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_DEFAULT_REGION": "us-east-1",
            "RAYTUNER_CACHE": str(folder / "cache"),
        }

    def bring_up(self) -> None:
        for path in (self.logs, self.project, *self._private):
            path.mkdir(parents=True, exist_ok=True)
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        # Who asks for a name must not wait for a server that is out of reach.
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{address(h)} {h}\n" for h in HOSTS))
        (self.folder / "resolv.conf").write_text("")
        (self.project / "train.py").write_text(TRAIN)
        (self.project / "pyproject.toml").write_text("")
        Path("/run/netns").mkdir(exist_ok=True)
        sh("mount", "-t", "tmpfs", "none", "/run/netns")
        sh("ip", "link", "set", "lo", "up")
        sh("ip", "link", "add", "bridge", "type", "bridge")
        sh("ip", "addr", "add", f"{NET}.1/24", "dev", "bridge")
        sh("ip", "link", "set", "bridge", "up")
        for host in HOSTS:
            sh("ip", "netns", "add", host)
            sh("ip", "link", "add", f"to-{host}", "type", "veth", "peer", "name", "eth0", "netns", host)
            sh("ip", "link", "set", f"to-{host}", "master", "bridge", "up")
            sh("ip", "-n", host, "addr", "add", f"{address(host)}/24", "dev", "eth0")
            sh("ip", "-n", host, "link", "set", "eth0", "up")
            sh("ip", "-n", host, "link", "set", "lo", "up")
            sh("ip", "-n", host, "route", "add", "default", "via", f"{NET}.1")
        self._services()
        ray = f"--node-ip-address={address('head')}", "--port=6379", f"--dashboard-host={address('head')}"
        # How soon a host that says nothing is given up: Ray's own minute is for real networks.
        soon = {"period_ms": "2000", "timeout_ms": "5000", "failure_threshold": "3"}
        env = {**self.store, **{f"RAY_health_check_{name}": value for name, value in soon.items()}}
        log = self.start("head", [*RAY, "--head", *ray, "--num-cpus=0"], env)
        wait_until(lambda: "Ray runtime started" in log.read_text(), START_SECONDS, "the head is up")
        self.listens("head", 8265)
        for host in ("worker1", "worker2"):
            self.worker(host)

    def worker(self, host: str) -> None:
        where = f"--address={address('head')}:6379", f"--node-ip-address={address(host)}"
        log = self.start(host, [*RAY, *where, "--num-cpus=2", "--num-gpus=2"], self.store)
        wait_until(lambda: "Ray runtime started" in log.read_text(), START_SECONDS, f"{host} is up")

    def _services(self) -> None:
        data = self.folder / "pg"
        data.mkdir()
        self.folder.chmod(0o755)
        postgres: list[str] = []
        if os.getuid() == 0:
            shutil.chown(data, "postgres", "postgres")
            postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        sh(*postgres, program("initdb"), "-D", str(data), "-U", "mlflow", "--auth=trust", "-E", "UTF8")
        with (data / "pg_hba.conf").open("a") as access:
            access.write(f"host all all {NET}.0/24 trust\n")
        here = address("services")
        self.start(
            "services", [*postgres, program("postgres"), "-D", str(data), "-h", here, "-k", ""], {}, private=False
        )
        self.listens("services", 5432)
        self.start("services", [sys.executable, "-m", "moto.server", "-H", here, "-p", "9000"], {})
        command = [sys.executable, "-m", "mlflow", "server", "--host", here, "--port", "5000", "--workers", "1"]
        command += ["--backend-store-uri", f"postgresql://mlflow@{here}/postgres", "--allowed-hosts", f"{here}:5000"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        self.start("services", command, {})
        self.listens("services", 9000)
        self.listens("services", 5000)
        from urllib.request import Request, urlopen

        urlopen(Request(f"http://{here}:9000/bucket", method="PUT"), timeout=10)

    def start(self, host: str, command: list[str], env: dict[str, str], *, private: bool = True) -> Path:
        """Start something on a host; its log."""
        log = self.logs / f"{host}-{len(list(self.logs.iterdir()))}.log"
        with log.open("wb") as file:
            subprocess.Popen(
                self._on(host, command, private=private), env={**self.env, **env}, stdout=file, stderr=file, cwd="/"
            )
        return log

    def _on(self, host: str, command: list[str], *, private: bool) -> list[str]:
        own = [f"mount --bind {self.folder}/{name} /etc/{name}" for name in ("hosts", "resolv.conf")]
        own += [f"mount -t tmpfs none {path}" for path in self._private] if private else []
        inside = f'hostname {host} && {" && ".join(own)} && exec "$@"'
        return ["ip", "netns", "exec", host, "unshare", "--uts", "--mount", "sh", "-c", inside, host, *command]

    def listens(self, host: str, port: int) -> None:
        def answers() -> bool:
            with socket.socket() as probe:
                probe.settimeout(1.0)
                return probe.connect_ex((address(host), port)) == 0

        wait_until(answers, 90, f"{host} listens on {port}")

    def lose(self, host: str) -> None:
        """The host has no power any more: first nobody hears of it, then nothing runs there."""
        sh("ip", "link", "set", f"to-{host}", "down")
        for pid in sh("ip", "netns", "pids", host).split():
            subprocess.run(["kill", "-9", pid], check=False, capture_output=True)

    def again(self, host: str) -> None:
        """It is back, empty."""
        wait_until(lambda: not sh("ip", "netns", "pids", host).split(), 10, f"nothing runs on {host}")
        sh("ip", "link", "set", f"to-{host}", "up")
        self.worker(host)

    def raytuner(self, *arguments: str) -> str:
        """What a command says on the laptop, which has the token and nothing else."""
        command = [sys.executable, "-m", "raytuner", *arguments]
        done = subprocess.run(
            ["ip", "netns", "exec", "laptop", *command], env=self.env, cwd=self.project, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


RAY = [
    sys.executable,
    "-m",
    "ray.scripts.scripts",
    "start",
    "--block",
    "--log-color=false",
    "--temp-dir=/tmp/rt-multihost",
]


def one_run(site: Site, number: int) -> dict[str, float]:
    import yaml

    from raytuner.journal import CheckpointWritten, Folder, JournalReader, Reported, TrialStarted, replay

    name = f"run-{number:02d}"
    definition = {
        "name": name,
        "train": "train.py:train",
        "test": "train.py:test",
        "objective": {"metric": "loss", "mode": "min", "max_steps": STEPS},
        "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
        "search": "random",
        "budget": {"trials": TRIALS},
        "resources": {"gpu": 1, "cpu": 1},
        "checkpoints": {"every_steps": 1},
        "storage": "s3://bucket/raytuner",
        "tracking": {"mlflow": f"http://{address('services')}:5000"},
        "cluster": f"http://{address('head')}:8265",
    }
    (site.project / "experiment.yaml").write_text(yaml.safe_dump(definition))
    began, at = time.time(), ("--address", f"http://{address('head')}:8265")
    assert f"{name} is launched" in site.raytuner("launch", "experiment.yaml")
    launched = time.time()
    place = f"s3://bucket/raytuner/{name}"

    def state() -> Any:
        return replay(Folder.find(place))

    def under_way() -> bool:
        try:
            now = state()
        except Exception:  # it is not there yet
            return False
        trials = now.trials.values()
        lost = [t for t in trials if t.status == "running" and t.step >= 2 and t.node == address("worker2")]
        return sum(t.status == "finished" for t in trials) >= 3 and bool(lost)

    wait_until(under_way, 90, "some trials have finished, and some are under way on worker2")
    site.lose("worker2")
    killed = time.time()
    wait_until(lambda: state().status not in ("running", "new"), 150, "the experiment has ended")
    ended = time.time()

    folder = Folder.find(place)
    events, final = list(JournalReader(folder.journal).read()), state()
    assert final.status == "finished", final.reason
    assert [trial.status for trial in final.trials.values()] == ["finished"] * TRIALS
    for trial in final.trials.values():
        assert [step.step for step in trial.steps] == list(range(1, STEPS + 1)), trial.id
    stands: dict[str, int] = {}  # the newest checkpoint of each trial
    moved: list[TrialStarted] = []
    for event in events:
        if isinstance(event, CheckpointWritten):
            stands[event.trial] = event.step
        elif isinstance(event, TrialStarted) and event.attempt > 1:
            assert (event.node, event.step) == (address("worker1"), stands.get(event.trial, 0)), event
            moved.append(event)
    assert any(event.step > 0 for event in moved), moved
    assert final.tests[-1].metrics == {"steps": float(STEPS)}
    assert json.loads(site.raytuner("status", name, "--json", *at))["status"] == "finished"
    model = site.folder / f"{name}.pt"
    site.raytuner("best", name, "--export", str(model), *at)
    import torch

    assert torch.load(model, weights_only=False)["weights"][0] == STEPS
    check_mlflow(name)
    first = min(event.at for event in events if isinstance(event, Reported))
    return {
        "launch returns after": launched - began,
        "first step after": first - began,
        "ends after the loss": ended - killed,
        "trials that moved": len({event.trial for event in moved}),
    }


def check_mlflow(name: str) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"http://{address('services')}:5000")
    experiment = client.get_experiment_by_name(name)

    def whole() -> bool:
        runs = client.search_runs([experiment.experiment_id])
        return len(runs) == TRIALS + 1 and all(run.info.status == "FINISHED" for run in runs)

    wait_until(whole, 60, "MLflow has all runs, finished")
    for run in client.search_runs([experiment.experiment_id]):
        if "mlflow.parentRunId" in run.data.tags:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
            assert sorted(set(steps)) == list(range(1, STEPS + 1))


def inside(folder: Path, times: int) -> None:
    site = Site(folder)
    try:
        site.bring_up()
        os.environ.update(site.store | {"RAYTUNER_CACHE": str(folder / "watcher")})
        for number in range(1, times + 1):
            if number > 1:
                site.again("worker2")
            print(json.dumps({"run": number, **one_run(site, number)}), flush=True)
    except BaseException:
        for log in sorted(site.logs.iterdir()):
            print(f"-- {log.name}\n{log.read_text(errors='replace')[-2000:]}", file=sys.stderr)
        raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options.inside, options.times)
        return
    with tempfile.TemporaryDirectory(prefix="rt-hosts-") as folder:
        again = [*APART, sys.executable, __file__, "--times", str(options.times), "--inside", folder]
        raise SystemExit(subprocess.run(again).returncode)


if __name__ == "__main__":
    main()
