"""The best trial of an experiment: as data, as lines for a person, and its model as a file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from raytuner.analysis.jsonable import jsonable
from raytuner.analysis.reading import Reading
from raytuner.analysis.text import number, settings, value_text
from raytuner.errors import CheckpointError, JournalError
from raytuner.journal import Folder, TrialState

__all__ = ["best", "best_lines", "export", "schedule_rows"]


def best(folder: Folder) -> dict[str, Any]:
    """The best trial, by the JSON Schema ``raytuner.best/1``. Raises JournalError while no trial has a result."""
    reading = Reading.of(folder)
    trial = _best_of(reading)
    checkpoint = reading.path_of(trial.best_checkpoint)
    defaults, test = reading.defaults, reading.test
    answer: dict[str, Any] = {
        "schema": "raytuner.best/1",
        "name": reading.name,
        "folder": folder.where,
        "status": reading.status,
        "trial": trial.id,
        "metric": reading.state.metric,
        "mode": reading.state.mode,
        "value": trial.value,
        "step": trial.value_step,
        "config": trial.config,
        "schedule": [
            {"trial": name, "first_step": first, "last_step": last, "config": config}
            for name, first, last, config in reading.state.lineage(trial.id, trial.value_step)
        ],
        "checkpoint": None if checkpoint is None else reading.shown(checkpoint),
        "test": None if test is None or test.error is not None else test.metrics,
        "defaults": None if defaults is None else {"trial": defaults.id, "value": defaults.value},
    }
    return {key: jsonable(value) for key, value in answer.items()}


def best_lines(folder: Folder) -> list[str]:
    """The same for a person."""
    found = best(folder)
    lines = [
        f"{found['name']}: {found['metric']} {number(found['value'])} (trial {found['trial']}, step {found['step']})"
    ]
    rows = [(name, value_text(value)) for name, value in found["config"].items()]
    if found["defaults"] is not None and found["defaults"]["trial"] != found["trial"]:
        rows.append(("defaults", f"{found['metric']} {number(found['defaults']['value'])}"))
    rows += [(name, number(value)) for name, value in (found["test"] or {}).items()]
    rows.append(("checkpoint", found["checkpoint"] or "not kept"))
    if len(found["schedule"]) > 1:
        rows += schedule_rows(found["schedule"])
        rows.append(("", "`raytuner replay` trains it again so, from scratch"))
    width = max(len(name) for name, _ in rows)
    return lines + [f"  {name:<{width}}  {text}" for name, text in rows]


def schedule_rows(schedule: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """How the parameters changed on the way to the best: the steps, and what was new from then on."""
    rows = []
    before: dict[str, Any] = {}
    for part in schedule:
        changed = {name: value for name, value in part["config"].items() if before.get(name) != value}
        steps = f"steps {part['first_step']}-{part['last_step']}"
        rows.append((steps, f"{settings(changed) or 'as before'}  (trial {part['trial']})"))
        before = part["config"]
    return rows


def export(folder: Folder, target: Path) -> Path:
    """Copy the best checkpoint out of the experiment, and return where it went.

    A target with a suffix (``model.pt``) becomes a file for ``torch.load``: what the trial kept under the name
    ``model``, else all that it kept. Without one it becomes a folder: the whole checkpoint.
    Raises JournalError while there is no best trial, CheckpointError when its checkpoint cannot be used so.
    """
    reading = Reading.of(folder)
    trial = _best_of(reading)
    source = reading.path_of(trial.best_checkpoint)
    if source is None:
        raise CheckpointError(
            f"trial {trial.id}: no checkpoint of its best step {trial.value_step} was kept; keep them with "
            "`checkpoints: {best: true}`"
        )
    source = folder.fetch(source)
    target = target.expanduser().absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix:
        _export_state(source, target)
    else:
        _export_folder(source, target)
    return target


def _best_of(reading: Reading) -> TrialState:
    if reading.state.best is None:
        raise JournalError(
            f"{reading.folder.where}: the best trial is asked for, and none of {len(reading.state.trials)} has "
            f"reported {reading.state.metric or 'anything'} yet; see `{reading.folder.command('status')}`"
        )
    return reading.state.best


def _export_state(source: Path, target: Path) -> None:
    from raytuner.training.checkpoint import load_checkpoint

    state = load_checkpoint(source)
    if not state:
        raise CheckpointError(
            f"{source}: a checkpoint that holds only files cannot become one file, got {target.name!r}; give a target "
            "without a suffix, which becomes a folder"
        )
    import torch

    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    torch.save(state.get("model", state), temporary)
    temporary.replace(target)


def _export_folder(source: Path, target: Path) -> None:
    from raytuner.training.checkpoint import verify_checkpoint

    verify_checkpoint(source)
    if target.exists():
        raise CheckpointError(f"{target}: the target must be new, and it is there already; give another, or delete it")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copytree(source, temporary)
    temporary.rename(target)
