"""What becomes of the devices' time, and what a node's devices say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from conductor_tools import Driver, make_plan
from host_tools import wait_until

from raytuner.engine import readings
from raytuner.engine.batch import Batch
from raytuner.engine.needs import Books
from raytuner.engine.readings import DeviceReader
from raytuner.engine.usage import Occupancy
from raytuner.journal import ExperimentState, TrialState, Usage
from raytuner.plan import Machine


def test_device_seconds_add_up(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, Machine(64, 8), resources={"gpu": 2, "cpu": 1})
    books = Books(plan, ExperimentState())
    books.resize(Machine(64, 8))
    usage = Occupancy(books)
    assert (books.unit, books.capacity) == ("GPU", 8.0)
    trials = [TrialState(str(n), {"x": 0.5}, "search") for n in range(4)]
    usage.account("start-up", 100.0)
    for trial in trials[:3]:
        books.start(trial)
    usage.account("search", 101.0)  # three come up, the search thinks about the fourth
    for trial in trials[:3]:
        books.started(trial.id)
    usage.account("search", 103.0)  # three train
    books.end("0")
    usage.account("rung", 106.0)  # two train, and nothing else can
    books.end("1")
    books.end("2")
    books.end("never started")
    usage.account("ending", 107.0)
    found = usage.due(last=True)
    assert found is not None
    assert found.total == 7 * 8
    assert found.busy == 2 * 6 + 3 * 4
    assert found.idle == {"start-up": 6.0, "search": 2.0 + 2 * 2, "rung": 3 * 4, "ending": 8.0}
    assert found.total == found.busy + sum(found.idle.values())


def test_the_reasons_for_idle_devices(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, Machine(2, 0), budget={"trials": 3})
    driver = Driver(plan, slots=2)
    conductor = driver.conductor
    assert conductor._idle_reason() == "start-up"
    specs = []
    for _ in range(3):
        conductor.books.slots = 3
        spec = driver.next()
        assert spec is not None
        specs.append(spec)
    assert conductor._idle_reason() == "ending", "nothing is left to start"
    conductor.books.waiting = specs[2].trial
    assert conductor._idle_reason() == "resources"
    conductor.books.waiting = None
    driver.state.trials["000001"].status = "paused"
    assert conductor._idle_reason() == "rung"
    conductor.account()
    assert not driver.events(Usage), "the clock begins with the first trial"
    started = {"m": "started", "step": 0, "checkpoint": None, "pid": 1}
    conductor.take(Batch(specs[0].trial, 1, [started]), node="here")
    conductor.take(Batch(specs[0].trial, 1, [{"m": "devices", "devices": [{"gpu": "0", "use": 0.5}]}]), node="here")
    conductor.account()
    conductor.account(last=True)
    (event,) = driver.events(Usage)
    assert event.unit == "CPU"
    assert event.devices == [{"node": "here", "gpu": "0", "use": 0.5}]
    assert driver.state.usage == event
    driver.close()


def test_the_time_of_several_drivers_adds_up() -> None:
    from raytuner.journal import DriverStarted

    state = ExperimentState()
    start: dict[str, Any] = {
        "name": "x",
        "objective": {"metric": "loss", "mode": "min"},
        "budget": {},
        "pid": 1,
        "host": "h",
    }
    for driver in (1, 2):
        state.apply(DriverStarted(driver=driver, **start))
        state.apply(Usage(unit="GPU", total=5.0, busy=4.0, idle={"search": 1.0}))
        state.apply(Usage(unit="GPU", total=10.0, busy=7.0, idle={"search": 2.0, "rung": 1.0}))
    assert state.usage == Usage(unit="GPU", total=20.0, busy=14.0, idle={"search": 4.0, "rung": 2.0})


SAID = "0, 87, 12288, 24576\\n1, [N/A], 10, 24576\\n2, 0, 0, 24576"


def test_devices_are_read_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nsleep 0.2\nprintf '{SAID}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(readings, "READ_SECONDS", 0.0)
    reader = DeviceReader()
    assert reader.poll() is None
    assert reader.poll() is None, "it is still at it"
    found = wait_until(reader.poll, 5, "it has been read")
    gib = 2**30
    assert found == [
        {"gpu": "0", "use": 0.87, "memory": 12 * gib, "total": 24 * gib},
        {"gpu": "2", "use": 0.0, "memory": 0, "total": 24 * gib},
    ]
    reader.poll()
    reader.close()


def test_without_a_driver_there_is_nothing_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    reader = DeviceReader()
    assert [reader.poll() for _ in range(3)] == [None] * 3
    reader.close()
