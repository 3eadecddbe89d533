"""What can happen in an experiment, one frozen class an event, and how an event is written down."""

from __future__ import annotations

import json
import math
import typing
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from raytuner.errors import JournalError

__all__ = [
    "CheckpointRemoved",
    "CheckpointWritten",
    "Decided",
    "DriverEnded",
    "DriverStarted",
    "Event",
    "Exploited",
    "Extended",
    "Logged",
    "Measured",
    "Reported",
    "Retried",
    "Tested",
    "TrialAsked",
    "TrialEnded",
    "TrialStarted",
    "Usage",
    "decode",
    "encode",
]

SCHEMA = 1
"""The version of the event schema; a reader refuses a newer one."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened. ``at`` is seconds since the epoch, on the driver's clock."""

    type: ClassVar[str]
    at: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DriverStarted(Event):
    """A driver took the experiment up: for the first time, or by a resume."""

    type: ClassVar[str] = "driver_started"
    name: str
    driver: int
    """1 for the first driver, 2 for the one of the first resume, and so on; also the journal's segment."""
    objective: dict[str, Any]
    """``metric``, ``mode``, ``max_steps``, ``select``."""
    budget: dict[str, Any]
    """``trials``, ``time`` (seconds) and ``gpu_hours``, each possibly None."""
    pid: int
    host: str
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    git: dict[str, Any] = field(default_factory=dict)
    """``commit``, ``dirty``; empty outside a repository."""
    seed: int = 0
    slots: int = 0
    spares: bool = True
    """Whether its scheduler may spare trials their last steps."""


@dataclass(frozen=True, kw_only=True)
class Extended(Event):
    """The experiment was given more to do: from here on, another definition holds."""

    type: ClassVar[str] = "extended"
    definition: dict[str, Any]
    """The whole of it."""
    changes: list[str] = field(default_factory=list)
    """What is new, as sentences."""
    anew: bool = False
    """Whether search and scheduler begin anew, with what the earlier trials have come to."""
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By their ids, the trials that have other parameters from here on."""
    reopened: list[str] = field(default_factory=list)
    """Trials that may go on: they had done all their steps, and there are more now; or the budget had cut them off."""
    retried: list[str] = field(default_factory=list)
    """Failed trials that start again."""


@dataclass(frozen=True, kw_only=True)
class TrialAsked(Event):
    """The search (or the user's defaults) proposed a configuration."""

    type: ClassVar[str] = "trial_asked"
    trial: str
    config: dict[str, Any]
    source: str = "search"
    """``search``, ``defaults``, or ``user`` for a configuration that was asked for by hand."""
    known: int = 0
    """How many observations the search had been told when it proposed this."""
    why: str = ""
    """How the search came to it, for people."""


@dataclass(frozen=True, kw_only=True)
class TrialStarted(Event):
    """An attempt of a trial began on a slot. ``step`` is the last step already done (0 from scratch)."""

    type: ClassVar[str] = "trial_started"
    trial: str
    attempt: int
    step: int = 0
    checkpoint: str | None = None
    node: str = ""
    pid: int = 0
    gpus: list[str] = field(default_factory=list)
    ranks: list[dict[str, Any]] = field(default_factory=list)
    """Where the further processes of a distributed trial run, from rank 1 on: ``node`` and ``gpus`` of each."""
    cpu: float = 0.0
    """The CPU cores of each process."""
    gpu: float = 0.0
    """The GPUs of each process; below 1 the share of its one."""


@dataclass(frozen=True, kw_only=True)
class Reported(Event):
    """One step of a trial. ``time`` is when the trial reported it, ``seconds`` its training time so far."""

    type: ClassVar[str] = "reported"
    trial: str
    attempt: int
    step: int
    metrics: dict[str, float]
    time: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CheckpointWritten(Event):
    """A checkpoint of ``step`` stands complete at ``path``."""

    type: ClassVar[str] = "checkpoint_written"
    trial: str
    attempt: int
    step: int
    path: str
    bytes: int = 0
    reason: str = ""
    """``best``, ``every``, ``pause``, ``demand``."""


@dataclass(frozen=True, kw_only=True)
class CheckpointRemoved(Event):
    """A checkpoint was deleted by the retention policy."""

    type: ClassVar[str] = "checkpoint_removed"
    trial: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Logged(Event):
    """A trial logged an image, a figure or a text; ``path`` is the file, ``name`` its place among the artifacts."""

    type: ClassVar[str] = "logged"
    trial: str
    attempt: int
    step: int
    name: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Decided(Event):
    """The scheduler decided on a trial at a step, and why. ``value`` is as reported, not sign-flipped."""

    type: ClassVar[str] = "decided"
    trial: str
    step: int
    action: str
    reason: str
    value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Exploited(Event):
    """A trial took over a checkpoint, of another trial or its own, and goes on from there with another configuration.

    The checkpoint stands already, as one of the trial's own, with ``exploit`` as its reason.
    """

    type: ClassVar[str] = "exploited"
    trial: str
    step: int
    """The last step that the trial had reported."""
    source: str
    source_step: int
    """The checkpoint's step, after which the trial goes on."""
    source_phase: int
    """How often the source had gone on from somewhere else by then."""
    config: dict[str, Any]
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Measured(Event):
    """A trial was seen to take this much GPU memory, in bytes, of a device that has ``gpu_total``."""

    type: ClassVar[str] = "measured"
    trial: str
    attempt: int
    step: int
    gpu_memory: int
    gpu_total: int


@dataclass(frozen=True, kw_only=True)
class Usage(Event):
    """What became of the devices' time, in this driver's time so far, and what they are doing now."""

    type: ClassVar[str] = "usage"
    unit: str
    """``GPU`` or ``CPU``: what is counted."""
    total: float
    """Device-seconds from the first trial's start on."""
    busy: float
    """Those in which a trial had the device."""
    idle: dict[str, Any] = field(default_factory=dict)
    """The others, by what they waited for: start-up, search, rung, resources, disk, ending."""
    devices: list[dict[str, Any]] = field(default_factory=list)
    """``node``, ``gpu``, ``use`` (0 to 1), ``memory`` and ``total`` (bytes) of each GPU, where that can be read."""


@dataclass(frozen=True, kw_only=True)
class Retried(Event):
    """An attempt was cut off by what is not the trial's fault; it starts again, from its last checkpoint."""

    type: ClassVar[str] = "retried"
    trial: str
    attempt: int
    step: int
    reason: str
    gpu: float | None = None
    """The larger share of a GPU that it gets, where it had run out of memory."""


@dataclass(frozen=True, kw_only=True)
class TrialEnded(Event):
    """An attempt ended. ``status`` is paused, finished, stopped or failed."""

    type: ClassVar[str] = "trial_ended"
    trial: str
    attempt: int
    status: str
    step: int
    reason: str = ""
    error: dict[str, Any] | None = None
    """For a failure: ``kind``, ``message``, ``traceback`` (its end)."""


@dataclass(frozen=True, kw_only=True)
class Tested(Event):
    """The test function ran on a trial's checkpoint."""

    type: ClassVar[str] = "tested"
    trial: str
    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DriverEnded(Event):
    """The driver ended by itself. ``status`` is finished, interrupted or failed."""

    type: ClassVar[str] = "driver_ended"
    status: str
    reason: str = ""


_CLASSES: dict[str, type[Event]] = {cls.type: cls for cls in Event.__subclasses__()}
_METRICS = {cls for cls in _CLASSES.values() if "metrics" in {f.name for f in fields(cls)}}
_KNOWN: dict[type[Event], frozenset[str]] = {cls: frozenset(f.name for f in fields(cls)) for cls in _CLASSES.values()}
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode(event: Event) -> str:
    """One line of JSON (no line break). Non-finite metrics are written as the strings nan, inf and -inf."""
    data: dict[str, Any] = {
        "type": event.type,
        **{name: getattr(event, name) for name in _KNOWN[type(event)]},
    }
    if type(event) in _METRICS:
        data["metrics"] = {k: v if math.isfinite(v) else str(v) for k, v in data["metrics"].items()}
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def decode(line: str) -> Event:
    """The event that ``encode`` wrote.

    Raises JournalError for an unknown type; unknown fields of a known type are ignored, so that an older
    reader can follow a newer writer of the same schema version.
    """
    data = typing.cast("dict[str, Any]", json.loads(line))
    kind = data.pop("type", None)
    cls = _CLASSES.get(str(kind))
    if cls is None:
        raise JournalError(
            f"journal: an event of the unknown type {kind!r}; it was written by a newer raytuner, upgrade to read it"
        )
    if cls in _METRICS:
        data["metrics"] = {k: _NON_FINITE[v] if isinstance(v, str) else float(v) for k, v in data["metrics"].items()}
    known = _KNOWN[cls]
    return cls(**{k: v for k, v in data.items() if k in known})
