"""The controller without Ray: CPU a result and memory a trial, with 1,000 slots, as the number of trials grows.

python benchmarks/controller.py [--trials 10000] [--slots 1000] [--output benchmarks/results/DATE-controller.md]

A conductor with a real journal (ASHA, random search) is told what slots would tell it, in batches of five steps: a
trial trains 27 at most. What Ray Tune adds is in ``overhead.py --only scale``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import closing
from pathlib import Path

import psutil

from raytuner.analysis import status
from raytuner.definition import Experiment
from raytuner.engine.batch import Batch
from raytuner.engine.conductor import Conductor
from raytuner.journal import DriverEnded, DriverStarted, ExperimentState, Folder, JournalWriter
from raytuner.plan import Machine, compile

STEPS, IN_A_BATCH = 27, 5


def measure(folder: Path, trials: int, slots: int) -> dict[str, object]:
    (folder / "user.py").write_text("def train(trial): ...\n")
    space = {f"x{n}": {"type": "float", "low": 0.0, "high": 1.0} for n in range(8)}
    experiment = Experiment(
        name="scale",
        train="user:train",
        objective={"metric": "loss", "mode": "min", "max_steps": STEPS},
        space=space,
        search="random",
        scheduler={"type": "asha", "grace_steps": 1, "reduction_factor": 3},
        budget={"trials": trials},
        checkpoints={"every_time": None},
        tracking="none",
        storage=str(folder / "results"),
    )
    plan = compile(experiment, import_root=folder, machine=Machine(slots, 0))
    place = Folder(Path(plan.storage))
    rows: list[dict[str, float]] = []
    with closing(JournalWriter(place.journal)) as journal:
        state = ExperimentState(history=False)
        conductor = Conductor(plan, place, journal, state)
        objective = {"metric": "loss", "mode": "min", "max_steps": STEPS, "select": "best"}
        budget = {"trials": trials, "time": None, "gpu_hours": None}
        conductor.record(
            DriverStarted(
                name="scale", driver=1, objective=objective, budget=budget, pid=os.getpid(), host="here", slots=slots
            )
        )
        conductor.take_over()
        running: deque[tuple[object, int]] = deque()
        results, ended, began, counted = 0, 0, time.process_time(), 0
        process, ticked = psutil.Process(), 0.0
        while not conductor.finished and (running or conductor.has_more):
            while (spec := conductor.next()) is not None:
                running.append((spec, max((int(Path(p).name.split("-")[0]) for p in spec.checkpoints), default=0)))
            if not running:
                conductor.proposals.wait(0.1)
                continue
            spec, step = running.popleft()
            messages: list[dict[str, object]] = (
                [] if step else [{"m": "started", "step": 0, "checkpoint": None, "pid": 1}]
            )
            decide = None
            for _ in range(IN_A_BATCH):
                step += 1
                loss = spec.config["x0"] + 1 / step
                messages.append({"m": "report", "step": step, "metrics": {"loss": loss}, "time": 0.0, "seconds": 0.2})
                if step in spec.decides and step < STEPS:
                    decide = step
                    break
                if step == STEPS:
                    break
            results += sum(message["m"] == "report" for message in messages)
            end = None
            if step == STEPS:
                end = {"status": "finished", "reason": "", "step": step, "error": None}
            batch = Batch(spec.trial, spec.attempt, messages, decide, end)
            told = Batch.loads(batch.dumps())
            if time.monotonic() - ticked > 0.1:
                ticked = time.monotonic()
                conductor.account()
            if conductor.take(told, node="here", gpus=[], ranks=[]):
                ended += 1
                if ended % (trials // 10) == 0:
                    spent = time.process_time() - began
                    row = {"trials": ended, "results": results, "ms a result": 1000 * spent / (results - counted)}
                    rows.append({**row, "MB": process.memory_info().rss / 1e6})
                    print(row, flush=True)
                    began, counted = time.process_time(), results
            else:
                running.append((spec, step))
        conductor.record(DriverEnded(status="finished", reason="the budget is used up"))
        conductor.proposals.close()
    began = time.perf_counter()
    status(place)
    asked = time.perf_counter()
    subprocess.run([sys.executable, "-m", "raytuner", "status", str(place.path)], check=True, stdout=subprocess.DEVNULL)
    return {"rows": rows, "status_seconds": asked - began, "command_seconds": time.perf_counter() - asked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=1_000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.trials, options.slots)
    rows = found["rows"]
    assert isinstance(rows, list)
    lines = [
        f"# Controller, {datetime.date.today()}",
        "",
        f"{options.slots} slots, without Ray; {os.cpu_count()} cores. `status`, asked for the first time: "
        f"{found['status_seconds']:.2f} s; the whole command: {found['command_seconds']:.2f} s.",
        "",
        "| trials ended | results | CPU a result | resident memory |",
        "| --- | --- | --- | --- |",
        *(f"| {r['trials']} | {r['results']} | {r['ms a result']:.3f} ms | {r['MB']:.0f} MB |" for r in rows),
        "",
        "```json",
        json.dumps(found),
        "```",
        "",
    ]
    print("\n".join(lines))
    if options.output:
        options.output.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
