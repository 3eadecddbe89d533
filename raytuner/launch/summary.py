"""What a person reads when a driver has ended."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raytuner.analysis import Savings
from raytuner.definition import Replay, without_password
from raytuner.journal import READ_AT, ExperimentState, Folder, TrialState
from raytuner.launch.progress import duration, number

__all__ = ["print_summary"]


def print_summary(
    console: Console,
    state: ExperimentState,
    folder: Folder,
    *,
    tracking_uri: str | None,
    tracking_problem: str = "",
    replay: Replay | None = None,
) -> None:
    """Best against defaults, the test, what early stopping saved, where everything lies, what to type next."""
    where = folder.remote or _short(folder.path)
    console.print()
    if state.best is None:
        console.print(f"[red]No trial of {len(state.trials)} reported a result.[/red]")
        _failures(console, state, folder)
    else:
        _configurations(console, state)
        if replay is not None:
            had = (
                f"trial {replay.trial} of {escape(replay.experiment)}, which had {state.metric} {number(replay.value)}"
            )
            console.print(f"  again     {had} at step {replay.step}", soft_wrap=True)
        _test(console, state)
        _savings(console, state)
        _failures(console, state, folder)
    facts = [("ended", escape(state.reason)), ("results", where)]
    if tracking_uri:
        problem = f"[red]not all of it is there[/red]: {escape(tracking_problem)}" if tracking_problem else ""
        facts.append(("MLflow", problem or escape(without_password(tracking_uri))))
    for name, value in facts:
        console.print(f"  [dim]{name:<9}[/dim] {value}", soft_wrap=True)
    verbs = ["resume"] if state.status == "interrupted" else []
    verbs += ["sync"] if tracking_problem else []
    verbs += ["report", "best"] if state.best else ["status"]
    verbs += ["ui"] if tracking_uri and not tracking_problem and READ_AT not in os.environ else []
    for index, verb in enumerate(verbs):
        line = folder.command(verb) if _afar(folder) else f"raytuner {verb} {shlex.quote(where)}"
        console.print(f"  [dim]{'next' if index == 0 else '':<9}[/dim] {line}", soft_wrap=True)


def _configurations(console: Console, state: ExperimentState) -> None:
    best = state.best
    assert best is not None
    baseline = next((t for t in state.trials.values() if t.source == "defaults" and t is not best), None)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), title_justify="left")
    table.add_column("")
    whose = ", the defaults" if best.source == "defaults" else ""
    table.add_column(f"best (trial {best.id}{whose})", style="bold green")
    if baseline is not None:
        table.add_column("defaults (trial " + baseline.id + ")")

    def row(name: str, ours: str, theirs: str) -> None:
        table.add_row(f"  {name}", ours, *([theirs] if baseline is not None else []))

    row(state.metric, number(best.value), number(baseline.value) if baseline else "")
    row("at step", str(best.value_step), str(baseline.value_step) if baseline else "")
    names = list(dict.fromkeys([*best.config, *(baseline.config if baseline else ())]))
    for name in names:
        row(name, _setting(best, name), _setting(baseline, name) if baseline else "")
    console.print(table)


def _setting(trial: TrialState, name: str) -> str:
    value = trial.config.get(name, "–")
    return number(value) if isinstance(value, float) else str(value)


def _test(console: Console, state: ExperimentState) -> None:
    for test in state.tests[-1:]:
        if test.error is not None:
            console.print(f"  [red]test failed[/red] {escape(test.error['message'])}", soft_wrap=True)
            for line in str(test.error.get("traceback") or "").splitlines()[-12:]:
                console.print(f"    {escape(line)}", style="dim", soft_wrap=True)
        else:
            values = ", ".join(f"[bold]{escape(name)} {number(value)}[/bold]" for name, value in test.metrics.items())
            note = "[dim](the best checkpoint, on data the search never saw)[/dim]"
            console.print(f"  test      {values}  {note}", soft_wrap=True)


def _savings(console: Console, state: ExperimentState) -> None:
    trials = f"{len(state.trials)} trial{'s' * (len(state.trials) != 1)}"
    text = f"  trained   {trials}, {state.steps} steps in {duration(state.time_used)}"
    savings = Savings.of(state)
    if savings.saved and savings.full:
        share = savings.saved / savings.full
        text += f"; early stopping saved {savings.saved} of {savings.full} steps ({share:.0%})"
    console.print(text, soft_wrap=True)


def _failures(console: Console, state: ExperimentState, folder: Folder) -> None:
    failed = [trial for trial in state.trials.values() if trial.status == "failed"]
    if failed:
        first = failed[0]
        console.print(
            f"  [red]failed[/red]    {len(failed)} of {len(state.trials)} trials; "
            f"the first: {escape(first.reason)}; see {_log_of(folder, first.id)}",
            soft_wrap=True,
        )


def _log_of(folder: Folder, trial: str) -> str:
    return f"`{folder.command('logs', trial)}`" if _afar(folder) else _short(folder.trial(trial))


def _afar(folder: Folder) -> bool:
    """Whether paths of this machine are of no use to the reader."""
    return folder.remote is not None or READ_AT in os.environ


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
