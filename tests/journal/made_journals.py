"""Journals as an engine would write them, made in milliseconds: realistic curves, early stops, a failure."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from raytuner.journal import (
    CheckpointWritten,
    Decided,
    DriverEnded,
    DriverStarted,
    Folder,
    JournalWriter,
    Logged,
    Reported,
    Tested,
    TrialAsked,
    TrialEnded,
    TrialStarted,
)

START = 1_760_000_000.0
OBJECTIVE = {"metric": "val_accuracy", "mode": "max", "max_steps": 27, "select": "best"}
DEFINITION = {
    "name": "digits",
    "description": "A small network on real images.",
    "tags": {"team": "vision"},
    "train": "objectives.digits:train",
    "objective": {"metric": "val_accuracy", "mode": "max", "max_steps": 27, "select": "best"},
    "search": {"type": "hyperopt", "startup": 10},
    "scheduler": {"type": "asha", "form": "stop", "grace_steps": 1, "reduction_factor": 3},
    "budget": {"trials": 50},
    "tracking": {"mlflow": "sqlite:///mlflow.db"},
}


def driver_started(name: str = "digits", driver: int = 1, **changes) -> DriverStarted:
    fields = {
        "name": name,
        "driver": driver,
        "objective": OBJECTIVE,
        "budget": {"trials": 50, "time": None},
        "pid": 4242,
        "host": "somewhere",
        "command": "raytuner run digits.yaml",
        "versions": {"raytuner": "0.1.0", "torch": "2.13.0"},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
        "seed": 7,
        "slots": 2,
        "at": START,
    }
    return DriverStarted(**(fields | changes))


def make_folder(root: Path, name: str = "digits", *, register: str | None = None) -> Folder:
    """The folder of an experiment, without a journal yet."""
    folder = Folder(root / name)
    folder.path.mkdir(parents=True)
    definition = {**DEFINITION, "name": name, "tracking": {**DEFINITION["tracking"], "register": register}}
    plan = {
        "schema": "raytuner.plan/1",
        "search": definition["search"],
        "scheduler": definition["scheduler"],
        "seeds": {"experiment": 7},
        "file": "digits.yaml",
        "experiment": definition,
    }
    folder.plan.write_text(json.dumps(plan))
    folder.definition.write_text(json.dumps(definition))
    folder.report.write_text("# digits\n")
    return folder


def make_config(rng: random.Random, k: int) -> dict:
    if k == 1:
        return {"lr": 1e-3, "depth": 2, "width": 128, "optimizer": "adam", "batch": 64}
    config = {
        "lr": 10 ** rng.uniform(-4, -1),
        "depth": rng.randint(1, 4),
        "width": 32 * rng.randint(1, 16),
        "optimizer": rng.choice(["adam", "sgd"]),
        "batch": rng.choice([32, 64, 128]),
    }
    if config["optimizer"] == "sgd":
        config["momentum"] = rng.uniform(0, 0.99)
    return config


def trial_events(folder: Folder, k: int, rng: random.Random, at: float) -> tuple[list, float]:
    """A whole trial: its events, and when it ended."""
    trial, config = f"{k:06d}", make_config(rng, k)
    quality = 0.97 - 0.05 * abs(math.log10(config["lr"]) + 2.5) - 0.02 * abs(config["depth"] - 2)
    speed = rng.uniform(0.15, 0.5)
    last = rng.choice([1, 3, 9, 27, 27])
    events: list = [
        TrialAsked(trial=trial, config=config, source="defaults" if k == 1 else "search", known=k - 1, at=at),
        TrialStarted(trial=trial, attempt=1, node="somewhere", pid=1000 + k, at=at + 0.05),
    ]
    best = 0.0
    for step in range(1, last + 1):
        at += 0.05
        value = quality * (1 - math.exp(-speed * step)) + rng.gauss(0, 0.004)
        metrics = {"val_accuracy": value, "loss": 2.3 * math.exp(-speed * step) + rng.random() * 0.02}
        events.append(
            Reported(trial=trial, attempt=1, step=step, metrics=metrics, time=at, seconds=0.05 * step, at=at + 0.01)
        )
        if value > best:
            best, path = value, folder.checkpoint(trial, step, 1)
            events.append(
                CheckpointWritten(
                    trial=trial, attempt=1, step=step, path=str(path), bytes=1000, reason="best", at=at + 0.02
                )
            )
    if k == 5:
        error = {"kind": "ValueError", "message": "loss is NaN", "traceback": "Traceback ...\nValueError: loss is NaN"}
        events.append(
            TrialEnded(trial=trial, attempt=1, status="failed", step=last, reason="ValueError", error=error, at=at)
        )
    elif last < 27:
        reason = f"rung {last}: {best:.3g} is 5th of 9, best third goes on"
        events.append(Decided(trial=trial, step=last, action="stop", reason=reason, value=best, at=at))
        events.append(TrialEnded(trial=trial, attempt=1, status="stopped", step=last, reason=reason, at=at))
    else:
        events.append(TrialEnded(trial=trial, attempt=1, status="finished", step=last, reason="all 27 steps", at=at))
    return events, at


def experiment_events(folder: Folder, trials: int = 50, *, seed: int = 1, end: bool = True, **driver) -> list:
    """All events of an experiment of one driver."""
    rng = random.Random(seed)
    events: list = [driver_started(folder.path.name, **driver)]
    at, slots = START + 1.0, [START + 1.0, START + 1.0]
    for k in range(1, trials + 1):
        slot = slots.index(min(slots))
        of_trial, slots[slot] = trial_events(folder, k, rng, slots[slot])
        events += of_trial
    at = max(slots)
    if end:
        reported = [event for event in events if isinstance(event, Reported)]
        best = max(reported, key=lambda event: event.metrics["val_accuracy"])
        picture = folder.trial(best.trial) / "confusion.png"
        events += [
            Logged(trial=best.trial, attempt=1, step=best.step, name="plots/confusion", path=str(picture), at=at),
            Tested(trial=best.trial, step=best.step, metrics={"test_accuracy": 0.961}, seconds=0.4, at=at + 0.5),
            DriverEnded(status="finished", reason=f"all {trials} trials are done", at=at + 1.0),
        ]
    return events


def write_files(events: list) -> None:
    """The checkpoints and pictures that the events tell of."""
    for event in events:
        if isinstance(event, CheckpointWritten):
            Path(event.path).mkdir(parents=True, exist_ok=True)
            Path(event.path, "state.pt").write_bytes(event.path.encode())
        elif isinstance(event, Logged):
            Path(event.path).parent.mkdir(parents=True, exist_ok=True)
            Path(event.path).write_bytes(b"picture")


def write_journal(folder: Folder, events: list) -> None:
    writer = JournalWriter(folder.journal)
    for event in events:
        writer.append(event)
    writer.close()


def make_experiment(
    root: Path, trials: int = 50, name: str = "digits", *, register: str | None = None, **options
) -> Folder:
    folder = make_folder(root, name, register=register)
    events = experiment_events(folder, trials, **options)
    write_files(events)
    write_journal(folder, events)
    return folder
