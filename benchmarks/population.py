"""What population-based training costs and brings: an exploit's lost time beside Ray's PBT, and PBT beside ASHA.

    python benchmarks/population.py exploit [--repeat N] [--megabytes M] [--output FILE]
    RAYTUNER_DATA=FOLDER python benchmarks/population.py mnist [--repeat N] [--output FILE]

``exploit``: members that sleep for a step's time and keep a state of a given size train as a population, by Ray's PBT
as its documentation writes it, by the same with reused actors, and by ours, in turns, each in its own process. What
counts is the time in which a member does not train: between the last step before a copy and the first one after it,
all included (checkpoint, decision, new process, load), and that of a whole member, less its steps.

``mnist``: ``experiments/mnist_pbt.yaml`` against random search with ASHA at the same total steps; several seeds, each
tested once on digits that neither has seen.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from raytuner import Trial

HERE = Path(__file__).parent
MEMBERS, STEPS, INTERVAL, SECONDS = 4, 40, 4, 0.25
WAYS = ("ray", "ray-reused", "ours")


# -- the work: the same for all ----------------------------------------------------------------------------------------


class Member:
    """Sleeps through its steps, learns at its rate, and writes down when it did so."""

    def __init__(self, name: str, rate: float) -> None:
        self.name, self.rate = name, rate
        self.learnt = np.zeros(1)
        self.ballast = np.zeros(int(os.environ["POPULATION_MB"]) * 131_072)
        self.call = time.time()

    def step(self, step: int) -> float:
        began = time.time()
        time.sleep(SECONDS)
        self.learnt += self.rate
        line = json.dumps([self.name, self.call, step, began, time.time()])
        with open(os.environ["POPULATION_LOG"], "a") as log:
            log.write(line + "\n")
        return float(self.learnt[0])


def train(trial: Trial) -> None:
    member = Member(trial.id, trial.config["rate"])
    for step in trial.steps(learnt=member.learnt, ballast=member.ballast):
        trial.report(learnt=member.step(step))


def train_for_ray(config: dict) -> None:
    """As Ray's documentation has it: restore if there is a checkpoint, and save one at each perturbation."""
    from ray import tune

    member = Member(tune.get_context().get_trial_id(), config["rate"])
    first = 1
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder, np.load(Path(folder, "state.npz")) as state:
            member.learnt, member.ballast = state["learnt"], state["ballast"]
            first = int(state["step"]) + 1
    for step in range(first, STEPS + 1):
        learnt = member.step(step)
        if step % INTERVAL:
            tune.report({"learnt": learnt})
            continue
        with tempfile.TemporaryDirectory() as folder:
            np.savez(Path(folder, "state.npz"), learnt=member.learnt, ballast=member.ballast, step=step)
            tune.report({"learnt": learnt}, checkpoint=tune.Checkpoint.from_directory(folder))


# -- the ways --------------------------------------------------------------------------------------------------------


def run_way(way: str) -> None:
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    import ray

    ray.init(
        address="local", num_cpus=MEMBERS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    with tempfile.TemporaryDirectory() as folder:
        if way == "ours":
            run_ours(Path(folder))
        else:
            run_ray(folder, reused=way == "ray-reused")


def run_ours(folder: Path) -> None:
    from raytuner.definition import Experiment
    from raytuner.launch import drive, machine
    from raytuner.plan import compile as compile_plan

    experiment = Experiment(
        name="run",
        storage=str(folder),
        tracking="none",
        train="population:train",
        objective={"metric": "learnt", "mode": "max", "max_steps": STEPS},
        space={"rate": {"type": "float", "low": 0.0, "high": 1.0}},
        search="random",
        scheduler={"type": "pbt", "mutate": ["rate"], "population": MEMBERS, "perturbation_interval": INTERVAL},
        checkpoints={"best": False},
    )
    drive(compile_plan(experiment, import_root=HERE, machine=machine()), quiet=True)


def run_ray(folder: str, *, reused: bool) -> None:
    from ray import tune
    from ray.tune.schedulers import PopulationBasedTraining

    scheduler = PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=INTERVAL,
        quantile_fraction=0.25,
        hyperparam_mutations={"rate": tune.uniform(0.0, 1.0)},
    )
    tune.Tuner(
        train_for_ray,
        param_space={"rate": tune.uniform(0.0, 1.0)},
        tune_config=tune.TuneConfig(
            metric="learnt", mode="max", num_samples=MEMBERS, scheduler=scheduler, reuse_actors=reused
        ),
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    ).fit()


def measure(way: str, megabytes: int) -> dict[str, Any]:
    """Run a way in a process of its own: seconds lost at each copy, and by a member that trained throughout."""
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        environment = {
            **os.environ,
            "POPULATION_LOG": log.name,
            "POPULATION_MB": str(megabytes),
            "PYTHONPATH": str(HERE),
        }
        began = time.time()
        subprocess.run([sys.executable, __file__, "way", way], env=environment, check=True, capture_output=True)
        lines = [json.loads(line) for line in Path(log.name).read_text().splitlines()]
    members: dict[str, list[Any]] = {}
    for name, *rest in sorted(lines, key=lambda line: line[3]):
        members.setdefault(name, []).append(rest)
    gaps = [gap for steps in members.values() for gap in _gaps(steps)]
    spans = [steps[-1][3] - steps[0][2] - len(steps) * SECONDS for steps in members.values()]
    return {"gaps": gaps, "lost": statistics.mean(spans), "wall": time.time() - began, "steps": len(lines)}


def _gaps(steps: list[Any]) -> Iterator[float]:
    """Between the end of a member's last step in one call and the begin of its first in the next."""
    for (call, _, _, ended), (other, _, began, _) in pairwise(steps):
        if call != other:
            yield began - ended


def exploit(options: argparse.Namespace) -> list[str]:
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(options.repeat):
        for way in WAYS:
            found[way].append(measure(way, options.megabytes))
            print(way, {k: v for k, v in found[way][-1].items() if k != "gaps"}, file=sys.stderr, flush=True)
    rows = [
        f"{MEMBERS} members, {STEPS} steps of {SECONDS:g} s, a decision every {INTERVAL}, a state of "
        f"{options.megabytes} MB; {options.repeat} runs of each, in turns. Seconds.",
        "",
        "| way | copies | lost at a copy: median | 90 % | lost by a member, steps apart: mean | whole process |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for way, runs in found.items():
        gaps = [gap for run in runs for gap in run["gaps"]]
        middle, high = (float(np.quantile(gaps, q)) if gaps else float("nan") for q in (0.5, 0.9))
        lost = statistics.mean(run["lost"] for run in runs)
        wall = statistics.median(run["wall"] for run in runs)
        rows.append(f"| {way} | {len(gaps)} | {middle:.3f} | {high:.3f} | {lost:.2f} | {wall:.1f} |")
    return rows


# -- what it brings ----------------------------------------------------------------------------------------------------


def mnist(options: argparse.Namespace) -> list[str]:
    from raytuner.analysis import best
    from raytuner.definition import load, to_plain
    from raytuner.definition.experiment import Experiment
    from raytuner.journal import Folder
    from raytuner.launch import drive
    from raytuner.plan import compile as compile_plan

    root = HERE.parent
    file = root / "experiments" / "mnist_pbt.yaml"
    plain = to_plain(load(str(file)))
    steps = plain["objective"]["max_steps"] * plain["scheduler"]["population"]
    rows = [
        "| seed | method | steps | val_loss after PBT's steps | val_loss in all | its test_loss | its test_accuracy |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    values: dict[str, list[float]] = {}
    for seed in range(options.repeat):
        budget = 0
        for method in ("pbt", "random + asha"):
            with tempfile.TemporaryDirectory() as folder:
                fields = {**plain, "storage": folder, "tracking": "none", "seed": seed}
                if method != "pbt":
                    fields |= {"scheduler": {"type": "asha"}, "budget": {"trials": options.trials}, "search": "random"}
                plan = compile_plan(Experiment(**fields), file=file, import_root=root)
                state = drive(plan, quiet=True)
                found = best(Folder(Path(plan.storage)))
            budget = budget or state.steps
            test = found["test"] or {}
            equal = [value for _, number, _, value in state.incumbents if number <= budget][-1]
            values.setdefault(method, []).append(equal)
            rows.append(
                f"| {seed} | {method} | {state.steps} | {equal:.4f} | {found['value']:.4f} | "
                f"{test.get('test_loss', 0):.4f} | {test.get('test_accuracy', 0):.4f} |"
            )
            print(rows[-1], file=sys.stderr, flush=True)
    said = ", ".join(f"{method} {statistics.median(losses):.4f}" for method, losses in values.items())
    return [f"At most {steps} steps for PBT. Medians of val_loss after as many steps: {said}.", "", *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("exploit", "mnist", "way"))
    parser.add_argument("way", nargs="?", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=10, help="the state's size")
    parser.add_argument("--trials", type=int, default=24, help="trials of random search with ASHA")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.part == "way":
        run_way(options.way)
        return
    lines = exploit(options) if options.part == "exploit" else mnist(options)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    text = "\n".join(
        [f"# Population-based training: {options.part}", "", f"{datetime.date.today()}, {machine}.", "", *lines, ""]
    )
    if options.output:
        options.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
