"""The plan: an experiment made definite, with everything that a run needs and nothing that it must still look up."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raytuner.definition import CodeInfo, Experiment, to_plain, without_password
from raytuner.plan.cost import kept_checkpoints
from raytuner.plan.describe import describe
from raytuner.plan.machine import Machine
from raytuner.plan.needs import Needs
from raytuner.schedulers import PbtOptions, Scheduler, build_scheduler
from raytuner.search import AutoOptions, AutoSearch, Search, build_search
from raytuner.space import Space

__all__ = ["Plan", "derived_seed"]


def derived_seed(seed: int, purpose: str) -> int:
    """A seed from 0 to 2**31 - 1 for one purpose, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 2**31


@dataclass(frozen=True)
class Plan:
    """How an experiment will be carried out on this machine.

    A plan is made again from its ``experiment``, which is absolute, and its ``import_root``.
    """

    experiment: Experiment
    """The definition, its storage and tracking address absolute."""
    file: Path | None
    """The file of the definition, if it came from one."""
    import_root: Path
    """The folder that comes first on the path when the user's code is imported."""
    storage: str
    """The experiment's own folder, absolute, or its address in an object store."""
    tracking_uri: str | None
    """The MLflow store; None when tracking is off."""
    space: Space
    """The parameters, conditions and constraints."""
    search_seed: int
    """The seed of the search."""
    scheduler_seed: int
    """The seed of the scheduler."""
    machine: Machine
    """What this machine has."""
    needs: tuple[Needs, ...]
    """What a trial takes, the smallest first; several where configurations differ in it."""
    slots: int
    """Trials that run at the same time on this machine, at least 1; of the smallest, where they differ."""
    slots_limited_by: str
    """What keeps the slots from being more, in words."""
    trials: int | None
    """Trials that are started at most; None when only time ends the experiment."""
    rungs: tuple[tuple[int, float | None], ...]
    """The steps at which the scheduler decides, and ``max_steps`` last, each with the trials expected to reach it."""
    steps_upper: int | None
    """The most steps that all trials train together; None when it has no bound."""
    steps_expected: float | None
    """The steps expected with the scheduler's stopping; None when it cannot be told."""
    code: Mapping[str, CodeInfo]
    """What is known of the user's code, by key path: train, test, search.type, scheduler.type."""
    warnings: tuple[str, ...] = ()
    """What is allowed, but may surprise."""

    @property
    def population(self) -> int | None:
        """The trials that the scheduler takes, where it says how many."""
        scheduler = self.experiment.scheduler
        return scheduler.population if isinstance(scheduler, PbtOptions) else None

    def build_search(self) -> Search:
        """A fresh search, which proposes the defaults first. Raises SearchError when it cannot be built."""
        first = [self.experiment.defaults] if self.experiment.defaults else []
        return build_search(self.experiment.search, self.space, self.search_seed, first)

    def build_scheduler(self) -> Scheduler:
        """A fresh scheduler. Raises SearchError when it cannot be built."""
        experiment = self.experiment
        return build_scheduler(experiment.scheduler, experiment.objective.max_steps, self.scheduler_seed, self.space)

    def trial_seed(self, trial_id: str) -> int:
        """The seed of a trial, from 0 to 2**31 - 1: the same in every attempt, another for every trial."""
        return derived_seed(self.experiment.seed, f"trial/{trial_id}")

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-able data, without a password in it."""
        experiment = self.experiment
        definition = to_plain(experiment)
        if experiment.tracking is not None and experiment.tracking.mlflow:
            definition["tracking"]["mlflow"] = without_password(experiment.tracking.mlflow)
        kept = kept_checkpoints(experiment)
        return {
            "schema": "raytuner.plan/1",
            "name": experiment.name,
            "file": str(self.file) if self.file else None,
            "import_root": str(self.import_root),
            "storage": self.storage,
            "tracking_uri": self.tracking_uri and without_password(self.tracking_uri),
            "code": {
                where: {"kind": info.kind, "file": str(info.file) if info.file else None}
                for where, info in self.code.items()
            },
            "search": definition["search"],
            "search_choice": self._search_choice(),
            "scheduler": definition["scheduler"],
            "seeds": {
                "experiment": experiment.seed,
                "search": self.search_seed,
                "scheduler": self.scheduler_seed,
            },
            "space": {
                "parameters": len(self.space.names),
                "constraints": len(self.space.constraints),
                "size": self.space.size,
            },
            "machine": {"cpus": self.machine.cpus, "gpus": self.machine.gpus},
            "needs": [asdict(needs) for needs in self.needs],
            "slots": self.slots,
            "slots_limited_by": self.slots_limited_by,
            "trials": self.trials,
            "time": experiment.budget.time,
            "gpu_hours": experiment.budget.gpu_hours,
            "rungs": [{"step": step, "expected_trials": reaching} for step, reaching in self.rungs],
            "steps": {"upper": self.steps_upper, "expected": self.steps_expected},
            "checkpoints": {
                "per_trial": kept,
                "total": kept * self.trials if self.trials is not None else None,
                "trials": experiment.checkpoints.trials,
                "disk": experiment.checkpoints.disk,
            },
            "warnings": list(self.warnings),
            "experiment": definition,
        }

    def _search_choice(self) -> str | None:
        if not isinstance(self.experiment.search, AutoOptions):
            return None
        return AutoSearch.choice(self.trials, self.slots, self.space.size, max(len(self.rungs), 1))

    def describe(self) -> list[str]:
        """The plan for a person, as lines of plain text."""
        return describe(self.to_dict())
