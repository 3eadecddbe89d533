"""Several hosts in network namespaces, of which one is lost; what happens is in run.py."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")
POSTGRES = bool(shutil.which("initdb") or list(Path("/usr/lib/postgresql").glob("*/bin/initdb")))


def why_not() -> str:
    """What is missing here; an empty string where it may run."""
    if os.environ.get("RAYTUNER_HOSTS") == "0":
        return "not wanted: RAYTUNER_HOSTS=0"
    if os.getuid() != 0 or shutil.which("unshare") is None:
        return "needs root, to make network namespaces"
    if shutil.which("ip") is None:
        return "needs ip (Debian's iproute2)"
    if not POSTGRES or importlib.util.find_spec("psycopg") is None:
        return "needs PostgreSQL (Debian's postgresql) and psycopg"
    bridge = ["unshare", "--net", "ip", "link", "add", "bridge", "type", "bridge"]
    return "" if not subprocess.run(bridge, capture_output=True).returncode else "may not make a network bridge"


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_a_host_is_lost_and_all_trials_are_right() -> None:
    ran = subprocess.run([sys.executable, RUN], capture_output=True, text=True, timeout=290)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-5000:]
    assert json.loads(ran.stdout.splitlines()[-1])["trials that moved"] >= 1
