"""What a tracking store must offer, and the few nouns that are written into it."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from raytuner.errors import TrackingError
from raytuner.tracking.address import database, resolve_uri
from raytuner.tracking.schema import REVISION, create_database, revision_of

__all__ = [
    "EXPERIMENT",
    "MODEL",
    "PARENT",
    "TRIAL",
    "Artifact",
    "Birth",
    "Metric",
    "Run",
    "Store",
    "StoreAway",
    "Update",
    "open_store",
]

EXPERIMENT = "raytuner.experiment"
"""The tag by which every run of one experiment is found again."""
TRIAL = "raytuner.trial"
"""The tag that tells the children apart; the parent has none."""
PARENT = ""
"""What stands for the experiment's own run wherever a trial's id is expected."""
MODEL = "model"
"""Where the best checkpoint lies among the parent's artifacts."""


class StoreAway(TrackingError):
    """The store cannot be reached or written now; the same write may be tried again."""


class Metric(NamedTuple):
    """One point of a curve. ``timestamp`` is in milliseconds since the epoch."""

    key: str
    value: float
    timestamp: int
    step: int


@dataclass(frozen=True)
class Artifact:
    """A file, a folder or a text that belongs to a run. ``place`` is its path among the run's artifacts."""

    place: str
    source: Path | None = None
    """A file or a folder; what is no longer there is left out."""
    text: str | None = None


@dataclass
class Update:
    """What is to be written to one run. Writing the same twice changes nothing."""

    metrics: list[Metric] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    """A parameter that the run already has keeps its first value."""
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    """By their place."""
    status: str | None = None
    """RUNNING, FINISHED, KILLED or FAILED."""
    ended: int | None = None
    """Milliseconds since the epoch, for an end state."""
    model: dict[str, str] | None = None
    """Tags of the model version that the artifacts at ``MODEL`` become, where the user wants them registered."""


@dataclass(frozen=True)
class Birth:
    """What a run is created with."""

    name: str
    started: int
    """Milliseconds since the epoch."""
    user: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """A run that is in the store."""

    id: str
    artifacts: str
    """The address of its artifacts."""


class Store(Protocol):
    """A place that runs are written to. All raise StoreAway when trying again may help, TrackingError otherwise."""

    experiment_id: str
    """The MLflow experiment, once ``find`` was asked."""

    def find(self, experiment: str, key: str, labels: Mapping[str, str]) -> dict[str, Run]:
        """The runs with the tag ``EXPERIMENT`` = key, by trial (``PARENT`` for the experiment's own).

        Sets the store on the MLflow experiment of this name; creates it with the tags ``labels`` when it is not there.
        """

    def create(self, births: Mapping[str, Birth], parent: Run | None) -> dict[str, Run]:
        """Create runs, by trial, as children of ``parent`` where one is given."""

    def write(self, updates: Mapping[str, Update]) -> None:
        """Write metrics, parameters, tags and states, by the run's id.

        Raises TrackingError when some runs were deleted meanwhile, after all others were written.
        """

    def upload(self, run: Run, artifact: Artifact) -> None:
        """Put an artifact into its place, over what may be there."""

    def register(self, model: str, run: Run, place: str, tags: Mapping[str, str]) -> None:
        """Make the artifacts at ``place`` a version of the registered ``model``, unless they are one already."""

    def close(self) -> None:
        """Let go of the store."""


def open_store(uri: str) -> Store:
    """The store at ``uri``; a fresh SQLite store is created.

    SQLite stores of the schema that we know are written directly, which saves the import of MLflow (about three
    seconds of CPU beside the training); everything else goes through MLflow's own client.
    Raises TrackingError for an address that can be no store, StoreAway when it cannot be reached.
    """
    uri = resolve_uri(uri)
    path = database(uri)
    if path is not None:
        try:
            known = revision_of(path) == REVISION if path.exists() else create_database(path)
        except (OSError, sqlite3.OperationalError) as error:
            raise StoreAway(f"{path}: the store must be readable and its folder writable: {error}") from error
        except sqlite3.DatabaseError as error:
            raise TrackingError(f"{path}: an SQLite store must be a database: {error}; give another address") from error
        if known:
            from raytuner.tracking.sqlite_store import SqliteStore

            return SqliteStore(path)
    from raytuner.tracking.client_store import ClientStore

    return ClientStore(uri)
