"""An experiment, and the world around a conductor: a driver with slots in threads, which may die anywhere."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from raytuner.definition import Experiment
from raytuner.engine.conductor import Conductor
from raytuner.engine.control import Stop
from raytuner.engine.host import StopRequest
from raytuner.engine.proposals import Proposals
from raytuner.engine.threadhost import ThreadHost
from raytuner.journal import (
    Decided,
    DriverStarted,
    Event,
    ExperimentState,
    Extended,
    Folder,
    JournalReader,
    JournalWriter,
    TrialState,
)
from raytuner.plan import Machine, Plan
from raytuner.plan import compile as compile_plan
from raytuner.search import Search
from raytuner.training import Trial, TrialSpec


class Listener(Search):
    """Proposes what depends on all that it knows, so that nothing it is told late, twice or not at all goes unseen."""

    from raytuner.search import RandomOptions as Options

    def _propose(self, rng: np.random.Generator, number: int) -> dict[str, Any]:
        known = {name: (trial.status, trial.values) for name, trial in self.trials.items()}
        heard = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).digest()
        return {"x": float((rng.random() + heard[0] / 256) % 1)}


# -- an experiment, and the world around a conductor ----------------------------------------------------------------


def make_plan(tmp_path: Path, machine: Machine | None = None, **fields: Any) -> Plan:
    (tmp_path / "user.py").write_text("def train(trial): ...\n")
    defaults: dict[str, Any] = {
        "name": "test",
        "train": "user:train",
        "objective": {"metric": "loss", "mode": "min", "max_steps": 9},
        "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
        "search": "random",
        "budget": {"trials": 9},
        "tracking": "none",
        "storage": str(tmp_path / "results"),
    }
    return compile_plan(Experiment(**{**defaults, **fields}), import_root=tmp_path, machine=machine)


def curve(trial: Trial) -> None:
    """Good and bad learners, of which the second fails; each keeps a state that knows its step."""
    x = trial.config["x"]
    weights = np.zeros(1)
    for step in trial.steps(weights=weights):
        weights += 1
        assert weights[0] == step, "a trial that goes on must have its state"
        if trial.id == "000002":
            raise ValueError("not this one")
        trial.report(loss=(x - 0.4) ** 2 + 1 / step)


class CutError(Exception):
    """The driver dies."""


class Journal(JournalWriter):
    """Kills the driver after so many events."""

    left = 10**9

    def append(self, event: Event) -> Event:
        event = super().append(event)
        self.left -= 1
        if self.left == 0:
            raise CutError
        return event


class Driver:
    """One driver's time: a conductor with its journal, and slots in threads."""

    def __init__(
        self,
        plan: Plan,
        *,
        slots: int = 1,
        cut: int = 10**9,
        train: Any = curve,
        search: Search | None = None,
        extended: Extended | None = None,
    ) -> None:
        self.folder = Folder(Path(plan.storage))
        events = list(JournalReader(self.folder.journal).read())
        self.journal = Journal(self.folder.journal)
        self.state = ExperimentState()
        self.conductor = Conductor(plan, self.folder, self.journal, self.state)
        if plan.experiment.tags.get("search") == "listener":
            search = Listener(plan.space, seed=1, options=Listener.Options())
        if search is not None:
            self.conductor.proposals = Proposals(search)
        self.conductor.books.slots = slots
        self.stops = [StopRequest() for _ in range(slots)]
        self.hosts = [ThreadHost(train, stop=stop) for stop in self.stops]
        self.journal.left = cut
        started = DriverStarted(
            name="test",
            driver=self.journal.segment,
            objective=plan.experiment.objective.model_dump(),
            budget={},
            pid=os.getpid(),
            host="here",
        )
        if extended is None:
            self.conductor.replay(events)
            self.conductor.record(started)
        else:
            self.conductor.replay([*events, self.journal.append(started), self.journal.append(extended)])
        self.conductor.take_over()

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self.conductor.stop("Ctrl-C", "interrupted")
        for stop in self.stops:
            stop.set(Stop("Ctrl-C"))

    def next(self) -> TrialSpec | None:
        """The next attempt, once the search has thought about it; None when there is none."""
        while (spec := self.conductor.next()) is None and self.conductor.thinking:
            self.conductor.proposals.wait(1.0)
        return spec

    def run(self) -> Driver:
        """To the end, as Ray Tune does it: a slot that is free asks for the next attempt, unless it is all over."""
        busy: dict[int, TrialSpec] = {}
        while True:
            for number, host in enumerate(self.hosts):
                if number not in busy and not self.conductor.finished:
                    spec = self.next()
                    if spec is not None:
                        host.begin(spec)
                        busy[number] = spec
            if not busy:
                break
            for number in list(busy):
                if self.conductor.take(self.hosts[number].collect(), node="here"):
                    self.hosts[number].end()
                    del busy[number]
        assert self.conductor.finished
        self.close()
        return self

    def close(self) -> None:
        self.conductor.proposals.close()
        for host in self.hosts:
            host.close()
        self.journal.close()

    @property
    def trials(self) -> list[TrialState]:
        return list(self.state.trials.values())

    def events(self, kind: type[Event]) -> list[Any]:
        return [event for event in JournalReader(self.folder.journal).read() if isinstance(event, kind)]


def run_until_cut(plan: Plan, cut: int, train: Any = curve, extended: Extended | None = None) -> Driver | None:
    """A driver that has come to the end; None when it died on the way."""
    driver = None
    try:
        driver = Driver(plan, cut=cut, train=train, extended=extended)
        return driver.run()
    except CutError:
        if driver is not None:
            driver.close()
        return None


def result(driver: Driver) -> dict[str, Any]:
    """All that must not depend on where a driver died."""
    decisions: dict[tuple[str, int], set[str]] = {}
    for event in driver.events(Decided):
        decisions.setdefault((event.trial, event.step), set()).add(event.action)
    return {
        "asked": [(t.id, t.config) for t in driver.trials],
        "ended": [(t.id, t.status, t.step, t.value, t.value_step, t.phases) for t in driver.trials],
        "steps": {t.id: {s.step: s.metrics for s in t.steps} for t in driver.trials},
        "decisions": decisions,
        "scheduler": driver.conductor.scheduler.state_dict(),
        "search": {k: (v.status, v.values) for k, v in driver.conductor.search.trials.items()},
        "best": driver.state.best.id if driver.state.best else None,
    }


ASHA = {"type": "asha", "reduction_factor": 3}
PROMOTE = {**ASHA, "form": "promote"}
PBT = {"type": "pbt", "mutate": ["x"], "population": 10, "perturbation_interval": 3, "quantile": 0.3}
TOGETHER = {**PBT, "synchronous": True}
