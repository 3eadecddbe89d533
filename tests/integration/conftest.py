"""One Ray for all tests of a session that run their driver in this process."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from raytuner.definition import Experiment
from raytuner.engine.runner import quiet_ray
from raytuner.journal import ExperimentState, Folder, JournalReader, replay
from raytuner.launch import drive, machine
from raytuner.plan import compile as compile_plan

HERE = Path(__file__).parent


def start_ray() -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=6,  # declared, not there
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    quiet_ray()
    import ray

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    start_ray()
    yield ray
    ray.shutdown()


def make_whole(ray: Any) -> None:
    """Start Ray anew when it has lost a core, which would keep all tests that follow waiting, and say so.

    Ray 2.60 loses what a placement group was to have when the group is removed between its preparation and its
    commitment, a few milliseconds: the node counts it as taken, and nobody has it. Experiments do not do that
    (test_groups); what a killed driver leaves, Ray itself removes at any time.
    """
    limit = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0.0) < 2:
        if time.monotonic() > limit:
            warnings.warn("Ray has lost a core; it is started anew", stacklevel=2)
            ray.shutdown()
            start_ray()
            return
        time.sleep(0.1)


Run = Callable[..., tuple[ExperimentState, Folder]]


@pytest.fixture
def run(ray: Any, tmp_path: Path) -> Run:
    """Run an experiment made of keyword arguments; returns its state with history, and its folder."""
    make_whole(ray)

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


def events_of(folder: Folder, kind: type) -> list[Any]:
    return [event for event in JournalReader(folder.journal).read() if isinstance(event, kind)]


def raytuner(*arguments: str) -> dict[str, Any]:
    """What a command printed as JSON, if it was asked to; it must have ended well."""
    done = subprocess.run(
        [sys.executable, "-m", "raytuner", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return json.loads(done.stdout) if "--json" in arguments else {}


def start_driver(folder: Path, module: str = "objectives", **fields: Any) -> tuple[subprocess.Popen[str], Folder]:
    """``raytuner run`` as a process of its own, with a Ray of its own, on a module of this folder."""
    definition = {
        "name": "own",
        "search": "random",
        "tracking": "none",
        "storage": str(folder / "results"),
        "resources": {"cpu": 1, "concurrent_trials": 2},
        **fields,
    }
    (folder / f"{module}.py").write_text((HERE / f"{module}.py").read_text())
    (folder / "experiment.yaml").write_text(yaml.safe_dump(definition))
    process = subprocess.Popen(
        [sys.executable, "-m", "raytuner", "run", str(folder / "experiment.yaml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "RAYTUNER_TEST_MARK": str(folder), "PYTHONPATH": ""},
    )
    return process, Folder(folder / "results" / definition["name"])


def run_until(condition: Callable[[Folder], Any], folder: Path, module: str = "objectives", **fields: Any) -> Folder:
    """Start such a driver, and kill it once ``condition`` is true of its results."""
    process, results = start_driver(folder, module, **fields)
    try:
        wait_until(lambda: results.journal.exists() and condition(results), 90, "it has come far enough to be killed")
    finally:
        process.kill()
        process.communicate()
    return results


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
