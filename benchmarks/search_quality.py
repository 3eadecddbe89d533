"""How good the configurations are that searches find, on tables of real trainings, beside other people's searches.

    pip install -c constraints.txt -e ".[bench]"
    python benchmarks/search_quality.py FOLDER --part full --methods random hyperopt optuna-tpe --seeds 10 \\
        --cache runs.jsonl --output benchmarks/results/DATE-search-quality.md

Parts:

* ``full``: trials train to their end; what counts is the last value of each, after 25, 50 and 100 trials.
* ``curves``: learning curves; budgets are steps, as many as 40 and 100 full trainings take, for all methods alike.
* ``failing``: full trainings, of which those in half of the space fail.

A method is a search of ours with its options, and a scheduler where one is wanted (``hyperopt:startup=20``,
``sobol``, ``random+asha:grace_steps=1``), or a peer (see ``peers.py``), with settings that are not its
defaults (``optuna-tpe:multivariate=false``).

Each run that has finished is a line of the cache, and is not repeated: stop at any time and go on, also on another
machine, with the runs that are kept (``xz -dc benchmarks/results/runs/curves.jsonl.xz > runs.jsonl``). The line knows
the code of the search (or the peer's version), so what has changed since is run again. Losses are deterministic for a
seed; CPU times are this machine's, measured in the process that runs.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from quality_methods import Method
from quality_report import Record, write_report

from raytuner.search import Observation, Search
from raytuner.simulation import Budget, Cluster, Curve, Run, Table, load_table, simulate_run, table_names
from raytuner.space import Choice, Config

LAST_ASKS = 10
"""Asks over which the CPU time of a suggestion is averaged: the last ones before a mark, when most is known."""
STARTUP = 20
"""Trials whose failures are nobody's fault, since nothing is known yet; raw hyperopt's start-up is the longest."""


# -- tables ------------------------------------------------------------------------------------------------------------


class FullTrainings(Table):
    """A table whose trainings are one step, with the value and the time of the whole."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.name, self.space, self.reference = table.name, table.space, table.reference
        self.repetitions = table.repetitions

    def curve(self, config: Config, steps: int, repetition: int = 0) -> Curve:
        curve = self.table.curve(config, self.table.steps, repetition)
        return Curve(curve.values[-1:], curve.seconds[-1:])

    def true_value(self, config: Config, value: float) -> float:
        return self.table.true_value(config, value)


class HalfFails(FullTrainings):
    """Fails in the upper half of the first parameter that has an order and always exists (or else the first one)."""

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        parameters = {name: given for name, given in self.space.parameters.items() if given.when is None}
        ordered = [name for name, given in parameters.items() if not isinstance(given, Choice) or given.ordered]
        self.place = self.space.names.index((ordered or list(parameters))[0])

    def curve(self, config: Config, steps: int, repetition: int = 0) -> Curve:
        curve = super().curve(config, steps, repetition)
        failed = self.space.to_unit(config)[self.place] > 0.5
        return Curve(np.full(1, np.nan), curve.seconds) if failed else curve


# -- runs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One run."""

    part: str
    instance: str
    method: str
    seed: int
    workers: int
    size: int
    """Trials, or for curves as many steps as this number of full trainings."""
    version: str

    @property
    def key(self) -> str:
        return json.dumps([self.part, self.instance, self.method, self.seed, self.workers, self.size, self.version])


@dataclass
class Watched:
    """A search, with an account of what it answers, what it is told, and its CPU time. Stands in for the search."""

    search: Search
    first: list[Config] = field(default_factory=list)
    configs: dict[str, Config] = field(default_factory=dict)
    ends: list[tuple[str, float]] = field(default_factory=list)
    """Trial and value of those that came to their end, in this order."""
    cpu: list[float] = field(default_factory=list)
    """Seconds of each ask and of the tells before the next."""

    def ask(self, trial_id: str) -> Config | None:
        began = time.process_time()
        config = self.search.ask(trial_id)
        self.cpu.append(time.process_time() - began)
        if config is not None:
            self.configs[trial_id] = config
        return config

    def tell(self, observation: Observation) -> None:
        began = time.process_time()
        self.search.tell(observation)
        self.cpu[-1] += time.process_time() - began
        if observation.status == "finished" and observation.value is not None:
            self.ends.append((observation.trial_id, observation.value))

    def regrets(self, table: Table) -> Iterator[list[float]]:
        """``[n, regret]`` whenever the regret changes: that of the best of the first n trials asked for.

        That is what a budget of n trials would have come to: what was asked for did not depend on the budget.
        """
        number = {trial_id: index for index, trial_id in enumerate(self.configs, start=1)}
        last = math.inf
        for n in range(1, len(number) + 1):
            known = [(value, trial_id) for trial_id, value in self.ends if number[trial_id] <= n]
            if not known:
                continue
            value, trial_id = min(known, key=lambda item: item[0])  # the first to end among equals
            regret = table.reference.regret(table.true_value(self.configs[trial_id], value))
            if regret != last:
                last = regret
                yield [n, regret]

    def cpu_ms(self) -> dict[str, float]:
        """CPU milliseconds of a suggestion: the mean of all, and of the last ones before 25, 50, 100, ... asks."""
        asks = len(self.cpu)
        marks = [mark for mark in (25, 50, 100, 200, 400, 800, 1600, 3000) if mark <= asks]
        figures = {str(mark): 1000 * float(np.mean(self.cpu[mark - LAST_ASKS : mark])) for mark in marks}
        return {name: round(ms, 3) for name, ms in ({"all": 1000 * float(np.mean(self.cpu))} | figures).items()}


@cache
def table_of(path: str) -> Table:
    return load_table(path)


def perform(folder: str, task: Task) -> dict[str, Any]:
    """Do a run: the line of the cache."""
    began = time.perf_counter()
    table = table_of(f"{folder}/{task.instance}")
    if task.part != "curves":
        table = (HalfFails if task.part == "failing" else FullTrainings)(table)
    search, scheduler, select = Method(task.method).build(table, task.seed)
    watched = Watched(search)
    budget = Budget(steps=task.size * table.steps) if task.part == "curves" else Budget(trials=task.size)
    cluster = Cluster(task.workers)
    run = simulate_run(table, cast(Search, watched), scheduler, cluster, budget, seed=task.seed, select=select)
    late = run.failed[STARTUP:]
    return {
        **vars(task),
        "path": list(_changes(run)) if task.part == "curves" else list(watched.regrets(table)),
        "trials": run.trials,
        "steps": run.steps,
        "max_steps": table.steps,
        "seconds": round(run.seconds, 3),
        "cpu_ms": watched.cpu_ms(),
        "failed": round(float(np.mean(late)), 4) if late else 0.0,
        "wall": round(time.perf_counter() - began, 2),
    }


def _changes(run: Run) -> Iterator[list[float]]:
    """``[steps, regret, seconds]`` whenever the regret changes."""
    last = math.inf
    for step, (at, regret) in enumerate(zip(run.times.tolist(), run.regrets.tolist(), strict=True), start=1):
        if regret != last:
            last = regret
            yield [step, float(f"{regret:.6g}"), round(at, 3)]


def read_cache(path: Path) -> dict[str, Record]:
    """Runs by the key of their task; a line that was cut off is left out."""
    found: dict[str, Record] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            task = Task(**{name: record[name] for name in Task.__dataclass_fields__})
        except (ValueError, KeyError):
            continue
        found[task.key] = record
    return found


def run_all(folder: str, tasks: Iterable[Task], path: Path, processes: int) -> None:
    """Do the runs, and add each to the cache when it has finished."""
    tasks = list(tasks)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # for the processes that run: what is compared is CPU, not threads
    began = time.perf_counter()
    broken = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a") as file, ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        if broken:
            file.write("\n")
        waiting = {pool.submit(perform, folder, task): task for task in tasks}
        try:
            for count, future in enumerate(as_completed(waiting), start=1):
                task = waiting[future]
                try:
                    record = future.result()
                except Exception as error:
                    print(f"{task.method} on {task.instance}, seed {task.seed}: {error!r}", file=sys.stderr, flush=True)
                    continue
                file.write(json.dumps(record) + "\n")
                file.flush()
                regret = record["path"][-1][1] if record["path"] else math.inf
                print(
                    f"{count}/{len(tasks)} {time.perf_counter() - began:.0f} s: {task.method} on {task.instance}, "
                    f"seed {task.seed}, {task.workers} workers: {regret:.4f} in {record['wall']:.1f} s",
                    flush=True,
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="the folder of tables")
    parser.add_argument("--part", choices=("full", "curves", "failing"), default="full")
    parser.add_argument("--methods", nargs="+", default=["random", "hyperopt", "hyperopt-raw", "optuna-tpe"])
    parser.add_argument("--instances", nargs="+", help="tables of the folder; all that the part can use by default")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--trials", type=int, nargs="+", help="budgets, also in full trainings; 25 50 100, or 40 100")
    parser.add_argument("--cache", type=Path, required=True, help="a file of finished runs, which are not repeated")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the report here, and its pictures beside it")
    parser.add_argument("--report", action="store_true", help="run nothing: report what the cache has")
    options = parser.parse_args()
    curves = options.part == "curves"
    marks = sorted(options.trials or ([40, 100] if curves else [25, 50, 100]))
    instances = options.instances or [
        name for name in table_names(options.folder) if not curves or table_of(f"{options.folder}/{name}").steps > 1
    ]
    versions = {text: Method(text).version for text in options.methods}
    tasks = [
        Task(options.part, instance, method, seed, workers, marks[-1], versions[method])
        for seed in range(options.seeds)  # outermost, so that a part of all the runs is worth something
        for workers in options.workers
        for instance in instances
        for method in options.methods
    ]
    options.cache.parent.mkdir(parents=True, exist_ok=True)
    if not options.report:
        known = read_cache(options.cache)
        run_all(options.folder, (task for task in tasks if task.key not in known), options.cache, options.processes)
    known = read_cache(options.cache)
    records = [known[task.key] for task in tasks if task.key in known]
    print(write_report(records, options.part, marks, versions, options.output))


if __name__ == "__main__":
    main()
