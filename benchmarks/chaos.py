"""What is left after many deaths: drivers, trials and nodes are killed, at random instants and in the middle of writes.

    python benchmarks/chaos.py [--kills N] [--rounds R] [--trials N] [--seed S] [--output FILE]

A round is one experiment (ASHA, its two forms in turns) on a Ray cluster of two nodes on this machine, a head that runs
nothing and one with a single slot, tracked in MLflow. Until it has had its share of kills, its driver, the trial's
process or the node is killed with SIGKILL: at a random instant, with half a line of the journal written, or with all
of a checkpoint but its manifest; what died is started again. It is compared with the same experiment, undisturbed.

The seed settles who dies and how; when exactly, hangs on the machine. Exits with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import logging
import os
import platform
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raytuner import Trial
from raytuner.journal import ExperimentState, Folder, JournalReader, TrialStarted, replay

HERE = Path(__file__).parent
STEPS, SECONDS = 9, 0.25
ORDERS = {"driver in the journal": "die-in-journal", "trial in a checkpoint": "die-in-checkpoint"}
"""A file with this name is the order to die in the middle of the next write."""
KINDS = ("driver", "driver in the journal", "trial", "trial in a checkpoint", "node")


def learner(trial: Trial) -> None:
    """The same for the same configuration, whatever happens; dies in a checkpoint when it is told to."""
    weights = np.zeros(1)
    order = Path(os.environ["CHAOS"], ORDERS["trial in a checkpoint"])
    for step in trial.steps(weights=weights):
        weights += trial.config["x"]
        assert abs(weights[0] - step * trial.config["x"]) < 1e-9, "it goes on from its own state"
        time.sleep(float(os.environ["CHAOS_SECONDS"]))
        if order.exists():
            die_in_checkpoint(order)
        trial.report(loss=float((weights[0] / step - 0.3) ** 2 + 0.3 / step))


def die_in_checkpoint(order: Path) -> None:
    """Be killed when all of the next checkpoint is written but its manifest."""
    from raytuner.training import checkpoint

    def die(manifest: dict[str, Any]) -> bytes:
        order.unlink(missing_ok=True)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    checkpoint._sealed = die


def drive(folder: Path, form: str, seed: int, trials: int) -> None:
    """A driver: starts the experiment, or goes on with it; dies in the middle of an event when it is told to."""
    from raytuner.definition import Experiment
    from raytuner.engine.runner import quiet_ray
    from raytuner.journal import JournalWriter
    from raytuner.launch import drive as run
    from raytuner.launch import machine, plan_of
    from raytuner.plan import compile as compile_plan

    quiet_ray()
    write, order = JournalWriter._write, folder / ORDERS["driver in the journal"]

    def half(self: JournalWriter, line: bytes) -> None:
        if order.exists():
            order.unlink()
            os.write(self._fd, line[: len(line) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, line)

    JournalWriter._write = half  # type: ignore[method-assign]  # the benchmark dies in it
    results = Folder(folder / "results" / "chaos")
    if results.journal.is_dir() and replay(results, history=False).steps:
        run(plan_of(results), resuming=True, quiet=True)
        return
    experiment = Experiment(
        name="chaos",
        train="chaos:learner",
        objective={"metric": "loss", "mode": "min", "max_steps": STEPS},
        space={"x": {"type": "float", "low": -1.0, "high": 1.0}},
        search="genetic",
        scheduler={"type": "asha", "form": form, "grace_steps": 1, "reduction_factor": 3},
        budget={"trials": trials},
        checkpoints={"every_steps": 1},
        resources={"cpu": 1, "concurrent_trials": 1},
        storage=str(folder / "results"),
        tracking={"mlflow": f"sqlite:///{folder}/mlflow.db"},
        seed=seed,
        env={name: os.environ[name] for name in ("CHAOS", "CHAOS_SECONDS")},
    )
    run(compile_plan(experiment, import_root=HERE, machine=machine()), quiet=True)


@dataclass
class Round:
    """One experiment that is killed again and again."""

    folder: Path
    form: str
    seed: int
    trials: int
    nodes: Any
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    lives: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.rng = random.Random(self.seed)
        self.results = Folder(self.folder / "results" / "chaos")

    def start(self, *, seconds: float = SECONDS) -> subprocess.Popen[bytes]:
        self.lives += 1
        command = [sys.executable, __file__, "drive", str(self.folder), self.form, str(self.seed), str(self.trials)]
        environment = {"CHAOS": str(self.folder), "CHAOS_SECONDS": str(seconds), "RAY_ADDRESS": self.nodes.address}
        log = (self.folder / "drivers.log").open("ab")
        with log:
            return subprocess.Popen(
                command, env={**os.environ, **environment, "PYTHONPATH": python_path()}, stdout=log, stderr=log
            )

    def run(self, kills: int) -> ExperimentState:
        """Until the experiment has finished."""
        driver: subprocess.Popen[bytes] | None = None
        while True:
            left = kills - sum(self.kills.values())
            kind = self.rng.choice(KINDS) if left > 0 else ""
            if driver is None or driver.poll() is not None:
                if driver is not None and driver.returncode == 0:
                    return replay(self.results)
                driver = self.start()
            before = self.steps()
            if not self.wait(driver, partial(self.further, before), 60.0) or not kind:
                if not kind:
                    driver.wait()
                continue
            time.sleep(self.rng.random() * 1.5)
            if driver.poll() is None:
                self.kills[kind] += self.kill(kind, driver)

    def kill(self, kind: str, driver: subprocess.Popen[bytes]) -> bool:
        if kind == "driver":
            driver.kill()
            driver.wait()
        elif kind == "trial":
            started = [e for e in JournalReader(self.results.journal).read() if isinstance(e, TrialStarted)]
            with suppress(ProcessLookupError):
                os.kill(started[-1].pid, signal.SIGKILL)
                return True
            return False
        elif kind in ORDERS:
            order = self.folder / ORDERS[kind]
            order.touch()
            return self.wait(driver, lambda: not order.exists(), 10.0)
        else:
            self.nodes.kill()
        return True

    def further(self, before: int) -> bool:
        return self.steps() > before

    def steps(self) -> int:
        return replay(self.results, history=False).steps if self.results.journal.is_dir() else 0

    def wait(self, driver: subprocess.Popen[bytes], condition: Any, seconds: float) -> bool:
        limit = time.monotonic() + seconds
        while time.monotonic() < limit and driver.poll() is None:
            if condition():
                return True
            time.sleep(0.05)
        return bool(condition())


class Nodes:
    """A cluster whose one node with a slot can be killed."""

    def __init__(self) -> None:
        from raytuner.engine.runner import quiet_ray

        quiet_ray()
        logging.getLogger("ray").setLevel(logging.ERROR)
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._node = self._cluster.add_node(num_cpus=1)
        self.address = self._cluster.address

    def kill(self) -> None:
        self._cluster.remove_node(self._node, allow_graceful=False)
        self._node = self._cluster.add_node(num_cpus=1)

    def close(self) -> None:
        self._cluster.shutdown()


def python_path() -> str:
    return os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])


def outcome(state: ExperimentState) -> dict[str, Any]:
    """What must be as it would have been."""
    return {
        "best": (state.best.id, state.best.value, state.best.value_step) if state.best else None,
        "trials": [(t.id, t.config, t.status, t.step, t.value) for t in state.trials.values()],
        "steps": {t.id: [(s.step, s.metrics) for s in t.steps] for t in state.trials.values()},
    }


def tracked(folder: Path) -> dict[str, int]:
    """What MLflow has."""
    queries = {
        "runs": "select count(*) from runs",
        "trials": "select count(distinct value) from tags where key = 'raytuner.trial'",
        "running": "select count(*) from runs where status = 'RUNNING'",
        "steps": "select count(*) from (select distinct run_uuid, step from metrics where key = 'loss')",
    }
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        return {name: connection.execute(query).fetchone()[0] for name, query in queries.items()}


def compare(found: Round, state: ExperimentState, expected: ExperimentState) -> list[str]:
    """What is not as it would have been, as sentences."""
    problems = [
        f"{name} differ{'s' * (name == 'best')}"
        for name, value in outcome(state).items()
        if json.dumps(value) != json.dumps(outcome(expected)[name])
    ]
    distinct = sum(len(t.steps) for t in state.trials.values())
    inside = tracked(found.folder)
    if inside["runs"] != len(state.trials) + 1 or inside["trials"] != len(state.trials):
        problems.append(f"MLflow has {inside['runs']} runs of {inside['trials']} trials, not {len(state.trials)}")
    if inside["running"]:
        problems.append(f"{inside['running']} runs are left RUNNING")
    if inside["steps"] != distinct:
        problems.append(f"MLflow has {inside['steps']} of {distinct} steps")
    again = state.steps - distinct
    if again > sum(found.kills.values()):
        problems.append(f"{again} steps were trained again after {sum(found.kills.values())} kills")
    return problems


def main() -> int:
    if sys.argv[1:2] == ["drive"]:
        folder, form, seed, trials = sys.argv[2:]
        drive(Path(folder), form, int(seed), int(trials))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--trials", type=int, default=60, help="of a round's experiment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    nodes = Nodes()
    rows, lost = [], 0
    totals = dict.fromkeys(KINDS, 0)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for number, form in zip(range(options.rounds), itertools.cycle(("promote", "stop")), strict=False):
                seed = options.seed + number
                calm = Round(Path(scratch, f"calm-{number}"), form, seed, options.trials, nodes)
                calm.start(seconds=0.0).wait()
                rough = Round(Path(scratch, f"rough-{number}"), form, seed, options.trials, nodes)
                began = time.monotonic()
                state = rough.run(options.kills // options.rounds)
                expected = replay(calm.results)
                problems = compare(rough, state, expected)
                lost += len(problems)
                again = state.steps - sum(len(t.steps) for t in state.trials.values())
                for kind, kills in rough.kills.items():
                    totals[kind] += kills
                rows.append(
                    f"| {seed} | {form} | {sum(rough.kills.values())} | {rough.lives} | {len(state.trials)} | "
                    f"{state.steps} | {again} | {'; '.join(problems) or 'nothing'} |"
                )
                print(rows[-1], f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    finally:
        nodes.close()
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    said = ", ".join(f"{kills} of a {kind}" for kind, kills in totals.items())
    text = "\n".join([
        "# Chaos", "", f"{datetime.date.today()}, {machine}.", "",
        f"{sum(totals.values())} kills: {said}. Compared with the same experiments, undisturbed.", "",
        "| seed | asha | kills | drivers | trials | steps trained | of them again | lost, doubled, or different |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | --- |", *rows, "",
    ])  # fmt: skip
    if options.output:
        options.output.write_text(text)
    print(text)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
