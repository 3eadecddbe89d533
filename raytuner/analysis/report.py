"""The report of an experiment, as a page of Markdown that says what was run, what came out, and how to get it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raytuner.analysis.reading import Reading
from raytuner.analysis.status import failure_groups
from raytuner.analysis.text import count, duration, markdown_table, number, settings, value_text
from raytuner.analysis.usage import usage, usage_lines
from raytuner.journal import Folder, TrialState, write_whole

__all__ = ["report", "write_report"]

_TOP = 10  # trials in the table
_CURVE = 12  # rows of the incumbent's curve
_NAMED = 5  # trials named for a reason to fail


def report(folder: Folder) -> str:
    """The page, whatever the experiment has come to. Raises JournalError only for a journal that is damaged."""
    reading = Reading.of(folder, history=True)
    sections = [
        _head(reading),
        _setup(reading),
        _best(reading),
        _ranking(reading),
        _curve(reading),
        _ranges(reading),
        _failures(reading),
        _reproduce(reading),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def write_report(folder: Folder) -> Path:
    """Write the page to the experiment's folder; where it lies. Raises JournalError where it cannot be written."""
    write_whole(folder.report, report(folder))
    return folder.report


def _head(reading: Reading) -> list[str]:
    state, savings = reading.state, reading.savings
    description = str(_part(reading.plan, "experiment").get("description") or "")
    counts = {
        status: state.count(status)
        for status in ("finished", "stopped", "failed", "paused", "interrupted", "running", "pending")
    }
    words = {"stopped": "stopped early"}
    trials = ", ".join(f"{amount} {words.get(status, status)}" for status, amount in counts.items() if amount)
    summary = f"**{reading.status}**" + (f" ({reading.reason})" if reading.reason else "")
    summary += f": {count(len(state.trials), 'trial')}" + (f" ({trials})" if trials else "")
    summary += f", {count(savings.trained, 'step')} in {duration(state.time_used)}."
    if savings.saved and savings.full:
        share = savings.saved / savings.full
        summary += f" Early stopping saved {savings.saved} of {savings.full} steps ({share:.0%})."
    return [f"# {reading.name}", *(["", description] if description else []), "", summary]


def _setup(reading: Reading) -> list[str]:
    state, plan = reading.state, reading.plan
    definition = _part(plan, "experiment")
    trials, seconds = state.budget.get("trials"), state.budget.get("time")
    budget = [] if trials is None else [count(trials, "trial")]
    budget += [] if seconds is None else [duration(seconds)]
    hours = state.budget.get("gpu_hours")
    budget += [] if hours is None else [f"{hours:g} GPU-hours"]
    steps = f", at most {count(state.max_steps, 'step')} a trial" if state.max_steps else ""
    rows = [
        ("objective", f"{state.mode} `{state.metric}`, a trial's {state.select} step{steps}" if state.metric else ""),
        ("search", _component(plan.get("search"))),
        ("scheduler", _component(plan.get("scheduler"))),
        ("budget", " or ".join(budget)),
        ("code", f"`{definition['train']}`" if definition.get("train") else ""),
        ("devices", "; ".join(usage_lines(usage(state)))),
        ("slots", str(state.drivers[-1].slots) if state.drivers and state.drivers[-1].slots else ""),
    ]
    return ["## What was run", "", *markdown_table(["", ""], [row for row in rows if row[1]], left=2)]


def _component(options: Any) -> str:
    if not isinstance(options, Mapping):
        return str(options or "")
    said = ", ".join(f"{name} {value}" for name, value in options.items() if name != "type" and value is not None)
    return f"{options.get('type', '')} ({said})" if said else str(options.get("type", ""))


def _best(reading: Reading) -> list[str]:
    best, defaults = reading.state.best, reading.defaults
    title = ["## The best trial", ""]
    if best is None:
        return [*title, "No trial has reported a result."]
    lines = [*title, f"Trial {best.id}: **{reading.state.metric} {number(best.value)}** at step {best.value_step}."]
    checkpoint = reading.path_of(best.best_checkpoint)
    kept = f"Its checkpoint: `{reading.shown(checkpoint)}`." if checkpoint else "No checkpoint of that step was kept."
    lines[-1] += f" {kept}"
    test = reading.test
    if test is not None and test.error is not None:
        lines += ["", f"Its test failed: {test.error.get('message', 'unknown')}."]
    elif test is not None:
        values = ", ".join(f"**{name} {number(value)}**" for name, value in test.metrics.items())
        lines += ["", f"Tested once, on data that the search never saw: {values}."]
    compare = defaults if defaults is not None and defaults is not best else None
    head = ["", f"best ({best.id})", *([f"defaults ({compare.id})"] if compare else [])]
    columns = [best, *([compare] if compare else [])]
    rows = [[reading.state.metric, *(number(trial.value) for trial in columns)]]
    names = dict.fromkeys(name for trial in columns for name in trial.config)
    rows += [[f"`{name}`", *(value_text(trial.config.get(name, "–")) for trial in columns)] for name in names]
    if defaults is best:
        lines += ["", "These are the defaults: no proposal was better."]
    if again := _part(_part(reading.plan, "experiment"), "replay"):
        where = f"trial {again['trial']} of `{again['experiment']}`"
        had = f"{reading.state.metric} {number(again['value'])} at step {again['step']}"
        lines += ["", f"This is {where}, trained again from scratch; there it had {had}."]
    return [*lines, "", *markdown_table(head, rows), *_schedule(reading, best)]


def _schedule(reading: Reading, best: TrialState) -> list[str]:
    """How the parameters changed on the way to the best value, if they did."""
    lineage = reading.state.lineage(best.id, best.value_step)
    if len(lineage) < 2:
        return []
    names = list(dict.fromkeys(name for *_, config in lineage for name in config))
    changing = [name for name in names if len({repr(config.get(name)) for *_, config in lineage}) > 1]
    rows = [
        [f"{first}-{last}", trial, *(value_text(config.get(name, "–")) for name in changing)]
        for trial, first, last, config in lineage
    ]
    head = ["steps", "trial", *(f"`{name}`" for name in changing)]
    said = "What it was trained with, step by step; `raytuner replay` trains it again so, from scratch:"
    return ["", said, "", *markdown_table(head, rows)]


def _ranking(reading: Reading) -> list[str]:
    top = reading.ranked()[:_TOP]
    if not top:
        return []
    names = list(dict.fromkeys(name for trial in top for name in trial.config))
    head = ["trial", reading.state.metric, "step", "steps", "status", *(f"`{name}`" for name in names)]
    rows = [
        [trial.id, number(trial.value), str(trial.value_step), str(trial.step), _status(trial)]
        + [value_text(trial.config[name]) if name in trial.config else "" for name in names]
        for trial in top
    ]
    return [f"## The best of {count(len(reading.state.trials), 'trial')}", "", *markdown_table(head, rows)]


def _status(trial: TrialState) -> str:
    return trial.status + (" (defaults)" if trial.source == "defaults" else "")


def _curve(reading: Reading) -> list[str]:
    """How the best value came about. Many improvements are thinned out evenly; the first and the last stay."""
    curve = reading.state.curve()
    if not curve:
        return []
    stride = max(1.0, (len(curve) - 1) / (_CURVE - 1))
    chosen = sorted({round(index * stride) for index in range(_CURVE) if round(index * stride) < len(curve)})
    start = reading.state.started_at
    rows = [
        (duration(at - start), str(steps), trial, number(value))
        for at, steps, trial, value in map(curve.__getitem__, chosen)
    ]
    left_out = len(curve) - len(rows)
    note = ["", f"{count(left_out, 'improvement')} in between left out."] if left_out else []
    table = markdown_table(["after", "steps trained", "trial", f"best {reading.state.metric}"], rows, left=0)
    return ["## How the best value came about", "", *table, *note]


def _ranges(reading: Reading) -> list[str]:
    ranked = reading.ranked()
    top = ranked[: max(3, min(_TOP, len(ranked) // 4))]
    if len(ranked) < 8:  # too few to tell a range from chance
        return []
    rows = []
    for name in dict.fromkeys(name for trial in ranked for name in trial.config):
        everywhere = _range([trial.config[name] for trial in ranked if name in trial.config])
        rows.append([f"`{name}`", _range([trial.config[name] for trial in top if name in trial.config]), everywhere])
    head = ["", f"the best {len(top)}", f"all {len(ranked)}"]
    return ["## Where the good ones lie", "", *markdown_table(head, rows, left=3)]


def _range(values: list[Any]) -> str:
    """What values a parameter took: from – to for numbers, else each with how often."""
    if not values:
        return "not active"
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    distinct = list(dict.fromkeys(map(value_text, values)))
    if len(numbers) == len(values) and len(distinct) > 4:
        return f"{number(min(numbers))} – {number(max(numbers))}"
    texts = [value_text(value) for value in values]
    shown = sorted(distinct, key=lambda text: -texts.count(text))
    if len(numbers) == len(values):
        shown = [value_text(value) for value in sorted(set(numbers))]
    return ", ".join(f"{text} ({texts.count(text)}×)" for text in shown[:8]) + (", …" if len(shown) > 8 else "")


def _failures(reading: Reading) -> list[str]:
    groups = failure_groups(reading)
    if not groups:
        return []
    lines = ["## Failures", ""]
    for reason, trials in groups:
        named = ", ".join(trials[:_NAMED]) + (", …" if len(trials) > _NAMED else "")
        lines.append(f"* {count(len(trials), 'trial')} ({named}): {reason}")
    logs = reading.folder.trial(groups[0][1][0]) / "stderr.log"
    return [*lines, "", f"What a trial printed lies beside it, as in `{logs}`."]


def _reproduce(reading: Reading) -> list[str]:
    state = reading.state
    lines = ["## How to get it again", ""]
    if not state.drivers:
        return []
    first = state.drivers[0]
    if first.command:
        lines.append(f"* Command: `{first.command}`")
    commit = first.git.get("commit")
    if commit:
        dirty = ", with changes that were not committed" if first.git.get("dirty") else ""
        lines.append(f"* Code: commit `{commit}`{dirty}")
    if reading.folder.code.is_dir():
        lines.append(f"* The code as it ran: `{reading.folder.code}`")
    lines.append(f"* Definition: `{reading.folder.definition}`, seed {first.seed}")
    if first.versions:
        lines.append("* Versions: " + ", ".join(f"{name} {version}" for name, version in first.versions.items()))
    resumed = len(state.drivers) - 1 - len(state.extensions)
    if resumed > 0:
        lines.append(f"* It was resumed {count(resumed, 'time')}.")
    lines += [
        f"* It was extended: {'; '.join(event.changes) or 'a configuration by hand'}" for event in state.extensions
    ]
    if state.best is not None and state.best.config:
        lines.append(f"* The best configuration: `{settings(state.best.config)}`")
    return lines


def _part(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = data.get(key)
    return part if isinstance(part, Mapping) else {}
