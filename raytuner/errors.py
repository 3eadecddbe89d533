"""What can go wrong, as one tree.

    RaytunerError
    ├── DefinitionError      the experiment file or object is wrong (all its problems at once)
    │   └── SpaceError       ... in its parameters, conditions or constraints, or a configuration outside them
    ├── PlanError            the definition is right, but cannot be carried out as asked
    ├── SearchError          a search or scheduler was built or used wrongly
    ├── TrialError           a trial failed
    │   ├── ReportError      ... by what it reported
    │   └── CheckpointError  ... by a checkpoint that cannot be written or must not be loaded
    │       └── DiskFullError    ... for want of room
    ├── JournalError         the record of an experiment cannot be read or written
    ├── StorageError         an object store cannot be reached or used
    ├── TrackingError        the tracker cannot be used
    └── LaunchError          the driver cannot be started where it was asked to

Every message says where, the rule, what was given, and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "CheckpointError",
    "DefinitionError",
    "DiskFullError",
    "JournalError",
    "LaunchError",
    "PlanError",
    "Problem",
    "RaytunerError",
    "ReportError",
    "SearchError",
    "SpaceError",
    "StorageError",
    "TrackingError",
    "TrialError",
]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, said so that it can be mended."""

    where: str
    """The key path, such as ``space.lr.low``."""
    rule: str
    """What must hold."""
    got: str = ""
    """What was given, as the user wrote it."""
    remedy: str = ""
    """What to do about it."""
    file: str = ""
    """The file, if it came from one."""
    line: int = 0
    """The line in the file, counted from 1; 0 when unknown."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        head = f"{self.where}: " if self.where else ""
        got = f", got {self.got}" if self.got else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{place}{head}{self.rule}{got}{remedy}"


class RaytunerError(Exception):
    """The root of every error that raytuner raises on purpose."""


class DefinitionError(RaytunerError):
    """The definition is wrong. ``problems`` holds every problem found, not only the first."""

    def __init__(self, problems: Iterable[Problem] | Problem | str) -> None:
        if isinstance(problems, str):
            problems = Problem(where="", rule=problems)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class SpaceError(DefinitionError):
    """A parameter, condition or constraint is wrong, or a configuration lies outside the space."""


class PlanError(RaytunerError):
    """The definition is right in itself, but cannot be carried out as asked."""


class SearchError(RaytunerError):
    """A search or a scheduler cannot be built, or was used wrongly."""


class TrialError(RaytunerError):
    """A trial failed, or used its ``trial`` object wrongly."""


class ReportError(TrialError):
    """What a trial reported cannot be used."""


class CheckpointError(TrialError):
    """A checkpoint cannot be written, or must not be loaded."""


class DiskFullError(CheckpointError):
    """A checkpoint cannot be written, since the disk is full."""


class JournalError(RaytunerError):
    """The record of an experiment cannot be read or written."""


class StorageError(RaytunerError):
    """An object store cannot be reached, or refuses what is asked of it."""


class TrackingError(RaytunerError):
    """The tracker cannot be used as asked."""


class LaunchError(RaytunerError):
    """The driver cannot be started where it was asked to run."""
