"""What a spot worker does when it is taken away, against stand-ins for the clouds' metadata servers and for Ray."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cluster_tools import CLUSTER, options_of

SCRIPT = CLUSTER / "spot_notice.sh"
Answer = Callable[[int, BaseHTTPRequestHandler], str | None]


def _aws(round_: int, request: BaseHTTPRequestHandler) -> str | None:
    if request.path == "/latest/api/token" and request.command == "PUT":
        return "session" if request.headers["X-aws-ec2-metadata-token-ttl-seconds"] else None
    right = request.path == "/latest/meta-data/spot/instance-action"
    if not right or request.headers["X-aws-ec2-metadata-token"] != "session" or round_ < 5:
        return None  # 404 as long as there is no notice
    return '{"action": "terminate", "time": "2026-11-23T12:00:00Z"}'


def _gcp(round_: int, request: BaseHTTPRequestHandler) -> str | None:
    if request.path != "/computeMetadata/v1/instance/preempted" or request.headers["Metadata-Flavor"] != "Google":
        return None
    return "FALSE" if round_ < 3 else "TRUE"


def _azure(round_: int, request: BaseHTTPRequestHandler) -> str | None:
    if request.headers["Metadata"] != "true":
        return None
    if request.path.startswith("/metadata/instance/compute/name?"):
        return "worker-1"
    events = [{"EventType": "Preempt", "Resources": ["worker-2"]}, {"EventType": "Reboot", "Resources": ["worker-1"]}]
    if round_ > 4:
        events.append({"EventType": "Preempt", "Resources": ["worker-1"]})
    return json.dumps({"DocumentIncarnation": round_, "Events": events})


@pytest.fixture
def metadata(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a metadata server that gives notice after a few requests."""
    answer: Answer = request.param
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            text = answer(len(asked), self)
            self.send_response(404 if text is None else 200)
            self.end_headers()
            self.wfile.write((text or "").encode())

        do_PUT = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
@pytest.mark.parametrize(
    ("cloud", "metadata", "seconds"),
    [("aws", _aws, 110), ("gcp", _gcp, 25), ("azure", _azure, 25)],
    indirect=["metadata"],
    ids=["aws", "gcp", "azure"],
)
def test_a_notice_reaches_ray_and_nothing_before_it(cloud: str, metadata: str, seconds: int, tmp_path: Path) -> None:
    (tmp_path / "ray").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/asked\n')
    (tmp_path / "ray").chmod(0o755)
    environment = {**os.environ, "METADATA": metadata, "INTERVAL": "0", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", str(SCRIPT), cloud], env=environment, check=True, timeout=60)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[:3] == ["drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    assert asked[-2:] == ["--deadline-remaining-seconds", str(seconds)]


def test_ray_takes_these_options() -> None:
    """`ray drain-node` is not of Ray's public interface."""
    assert {"--reason", "--reason-message", "--deadline-remaining-seconds"} <= options_of("ray", "drain-node")


def test_another_cloud_is_refused() -> None:
    assert subprocess.run(["bash", str(SCRIPT), "moon"], capture_output=True, timeout=10).returncode == 2
