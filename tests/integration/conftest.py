"""One Ray for all tests of a session that run their driver in this process."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from raytuner.definition import Experiment
from raytuner.engine.runner import quiet_ray
from raytuner.journal import ExperimentState, Folder, replay
from raytuner.launch import drive, machine
from raytuner.plan import compile as compile_plan

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    quiet_ray()
    import ray

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=2,  # declared, not there
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield ray
    ray.shutdown()


Run = Callable[..., tuple[ExperimentState, Folder]]


@pytest.fixture
def run(ray: Any, tmp_path: Path) -> Run:
    """Run an experiment made of keyword arguments; returns its state with history, and its folder."""

    def run_experiment(**fields: Any) -> tuple[ExperimentState, Folder]:
        defaults: dict[str, Any] = {
            "name": "test",
            "objective": {"metric": "loss", "mode": "min"},
            "space": {"x": {"type": "float", "low": -10.0, "high": 10.0}},
            "search": "random",
            "tracking": "none",
            "storage": str(tmp_path / "results"),
        }
        plan = compile_plan(Experiment(**{**defaults, **fields}), import_root=HERE, machine=machine())
        drive(plan, quiet=True)
        folder = Folder(Path(plan.storage))
        return replay(folder), folder

    return run_experiment


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """What ``condition`` returns once it is true; fails after ``seconds``."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        result = condition()
        if result:
            return result
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


def processes_of(marker: str) -> list[psutil.Process]:
    """The living processes whose command line or environment names ``marker``."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if marker in " ".join(process.cmdline()) or marker in " ".join(process.environ().values()):
                found.append(process)
        except psutil.Error:
            continue
    return found
