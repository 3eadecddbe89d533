"""Why a trial was proposed, went on, stopped, was copied or failed: its story, as the journal tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raytuner.analysis.jsonable import jsonable
from raytuner.analysis.reading import Reading
from raytuner.analysis.text import count, duration, number, settings
from raytuner.errors import JournalError
from raytuner.journal import (
    Decided,
    DriverEnded,
    DriverStarted,
    Event,
    Exploited,
    Extended,
    Folder,
    JournalReader,
    Retried,
    Tested,
    TrialAsked,
    TrialEnded,
    TrialStarted,
    TrialState,
)

__all__ = ["why", "why_lines"]

_ACTIONS = {
    "continue": "went on",
    "stop": "stopped",
    "pause": "paused",
    "resume": "goes on",
    "exploit": "leaves its own state",
    "keep": "kept its own state",
}


def why(folder: Folder, trial_id: str) -> dict[str, Any]:
    """The story of a trial, by the schema ``raytuner.why/1``: its ``events`` in order, each with ``at`` (seconds since
    the experiment's start), ``step`` and ``text``. Raises JournalError for an unknown trial.
    """
    reading = Reading.of(folder)
    trial_id = trial_id.zfill(6)
    trial = reading.state.trials.get(trial_id)
    if trial is None:
        known = f"there are {len(reading.state.trials)}, the last is {max(reading.state.trials, default='none')}"
        raise JournalError(f"{folder.where}: the trial must be one of this experiment, got {trial_id}; {known}")
    story = _Story(trial, reading.state.metric, search=_search(reading))
    for event in JournalReader(folder.journal).read():
        story.take(event)
    ranked = [one.id for one in reading.ranked()]
    answer = {
        "schema": "raytuner.why/1",
        "trial": trial.id,
        "status": trial.status,
        "reason": trial.reason,
        "step": trial.step,
        "metric": reading.state.metric,
        "value": trial.value,
        "value_step": trial.value_step if trial.value is not None else None,
        "rank": ranked.index(trial.id) + 1 if trial.id in ranked else None,
        "ranked": len(ranked),
        "config": trial.config,
        "traceback": (trial.error or {}).get("traceback", ""),
        "events": [
            {"at": at - reading.state.started_at, "step": step, "text": text} for at, step, text in story.entries
        ],
    }
    return {key: jsonable(value) for key, value in answer.items()}


def why_lines(folder: Folder, trial_id: str) -> list[str]:
    """The same for a person."""
    found = why(folder, trial_id)
    reason = f": {found['reason']}" if found["reason"] else ""
    lines = [f"trial {found['trial']}: {found['status']} at step {found['step']}{reason}"]
    if found["value"] is not None:
        place = f"number {found['rank']} of {count(found['ranked'], 'trial')}"
        lines.append(f"  {found['metric']} {number(found['value'])} at step {found['value_step']}, {place}")
    lines.append(f"  {settings(found['config'])}")
    times = [duration(event["at"]) for event in found["events"]]
    width = max(map(len, times), default=0)
    lines += [f"  {at:>{width}}  {event['text']}" for at, event in zip(times, found["events"], strict=True)]
    return lines + [f"    {line}" for line in found["traceback"].splitlines()]


def _search(reading: Reading) -> str:
    options = reading.plan.get("experiment", {}).get("search", {})
    return str(options.get("type", "")) if isinstance(options, dict) else ""


@dataclass
class _Story:
    """Takes the events of an experiment, and keeps what concerns one trial."""

    trial: TrialState
    metric: str
    search: str

    def __post_init__(self) -> None:
        self.entries: list[tuple[float, int, str]] = []  # when, at which step, what
        self._decided = ""
        self._open = False  # an attempt is under way
        self._ended = True  # the driver before came to its end

    def take(self, event: Event) -> None:
        if isinstance(event, DriverStarted | DriverEnded):
            self._driver(event)
            return
        if isinstance(event, Extended):
            self._extension(event)
            return
        if isinstance(event, Exploited) and event.source == self.trial.id != event.trial:
            text = f"its state after step {event.source_step} was taken over by trial {event.trial}"
            self._add(event, event.source_step, text)
            return
        if getattr(event, "trial", None) != self.trial.id:
            return
        match event:
            case TrialAsked():
                self._add(event, 0, self._proposal(event))
            case TrialStarted():
                self._open = True
                start = f"from the checkpoint of step {event.step}" if event.checkpoint else "from scratch"
                where = f" on {event.node}" if event.node else ""
                where += f", GPU {' '.join(event.gpus)}" if event.gpus else ""
                self._add(event, event.step, f"attempt {event.attempt} began {start}{where}")
            case Decided():
                self._decided = event.reason
                reason = event.reason.removeprefix(f"step {event.step}: ")
                value = f" with {self.metric} {number(event.value)}" if event.value is not None else ""
                action = _ACTIONS.get(event.action, event.action)
                self._add(event, event.step, f"step {event.step}{value}: {action}, since {reason}")
            case Exploited():
                whose = "its own" if event.source == event.trial else f"trial {event.source}'s"
                text = f"took over {whose} state after step {event.source_step}, with {settings(event.config)}"
                self._add(event, event.step, text)
            case Retried():
                self._open = False
                self._add(event, event.step, f"attempt {event.attempt} was cut off, to start again: {event.reason}")
            case TrialEnded():
                self._open = False
                if event.reason != self._decided:  # which is told already
                    self._add(event, event.step, f"attempt {event.attempt} ended, {event.status}: {event.reason}")
            case Tested():
                values = settings(event.metrics) if event.error is None else f"failed: {event.error.get('message')}"
                self._add(event, event.step, f"tested after step {event.step}: {values}")
            case _:
                pass

    def _driver(self, event: DriverStarted | DriverEnded) -> None:
        if isinstance(event, DriverStarted) and not self._ended and self._open:
            self._add(event, 0, f"driver {event.driver} took over: the one before was gone without a word")
            self._open = False
        self._ended = isinstance(event, DriverEnded)

    def _extension(self, event: Extended) -> None:
        if self.trial.id in event.configs:
            text = f"the experiment was extended: its configuration is {settings(event.configs[self.trial.id])} now"
            self._add(event, 0, text)
        if self.trial.id in event.reopened:
            self._add(event, 0, f"the experiment was extended ({'; '.join(event.changes)}): it may go on")
        if self.trial.id in event.retried:
            self._add(event, 0, "the experiment was extended: it starts again, as failed trials were asked to")

    def _proposal(self, event: TrialAsked) -> str:
        if event.source == "defaults":
            return "proposed as the defaults, the baseline that the others are compared with"
        if event.source != "search":
            return f"proposed by the {event.source}"
        who = f"the search ({self.search})" if self.search else "the search"
        how = f": {event.why}" if event.why else ""
        return f"proposed by {who}, which had been told {count(event.known, 'result')}{how}"

    def _add(self, event: Event, step: int, text: str) -> None:
        self.entries.append((event.at, step, text))
