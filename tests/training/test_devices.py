"""The share of a GPU's memory that a trial's process is held to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TORCH = """
class cuda:
    is_available = staticmethod(lambda: True)
    get_device_properties = staticmethod(lambda device: type("Properties", (), {"total_memory": 24 * 10**9}))
    limits = {}
    set_per_process_memory_fraction = staticmethod(lambda fraction, device: cuda.limits.update({device: fraction}))

set_num_threads = lambda number: None
"""
LOOK = """
import os, sys
from raytuner.training.child import _devices
from raytuner.training.trial import TrialSpec

assert "torch" not in sys.modules
_devices(TrialSpec("000001", 1, {}, 1, "here", "loss", gpus=("3",), gpu=float(sys.argv[1])))
print(sys.modules["torch"].cuda.limits if "torch" in sys.modules else None)
"""


def limits(folder: Path, gpu: float) -> str:
    command = [sys.executable, "-c", LOOK, str(gpu)]
    path = {"PYTHONPATH": f"{folder}:{Path(__file__).parents[2]}"}
    return subprocess.run(command, env=path, capture_output=True, text=True, check=True).stdout.strip()


def test_a_trial_that_imports_torch_later_is_limited_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(TORCH)
    assert limits(tmp_path, 0.25) == "{0: 0.225}"
    assert limits(tmp_path, 1.0) == "None", "nothing to limit, and nothing imported for it"


def test_without_torch_there_is_nothing_to_limit(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('not here')")
    assert limits(tmp_path, 0.25) == "None"
