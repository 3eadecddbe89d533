"""A cluster whose nodes come when trials wait for them, and go when none does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import HERE

from raytuner.journal import Folder, replay

ALONE = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
MAY = shutil.which("unshare") is not None and not subprocess.run([*ALONE, "true"], capture_output=True).returncode


@pytest.mark.skipif(not MAY, reason="needs the right to make a network namespace, for the pretended cloud's fixed port")
def test_it_asks_for_what_waiting_trials_need_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "objectives.py").write_text((HERE / "objectives.py").read_text())

    def define(name: str, trials: int, resources: dict[str, Any], **more: Any) -> None:
        definition = {
            "name": name,
            "train": "objectives:curve",
            "objective": {"metric": "loss", "mode": "min", "max_steps": 8},
            "space": {"x": {"type": "float", "low": 0, "high": 1}, "seconds": [1.0]},
            "search": "random",
            "budget": {"trials": trials},
            "resources": {"cpu": 0.5, **resources},
            "checkpoints": {"every_steps": 1},
            "tracking": "none",
            "storage": str(tmp_path / "results"),
            **more,
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(definition))

    define("few", 2, {"gpu": 1})  # one of two nodes has room for both
    define("gang", 1, {"gpu": 2, "workers": 2})  # one trial that needs both
    define("loss", 4, {"gpu": 1})  # both nodes, of which one is lost
    with tempfile.TemporaryDirectory(prefix="rt-") as short:  # the names of Ray's sockets have 107 bytes at most
        command = [*ALONE, sys.executable, HERE / "autoscaling.py", tmp_path, short]
        ran = subprocess.run(command, capture_output=True, timeout=240)
    assert ran.returncode == 0, ran.stderr.decode()
    assert json.loads((tmp_path / "nodes.json").read_text()) == {"few": 1, "gang": 2, "loss": 2}
    states = {name: replay(Folder(tmp_path / "results" / name)) for name in ("few", "gang", "loss")}
    for state in states.values():
        assert state.status == "finished"
        assert all([s.step for s in t.steps] == list(range(1, 9)) for t in state.trials.values())
    again = [trial for trial in states["loss"].trials.values() if trial.attempt > 1]
    assert again  # went on from their checkpoints, on a node that came in the place of the one that was lost
