"""How far MLflow lags behind a journal that grows by so many results a second, on PostgreSQL.

python benchmarks/tracking.py [--rate 500] [--seconds 240] [--server] [--output benchmarks/results/DATE-tracking.md]

Starts a PostgreSQL of its own (Debian's package ``postgresql``; the programs must be found, and it runs as the user
``postgres`` where this is root), and with ``--server`` an MLflow server before it. The journal is written as a driver
of 128 slots would, whose trials make 60 results of three metrics each; the tracker is the real one, in its own process.
"""

from __future__ import annotations

import argparse
import datetime
import getpass
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from raytuner.journal import DriverEnded, DriverStarted, Folder, JournalWriter, Reported, TrialAsked, TrialEnded
from raytuner.journal import TrialStarted as Started
from raytuner.tracking import behind, start_tracker

SLOTS, STEPS = 128, 60
TURN = 0.1


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def program(name: str) -> str:
    places = [shutil.which(name), *map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}")))]
    found = next((place for place in reversed(places) if place), None)
    if found is None:
        raise SystemExit(f"{name} is needed; install Debian's package postgresql")
    return found


@contextmanager
def database(folder: Path) -> Iterator[str]:
    """A PostgreSQL as Debian sets it up; its address."""
    data, port = folder / "pg", free_port()
    data.mkdir()
    as_user: dict[str, Any] = {"cwd": "/"}
    if getpass.getuser() == "root":
        folder.chmod(0o755)
        shutil.chown(data, "postgres", "postgres")
        as_user["user"], as_user["group"] = "postgres", "postgres"
    made = [program("initdb"), "-D", data, "-U", "mlflow", "--auth=trust", "-E", "UTF8"]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL, **as_user)
    with (folder / "pg.log").open("wb") as log:
        command = [program("postgres"), "-D", data, "-p", str(port), "-k", "", "-h", "127.0.0.1"]
        server = subprocess.Popen(command, stdout=log, stderr=log, **as_user)
    try:
        for _ in range(100):
            answer = subprocess.run([program("pg_isready"), "-h", "127.0.0.1", "-p", str(port)], capture_output=True)
            if answer.returncode == 0:
                break
            time.sleep(0.1)
        yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait()


@contextmanager
def mlflow_server(folder: Path, store: str) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(port)]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    with (folder / "mlflow.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait()


class Writer:
    """Writes what a driver would, at a rate."""

    def __init__(self, journal: JournalWriter) -> None:
        self._journal = journal
        self._running: dict[str, int] = {}
        self._trials = 0
        self._random = random.Random(0)
        objective = {"metric": "loss", "mode": "min", "max_steps": STEPS, "select": "best"}
        budget = {"trials": 10**6, "time": None, "gpu_hours": None}
        event = DriverStarted(
            name="rate", driver=1, objective=objective, budget=budget, pid=os.getpid(), host="here", slots=SLOTS
        )
        journal.append(event)

    def results(self, count: int) -> None:
        while len(self._running) < SLOTS:
            self._trials += 1
            trial = f"{self._trials:06d}"
            config = {"lr": self._random.random(), "depth": self._random.randint(1, 8), "optimizer": "adamw"}
            self._journal.append(TrialAsked(trial=trial, config=config))
            self._journal.append(Started(trial=trial, attempt=1, node="here", pid=1, cpu=1.0))
            # The first ones are at different steps, as they would be after a while.
            self._running[trial] = self._random.randrange(STEPS - 1) if self._trials <= SLOTS else 0
        for trial in self._random.choices(list(self._running), k=count):
            step = self._running.get(trial)
            if step is None:
                continue
            step = self._running[trial] = step + 1
            metrics = {"loss": 1 / step, "accuracy": 1 - 1 / step, "examples_per_second": 1000.0}
            self._journal.append(Reported(trial=trial, attempt=1, step=step, metrics=metrics, time=step, seconds=1.0))
            if step == STEPS:
                del self._running[trial]
                self._journal.append(TrialEnded(trial=trial, attempt=1, status="finished", step=step))

    def end(self) -> None:
        for trial, step in self._running.items():
            self._journal.append(TrialEnded(trial=trial, attempt=1, status="stopped", step=step))
        self._journal.append(DriverEnded(status="finished", reason="the budget is used up"))


def measure(folder: Path, uri: str, rate: float, seconds: float) -> dict[str, float]:
    experiment = Folder(folder / "rate")
    experiment.path.mkdir()
    written: list[tuple[float, int]] = []
    lags: list[float] = []
    results = 0
    with closing(JournalWriter(experiment.journal)) as journal:
        writer = Writer(journal)
        tracker = start_tracker(experiment, uri)
        began = looked = time.monotonic()
        while (now := time.monotonic()) - began < seconds:
            due = int((now - began + TURN) * rate) - results
            writer.results(due)
            results += due
            written.append((time.monotonic(), journal.events))
            if now - looked > 2.0:
                looked = now
                done = journal.events - behind(experiment)
                since = next((at for at, events in written if events > done), now)
                lags.append(now - since)
                print(f"{now - began:6.1f} s  {journal.events} events, lag {lags[-1]:.1f} s", flush=True)
            time.sleep(max(0.0, TURN - (time.monotonic() - now)))
        writer.end()
        trials = writer._trials
    ended = time.monotonic()
    whole = tracker.wait(600)
    return {
        "results": results,
        "seconds": ended - began,
        "trials": trials,
        "lag median": statistics.median(lags),
        "lag most": max(lags),
        "lag last": lags[-1],
        "caught up after": time.monotonic() - ended if whole else float("inf"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--server", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with database(folder) as store:
            if options.server:
                with mlflow_server(folder, store) as uri:
                    found = measure(folder, uri, options.rate, options.seconds)
            else:
                found = measure(folder, store, options.rate, options.seconds)
    how = "an MLflow server with one worker before PostgreSQL" if options.server else "PostgreSQL, directly"
    lines = [
        f"# Tracking, {datetime.date.today()}",
        "",
        f"{how}; {os.cpu_count()} cores shared by the writer, the tracker, the server and the database.",
        "",
        f"{found['results']:.0f} results of {found['trials']:.0f} trials in {found['seconds']:.0f} s "
        f"({found['results'] / found['seconds']:.0f} a second). Lag: median {found['lag median']:.1f} s, "
        f"most {found['lag most']:.1f} s; all was there {found['caught up after']:.1f} s after the end.",
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
