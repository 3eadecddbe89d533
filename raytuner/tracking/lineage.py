"""Who went on from whose checkpoint, as a table and as a picture."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from raytuner.journal import ExperimentState, TrialState

__all__ = ["PICTURE", "TABLE", "exploits", "picture", "table"]

TABLE, PICTURE = "lineage.json", "lineage.svg"
ROW, LEFT, WIDTH, TOP = 18, 80, 800, 40
PLAIN = 'stroke="#9aa5b1" stroke-width="1.5"'
WON = 'stroke="#0b6e99" stroke-width="3"'


def exploits(trial: TrialState) -> str:
    """In one line: after which step of whose the trial went on."""
    return "; ".join(f"from {phase.source} after step {phase.after}" for phase in trial.phases[1:])


def table(state: ExperimentState) -> str:
    """Each time that a trial went on from elsewhere: one row, with what changed. JSON as MLflow shows tables."""
    names = list(dict.fromkeys(name for trial in state.trials.values() for name in trial.asked))
    rows: list[list[Any]] = []
    for trial in state.trials.values():
        for number, phase in enumerate(trial.phases):
            rows.append([trial.id, number, phase.after, phase.source, *(phase.config.get(name) for name in names)])
    columns = ["trial", "phase", "after_step", "source", *names]
    return json.dumps({"columns": columns, "data": rows}, default=str)


def picture(state: ExperimentState) -> str:
    """An SVG: a row a trial, a line a phase over its steps, and a line from whom it came; the best's in blue."""
    trials = list(state.trials.values())
    most = max([state.max_steps or 0, *(trial.step for trial in trials)]) or 1
    height = TOP + ROW * len(trials) + 30
    rows = {trial.id: TOP + ROW * place for place, trial in enumerate(trials)}
    best = state.best

    def x(step: int) -> float:
        return LEFT + (WIDTH - LEFT - 20) * step / most

    def line(begin: int, upper: str, end: int, lower: str, style: str) -> str:
        x1, y1, x2, y2 = x(begin), rows[upper], x(end), rows[lower]
        return f'<line x1="{x1:.1f}" y1="{y1}" x2="{x2:.1f}" y2="{y2}" {style}/>'

    lines = []
    for trial in trials:
        lines.append(f'<text x="10" y="{rows[trial.id] + 4}">{escape(trial.id)}</text>')
        for number, phase in enumerate(trial.phases):
            end = trial.phases[number + 1].left if number + 1 < len(trial.phases) else trial.step
            lines.append(line(phase.after, trial.id, max(end, phase.after), trial.id, PLAIN))
            if phase.source and phase.source != trial.id:
                lines.append(line(phase.after, phase.source, phase.after, trial.id, f'{PLAIN} stroke-dasharray="3 2"'))
    before = ""
    for name, first, last, _ in state.lineage(best.id, best.value_step) if best is not None else ():
        lines.append(line(first - 1, before or name, first - 1, name, WON))
        lines.append(line(first - 1, name, last, name, WON))
        before = name
    ticks = [round(most * part / 4) for part in range(5)]
    lines += [f'<text x="{x(at):.1f}" y="{height - 8}" text-anchor="middle">{at}</text>' for at in ticks]
    title = f"{escape(state.name)}: who went on from whom, over the steps"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="10" y="20" font-size="13">{title}</text>{"".join(lines)}</svg>'
    )
