"""How an experiment stands: as data, and as lines for a person."""

from __future__ import annotations

import json
import time
from typing import Any

from raytuner.analysis.jsonable import jsonable
from raytuner.analysis.reading import Reading
from raytuner.analysis.text import count, duration, number, settings
from raytuner.analysis.usage import usage, usage_lines
from raytuner.journal import Cursor, Folder, TrialState, events_beyond

__all__ = ["failure_groups", "status", "status_lines", "under_way"]

_STATUSES = ("pending", "running", "paused", "finished", "stopped", "interrupted", "failed")
_WORDS = {"stopped": "stopped early"}
_SHOWN = 16  # running trials that are listed one by one
_REASONS = 5  # reasons for failures, likewise


def status(folder: Folder) -> dict[str, Any]:
    """How the experiment stands, by the schema ``raytuner.status/1``. Raises JournalError for a damaged journal."""
    reading = Reading.of(folder)
    state, savings = reading.state, reading.savings
    driver = state.drivers[-1] if state.drivers else None
    answer: dict[str, Any] = {
        "schema": "raytuner.status/1",
        "name": reading.name,
        "folder": folder.where,
        "status": reading.status,
        "reason": reading.reason,
        "driver": None
        if driver is None
        else {"number": driver.driver, "alive": reading.alive, "pid": driver.pid, "host": driver.host},
        "objective": {
            "metric": state.metric,
            "mode": state.mode,
            "select": state.select,
            "max_steps": state.max_steps,
        },
        "budget": {
            "trials": state.budget.get("trials"),
            "time": state.budget.get("time"),
            "gpu_hours": state.budget.get("gpu_hours"),
        },
        "trials_wanted": state.wanted,
        "trials": {name: state.count(name) for name in _STATUSES},
        "steps": {"trained": savings.trained, "full": savings.full, "saved": savings.saved},
        "seconds": _seconds(reading),
        "best": _best(reading),
        "usage": usage(state),
        "running": [_running(trial) for trial in state.trials.values() if trial.status == "running"],
        "failures": _failures(reading),
        "test": None
        if reading.test is None
        else {"metrics": reading.test.metrics, "error": _error(reading.test.error)},
        "tracking": _tracking(folder),
        "torn": state.torn,
    }
    return {key: jsonable(value) for key, value in answer.items()}


def under_way(folder: Folder, trial: str) -> bool:
    """Whether a trial may still do something. Raises JournalError for a damaged journal."""
    reading = Reading.of(folder)
    known = reading.state.trials.get(trial)
    return reading.alive and not (known is not None and known.ended)


def status_lines(folder: Folder) -> list[str]:
    """The same for a person."""
    found = status(folder)
    driver = found["driver"]
    who = f" (process {driver['pid']} on {driver['host']})" if driver and driver["alive"] else ""
    why = f": {found['reason']}" if found["reason"] else ""
    rows = [("trials", _trials_line(found)), ("trained", _steps_line(found))]
    if found["best"] is not None:
        best = found["best"]
        where = f"trial {best['trial']}, step {best['step']}"
        ago = f", {duration(best['seconds_ago'])} ago" if found["status"] == "running" else ""
        rows.append(("best", f"{found['objective']['metric']} {number(best['value'])} ({where}{ago})"))
        rows.append(("", settings(best["config"])))
    rows += [("used", line) for line in usage_lines(found["usage"])]
    if found["test"] is not None:
        values = [f"{name} {number(value)}" for name, value in found["test"]["metrics"].items()]
        rows.append(("test", ", ".join(values) or f"failed: {found['test']['error']}"))
    shown = found["running"][:_SHOWN]
    for index, trial in enumerate(shown):
        value = "" if trial["value"] is None else f", best so far {number(trial['value'])}"
        rows.append(("" if index else "running", f"{trial['trial']}  step {trial['step']}{value}"))
    if len(found["running"]) > len(shown):
        rows.append(("", f"and {len(found['running']) - len(shown)} more"))
    rows += [
        ("failed", f"{count(failure['trials'], 'trial')}, such as {failure['example']}: {failure['reason']}")
        for failure in found["failures"][:_REASONS]
    ]
    if len(found["failures"]) > _REASONS:
        rest = found["failures"][_REASONS:]
        trials = count(sum(failure["trials"] for failure in rest), "trial")
        rows.append(("", f"and {trials} for {count(len(rest), 'other reason')}"))
    tracking = found["tracking"]
    # A tracker that works is always a second or two behind.
    if tracking is not None and (tracking["error"] or (tracking["behind"] and found["status"] != "running")):
        rows.append((tracking["to"], f"{count(tracking['behind'], 'event')} behind; {tracking['error']}".rstrip("; ")))
    rows += [("note", text) for text in found["torn"]]
    if found["status"] == "interrupted":
        rows.append(("next", folder.command("resume")))
    return [f"{found['name']}: {found['status']}{who}{why}", *(f"  {label:<8} {text}" for label, text in rows)]


def _trials_line(found: dict[str, Any]) -> str:
    counts = {name: amount for name, amount in found["trials"].items() if amount}
    wanted = found["trials_wanted"]
    total = f"{sum(counts.values())}" + (f" of {wanted}" if wanted is not None else "")
    parts = ", ".join(f"{amount} {_WORDS.get(name, name)}" for name, amount in counts.items())
    return f"{total}: {parts}" if parts else f"{total}, none yet"


def _steps_line(found: dict[str, Any]) -> str:
    steps, limit = found["steps"], found["budget"]["time"]
    text = f"{count(steps['trained'], 'step')} in {duration(found['seconds'])}"
    text += f" of {duration(limit)}" if limit is not None else ""
    return text + (f"; early stopping saved {steps['saved']} of {steps['full']}" if steps["saved"] else "")


def _seconds(reading: Reading) -> float:
    """Seconds at work; a living driver works on between its events."""
    state = reading.state
    idle = max(time.time() - state.last_at, 0.0) if reading.alive and state.status == "running" else 0.0
    return state.time_used + idle


def _best(reading: Reading) -> dict[str, Any] | None:
    best = reading.state.best
    if best is None:
        return None
    return {
        "trial": best.id,
        "value": best.value,
        "step": best.value_step,
        "config": best.config,
        "seconds_ago": max(time.time() - reading.state.best_at, 0.0),
    }


def _running(trial: TrialState) -> dict[str, Any]:
    return {
        "trial": trial.id,
        "attempt": trial.attempt,
        "step": trial.step,
        "value": trial.value,
        "seconds": trial.seconds,
        "node": trial.node,
        "gpus": trial.gpus,
    }


def failure_groups(reading: Reading) -> list[tuple[str, list[str]]]:
    """The reasons why trials failed, each with its trials, the commonest first."""
    groups: dict[str, list[str]] = {}
    for trial in reading.state.trials.values():
        if trial.status == "failed":
            groups.setdefault(_error(trial.error) or trial.reason or "unknown", []).append(trial.id)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def _failures(reading: Reading) -> list[dict[str, Any]]:
    return [
        {"reason": reason, "trials": len(trials), "example": trials[0]} for reason, trials in failure_groups(reading)
    ]


def _error(error: dict[str, Any] | None) -> str | None:
    if error is None:
        return None
    said = ": ".join(str(error[part]) for part in ("kind", "message") if error.get(part))
    return " ".join(said.split())[:300] or "unknown"


def _tracking(folder: Folder) -> dict[str, Any] | None:
    """What trackers left in the folder: where each has come to, and its last word."""
    for path in sorted(folder.cursors.glob("*.status.json")):
        name = path.name.removesuffix(".status.json")
        try:
            error = str(json.loads(path.read_text())["error"])
        except (OSError, ValueError, KeyError, TypeError):
            error = ""
        cursor = Cursor.load(folder.cursors / f"{name}.json")
        return {"to": name, "behind": events_beyond(folder.journal, cursor), "error": error}
    return None
