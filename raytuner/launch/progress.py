"""The live view of a running experiment: a reader of the journal, like any other."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import IO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raytuner.analysis import usage, usage_lines
from raytuner.journal import ExperimentState, Fold, Folder, TrialEnded, TrialState
from raytuner.journal.state import failure_way
from raytuner.plan import Plan

__all__ = ["Progress", "duration", "number"]

REFRESH_SECONDS = 0.25
PLAIN_SECONDS = 10.0
SHOWN_TRIALS = 6


def duration(seconds: float) -> str:
    """Such as ``0:07``, ``12:30`` or ``2:05:00``."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def number(value: float | None) -> str:
    """Five significant digits."""
    return "–" if value is None else f"{value:.5g}"


class Progress:
    """Shows the experiment in ``folder`` until ``stop()``: a view that renews itself on a terminal, else plain lines.

    ``more``: further things to say, asked for at every refresh: (a note for the last line, warnings to print).
    """

    def __init__(
        self,
        plan: Plan,
        folder: Folder,
        *,
        file: IO[str] | None = None,
        more: Callable[[], tuple[str, list[str]]] = lambda: ("", []),
    ) -> None:
        self._plan = plan
        self._fold = Fold(folder)
        self._console = Console(file=file or sys.stdout, highlight=False)
        self._more = more
        self._warned = 0
        self._errors: set[tuple[str, str]] = set()  # by their ways: details differ from trial to trial
        self._failures = 0
        self._shown_best: float | None = None
        self._last_line = time.monotonic()
        self._note = "starting Ray"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def start(self) -> None:
        self._catch_up(quiet=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    @property
    def _state(self) -> ExperimentState:
        return self._fold.state

    # -- reading ------------------------------------------------------------------------------------------------

    def _catch_up(self, *, quiet: bool = False) -> None:
        for event in self._fold.catch_up():
            if isinstance(event, TrialEnded) and event.status == "failed" and not quiet:
                self._show_failure(event)
        self._note, warnings = self._more()
        for text in warnings[self._warned :]:
            self._console.print(f"[yellow]warning[/yellow] {escape(text)}", soft_wrap=True)
        self._warned = len(warnings)

    def _show_failure(self, event: TrialEnded) -> None:
        error = event.error or {}
        message = str(error.get("message") or event.reason)
        self._failures += 1
        way = failure_way(error) if error else ("", message)
        if way in self._errors or len(self._errors) >= 5:
            if self._failures in (10, 100, 1000):
                self._console.print(f"[red]{self._failures} trials have failed so far[/red]")
            return
        self._errors.add(way)
        self._console.print(f"[red]trial {event.trial} failed[/red] {escape(message)}", soft_wrap=True)
        for line in str(error.get("traceback") or "").splitlines()[-12:]:
            self._console.print(f"    {escape(line)}", style="dim", soft_wrap=True)

    # -- showing ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._console.is_terminal:
            with Live(self._view(), console=self._console, refresh_per_second=8, transient=True) as live:
                while not self._done.wait(REFRESH_SECONDS):
                    self._catch_up()
                    live.update(self._view())
                self._catch_up()
        else:
            self._console.print(f"{self._plan.experiment.name}: starting", soft_wrap=True)
            while not self._done.wait(REFRESH_SECONDS):
                self._catch_up()
                self._plain()
            self._catch_up()
            self._plain(last=True)

    def _plain(self, *, last: bool = False) -> None:
        state, now = self._state, time.monotonic()
        best = state.best.value if state.best else None
        # A first stretch improves all the time: one line a second is calm enough.
        due = now - self._last_line >= (1.0 if best != self._shown_best else PLAIN_SECONDS)
        if (due or last) and (state.trials or last):
            self._last_line, self._shown_best = now, best
            self._console.print("  ".join([self._counts(), self._best(), self._times()]), soft_wrap=True)

    @property
    def _wanted(self) -> int | None:
        return self._plan.trials + self._state.by_hand if self._plan.trials else None

    def _elapsed(self) -> float:
        state = self._state
        return state.elapsed + (time.time() - state.drivers[-1].at if state.drivers else 0.0)

    def _share(self) -> float | None:
        """How much of the budget is used up: of trials, of time or of GPU-hours, whichever is furthest."""
        shares = []
        if self._wanted:
            shares.append(self._trained() / self._wanted)
        if self._plan.experiment.budget.time:
            shares.append(self._state.time_used / self._plan.experiment.budget.time)
        if self._plan.experiment.budget.gpu_hours:
            shares.append(self._state.gpu_hours / self._plan.experiment.budget.gpu_hours)
        return min(1.0, max(shares)) if shares else None

    def _trained(self) -> float:
        """Trials that are done; where all train to their end, also what the others have done of their steps."""
        most = self._state.max_steps
        if self._state.spares or most is None:
            return self._state.done
        return sum(1.0 if trial.ended else min(1.0, trial.step / most) for trial in self._state.trials.values())

    def _counts(self) -> str:
        of = f"/{self._wanted}" if self._wanted else ""
        return f"{self._state.done}{of} trials, {self._state.steps} steps"

    def _times(self) -> str:
        elapsed, share = self._elapsed(), self._share()
        going = not self._done.is_set() and share and 0.03 < share < 1
        left = f", about {duration(elapsed / share - elapsed)} left" if share and going else ""
        return f"{duration(elapsed)} elapsed{left}"

    def _best(self) -> str:
        state = self._state
        if state.best is None:
            return "no result yet"
        ago = duration(max(0.0, time.time() - state.best_at))
        return f"best {state.metric} {number(state.best.value)} (trial {state.best.id}, {ago} ago)"

    def _view(self) -> RenderableType:
        state = self._state
        head = Table.grid(padding=(0, 2))
        share = self._share()
        bar = ProgressBar(total=1.0, completed=share or 0.0, width=30, pulse=share is None)
        head.add_row(Text(self._plan.experiment.name, style="bold"), bar, self._counts(), self._times())
        rows: list[RenderableType] = [head]
        if not state.trials:
            rows.append(Text(f"  {self._note or 'starting'} …", style="dim"))
            return Group(*rows)
        rows.append(Text(f"  {self._best()}{self._defaults()}", style="green"))
        running = [trial for trial in state.trials.values() if trial.status == "running"]
        if running:
            rows.append(Text("  " + "  ".join(self._trial(t) for t in running[:SHOWN_TRIALS]) + _more_than(running)))
        rows.append(Text(f"  {self._resources(running)}  {self._ends()}  {self._note}", style="dim"))
        rows += [Text(f"  {line}", style="dim") for line in usage_lines(usage(state))]
        return Group(*rows)

    def _defaults(self) -> str:
        first = next(iter(self._state.trials.values()), None)
        if first is None or first.source != "defaults" or first.value is None or first is self._state.best:
            return ""
        return f", defaults {number(first.value)}"

    def _trial(self, trial: TrialState) -> str:
        most = f"/{self._state.max_steps}" if self._state.max_steps else ""
        value = f" {number(trial.last.get(self._state.metric))}" if trial.last else ""
        return f"{trial.id} step {trial.step}{most}{value}"

    def _resources(self, running: list[TrialState]) -> str:
        machine = self._plan.machine
        cpus = sum((1 + len(trial.ranks)) * trial.cpu for trial in running)
        gpus = sum((1 + len(trial.ranks)) * trial.gpu for trial in running)
        return f"CPU {cpus:g}/{machine.cpus}" + (f", GPU {gpus:g}/{machine.gpus}" if gpus or machine.gpus else "")

    def _ends(self) -> str:
        counts = [
            (n, w) for w in ("finished", "stopped", "paused", "interrupted", "failed") if (n := self._state.count(w))
        ]
        return ", ".join(f"{n} {'stopped early' if w == 'stopped' else w}" for n, w in counts)


def _more_than(running: list[TrialState]) -> str:
    return f"  and {len(running) - SHOWN_TRIALS} more" if len(running) > SHOWN_TRIALS else ""
