"""A trial, trained again from scratch: what its configuration was at each step becomes a fixed schedule."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from raytuner.definition import Experiment, to_plain
from raytuner.errors import JournalError
from raytuner.journal import Folder, replay
from raytuner.launch.local import machine, plan_of
from raytuner.plan import Plan
from raytuner.plan import compile as compile_plan

__all__ = ["plan_again"]


def plan_again(folder: Folder, *, trial: str | None = None, name: str | None = None, seed: int | None = None) -> Plan:
    """The plan of an experiment of one trial: the one given, or else the best, of the folder's, with the same code.

    The steps up to its best value follow its lineage; what comes after has the last configuration.
    Raises JournalError for a trial that is not there, or has no value.
    """
    state = replay(folder, history=False)
    found = state.best if trial is None else state.trials.get(trial.zfill(6))
    if found is None and trial is not None:
        raise JournalError(f"{folder.where}: there is no trial {trial}; `raytuner status` tells how many there are")
    if found is None or found.value is None:
        which = "the best trial" if trial is None else f"trial {trial}"
        raise JournalError(
            f"{folder.where}: {which} must have a value to be trained again, and has none; see `raytuner status`"
        )
    lineage = state.lineage(found.id, found.value_step)
    plan = plan_of(folder)
    fields = to_plain(plan.experiment)
    fields |= {
        "name": name or f"{plan.experiment.name}-replay",
        "description": f"Trial {found.id} of {plan.experiment.name}, trained again from scratch.",
        "defaults": lineage[0][3],
        "search": {"type": "random"},
        "scheduler": _schedule(lineage),
        "budget": {"trials": 1},
        "replay": {"experiment": folder.where, "trial": found.id, "value": found.value, "step": found.value_step},
    }
    if seed is not None:
        fields["seed"] = seed
    file = json.loads(folder.plan.read_text())["file"]
    code = folder.code if folder.code.is_dir() else plan.import_root
    return compile_plan(Experiment(**fields), file=Path(file) if file else None, import_root=code, machine=machine())


def _schedule(lineage: list[tuple[str, int, int, dict[str, Any]]]) -> dict[str, Any]:
    """The changes between one configuration and the next."""
    changes = []
    for (_, _, last, before), (_, _, _, after) in pairwise(lineage):
        changed = {key: value for key, value in after.items() if key not in before or before[key] != value}
        if changed:
            changes.append({"after": last, "config": changed})
    return {"type": "schedule", "changes": changes} if changes else {"type": "none"}
