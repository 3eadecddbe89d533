"""What the tests of this room share: a spec to begin with, and a channel that keeps what a trial says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from raytuner.training import Trial, TrialSpec
from raytuner.training.attempt import run_attempt

Message = dict[str, Any]


class Tape:
    """A channel that records. ``stop_at``: the step at which a stop has arrived, looked for between steps; ``answers``:
    what is said to each question for a decision, ``go`` by default.
    """

    def __init__(self, *, stop_at: int | None = None, answers: Iterable[Message] = ()) -> None:
        self.said: list[Message] = []
        self._stop_at = stop_at
        self._answers = list(answers)

    def send(self, message: Message) -> None:
        self.said.append(message)

    def poll(self) -> Message | None:
        steps = [m["step"] for m in self.of("report")]
        if self._stop_at is not None and steps and steps[-1] >= self._stop_at:
            return {"op": "stop", "reason": "asked to"}
        return None

    def wait(self) -> Message:
        return self._answers.pop(0) if self._answers else {"op": "go"}

    def of(self, kind: str) -> list[Message]:
        return [message for message in self.said if message["m"] == kind]

    def values(self, metric: str = "loss") -> dict[int, float]:
        return {m["step"]: m["metrics"][metric] for m in self.of("report")}

    @property
    def warnings(self) -> list[str]:
        return [m["text"] for m in self.of("warning")]

    @property
    def kinds(self) -> list[str]:
        return [m["m"] for m in self.said]


def make_spec(folder: Path, **changes: Any) -> TrialSpec:
    """A spec of trial 000001's first attempt in ``folder``; no checkpoint is written but the best and the last."""
    fields: dict[str, Any] = {
        "trial": "000001",
        "attempt": 1,
        "config": {},
        "seed": 7,
        "dir": str(folder),
        "metric": "loss",
        "max_steps": 5,
        "policy": {"every_time": None},
    }
    return TrialSpec(**{**fields, **changes})


def attempt(spec: TrialSpec, function: Callable[[Trial], Any], tape: Tape | None = None) -> tuple[dict[str, Any], Tape]:
    """How the attempt ended, and what it said."""
    tape = tape or Tape()
    return run_attempt(spec, tape, function), tape


def standing(folder: Path) -> list[str]:
    """The names of the checkpoints that stand."""
    return sorted(path.name for path in (folder / "checkpoints").glob("*"))


def newest_first(folder: Path) -> tuple[str, ...]:
    return tuple(str(folder / "checkpoints" / name) for name in reversed(standing(folder)))
