"""Cores and GPUs, from made-up files of the system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raytuner.definition import Resources
from raytuner.engine.nodes import Growth
from raytuner.plan import Machine, Needs, Node, slots_for
from raytuner.plan.machine import cpu_count, gpu_count, this_machine


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


class TestCpus:
    def test_by_affinity_when_there_is_no_quota(self, tmp_path: Path) -> None:
        assert cpu_count(tmp_path / "none", tmp_path / "none") == 16

    @pytest.mark.parametrize(
        ("quota", "cores"),
        [
            ("max 100000", 16),
            ("400000 100000", 4),
            ("250000 100000", 2),
            ("50000 100000", 1),
            ("", 16),
            ("x y", 16),
            ("99999999 1", 16),
        ],
    )
    def test_by_the_quota_of_version_2(self, tmp_path: Path, quota: str, cores: int) -> None:
        write(tmp_path / "own", "0::/\n")
        write(tmp_path / "cgroup/cpu.max", quota + "\n")
        assert cpu_count(tmp_path / "cgroup", tmp_path / "own") == cores

    def test_by_the_tightest_quota_of_all_groups_above(self, tmp_path: Path) -> None:
        write(tmp_path / "own", "0::/kube/pod/me\n")
        write(tmp_path / "cgroup/kube/pod/me/cpu.max", "max 100000\n")
        write(tmp_path / "cgroup/kube/pod/cpu.max", "300000 100000\n")
        write(tmp_path / "cgroup/kube/cpu.max", "800000 100000\n")
        assert cpu_count(tmp_path / "cgroup", tmp_path / "own") == 3

    def test_by_the_quota_of_version_1(self, tmp_path: Path) -> None:
        write(tmp_path / "own", "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n0::/\n")
        for folder in ("cpu", "cpu,cpuacct"):
            write(tmp_path / "cgroup" / folder / "cpu.cfs_quota_us", "200000\n")
            write(tmp_path / "cgroup" / folder / "cpu.cfs_period_us", "100000\n")
        assert cpu_count(tmp_path / "cgroup", tmp_path / "own") == 2
        write(tmp_path / "cgroup/cpu/cpu.cfs_quota_us", "-1\n")
        write(tmp_path / "cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
        assert cpu_count(tmp_path / "cgroup", tmp_path / "own") == 16


class TestGpus:
    @pytest.mark.parametrize(
        ("visible", "gpus"),
        [("", 0), ("-1", 0), ("0", 1), ("0,1, 3", 3), ("0,-1,1", 1), ("GPU-5f,MIG-7a", 2), ("NoDevFiles", 0)],
    )
    def test_by_what_cuda_may_see(self, tmp_path: Path, visible: str, gpus: int) -> None:
        (tmp_path / "0000:01:00.0").mkdir()
        assert gpu_count({"CUDA_VISIBLE_DEVICES": visible}, tmp_path) == gpus

    def test_by_the_driver(self, tmp_path: Path) -> None:
        (tmp_path / "0000:01:00.0").mkdir()
        (tmp_path / "0000:02:00.0").mkdir()
        assert gpu_count({}, tmp_path) == 2

    def test_by_nvidia_smi(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text("#!/bin/sh\necho 'GPU 0: H200 (UUID: GPU-1)'\necho '  MIG 1g: (UUID: MIG-1)'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert gpu_count({}, tmp_path / "none") == 1
        assert gpu_count({}, tmp_path / "none", ask_driver=False) == 0
        program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
        assert gpu_count({}, tmp_path / "none") == 0
        monkeypatch.setenv("PATH", "")
        assert gpu_count({}, tmp_path / "none") == 0


def test_this_machine_has_something() -> None:
    machine = this_machine(ask_driver=False)
    assert machine.cpus >= 1
    assert machine.gpus >= 0


def test_slots_on_a_cluster_that_grows() -> None:
    resources, needs = Resources(gpu=1), Needs(cpu=1.0, gpu=1.0)
    head = (Node(8.0, 0.0),)
    assert slots_for(needs, resources, Machine(8, 0, head)) == 0
    assert slots_for(needs, resources, Machine(8, 0, head, later=(Node(8.0, 4.0),) * 3)) == 12
    assert slots_for(needs, resources, Machine(8, 0, head, later=(Node(8.0, 4.0),) * 3).present) == 0
    few = Resources(gpu=1, concurrent_trials=5)
    assert slots_for(needs, few, Machine(8, 0, head, later=(Node(8.0, 4.0),) * 3)) == 5
    assert slots_for(needs, few, Machine(8, 0, head, elastic=True)) == 5
    assert slots_for(needs, resources, Machine(8, 0, head, elastic=True)) == 1
    assert slots_for(needs, few, Machine(8, 0, head, elastic=True).present) == 0


def test_what_may_still_come() -> None:
    big, small = {"CPU": 8.0, "GPU": 4.0}, {"CPU": 4.0}
    growth = Growth(((big, {"zone": "a"}, 2), (small, {}, 3)), most=4)
    assert growth.left([]) == [(big, {"zone": "a"})] * 2 + [(small, {})] * 2
    there = {**big, "memory": 1e9, "node:10.0.0.7": 1.0}
    assert growth.left([there]) == [(big, {"zone": "a"})] + [(small, {})] * 2
    assert growth.left([there, there, there, small]) == []
