"""How busy many devices are kept, and what the others wait for.

    python benchmarks/utilisation.py cluster [--nodes N] [--trials N] [--seconds S] [--workers W] [--output FILE]
    python benchmarks/utilisation.py simulated TABLE [--workers N] [--trials N] [--hours H]

``cluster``: one Ray cluster on this machine, of a head and nodes with 8 declared GPUs each; trials that sleep
through their steps, under ASHA, one GPU each (or gangs of W). All slots start on this machine's cores, which no real
cluster would do; so the whole is told, and the stretch from the last slot's first trial on until nothing was left to
start. What the driver pays for it in CPU and memory is told by the first and the last third of the trials.

``simulated``: random search with ASHA against a table of trainings on a virtual cluster.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from raytuner import Trial

GPUS = 8


def sleeper(trial: Trial) -> None:
    for step in trial.steps(nothing=[0]):
        time.sleep(trial.config["seconds"])
        trial.report(loss=(trial.config["x"] - 0.3) ** 2 + 1.0 / step)


def cluster(options: argparse.Namespace) -> list[str]:
    from raytuner.engine.runner import quiet_ray

    quiet_ray()
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(options.nodes):
            nodes.add_node(num_cpus=GPUS, num_gpus=GPUS)
        nodes.wait_for_nodes()
        import ray

        ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
        with tempfile.TemporaryDirectory() as folder:
            return measure(options, folder)
    finally:
        import ray

        ray.shutdown()
        nodes.shutdown()


def measure(options: argparse.Namespace, folder: str) -> list[str]:
    from raytuner.definition import Experiment
    from raytuner.journal import Folder, JournalReader, TrialEnded, TrialStarted, Usage
    from raytuner.launch import drive, machine
    from raytuner.plan import compile as compile_plan

    resources: dict[str, Any] = {"cpu": 0.5, "gpu": 1, "workers": options.workers}
    experiment = Experiment(
        name="utilisation",
        train="utilisation:sleeper",
        objective={"metric": "loss", "mode": "min", "max_steps": 27},
        space={
            "x": {"type": "float", "low": 0.0, "high": 1.0},
            "seconds": {"type": "choice", "values": [options.seconds]},
        },
        search="random",
        scheduler={"type": "asha", "grace_steps": 1, "reduction_factor": 3},
        budget={"trials": options.trials},
        resources=resources,
        tracking="none",
        storage=folder,
    )
    plan = compile_plan(experiment, import_root=Path(__file__).parent, machine=machine())
    spent = watch_driver(options.trials)
    state = drive(plan, quiet=True)
    events = list(JournalReader(Folder(Path(plan.storage)).journal).read())
    starts = [e for e in events if isinstance(e, TrialStarted)]
    ends = {(e.trial, e.attempt): e.at for e in events if isinstance(e, TrialEnded)}
    usage = [e for e in events if isinstance(e, Usage)][-1]
    spans = [(e.at, ends[e.trial, e.attempt]) for e in starts]
    slots = plan.slots
    full, last = sorted(begin for begin, _ in spans)[slots - 1], max(begin for begin, _ in spans)
    busy = sum(max(0.0, min(end, last) - max(begin, full)) for begin, end in spans)
    later = sorted(begin for begin, _ in spans)[slots:]
    gaps = sorted(b - a for a, b in zip(sorted(end for _, end in spans), later, strict=False))
    idle = ", ".join(f"{seconds:.0f} s {reason}" for reason, seconds in usage.idle.items())
    return [
        f"{len(state.trials)} trials of {options.workers} process{'es' * (options.workers > 1)}, "
        f"{state.steps} steps of {options.seconds:g} s, {slots} at once on {options.nodes} nodes of {GPUS} declared "
        "GPUs each.",
        "",
        "| | |",
        "| --- | ---: |",
        f"| busy, from the last slot's start until nothing was left to start ({last - full:.0f} s) "
        f"| {busy / (slots * (last - full)):.1%} |",
        f"| busy, from the first trial's start to the last one's end ({usage.total / options.nodes / GPUS:.0f} s) "
        f"| {usage.busy / usage.total:.1%} |",
        f"| idle device-seconds in all | {idle} |",
        f"| from a trial's end to the next one's start, median and p90 | {gaps[len(gaps) // 2]:.2f} s, "
        f"{gaps[len(gaps) * 9 // 10]:.2f} s |",
        f"| the driver's CPU a result, in the middle and the last third of the trials | {cost(spent, 0, 1)}, "
        f"{cost(spent, 1, 2)} |",
        f"| the driver's memory at these thirds' ends | {', '.join(f'{each[2] / 1e6:.0f} MB' for each in spent)} |",
    ]


def watch_driver(trials: int) -> list[tuple[float, int, int]]:
    """CPU seconds, results and resident bytes of this process when a third, two thirds and all trials have begun."""
    import psutil

    from raytuner.engine.conductor import Conductor

    process, take = psutil.Process(), Conductor.take
    seen: list[tuple[float, int, int]] = []

    def watched(self: Conductor, *arguments: Any, **more: Any) -> bool:
        if len(seen) < 3 and len(self.state.trials) >= trials * (len(seen) + 1) // 3:
            seen.append((time.process_time(), self.state.steps, process.memory_info().rss))
        return take(self, *arguments, **more)

    Conductor.take = watched  # type: ignore[method-assign]  # the benchmark watches it
    return seen


def cost(seen: list[tuple[float, int, int]], start: int, end: int) -> str:
    return f"{1000 * (seen[end][0] - seen[start][0]) / (seen[end][1] - seen[start][1]):.2f} ms"


def simulated(options: argparse.Namespace) -> list[str]:
    from raytuner import Experiment, simulate

    experiment = Experiment(
        name="utilisation",
        train="utilisation:sleeper",
        objective={"metric": "loss", "mode": "min", "max_steps": 1000},
        space={"x": {"type": "float", "low": 0.0, "high": 1.0}},
        search="random",
        scheduler={"type": "asha", "grace_steps": 1, "reduction_factor": 3},
        budget={"trials": options.trials, **({"time": options.hours * 3600} if options.hours else {})},
    )
    found = simulate(experiment, options.table, workers=options.workers, seeds=1)
    return found.describe()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("cluster", "simulated"))
    parser.add_argument("table", nargs="?", help="of the simulation")
    parser.add_argument("--nodes", type=int, default=4, help="of the cluster")
    parser.add_argument("--trials", type=int, default=320)
    parser.add_argument("--seconds", type=float, default=5.0, help="a step's")
    parser.add_argument("--workers", type=int, default=1, help="processes a trial; in the simulation, devices")
    parser.add_argument("--hours", type=float, help="the simulation's time budget")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    lines = cluster(options) if options.part == "cluster" else simulated(options)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    text = "\n".join([f"# Use of devices: {options.part}", "", f"{datetime.date.today()}, {machine}.", "", *lines, ""])
    if options.output:
        options.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
