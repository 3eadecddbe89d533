"""A plan for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raytuner.definition import AUTO, format_duration, format_size
from raytuner.plan.needs import Needs

__all__ = ["describe"]

_KINDS = {
    "ray_function": " (a plain Ray Tune function)",
    "ray_class": " (a Ray Trainable class)",
}


def describe(plan: Mapping[str, Any]) -> list[str]:
    """Lines of plain text from the data of a plan (``Plan.to_dict``)."""
    definition = plan["experiment"]
    rows = [
        ("experiment", plan["name"]),
        ("train", _code(plan, "train")),
        ("test", _code(plan, "test")),
        ("objective", _objective(definition["objective"])),
        ("space", _space(plan["space"])),
        ("search", _component(plan["search"]) + (f": {plan['search_choice']}" if plan["search_choice"] else "")),
        ("defaults", "tried first" if definition["defaults"] else "none: nothing to compare the best with"),
        ("scheduler", _component(plan["scheduler"])),
        ("rungs", _rungs(plan["rungs"])),
        ("budget", _budget(plan)),
        ("steps", _steps(plan["steps"])),
        ("slots", _slots(plan, definition["resources"])),
        ("checkpoints", _checkpoints(plan["checkpoints"])),
        ("results", plan["storage"]),
        ("runs", plan["tracking_uri"] or "not tracked"),
        ("code", plan["import_root"]),
        ("seed", str(plan["seeds"]["experiment"])),
        *(("warning", warning) for warning in plan["warnings"]),
    ]
    return [f"{label:<12}{text}" for label, text in rows if text]


def _code(plan: Mapping[str, Any], where: str) -> str:
    target = plan["experiment"].get(where)
    kind = plan["code"].get(where, {}).get("kind")
    return f"{target}{_KINDS.get(kind, '')}" if target else ""


def _objective(objective: Mapping[str, Any]) -> str:
    steps = f", at most {_count(objective['max_steps'], 'step')} a trial" if "max_steps" in objective else ""
    counted = "best" if objective["select"] == "best" else "last"
    return f"{objective['mode']} {objective['metric']}, the {counted} of a trial's steps{steps}"


def _space(space: Mapping[str, Any]) -> str:
    size = space["size"]
    parts = [_count(space["parameters"], "parameter")]
    if space["constraints"]:
        parts.append(_count(space["constraints"], "constraint"))
    parts.append("continuous" if size is None else _count(size, "configuration"))
    if size is not None and space["constraints"]:
        parts[-1] += " before the constraints"
    return ", ".join(parts)


def _component(options: Mapping[str, Any]) -> str:
    said = ", ".join(f"{name} {value}" for name, value in options.items() if name != "type")
    return f"{options['type']} ({said})" if said else str(options["type"])


def _rungs(rungs: list[Mapping[str, Any]]) -> str:
    if len(rungs) < 2:
        return ""
    *before, last = [
        f"step {rung['step']:,}" + ("" if rung["expected_trials"] is None else f": {rung['expected_trials']:g} trials")
        for rung in rungs
    ]
    return f"{'; '.join(before)}; the end, {last}"


def _budget(plan: Mapping[str, Any]) -> str:
    parts = []
    if plan["trials"] is not None:
        parts.append(_count(plan["trials"], "trial"))
    if plan["time"] is not None:
        parts.append(format_duration(plan["time"]))
    if plan["gpu_hours"] is not None:
        parts.append(f"{plan['gpu_hours']:g} GPU-hours")
    return " or ".join(parts) + (", whichever comes first" if len(parts) > 1 else "")


def _steps(steps: Mapping[str, Any]) -> str:
    upper, expected = steps["upper"], steps["expected"]
    if upper is None:
        return "no bound: set objective.max_steps and budget.trials to have one"
    text = f"at most {upper:,}"
    return text if expected is None or expected >= upper else f"{text}, about {expected:,.0f} expected"


def _slots(plan: Mapping[str, Any], resources: Mapping[str, Any]) -> str:
    machine = plan["machine"]
    several = [str(Needs(**needs)) for needs in plan["needs"]]
    needs = several[0] if len(several) == 1 else f"{several[0]} to {several[-1]}"
    if resources["gpu"] == AUTO:
        needs += " (less GPU once it is known what trials need)"
    if asked := [*filter(None, [resources.get("accelerator")]), *(f"{k}={v}" for k, v in resources["labels"].items())]:
        needs += f" on {', '.join(asked)}"
    there = f"{_count(machine['cpus'], 'CPU')}, {_count(machine['gpus'], 'GPU')}"
    return f"{plan['slots']} of {needs} each, limited by {plan['slots_limited_by']} (here: {there})"


def _checkpoints(checkpoints: Mapping[str, Any]) -> str:
    text = f"at most {checkpoints['per_trial']} a trial"
    if checkpoints["total"] is not None:
        text += f": {checkpoints['total']:,} × the size of one"
    if checkpoints["trials"] is not None:
        text += f", of the best {checkpoints['trials']:,} that have ended"
    return text + (f", {format_size(checkpoints['disk'])} together" if checkpoints["disk"] else "")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
