"""CUDA's multi-process service on a node: kernels of processes that share a GPU run side by side, not in turns."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from raytuner.training.child import die_with_parent

__all__ = ["PROGRAM", "start_mps"]

PROGRAM = "nvidia-cuda-mps-control"
"""As the plan names it, whose room a process server does not import."""


def start_mps(folder: Path) -> subprocess.Popen[bytes] | None:
    """Start the service's control daemon, in the foreground so that it ends with this process, and point this process'
    children to it; None where the node does not have it. ``folder`` is for its pipes and logs.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        return None
    for name, part in (("CUDA_MPS_PIPE_DIRECTORY", "pipe"), ("CUDA_MPS_LOG_DIRECTORY", "log")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(folder / part)
    parent = os.getpid()
    return subprocess.Popen(
        [program, "-f"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: die_with_parent(parent),
    )
