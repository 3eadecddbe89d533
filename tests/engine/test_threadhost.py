"""The same attempts in a thread of the slot, for code that needs Ray itself."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from host_tools import SOON, Outcome, follow, later, run, trial_spec

from raytuner.engine.control import Stop
from raytuner.engine.host import StopRequest
from raytuner.engine.threadhost import ThreadHost
from raytuner.training import Trial


def train(trial: Trial) -> float | None:
    config = trial.config
    match config["way"]:
        case "steps":
            weights = np.zeros(1)
            for step in trial.steps(weights=weights):
                time.sleep(config.get("seconds", 0.0))
                weights[:] = step
                trial.report(loss=1.0 / step)
        case "raise":
            raise ValueError("no such luck")
        case "interrupt":
            raise KeyboardInterrupt
        case "thread":
            return float(threading.current_thread() is threading.main_thread())
    return None


@pytest.fixture
def stop() -> StopRequest:
    return StopRequest()


@pytest.fixture
def host(stop: StopRequest) -> Iterator[ThreadHost]:
    made = ThreadHost(train, stop=stop)
    yield made
    made.close()


def test_attempts_run_as_in_a_process(host: ThreadHost, tmp_path: Path) -> None:
    outcome = run(host, trial_spec(tmp_path, "steps", decides=(2,)))
    assert outcome.end == {"status": "finished", "reason": "all 5 steps done", "step": 5, "error": None}
    assert outcome.steps == [1, 2, 3, 4, 5]
    assert outcome.decisions == [2]
    assert outcome.pid == os.getpid()
    assert run(host, trial_spec(tmp_path, "thread")).of("report")[0]["metrics"] == {"loss": 0.0}


@pytest.mark.parametrize(
    ("way", "message"), [("raise", "ValueError: no such luck"), ("interrupt", "KeyboardInterrupt")]
)
def test_whatever_it_raises_is_its_end(host: ThreadHost, tmp_path: Path, way: str, message: str) -> None:
    outcome = run(host, trial_spec(tmp_path, way))
    assert outcome.end["status"] == "failed"
    assert message in outcome.end["reason"]
    assert run(host, trial_spec(tmp_path, "steps")).end["status"] == "finished"


def test_a_stop_takes_effect_after_the_step(host: ThreadHost, stop: StopRequest, tmp_path: Path) -> None:
    later(0.3, stop.set, Stop("enough"))
    outcome = run(host, trial_spec(tmp_path, "steps", seconds=0.05, max_steps=999))
    assert (outcome.end["status"], outcome.end["reason"]) == ("stopped", "enough")
    assert outcome.of("checkpoint")[-1]["step"] == outcome.end["step"] == outcome.steps[-1]


def test_a_stop_while_it_waits_for_a_decision(host: ThreadHost, stop: StopRequest, tmp_path: Path) -> None:
    host.begin(trial_spec(tmp_path, "steps", decides=(2,), seconds=0.3))
    assert host.collect().decide == 2
    stop.set(Stop("enough"))
    batch = host.collect()
    assert batch.end is not None
    assert (batch.end["status"], batch.end["step"]) == ("stopped", 2)


def test_a_decision_to_stop_ends_the_thread(host: ThreadHost, tmp_path: Path) -> None:
    host.begin(trial_spec(tmp_path, "steps", decides=(2,)))
    assert host.collect().decide == 2
    began = time.monotonic()
    host.end()
    assert time.monotonic() - began < SOON
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("trial-")]


def test_a_batch_comes_every_second(host: ThreadHost, tmp_path: Path) -> None:
    spec = trial_spec(tmp_path, "steps", seconds=0.4)
    host.begin(spec)
    outcome = follow(host, Outcome(spec))
    assert 2 <= len(outcome.batches) <= 4


def test_a_thread_that_does_not_end_takes_its_slot_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr("raytuner.engine.threadhost.END_SECONDS", 0.1)
    monkeypatch.setattr(os, "_exit", left.append)
    held = threading.Event()
    hang: Callable[[Trial], object] = lambda trial: held.wait(20)  # noqa: E731
    host = ThreadHost(hang, stop=StopRequest())
    host.begin(trial_spec(tmp_path, ""))
    host.end()
    held.set()
    assert left == [1]
