"""What a slot hands to the controller in one Ray result: a stretch of a trial's events."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Batch"]


@dataclass
class Batch:
    """The events of one attempt since the batch before, in order."""

    trial: str
    attempt: int
    messages: list[dict[str, Any]] = field(default_factory=list)
    """What the trial said: started, report, checkpoint, removed, logged, warning."""
    decide: int | None = None
    """The step after which the trial now waits for the scheduler's decision."""
    end: dict[str, Any] | None = None
    """How the attempt ended: ``status``, ``reason``, ``step``, ``error``."""

    def dumps(self) -> str:
        """One string: Ray Tune copies and flattens a result several times, and must not see inside."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Batch:
        return cls(**json.loads(text))
