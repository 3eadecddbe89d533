"""Append, read, replay: the durable record of an experiment. No Ray, no MLflow in here."""

from raytuner.journal.events import (
    CheckpointRemoved,
    CheckpointWritten,
    Decided,
    DriverEnded,
    DriverStarted,
    Event,
    Exploited,
    Logged,
    Measured,
    Reported,
    Retried,
    Tested,
    TrialAsked,
    TrialEnded,
    TrialStarted,
    Usage,
)
from raytuner.journal.folder import Folder, Lock
from raytuner.journal.log import Cursor, JournalReader, JournalWriter, events_beyond
from raytuner.journal.state import Checkpoint, ExperimentState, Phase, Step, TrialState, replay

__all__ = [
    "Checkpoint",
    "CheckpointRemoved",
    "CheckpointWritten",
    "Cursor",
    "Decided",
    "DriverEnded",
    "DriverStarted",
    "Event",
    "ExperimentState",
    "Exploited",
    "Folder",
    "JournalReader",
    "JournalWriter",
    "Lock",
    "Logged",
    "Measured",
    "Phase",
    "Reported",
    "Retried",
    "Step",
    "Tested",
    "TrialAsked",
    "TrialEnded",
    "TrialStarted",
    "TrialState",
    "Usage",
    "events_beyond",
    "replay",
]
