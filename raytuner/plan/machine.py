"""What this machine has for trials, found without torch or Ray."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["Machine", "Node", "cpu_count", "gpu_count", "this_machine"]

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_NVIDIA = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Node:
    """CPU cores and GPUs of one node."""

    cpus: float
    gpus: float
    accelerators: frozenset[str] | None = None
    """The types of its GPUs; None when they are not known."""
    labels: Mapping[str, str] | None = None
    """Its labels; None when they are not known."""

    def suits(self, accelerator: str | None, labels: Mapping[str, str]) -> bool:
        """Whether it has the accelerator and the labels, as far as that is known."""
        if accelerator is not None and self.accelerators is not None and accelerator not in self.accelerators:
            return False
        return self.labels is None or all(self.labels.get(name) == value for name, value in labels.items())


@dataclass(frozen=True)
class Machine:
    """CPU cores and GPUs that trials may use: this machine's, or those of a cluster's nodes together."""

    cpus: int
    gpus: int
    nodes: tuple[Node, ...] = ()
    """The nodes of a cluster; none stands for one with all of it."""
    later: tuple[Node, ...] = ()
    """Nodes that an autoscaler adds when trials wait for them."""
    elastic: bool = False
    """Whether an autoscaler may add nodes that are not known beforehand."""

    @property
    def parts(self) -> tuple[Node, ...]:
        """The nodes that trials may run on, sooner or later."""
        return (self.nodes or (Node(self.cpus, self.gpus),)) + self.later

    @property
    def present(self) -> Machine:
        """What is there now."""
        return replace(self, later=(), elastic=False)


def this_machine(*, ask_driver: bool = True) -> Machine:
    """The machine that this process runs on.

    ask_driver: whether to start ``nvidia-smi`` when nothing else tells of GPUs; it takes a moment.
    """
    return Machine(cpu_count(), gpu_count(ask_driver=ask_driver))


def cpu_count(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> int:
    """The CPU cores that this process may use, at least 1: by its affinity and by the quotas of its control groups.

    ``os.cpu_count`` counts the host's, also in a container that may use two of them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min([cores, *_quotas(cgroups, own)]) + 1e-9))


def gpu_count(environment: Mapping[str, str] = os.environ, driver: Path = _NVIDIA, *, ask_driver: bool = True) -> int:
    """The GPUs that this process may use: those in ``CUDA_VISIBLE_DEVICES``, else those that the NVIDIA driver has."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return _listed(visible)
    try:
        return len(list(driver.iterdir()))
    except OSError:
        return _nvidia_smi() if ask_driver else 0


def _listed(visible: str) -> int:
    """CUDA reads device numbers or UUIDs up to the first that is none, such as -1."""
    count = 0
    for device in visible.split(","):
        if not device.strip() or device.strip().startswith("-") or device.strip() == "NoDevFiles":
            break
        count += 1
    return count


def _nvidia_smi() -> int:
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        output = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in output.splitlines())


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """The CPU quotas, in cores, of the control groups that this process is in, from the innermost outwards."""
    for line in _text(own).splitlines() or ["0::/"]:
        _, controllers, path = line.split(":", 2)
        for folder in (Path(path), *Path(path).parents):
            inner = str(folder).lstrip("/")
            if not controllers:  # version 2
                quota, _, period = _text(cgroups / inner / "cpu.max").partition(" ")
                yield from _cores(quota, period)
            elif "cpu" in controllers.split(","):
                for mount in ("cpu", "cpu,cpuacct"):
                    base = cgroups / mount / inner
                    yield from _cores(_text(base / "cpu.cfs_quota_us"), _text(base / "cpu.cfs_period_us"))


def _cores(quota: str, period: str) -> Iterator[float]:
    """Version 2 writes ``max``, version 1 writes -1, for no limit."""
    if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
        yield int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
