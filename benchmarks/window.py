"""What it costs `hyperopt` in quality, and saves in time, to be shown some of many trials only.

    pip install -c constraints.txt -e ".[bench]"
    python benchmarks/window.py FOLDER --instances A B C --seeds 3 --output benchmarks/results/DATE-search-window.md

The same search on the same tables (FOLDER has them) with the same seeds, full trainings one after the other, in turns:
as it is, and shown every trial there is.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from overhead import hardware
from quality_methods import Method
from quality_report import LEAST, table_head, table_row
from search_quality import FullTrainings, Watched

from raytuner.search import Search, hyperopt
from raytuner.simulation import Budget, Cluster, load_table, simulate_run

MARKS = (100, 300, 1000, 1500, 3000)
AS_IT_IS = hyperopt.OTHERS
EVERY = 1_000_000


class Row(NamedTuple):
    """One run: its regrets after so many trials, and the CPU milliseconds of a suggestion then."""

    instance: str
    seed: int
    others: int
    regrets: list[float]
    cpu_ms: float


def perform(folder: str, instance: str, seed: int, others: int, trials: int) -> Row:
    hyperopt.OTHERS = others
    table = FullTrainings(load_table(f"{folder}/{instance}"))
    search, scheduler, select = Method("hyperopt").build(table, seed)
    watched = Watched(search)
    budget = Budget(trials=trials)
    simulate_run(table, cast(Search, watched), scheduler, Cluster(1), budget, seed=seed, select=select)
    path = list(watched.regrets(table))
    regrets = [min(regret for n, regret in path if n <= mark) for mark in MARKS if mark <= trials]
    return Row(instance, seed, others, regrets, 1000 * float(np.mean(watched.cpu[-50:])))


def report(rows: Iterable[Row], trials: int) -> str:
    rows = sorted(rows)
    marks = [mark for mark in MARKS if mark <= trials]
    regrets_after = [f"regret, {mark} trials" for mark in marks]
    lines = table_head("instance", "shown", *regrets_after, f"CPU ms a suggestion at {trials}", "runs")
    for instance in sorted({row.instance for row in rows}):
        for others in (AS_IT_IS, EVERY):
            some = [row for row in rows if (row.instance, row.others) == (instance, others)]
            regrets = np.median([row.regrets for row in some], axis=0)
            cpu = float(np.median([row.cpu_ms for row in some]))
            shown = "every trial" if others == EVERY else f"the good ones, {others} of the others"
            lines.append(table_row(instance, shown, *(f"{regret:.4f}" for regret in regrets), f"{cpu:.0f}", len(some)))
    pairs = np.array([[row.regrets for row in rows if row.others == others] for others in (AS_IT_IS, EVERY)])
    ratios = np.diff(np.log(np.maximum(pairs, LEAST)), axis=0)[0]
    lines += ["", "The logarithm of (regret shown every trial / regret as it is) over the pairs of runs:", ""]
    lines += table_head("after", "mean", "standard error", "pairs")
    for mark, ratio in zip(marks, ratios.T, strict=True):
        error = float(np.std(ratio, ddof=1)) / len(ratio) ** 0.5
        lines.append(table_row(f"{mark} trials", f"{float(np.mean(ratio)):+.2f}", f"{error:.2f}", len(ratio)))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="the folder of tables")
    parser.add_argument("--instances", nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=3000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    with ProcessPoolExecutor(options.processes, max_tasks_per_child=1) as pool:
        runs = [
            pool.submit(perform, options.folder, instance, seed, others, options.trials)
            for seed in range(options.seeds)
            for instance in options.instances
            for others in (AS_IT_IS, EVERY)
        ]
        for run in as_completed(runs):
            rows.append(run.result())
            print(*rows[-1], flush=True)
    text = f"# hyperopt's window, {date.today()}\n\n{hardware()}\n\n{report(rows, options.trials)}\n"
    print(text)
    if options.output is not None:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
