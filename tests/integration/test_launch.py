"""A cluster with a token, and a laptop that hands experiments to it: real Ray nodes, real jobs."""

from __future__ import annotations

import http.server
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from conftest import wait_until

from raytuner.journal import Folder, replay

_TRY = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
MAY_MOUNT = shutil.which("unshare") is not None and not subprocess.run(_TRY, capture_output=True).returncode

TRAIN = """
import time
from pathlib import Path

from parts import weights


def train(trial):
    w = weights.start()
    for step in trial.steps(w=w):
        w += 1.0
        assert w[0] == step, "a resumed trial must go on from its checkpoint"
        time.sleep(trial.config["seconds"])
        print("step", step, flush=True)
        trial.report(loss=(trial.config["x"] - 0.5) ** 2 + 1.0 / step)


def test(trial):
    w = weights.start()
    trial.restore(w=w)
    return {"steps": float(w[0]), "data": float(Path(weights.__file__).with_name("data.txt").read_text())}
"""


def free_port() -> int:
    """A port above those that Ray gives to its workers."""
    while True:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = int(listener.getsockname()[1])
        if port > 20000:
            return port


@dataclass
class Site:
    """A cluster of two nodes on this machine, and a project beside it that knows its token."""

    folder: Path
    address: str = ""
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def token(self) -> Path:
        return self.folder / "token"

    @property
    def project(self) -> Path:
        return self.folder / "project"

    @property
    def shared(self) -> Path:
        return self.folder / "shared"

    def start_node(self, *arguments: str, before: tuple[str, ...] = ()) -> None:
        command = [*before, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--log-color=false"]
        command.append(f"--dashboard-agent-listen-port={free_port()}")  # it is the same on all nodes otherwise
        env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token), "PYTHONPATH": ""}
        env["RAYTUNER_CACHE"] = str(self.folder / "cache")
        log = (self.folder / f"node-{len(self.nodes)}.log").open("wb")
        self.nodes.append(
            subprocess.Popen([*command, *arguments], stdout=log, stderr=log, env=env, start_new_session=True)
        )

    def started(self, node: int) -> str:
        """The node's address, once it is up."""
        log = (self.folder / f"node-{node}.log").read_text()
        found = re.search(r"Local node IP: .*?([\d.]+\d)", log)
        return found[1] if found and "Ray runtime started" in log else ""

    def raytuner(self, *arguments: str, code: int = 0, **env: str) -> str:
        """What a command of the laptop says; it must end with ``code``."""
        done = subprocess.run(
            [sys.executable, "-m", "raytuner", *arguments],
            capture_output=True,
            text=True,
            cwd=self.project,
            env={**os.environ, "RAY_AUTH_TOKEN_PATH": str(self.token), "PYTHONPATH": "", **env},
            timeout=240,
        )
        said = done.stdout if not code and "--json" in arguments else done.stdout + done.stderr
        assert done.returncode == code, said + done.stderr
        assert "Traceback" not in said
        assert self.token.read_text() not in done.stdout + done.stderr
        return said

    def definition(self, **fields: Any) -> str:
        """Write a definition into the project; its path in it."""
        made = {
            "name": f"toy-{secrets.token_hex(3)}",
            "train": "train.py:train",
            "test": "train.py:test",
            "objective": {"metric": "loss", "mode": "min", "max_steps": 5},
            "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}, "seconds": {"type": "choice", "values": [0.1]}},
            "search": "random",
            "budget": {"trials": 4},
            "tracking": "none",
            "storage": str(self.shared),
            "cluster": self.address,
            **fields,
        }
        file = self.project / f"{made['name']}.yaml"
        file.write_text(yaml.safe_dump(made))
        return file.name

    def state(self, name: str) -> Any:
        return replay(Folder(self.shared / name))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    site.token.write_text(secrets.token_hex(32))
    site.token.chmod(0o600)
    (site.project / "parts").mkdir(parents=True)
    (site.project / "train.py").write_text(TRAIN)
    (site.project / "parts/__init__.py").write_text("")
    (site.project / "parts/weights.py").write_text("import numpy as np\n\n\ndef start():\n    return np.zeros(1000)\n")
    (site.project / "parts/data.txt").write_text("7")
    (site.project / ".env").write_text("PASSWORD=hush")
    for command in (["init", "-q"], ["add", "-f", "."]):
        subprocess.run(["git", "-C", str(site.project), *command], check=True)
    # Short, for the sockets in it have names of a hundred bytes at most; outside, for it is not one of the tests'.
    ray_folder = Path("/tmp") / f"rt-{secrets.token_hex(4)}"
    dashboard, gcs = free_port(), free_port()
    try:
        head = ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}", f"--temp-dir={ray_folder}"]
        site.start_node(*head, "--num-cpus=2", "--num-gpus=2")
        site.address = f"http://127.0.0.1:{dashboard}"
        ip = wait_until(lambda: site.started(0), 60, "the head is there")
        if MAY_MOUNT:  # a node of a machine of its own, as far as that goes: what it has in these folders is its own
            own = [site.folder / "private", ray_folder, Path(tempfile.gettempdir()) / f"raytuner-{os.getuid()}"]
            for folder in own:
                folder.mkdir(mode=0o700, exist_ok=True)
            mounts = " && ".join(f"mount -t tmpfs none {folder}" for folder in own)
            before = ("unshare", "-m", "sh", "-c", f'{mounts} && exec "$0" "$@"')
            site.start_node(f"--address={ip}:{gcs}", "--num-cpus=1", before=before)
            wait_until(lambda: site.started(1), 60, "the other node is there")
        yield site
    finally:
        for node in reversed(site.nodes):
            tree = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
            for process in tree:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            node.wait()
        shutil.rmtree(ray_folder, ignore_errors=True)


def test_an_experiment_is_launched_watched_and_fetched(site: Site, tmp_path: Path) -> None:
    name = f"toy-{secrets.token_hex(3)}"
    said = site.raytuner("launch", site.definition(name=name), "--follow")
    assert f"{name} is launched: job raytuner-{name}-" in said
    assert "left out, as secrets: .env" in said
    assert "best (trial" in said  # the driver's own summary
    state = site.state(name)
    assert state.status == "finished"
    assert [t.status for t in state.trials.values()] == ["finished"] * 4
    assert all([s.step for s in t.steps] == [1, 2, 3, 4, 5] for t in state.trials.values())
    assert state.tests[-1].metrics == {"steps": 5.0, "data": 7.0}
    code = site.shared / name / "code"
    assert (code / "parts/data.txt").read_text() == "7"
    assert not (code / "parts/data.txt").is_symlink()  # the package vanishes with its job
    assert not (code / ".env").exists()

    at = ("--address", site.address)
    assert json.loads(site.raytuner("status", name, "--json", *at))["status"] == "finished"
    assert name in site.raytuner("status", *at)
    site.raytuner("best", name, "--export", str(tmp_path / "model.pt"), *at)
    assert torch.load(tmp_path / "model.pt", weights_only=False)["w"][0] == 5.0
    assert f"{name}: starting" in site.raytuner("logs", name, *at)

    best = json.loads(site.raytuner("best", name, "--json", *at))
    said = site.raytuner("replay", name, "--follow", *at)
    assert f"{name}-replay is launched: job raytuner-{name}-replay-" in said
    again = json.loads(site.raytuner("best", f"{name}-replay", "--json", *at))
    assert (again["config"], again["value"]) == (best["config"], best["value"])
    assert "proposed by the search" in site.raytuner("why", name, "2", RAY_ADDRESS=site.address)
    assert "is there already" in site.raytuner("launch", f"{name}.yaml", code=1)
    assert next(job for job in launched(site) if job["name"] == name)["status"] == "SUCCEEDED"
    assert "knows no experiment 'nothing'" in site.raytuner("status", "nothing", *at, code=1)


def launched(site: Site) -> list[dict[str, str]]:
    said = site.raytuner("status", "--json", "--address", site.address)
    found: list[dict[str, str]] = json.loads(said)["experiments"]
    return found


def test_an_experiment_is_stopped_and_resumed_by_its_name(site: Site) -> None:
    name = f"toy-{secrets.token_hex(3)}"
    space = {"x": {"type": "float", "low": 0.0, "high": 1.0}, "seconds": {"type": "choice", "values": [1.5]}}
    site.raytuner("launch", site.definition(name=name, space=space, budget={"trials": 8}))
    wait_until(lambda: (site.shared / name / "journal").exists() and site.state(name).steps >= 3, 90, "it trains")
    at = ("--address", site.address)
    assert "its driver is at work" in site.raytuner("resume", name, *at, code=1)
    assert "being stopped" in site.raytuner("stop", name, *at)
    wait_until(lambda: site.state(name).status == "interrupted", 60, "it was stopped")
    wait_until(lambda: [j["status"] for j in launched(site) if j["name"] == name] == ["FAILED"], 30, "its job ended")
    assert [j["experiment"] for j in launched(site) if j["name"] == name] == ["interrupted"]
    assert f"{name:<30} interrupted" in site.raytuner("status", RAY_ADDRESS=site.address)
    hint = f"raytuner resume {name} {' '.join(at)}"
    assert f"next     {hint}" in site.raytuner("status", name, *at)
    assert hint in " ".join(site.raytuner("logs", name, *at).split())
    before = site.state(name).steps
    shutil.rmtree(site.project / "parts")  # the cluster has its own copy
    try:
        said = site.raytuner("resume", name, "--follow", *at)
    finally:
        subprocess.run(["git", "-C", str(site.project), "checkout", "-q", "--", "parts"], check=True)
    assert f"{name} goes on" in said
    after = site.state(name)
    assert after.status == "finished"
    assert before < after.steps == 8 * 5
    assert after.tests[-1].metrics["data"] == 7.0


class Wire:
    """What a laptop's connections to the cluster go through, and how they are cut."""

    def __init__(self, there: str) -> None:
        host, _, port = there.removeprefix("http://").partition(":")
        self._there, self._open = (host, int(port)), list[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                here, _ = self._listener.accept()
                there = socket.create_connection(self._there)
                self._open += [here, there]
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()


def test_whoever_follows_sees_all_over_a_connection_that_drops_and_may_leave(site: Site, tmp_path: Path) -> None:
    wire, name = Wire(site.address), f"toy-{secrets.token_hex(3)}"
    space = {"x": {"type": "float", "low": 0.0, "high": 1.0}, "seconds": {"type": "choice", "values": [3.0]}}
    env = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(site.token), "PYTHONPATH": ""}
    said = {what: tmp_path / what for what in ("launch", "trial")}

    def start(what: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "raytuner", *arguments, "--follow", "--address", wire.address]
        with said[what].open("wb") as out:
            return subprocess.Popen(command, cwd=site.project, env=env, stdout=out, stderr=out)

    launching = start("launch", "launch", site.definition(name=name, space=space, budget={"trials": 2}))
    try:
        wait_until(lambda: (site.shared / name / "journal").exists() and site.state(name).steps >= 1, 90, "it trains")
        leaving = start("trial", "logs", name, "1")
        wait_until(lambda: "step 1" in said["trial"].read_text(), 60, "the trial's log is shown")
        leaving.send_signal(signal.SIGINT)
        assert leaving.wait(30) == 130
        assert "step" in said["trial"].read_text()
        assert not re.search("Traceback|GeneratorExit", said["trial"].read_text())
        wire.cut()
        assert launching.wait(120) == 0, said["launch"].read_text()
    finally:
        launching.kill()
        wire.close()
    assert said["launch"].read_text().count("best (trial") == 1
    shown = site.raytuner("logs", name, "1", "--follow", "--address", site.address)  # and this ends
    assert shown.split("\n") == [*(f"step {step}" for step in range(1, 6)), ""]


# -- what would go wrong is found before anything is started ---------------------------------------------------------


class Plantings:
    """Launches with something wrong in them, each made once: several such things are told at once."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.private = str(site.folder / "private/results")
        self.dead = f"http://127.0.0.1:{free_port()}"
        self.store = f"s3://bucket/x?endpoint_override=http://127.0.0.1:{free_port()}&allow_bucket_creation=false"

    @cache  # noqa: B019 - one object a module
    def said(self, launch: str) -> str:
        return str(getattr(self, launch)())

    def _launch(self, *arguments: str, code: int = 1, env: Mapping[str, str] = {}, **fields: Any) -> str:
        return self.site.raytuner("launch", self.site.definition(**fields), *arguments, code=code, **env)

    def nothing_answers(self) -> str:
        return self._launch("--address", self.dead)

    def another_server(self) -> str:
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                return self._launch("--address", f"http://127.0.0.1:{server.server_address[1]}")
            finally:
                server.shutdown()

    def no_token(self) -> str:
        return self._launch(env={"RAY_AUTH_TOKEN_PATH": "", "HOME": str(self.site.folder)})

    def wrong_token(self) -> str:
        return self._launch(env={"RAY_AUTH_TOKEN": "wrong"})

    def two_lines_of_token(self) -> str:
        return self._launch(env={"RAY_AUTH_TOKEN": "two\nlines"})

    def other_ray(self) -> str:
        return self._launch(env={"PYTHONPATH": self._installed("ray", "2.1.0")})

    def relative_storage(self) -> str:
        return self._launch(code=2, storage="results")

    def password(self) -> str:
        return self._launch(code=2, tracking={"mlflow": "postgresql://me:hush@db/mlflow"})

    def index_with_password(self) -> str:
        (self.site.project / "needs.txt").write_text("--extra-index-url https://me:hush@host/simple\neinops\n")
        return self._launch(cluster={"address": self.site.address, "requirements": "needs.txt"})

    def named_secret(self) -> str:
        return self._launch(cluster={"address": self.site.address, "include": [".env"]})

    def not_in_git(self) -> str:
        (self.site.project / "parts/extra.py").write_text("")
        (self.site.project / "wants_extra.py").write_text("from parts import extra\n\n\ndef train(trial):\n    pass\n")
        return self._launch(train="wants_extra.py:train", test=None)

    def too_large(self) -> str:
        return self._launch(cluster={"address": self.site.address, "limit": "100B"})

    def nodes_lack(self) -> str:
        """On the cluster: a module, this version of raytuner, a shared folder, a server for runs."""
        (self.site.project / "needy.py").write_text("import no_such_module\n\n\ndef train(trial):\n    pass\n")
        return self._launch(
            env={"PYTHONPATH": self._installed("raytuner", "0.0.1")},
            train="needy.py:train",
            storage=self.private,
            tracking={"mlflow": f"sqlite:///{self.site.folder}/m.db"},
        )

    def nodes_reach_nothing(self) -> str:
        return self._launch(storage=self.store, tracking={"mlflow": self.dead})

    def no_room(self) -> str:
        return self._launch(resources={"gpu": 8})

    def _installed(self, package: str, version: str) -> str:
        """A folder by which the laptop takes itself to have another version of a package."""
        folder = self.site.folder / f"other-{package}"
        about = folder / f"{package}-{version}.dist-info/METADATA"
        about.parent.mkdir(parents=True, exist_ok=True)
        about.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        return str(folder)


@pytest.fixture(scope="module")
def plantings(site: Site) -> Plantings:
    return Plantings(site)


EVERYWHERE = [
    ("a wrong address", "nothing_answers", r"nothing answers there .*check the address"),
    ("the address of another server", "another_server", r"not the dashboard of a Ray cluster .* its port is 8265"),
    ("no token", "no_token", r"asks for a token, and none was given; put it in RAY_AUTH_TOKEN"),
    ("a wrong token", "wrong_token", r"refuses the token from RAY_AUTH_TOKEN; ask whoever runs the cluster"),
    ("a token of two lines", "two_lines_of_token", r"one word of ASCII .*; put the token there and nothing else"),
    (
        "another minor version of Ray",
        "other_ray",
        r"has Ray [\d.]+, and this machine 2\.1\.0; install the same",
    ),
    (
        "a relative storage",
        "relative_storage",
        r"an absolute folder that all nodes share.*write /shared/results",
    ),
    ("a password in the tracking address", "password", r"must not hold a password.*me:\*\*\*@db.*set PGPASSWORD"),
    (
        "a password in the requirements",
        "index_with_password",
        r"needs\.txt:1: .*not hold credentials.*write \$\{TOKEN\}",
    ),
    (
        "a secret that the definition names",
        "named_secret",
        r"\.env: .*would leave this machine; give secrets to",
    ),
    ("an imported file that is not in git", "not_in_git", r"parts/extra\.py \(by wants_extra\.py:1\); git add them"),
    ("too much to send", "too_large", r"may have 100 B, and has .*put data where all nodes see it"),
    (
        "a module that no node has",
        "nodes_lack",
        r"it imports no_such_module.*add it to cluster\.requirements",
    ),
    (
        "another version of raytuner",
        "nodes_lack",
        r"has raytuner .*, and this machine 0\.0\.1; install the same",
    ),
    (
        "an MLflow server that is down",
        "nodes_reach_nothing",
        r"MLflow at http://127.*: it cannot be reached.*start the server",
    ),
    (
        "an object store that is down",
        "nodes_reach_nothing",
        r"storage s3://bucket/x.*head node cannot write there.*look at",
    ),
    ("trials that fit on no node", "no_room", r"there are 2 GPUs for it, got 1 CPU, 8 GPU.*ask for less"),
]
"""What was planted, the launch that it is in, and what must be said."""
ON_OTHER_MACHINES = [
    ("a folder that is not shared", "nodes_lack", r"is not the folder that the head node sees.*mount a shared one"),
    ("an SQLite file for several nodes", "nodes_lack", r"in a cluster of several nodes; name a server"),
]
"""The same, where a node has folders of its own."""


@pytest.mark.parametrize(("what", "launch", "words"), EVERYWHERE, ids=[what for what, _, _ in EVERYWHERE])
def test_what_would_go_wrong_is_found(plantings: Plantings, what: str, launch: str, words: str) -> None:
    found = [line for line in plantings.said(launch).splitlines() if re.search(words, line)]
    assert found, plantings.said(launch)
    assert "hush" not in plantings.said(launch)
    print(f"| {what} | {found[0]} |")


@pytest.mark.skipif(not MAY_MOUNT, reason="needs mounts, for a node of a machine of its own")
@pytest.mark.parametrize(("what", "launch", "words"), ON_OTHER_MACHINES, ids=[what for what, _, _ in ON_OTHER_MACHINES])
def test_what_would_go_wrong_between_machines_is_found(
    plantings: Plantings, what: str, launch: str, words: str
) -> None:
    test_what_would_go_wrong_is_found(plantings, what, launch, words)


def test_twelve_and_more_were_planted_and_nothing_was_started(site: Site, plantings: Plantings) -> None:
    assert len({what for what, _, _ in EVERYWHERE}) >= 12
    for launch in {launch for _, launch, _ in EVERYWHERE}:
        plantings.said(launch)
    assert not Path(plantings.private).exists()
    assert not [job for job in launched(site) if job["storage"].startswith((plantings.private, plantings.store))]
