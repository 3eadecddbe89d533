"""A search and a scheduler that lie beside the definition: a run finds them, a resume as they were, an extension as
they are. What is wrong with them is told before anything starts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

from raytuner.journal import Folder, replay

SEARCH = """
from raytuner.components import Options
from raytuner.search import Search

class Halves(Search):
    Options = Options

    def _propose(self, rng, number):
        from my_package.values import value

        config = {"x": value(number)}
        return config if self.is_new(config) else None
"""
SCHEDULER = """
from raytuner.components import Options
from raytuner.schedulers import NoneScheduler

class Lenient(NoneScheduler):
    Options = Options
"""
TRAIN = """
import time

def train(trial):
    time.sleep(0.3)
    trial.report(loss=trial.config["x"])
"""


def raytuner(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "raytuner", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def write_package(folder: Path, value: str) -> None:
    package = folder / "code/my_package"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("")
    (package / "halves.py").write_text(SEARCH)
    (package / "values.py").write_text(f"def value(number):\n    return {value}\n")
    (package / "lenient.py").write_text(SCHEDULER)


def write(folder: Path) -> Path:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    write_package(folder, "1 / 2 ** number")
    (folder / "code/mine.py").write_text(TRAIN)
    definition = {
        "name": "mine",
        "train": "mine:train",
        "objective": {"metric": "loss", "mode": "min", "max_steps": 1},
        "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
        "search": "my_package.halves:Halves",
        "scheduler": "my_package.lenient:Lenient",
        "budget": {"trials": 12},
        "resources": {"concurrent_trials": 1},
        "tracking": "none",
        "storage": str(folder / "results"),
    }
    (folder / "code/mine.yaml").write_text(yaml.safe_dump(definition))
    return elsewhere


def test_beside_the_definition_and_in_the_snapshot(tmp_path: Path) -> None:
    elsewhere = write(tmp_path)
    running = raytuner(elsewhere, "run", "../code/mine.yaml")
    folder = Folder(tmp_path / "results/mine")
    deadline = time.monotonic() + 120
    while not (folder.journal.is_dir() and replay(folder).steps >= 2):
        assert running.poll() is None, running.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    running.kill()
    running.communicate()
    for file in (tmp_path / "code/my_package").glob("*.py"):
        file.write_text("raise RuntimeError('not the code of then')\n")
    resumed = raytuner(elsewhere, "resume", str(folder.path))
    said = resumed.communicate(timeout=200)[0]
    assert resumed.returncode == 0, said
    values = [trial.value for trial in replay(folder).trials.values()]
    assert values == [1 / 2**number for number in range(12)]
    write_package(tmp_path, "1 / 3 ** number")
    extended = raytuner(elsewhere, "extend", str(folder.path), "--trials", "+2")
    said = extended.communicate(timeout=200)[0]
    assert extended.returncode == 0, said
    values = [trial.value for trial in replay(folder).trials.values()]
    assert values[12:] == [1 / 3**12, 1 / 3**13], "an extension takes the code as it is now"


def test_wrong_options_are_refused_before_there_is_a_folder(tmp_path: Path) -> None:
    elsewhere = write(tmp_path)
    wrong = "search={type: optuna, options: {n_ei_candidates: 0}}"
    running = raytuner(elsewhere, "run", "../code/mine.yaml", "--set", wrong)
    said = running.communicate(timeout=60)[0]
    assert running.returncode == 2
    assert "search.options: must be options of TPESampler" in said
    assert "Traceback" not in said
    assert not (tmp_path / "results").exists()


def test_one_that_cannot_be_used_is_refused_before_there_is_a_folder(tmp_path: Path) -> None:
    elsewhere = write(tmp_path)
    (tmp_path / "code/my_package/halves.py").write_text("class Halves:\n    pass\n")
    running = raytuner(elsewhere, "run", "../code/mine.yaml")
    said = running.communicate(timeout=60)[0]
    assert running.returncode == 2
    assert "search.type: must have its Options" in said
    assert "Traceback" not in said
    assert not (tmp_path / "results").exists()
