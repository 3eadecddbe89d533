"""What raytuner costs beyond the training itself, beside hand-written Ray Tune scripts.

    python benchmarks/overhead.py [--only NAME ...] [--repeat N] [--output benchmarks/results/DATE-overhead.md]

Every part runs in a process of its own (``python benchmarks/overhead.py --part NAME``), with a Ray of its own, and what
is compared takes turns (A B A B). Wall-clock seconds, unless said otherwise.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
CPUS = 2
SPACE = {
    "lr": {"type": "float", "low": 1e-4, "high": 1.0, "log": True},
    "width": {"type": "choice", "values": [32, 64, 128], "ordered": True},
    "momentum": {"type": "float", "low": 0.0, "high": 0.99},
}


# -- parts: each prints one JSON object --------------------------------------------------------------------------------


def start_ray() -> float:
    began = time.perf_counter()
    import ray

    ray.init(address="local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return time.perf_counter() - began


def tune_script(kind: str) -> dict[str, Any]:
    """The digits work with Ray Tune by hand: ``plain``, with its MLflow callback, or as an expert would."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    start_ray()
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.hyperopt import HyperOptSearch
    from workloads import MAX_STEPS, digits_for_ray

    callbacks = []
    with tempfile.TemporaryDirectory() as folder:
        if kind == "mlflow":
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            uri = f"sqlite:///{folder}/mlflow.db"
            callbacks = [MLflowLoggerCallback(tracking_uri=uri, experiment_name="digits")]
        expert = kind == "expert"
        began = time.perf_counter()
        tuner = tune.Tuner(
            digits_for_ray,
            param_space={
                "lr": tune.loguniform(1e-4, 1.0),
                "width": tune.choice([32, 64, 128]),
                "momentum": tune.uniform(0.0, 0.99),
            },
            tune_config=tune.TuneConfig(
                metric="accuracy",
                mode="max",
                num_samples=50,
                search_alg=HyperOptSearch(random_state_seed=0),
                scheduler=ASHAScheduler(max_t=MAX_STEPS, grace_period=1, reduction_factor=3),
                reuse_actors=expert,
                max_concurrent_trials=CPUS if expert else None,
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0, callbacks=callbacks),
        )
        results = tuner.fit()
        seconds = time.perf_counter() - began
    steps = sum(int(r.metrics.get("training_iteration", 0)) for r in results if r.metrics)
    return {"seconds": seconds, "steps": steps}


def ours(folder: Path, **fields: Any) -> dict[str, Any]:
    """Run an experiment in this process, on a Ray that is up; what the journal tells of it."""
    from raytuner.definition import Experiment
    from raytuner.journal import Folder, JournalReader, Reported, TrialEnded
    from raytuner.launch import drive, machine
    from raytuner.plan import compile as compile_plan

    began, cpu = time.perf_counter(), time.process_time()
    experiment = Experiment(**{"name": "run", "storage": str(folder), "tracking": "none", **fields})
    plan = compile_plan(experiment, import_root=HERE, machine=machine())
    drive(plan, quiet=True)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    events = list(JournalReader(Folder(Path(plan.storage)).journal).read())
    reports = [event for event in events if isinstance(event, Reported)]
    first = min(report.time - report.seconds for report in reports)
    last = max(event.at for event in events if isinstance(event, TrialEnded))
    return {
        "seconds": seconds,
        "controller_cpu": cpu,
        "span": last - first,
        "steps": len(reports),
        "first_step_at": min(report.time for report in reports),
        "last_end_at": last,
    }


def digits_ours() -> dict[str, Any]:
    """The same work, with MLflow (a fresh SQLite store) on, in a run that starts Ray by itself.

    ``after_init``, which is comparable with a script's ``fit()``, is all from ``ray.init``'s return to the end, results
    written and MLflow up to date, less ``ray.shutdown``.
    """
    marks = watch_ray()
    with tempfile.TemporaryDirectory() as folder:
        result = ours(
            Path(folder),
            train="workloads:digits",
            objective={"metric": "accuracy", "mode": "max", "max_steps": 27},
            space=SPACE,
            search="hyperopt",
            scheduler={"type": "asha", "grace_steps": 1, "reduction_factor": 3},
            budget={"trials": 50},
            tracking={"mlflow": f"sqlite:///{folder}/mlflow.db"},
        )
    return {**result, "after_init": time.time() - marks["up"] - marks["shutdown"]}


def watch_ray() -> dict[str, float]:
    """When ``ray.init`` returned (``up``), and how long it (``init``) and ``ray.shutdown`` took, once they have."""
    import ray

    ray_init, ray_shutdown = ray.init, ray.shutdown
    marks: dict[str, float] = {}

    def init(**options: Any) -> Any:
        began = time.time()
        result = ray_init(**options)
        marks["up"] = time.time()
        marks["init"] = marks["up"] - began
        return result

    def shutdown() -> None:
        began = time.time()
        ray_shutdown()
        marks["shutdown"] = time.time() - began

    ray.init, ray.shutdown = init, shutdown
    return marks


def spinning(seconds: float, steps: int, trials: int, megabytes: int = 0) -> dict[str, Any]:
    """Busy steps of a known length, against the same steps in two bare loops at once.

    megabytes: of a state that is checkpointed after every step.
    """
    start_ray()
    loop = f"from workloads import spin\nfor _ in range({steps * trials // CPUS}): spin({seconds})\n"
    began_loops = time.perf_counter()
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as each trial has
    warm = [subprocess.Popen([sys.executable, "-c", "import workloads"], cwd=HERE, env=one_thread) for _ in range(CPUS)]
    for process in warm:
        process.wait()
    imports = time.perf_counter() - began_loops
    began_loops = time.perf_counter()
    loops = [subprocess.Popen([sys.executable, "-c", loop], cwd=HERE, env=one_thread) for _ in range(CPUS)]
    for process in loops:
        process.wait()
    ideal = time.perf_counter() - began_loops - imports
    with tempfile.TemporaryDirectory() as folder:
        result = ours(
            Path(folder),
            train="workloads:spinning",
            objective={"metric": "loss", "mode": "min", "max_steps": steps},
            space={"x": {"type": "float", "low": 0.0, "high": 1.0}, "seconds": [seconds], "megabytes": [megabytes]},
            search="random",
            budget={"trials": trials},
            checkpoints={"every_steps": 1} if megabytes else {},
            tracking={"mlflow": f"sqlite:///{folder}/mlflow.db"},
        )
    return {**result, "ideal": ideal, "ratio": result["span"] / ideal}


def trivial(trials: int) -> dict[str, Any]:
    """A function of one line, in a run that starts Ray by itself: until the last trial's end, after ``ray.init``."""
    marks = watch_ray()
    with tempfile.TemporaryDirectory() as folder:
        result = ours(
            Path(folder),
            train="parabola:parabola",
            objective={"metric": "loss", "mode": "min"},
            space={"x": {"type": "float", "low": -10.0, "high": 10.0}},
            search="random",
            budget={"trials": trials},
        )
    return {**result, "after_init": result["last_end_at"] - marks["up"]}


def resuming(trials: int) -> dict[str, Any]:
    """A resume after so many trials, their driver killed: from the start of the process to the first trial's start,
    less ``ray.init``. The search is ``auto``, with ASHA.
    """
    from raytuner.journal import Folder, JournalReader, TrialStarted, replay

    with tempfile.TemporaryDirectory() as storage:
        script = f"import overhead; overhead.long_experiment({storage!r}, {trials})"
        driver = subprocess.Popen([sys.executable, "-c", script], cwd=HERE, stdout=subprocess.DEVNULL)
        folder = Folder(Path(storage) / "run")
        while not folder.journal.exists() or replay(folder, history=False).count("finished", "stopped") < trials:
            time.sleep(0.5)
        driver.kill()
        driver.wait()
        time.sleep(2.0)
        before = sum(1 for _ in JournalReader(folder.journal).read())
        script = (
            "import json, overhead; marks = overhead.watch_ray(); from raytuner.launch import drive, plan_of; "
            "from raytuner.journal import Folder; from pathlib import Path; "
            f"drive(plan_of(Folder(Path({str(folder.path)!r}))), resuming=True, quiet=True); print(json.dumps(marks))"
        )
        began = time.time()
        done = subprocess.run([sys.executable, "-c", script], cwd=HERE, stdout=subprocess.PIPE, text=True, check=True)
        marks = json.loads(done.stdout.splitlines()[-1])
        events = list(JournalReader(folder.journal).read())[before:]
        first = next(event.at for event in events if isinstance(event, TrialStarted))
    return {"seconds": first - began - marks["init"], "ray_init": marks["init"], "events": before}


def long_experiment(storage: str, trials: int) -> None:
    """What is resumed: trials of a few steps, some more than are waited for."""
    ours(
        Path(storage),
        train="workloads:counting",
        objective={"metric": "loss", "mode": "min", "max_steps": 9},
        space={**SPACE, "x": {"type": "float", "low": 0.0, "high": 1.0}},
        scheduler={"type": "asha", "min_agreement": -1},
        budget={"trials": trials + 20},
    )


def memory(first: int = 100, last: int = 2000) -> dict[str, Any]:
    """The driver's resident memory and CPU time at trial ``first`` and at trial ``last`` of a trivial function, and
    what a trial cost it, of the first tenth after ``first`` and of the last tenth.
    """
    import psutil

    from raytuner.engine.conductor import Conductor

    process = psutil.Process()
    seen: dict[int, tuple[float, float]] = {}
    take, tenth = Conductor.take, last // 10
    marks = (first, first + tenth, last - tenth, last)

    def watched(self: Conductor, *arguments: Any, **more: Any) -> bool:
        done = len(self.state.trials)
        if done in marks and done not in seen:
            seen[done] = (process.memory_info().rss / 1e6, time.process_time())
        return take(self, *arguments, **more)

    Conductor.take = watched  # type: ignore[method-assign]  # the benchmark watches it
    result = trivial(last)
    megabytes, cpu = ({mark: values[index] for mark, values in seen.items()} for index in (0, 1))
    return {
        **result,
        "first_mb": megabytes[first],
        "last_mb": megabytes[last],
        "growth_mb": megabytes[last] - megabytes[first],
        "early_cpu_ms": (cpu[first + tenth] - cpu[first]) / tenth * 1e3,
        "late_cpu_ms": (cpu[last] - cpu[last - tenth]) / tenth * 1e3,
    }


def tracking(on: bool) -> dict[str, Any]:
    """Steps of 10 ms; what tracking adds to the controller's CPU and to a step."""
    start_ray()
    with tempfile.TemporaryDirectory() as folder:
        return ours(
            Path(folder),
            train="workloads:spinning",
            objective={"metric": "loss", "mode": "min", "max_steps": 200},
            space={"x": {"type": "float", "low": 0.0, "high": 1.0}, "seconds": [0.01]},
            search="random",
            budget={"trials": 8},
            resources={"cpu": 1, "concurrent_trials": 1},
            tracking={"mlflow": f"sqlite:///{folder}/mlflow.db"} if on else "none",
        )


def start_bare() -> dict[str, Any]:
    """A bare ``ray.init``, then the user's module with its data, then a first optimizer."""
    began = time.perf_counter()
    start_ray()
    import workloads

    work = workloads.Digits({"lr": 0.1, "momentum": 0.0, "width": 32}, workloads.prepare())
    return {"seconds": time.perf_counter() - began, "parameters": len(list(work.model.parameters()))}


def start_ours() -> dict[str, Any]:
    """From the start of ``raytuner run`` to the first trial's first step."""
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        result = ours(
            Path(folder),
            train="workloads:digits",
            objective={"metric": "accuracy", "mode": "max", "max_steps": 1},
            space=SPACE,
            search="hyperopt",
            budget={"trials": 2},
            tracking={"mlflow": f"sqlite:///{folder}/mlflow.db"},
        )
    return {"seconds": result["first_step_at"] - began}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "tune-plain": lambda: tune_script("plain"),
    "tune-mlflow": lambda: tune_script("mlflow"),
    "tune-expert": lambda: tune_script("expert"),
    "digits-ours": digits_ours,
    "steps-100ms": lambda: spinning(0.1, 20, 20),
    "steps-1s": lambda: spinning(1.0, 10, 8),
    "steps-1s-kept": lambda: spinning(1.0, 10, 8, megabytes=10),
    "resume-1000": lambda: resuming(1000),
    "trivial-100": lambda: trivial(100),
    "memory-2000": memory,
    "scale-10000": lambda: memory(1000, 10_000),
    "tracking-on": lambda: tracking(True),
    "tracking-off": lambda: tracking(False),
    "start-bare": start_bare,
    "start-ours": start_ours,
}
TURNS = [
    ("digits", ["tune-expert", "digits-ours", "tune-mlflow", "tune-plain"]),
    ("steps", ["steps-100ms", "steps-1s"]),
    ("keeping", ["steps-1s", "steps-1s-kept"]),
    ("resume", ["resume-1000"]),
    ("trivial", ["trivial-100"]),
    ("tracking", ["tracking-off", "tracking-on"]),
    ("start", ["start-bare", "start-ours"]),
    ("memory", ["memory-2000"]),
    ("scale", ["scale-10000"]),
]


# -- all of them ---------------------------------------------------------------


def run_part(name: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--part", name]
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    result["whole"] = time.perf_counter() - began
    print(name, {key: round(value, 3) for key, value in result.items()}, flush=True)
    return result


def median(results: list[dict[str, Any]], key: str = "seconds") -> float:
    return statistics.median(result[key] for result in results)


def report(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A row a figure: measured, and what it was to be."""
    rows = ["| figure | measured | to reach |", "| --- | --- | --- |"]

    def row(name: str, measured: str, goal: str) -> None:
        rows.append(f"| {name} | {measured} | {goal} |")

    if "digits-ours" in found:
        for what, key, their_key, judged in (
            ("after ray.init", "after_init", "seconds", True),
            ("the whole process", "whole", "whole", False),
        ):
            ours_seconds = median(found["digits-ours"], key)
            row(f"50 trials on digits, {what}: ours, MLflow on", f"{ours_seconds:.1f} s", "")
            for name, goal in (("tune-plain", ""), ("tune-mlflow", "≥ 10×"), ("tune-expert", "≥ 2×")):
                if name in found:
                    seconds = median(found[name], their_key)
                    row(f"… {name}", f"{seconds:.1f} s, {seconds / ours_seconds:.1f}× ours", goal if judged else "")
    for name, goal in (("steps-100ms", "≤ 1.3"), ("steps-1s", "≤ 1.1")):
        if name in found:
            row(f"{name}: span / ideal", f"{median(found[name], 'ratio'):.2f}", goal)
    if "steps-1s-kept" in found:
        kept = median(found["steps-1s-kept"], "ratio")
        row("steps-1s with 10 MB kept after each: span / ideal", f"{kept:.3f}", "")
        row("… against no checkpoints", f"{kept / median(found['steps-1s'], 'ratio') - 1:+.1%}", "< 3%")
    if "resume-1000" in found:
        row("resume at 1,000 trials, beyond ray.init", f"{median(found['resume-1000']):.1f} s", "< 5 s")
    if "trivial-100" in found:
        row("100 trials of a parabola, after ray.init", f"{median(found['trivial-100'], 'after_init'):.1f} s", "< 5 s")
    if "tracking-on" in found:
        on, off = found["tracking-on"], found["tracking-off"]
        cost = (median(on, "controller_cpu") - median(off, "controller_cpu")) / median(on, "span")
        row("tracking: controller CPU / run", f"{cost:.1%}", "< 2%")
        step = (median(on, "span") - median(off, "span")) / median(on, "steps")
        row("tracking: added to a step", f"{step * 1000:.2f} ms", "< 1 ms")
    if "start-ours" in found:
        bare, own = median(found["start-bare"]), median(found["start-ours"])
        row("start: ray.init, module, first optimizer", f"{bare:.1f} s", "")
        row("start: ours to the first step", f"{own:.1f} s ({own - bare:+.1f} s)", "≤ +2 s")
    if "memory-2000" in found:
        row("driver memory, trial 100 to 2,000", f"{median(found['memory-2000'], 'growth_mb'):+.0f} MB", "< 80 MB")
    if "scale-10000" in found:
        (result,) = found["scale-10000"]
        row("driver memory a trial, from 1,000 to 10,000", f"{result['growth_mb'] / 9:.1f} kB", "< 40 kB")
        early, late = result["early_cpu_ms"], result["late_cpu_ms"]
        row("driver CPU a trial of one result: at 1,000, at 10,000", f"{early:.1f} ms, {late:.1f} ms", "< 1 ms, flat")
    return rows


def hardware() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, load {load:.1f} at the start"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--only", nargs="*", default=[name for name, _ in TURNS])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part]()))
        return
    machine, found = hardware(), {}
    for group, names in TURNS:
        if group not in options.only:
            continue
        for turn in range(options.repeat):
            for name in names:
                slow = name in ("tune-plain", "tune-mlflow", "memory-2000", "scale-10000", "resume-1000")
                if not (slow and turn):  # minutes each, and far from the line: once is enough
                    found.setdefault(name, []).append(run_part(name))
    lines = [
        f"# Overhead, {datetime.date.today()}",
        "",
        f"{machine}. Medians of up to {options.repeat} runs in turns.",
        "",
    ]
    text = "\n".join([*lines, *report(found), "", "```json", json.dumps(found), "```", ""])
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
