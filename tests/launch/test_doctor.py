"""What the preflight makes of what the nodes say, and of what answers instead of a cluster."""

from __future__ import annotations

import copy
import http.server
import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from raytuner.cli import main
from raytuner.definition import holds_password, without_password
from raytuner.engine.jobs import JobServer
from raytuner.errors import LaunchError
from raytuner.launch.doctor import describe, judge, versions_here
from raytuner.launch.probe import look

HERE = versions_here()
CPU_ONLY = {**HERE["versions"], "torch": "2.13.0+cpu"}


def node(name: str, **changes: Any) -> dict[str, Any]:
    answer = {
        "python": HERE["python"],
        "versions": {**HERE["versions"], "torch": "2.13.0"},
        "gpus": [{"name": "H200", "driver": "570", "memory": "141 GiB"}],
        "disks": {"/tmp": {"free": 10**11, "size": 10**12}},
        "filesystem": "nfs4",
        "storage": "",
        "mlflow": "",
        "missing": [],
        "without": [],
    }
    about = {
        "node": name,
        "host": name,
        "address": f"10.0.0.{len(name)}",
        "head": name == "head",
        "resources": {"CPU": 8.0, "GPU": 1.0},
        "answer": {**answer, **{key: each for key, each in changes.items() if key in answer}},
        "error": "",
        "skew": 0.01,
    }
    return {**about, **{key: each for key, each in changes.items() if key in about}}


def report(*nodes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    made = {
        **copy.deepcopy(HERE),
        "problems": [],
        "storage": "/shared",
        "tracking": "http://me:hush@mlflow:5000",
        "grows": False,
        "gpu": True,
        "modules": {"einops": "train.py:3"},
        "later": {"timm": "train.py:9"},
        "nodes": list(nodes) or [node("head"), node("worker")],
    }
    return {**made, **changes}


def test_a_cluster_that_has_all_is_fine() -> None:
    assert judge(report(), HERE) == []
    lines = "\n".join(describe(report()))
    assert "head  head (10.0.0.4): 8 CPUs, 1 GPUs" in lines
    assert "H200, 141 GiB, driver 570" in lines
    assert "storage answers, MLflow answers" in lines


@pytest.mark.parametrize(
    ("given", "level", "where", "text"),
    [
        (report(python="3.9.1"), "error", "python", "has Python 3.9.1, .* same minor version"),
        (report(versions={**HERE["versions"], "raytuner": "0.0.1"}), "error", "raytuner", "has raytuner 0.0"),
        (report(node("head"), node("worker", storage="not shared")), "error", "node worker", "/shared: not shared"),
        (report(node("head", mlflow="down")), "error", "node head", r"http://me:\*\*\*@mlflow:5000: down"),
        (report(node("head"), node("worker", mlflow="down")), "warning", "node worker", "MLflow .* down"),
        (report(node("head"), node("worker", missing=["einops"])), "error", "train.py:3", "not there on worker;"),
        (report(node("head", missing=["einops"])), "error", "train.py:3", "not there on any node; add it to"),
        (report(node("head", without=["nvidia-cuda-mps-control"])), "warning", "node head", "mps does nothing"),
        (report(node("head", missing=["timm"])), "warning", "train.py:9", "a function imports timm, .* add it to"),
        (report(node("head"), node("worker", error="boom")), "error", "node worker", "boom; install the same"),
        (report(node("head"), node("worker", versions={"torch": "1"})), "error", "node worker", "torch 1, .* 2.13.0"),
        (report(node("head", gpus=[])), "warning", "node head", "declares 1 GPUs, and its driver shows 0"),
        (report(node("head", disks={"/tmp": {"free": 10**9, "size": 10**12}})), "warning", "node head", "1 GB free"),
        (report(node("head", disks={"/tmp": {"free": 10**7, "size": 10**12}})), "error", "node head", "make room"),
        (report(node("head"), node("worker", skew=-7.0)), "warning", "node worker", "clock is 7 s behind"),
        (report(node("head"), node("worker", skew=70.0)), "error", "node worker", "70 s ahead; run chrony"),
        (report(tracking="sqlite:////shared/m.db"), "error", "tracking.mlflow", "of several nodes; name a server"),
        (report(node("head"), tracking="sqlite:////m.db", grows=True), "error", "tracking.mlflow", "name a server"),
        (report(node("head", filesystem="ext4"), grows=True), "error", "storage /shared", r"own disk \(ext4\).* NFS"),
        (report(node("head", filesystem="overlay"), node("worker"), grows=True), "warning", "storage /shared", "NFS"),
        (report(node("head"), node("worker", versions=HERE["versions"])), "error", "node worker", "torch none, and"),
        (report(node("head", versions=CPU_ONLY)), "warning", "node head", r"2.13.0\+cpu.* build of torch for CUDA"),
        (report(node("head", versions=CPU_ONLY), modules={"torch": "a.py:1"}), "error", "node head", "cannot use them"),
        (report(problems=[{"where": "storage /x", "text": "no"}]), "error", "storage /x", "no"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(given: dict[str, Any], level: str, where: str, text: str) -> None:
    (finding,) = judge(given, HERE)
    assert (finding.level, finding.where.partition(" (")[0]) == (level, where)
    assert re.search(text, finding.text)
    assert "hush" not in str(finding)
    assert "\n".join(describe(given))


def test_a_single_node_may_have_a_file() -> None:
    assert judge(report(node("head"), tracking="sqlite:////shared/m.db"), HERE) == []


def test_what_cannot_be_told_of_a_folder_is_no_error() -> None:
    for kind in ("nfs4", "ceph", "lustre", "fuse.gcsfuse", "fuse", "wekafs", ""):
        assert judge(report(node("head", filesystem=kind), grows=True), HERE) == []
    assert judge(report(node("head", filesystem="ext4")), HERE) == []


def test_the_file_system_of_a_folder_is_told_before_it_is_there(tmp_path: Path) -> None:
    kind = subprocess.run(["stat", "-f", "-c", "%T", "/dev/shm"], capture_output=True, text=True).stdout.strip()
    assert kind == "tmpfs"
    request = {"storage": "/dev/shm/nothing/yet", "mark": ("no", "thing")}
    assert look("here", request)["filesystem"] == "tmpfs"
    assert look("here", {"storage": "/proc/nothing", "mark": ("no", "thing")})["filesystem"] == "proc"


def test_passwords_are_not_shown() -> None:
    assert without_password("postgresql://me:pw@db/mlflow") == "postgresql://me:***@db/mlflow"
    assert without_password("postgresql+psycopg://me:a/b:c@db/mlflow") == "postgresql+psycopg://me:***@db/mlflow"
    assert without_password("https://token@mlflow:5000/x") == "https://***@mlflow:5000/x"
    assert without_password("postgresql://db/m?user=me&password=pw&x=1") == "postgresql://db/m?user=me&password=***&x=1"
    for uri in ("http://mlflow:5000", "postgresql://me@db/mlflow", "sqlite:////shared/m.db", "databricks"):
        assert without_password(uri) == uri
        assert not holds_password(uri)


Answer = Callable[[str], tuple[int, str]]


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Start a server that answers as a function says, which gets the token; returns its address."""
    servers = []

    def start(answer: Answer) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                code, text = answer(self.headers.get("Authorization", ""))
                self.send_response(code)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_password_in_a_local_definition_is_warned_of_and_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.py").write_text("def train(trial): pass\n")
    definition = {
        "name": "toy",
        "train": "train.py:train",
        "objective": {"metric": "loss", "mode": "min"},
        "space": {"x": [1, 2]},
        "budget": {"trials": 2},
        "tracking": {"mlflow": "postgresql://me:hush@db/mlflow"},
    }
    file = tmp_path / "toy.yaml"
    file.write_text(yaml.safe_dump(definition))
    for command in (["validate"], ["plan"], ["plan", "--json"]):
        assert main([*command, str(file)]) == 0
        said = capsys.readouterr().out
        assert "it holds a password, which is written down with the results; set PGPASSWORD" in said
        assert "hush" not in said


def test_what_is_no_cluster_is_said(serve: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hush")
    with pytest.raises(LaunchError, match=r"what answers is not the dashboard .*HTTP 404.*8265"):
        JobServer(serve(lambda token: (404, "nothing")))
    with pytest.raises(LaunchError, match=r"what answers is not the dashboard"):
        JobServer(serve(lambda token: (200, "[]")))
    with pytest.raises(LaunchError, match=r"nothing answers there \(Connection refused\); check the address"):
        JobServer("http://127.0.0.1:1")
    with pytest.raises(LaunchError, match=r"no host.*check the address"):
        JobServer("http://nothing.invalid:8265")


def test_tokens(serve: Callable[[Answer], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def guarded(token: str) -> tuple[int, str]:
        return (
            (401 if not token else 403, "no") if token != "Bearer right" else (200, json.dumps({"ray_version": "9.9"}))
        )

    address = serve(guarded)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(LaunchError, match=r"asks for a token, and none was given; put it in RAY_AUTH_TOKEN"):
        JobServer(address)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(LaunchError, match=r"RAY_AUTH_TOKEN_PATH: there is no file"):
        JobServer(address)
    (tmp_path / "token").write_text("wrong\n")
    with pytest.raises(LaunchError, match=r"refuses the token from .*/token; ask") as caught:
        JobServer(address)
    assert "wrong" not in str(caught.value)
    (tmp_path / "token").write_text("right\n")
    assert JobServer(address).ray_version == "9.9"


@pytest.mark.parametrize("text", ["first-half\nsecond-half\n", "first-half second-half", "first-halfé"])
@pytest.mark.parametrize("by", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_what_can_be_no_token_is_refused_unseen(
    text: str, by: str, serve: Callable[[Answer], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    (tmp_path / "tok").write_text(text, encoding="utf-8")
    monkeypatch.setenv(by, text if by == "RAY_AUTH_TOKEN" else str(tmp_path / "tok"))
    with pytest.raises(LaunchError, match=r"(RAY_AUTH_TOKEN|tok): a cluster's token is one word of ASCII") as caught:
        JobServer(serve(lambda token: (200, json.dumps({"ray_version": "9.9"}))))
    assert "half" not in str(caught.value)


def test_a_token_is_not_shown_by_what_goes_wrong(
    serve: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "only-for-headers")
    server = JobServer(serve(lambda token: (200, json.dumps({"ray_version": "9.9"}))))

    def quoting(*_: object) -> None:
        raise ValueError("bad header value: 'Bearer only-for-headers'")

    monkeypatch.setattr(server._client, "get_job_logs", quoting)
    with pytest.raises(LaunchError, match=r"bad header value") as caught:
        server.output("a-job")
    assert "only-for-headers" not in str(caught.value)


def test_what_a_launch_refuses_by_itself(
    serve: Callable[[Answer], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is submitted: what would take a job answers to nothing but the question for its version."""
    versions = ["2.59.1", HERE["versions"]["ray"]]
    address = serve(lambda token: (200, json.dumps({"ray_version": versions[0]})))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hush")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "train.py").write_text("def train(trial): pass\n")
    (tmp_path / "pyproject.toml").write_text("")
    definition = {
        "name": "toy",
        "train": "train.py:train",
        "objective": {"metric": "loss", "mode": "min"},
        "space": {"x": [1, 2]},
        "budget": {"trials": 2},
        "resources": {"gpu": 8},  # this machine need not have them
    }
    file = tmp_path / "toy.yaml"
    file.write_text(yaml.safe_dump(definition))

    def said(*arguments: str) -> str:
        assert main(["launch", str(file), *arguments]) != 0
        return capsys.readouterr().err

    assert "needs the address of a cluster's dashboard" in said()
    assert "not as a Ray client" in said("--address", "ray://head:10001")
    assert "the cluster has Ray 2.59.1, and this machine" in said("--address", address)
    versions.pop(0)
    assert "storage: on a cluster it must be an absolute folder" in said("--address", address)
    shared = ("--address", address, "--set", "storage=/shared")
    assert "the largest are toy.yaml" in said(*shared, "--set", "cluster.limit=5B")
    (tmp_path / "server.key").write_text("hush")
    assert "would leave this machine" in said(*shared, "--set", "cluster.include=[server.key]")
    secret = "tracking.mlflow=postgresql://me:hush@db/mlflow"
    assert "set PGPASSWORD or MLFLOW_TRACKING_PASSWORD on the head" in (text := said(*shared, "--set", secret))
    assert "me:***@db" in text
    assert "hush" not in text
    (tmp_path / "r.txt").write_text("--extra-index-url https://user:hush@host/simple\n")
    assert "r.txt:1: an address must not hold cred" in (text := said(*shared, "--set", "cluster.requirements=r.txt"))
    assert "hush" not in text
    assert "must not hold credentials" in said("--address", address, "--set", "storage=s3://key:secret@bucket/x")
