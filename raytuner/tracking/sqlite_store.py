"""An SQLite store, written without MLflow: the rows that MLflow's own store would write, in one transaction a flush.

A test writes the same experiment through MLflow's client and compares the rows.
"""

from __future__ import annotations

import math
import os
import shutil
import sqlite3
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from raytuner.errors import TrackingError
from raytuner.tracking.store import EXPERIMENT, TRIAL, Artifact, Birth, Run, StoreAway, Update

__all__ = ["SqliteStore"]

_BUSY = 20.0  # seconds that a locked database is waited for, as MLflow does

_LATEST = """
INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (key, run_uuid) DO UPDATE SET
    value = excluded.value, timestamp = excluded.timestamp, step = excluded.step, is_nan = excluded.is_nan
WHERE (excluded.step, excluded.timestamp, excluded.value) > (step, timestamp, value)
"""

_FIND = """
SELECT runs.run_uuid, runs.artifact_uri, coalesce(trial.value, '')
FROM runs
JOIN tags ON tags.run_uuid = runs.run_uuid AND tags.key = ? AND tags.value = ?
LEFT JOIN tags AS trial ON trial.run_uuid = runs.run_uuid AND trial.key = ?
WHERE runs.experiment_id = ?
ORDER BY runs.lifecycle_stage = 'active', runs.start_time DESC
"""  # the last one wins below: a living run before a deleted one, then the oldest


class SqliteStore:
    """The runs in the MLflow store at ``path``, whose schema is ``REVISION``. Artifacts lie beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.experiment_id = ""
        self._artifacts = ""

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        # A connection a transaction: a store that was moved away or replaced meanwhile is noticed.
        try:
            address = f"{self._path.as_uri()}?mode=rw"
            with closing(sqlite3.connect(address, uri=True, timeout=_BUSY, isolation_level=None)) as connection:
                connection.execute("PRAGMA foreign_keys = ON")
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreAway(f"{self._path}: the store must be writable, and SQLite says: {error}") from error

    def find(self, experiment: str, key: str, labels: Mapping[str, str]) -> dict[str, Run]:
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT experiment_id, artifact_location, lifecycle_stage FROM experiments"
                " WHERE name = ? AND workspace = 'default'",
                (experiment,),
            ).fetchone()
            if row is None:
                row = self._create_experiment(connection, experiment, labels)
            if row[2] != "active":
                raise TrackingError(
                    f"{self._path}: the MLflow experiment {experiment!r} must not be deleted, and it is; restore it "
                    f"with `mlflow experiments restore -x {row[0]}`, or give this experiment another name"
                )
            self.experiment_id, self._artifacts = str(row[0]), str(row[1])
            rows = connection.execute(_FIND, (EXPERIMENT, key, TRIAL, self.experiment_id)).fetchall()
        return {trial: Run(run_id, uri) for run_id, uri, trial in rows}

    def _create_experiment(
        self, connection: sqlite3.Connection, name: str, labels: Mapping[str, str]
    ) -> tuple[int, str, str]:
        now = int(time.time() * 1000)
        cursor = connection.execute(
            "INSERT INTO experiments (name, lifecycle_stage, creation_time, last_update_time, workspace)"
            " VALUES (?, 'active', ?, ?, 'default')",
            (name, now, now),
        )
        location = str(self._path.parent / "mlartifacts" / name)
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (location, cursor.lastrowid)
        )
        connection.executemany(
            "INSERT INTO experiment_tags (key, value, experiment_id) VALUES (?, ?, ?)",
            [(key, value, cursor.lastrowid) for key, value in labels.items()],
        )
        return int(cursor.lastrowid or 0), location, "active"

    def create(self, births: Mapping[str, Birth], parent: Run | None) -> dict[str, Run]:
        runs: dict[str, Run] = {}
        with self._transaction() as connection:
            for trial, birth in births.items():
                run_id = uuid.uuid4().hex
                run = runs[trial] = Run(run_id, f"{self._artifacts}/{run_id}/artifacts")
                connection.execute(
                    "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status,"
                    " start_time, source_version, lifecycle_stage, artifact_uri, experiment_id)"
                    " VALUES (?, ?, 'UNKNOWN', '', '', ?, 'RUNNING', ?, '', 'active', ?, ?)",
                    (run_id, birth.name, birth.user, birth.started, run.artifacts, self.experiment_id),
                )
                nesting = {"mlflow.parentRunId": parent.id} if parent else {}
                tags = {**birth.tags, **nesting, "mlflow.runName": birth.name, "mlflow.user": birth.user}
                self._tag(connection, run_id, tags)
        return runs

    def write(self, updates: Mapping[str, Update]) -> None:
        refused = []
        with self._transaction() as connection:
            for run_id, update in updates.items():
                living = "SELECT 1 FROM runs WHERE run_uuid = ? AND lifecycle_stage = 'active'"
                if connection.execute(living, (run_id,)).fetchone() is None:
                    refused.append(run_id)
                    continue
                connection.executemany(
                    "INSERT OR IGNORE INTO params (key, value, run_uuid) VALUES (?, ?, ?)",
                    [(key, value, run_id) for key, value in update.params.items()],
                )
                self._tag(connection, run_id, update.tags)
                self._measure(connection, run_id, update)
                if update.status is not None:
                    # MLflow cannot take an end time back, so a run that goes on after a resume keeps it until it ends.
                    connection.execute(
                        "UPDATE runs SET status = ?, end_time = coalesce(?, end_time) WHERE run_uuid = ?",
                        (update.status, update.ended, run_id),
                    )
        if refused:
            raise TrackingError(
                f"{self._path}: {len(refused)} runs were deleted in MLflow and are not written any more "
                f"(restore them, then track again): {', '.join(refused[:3])}"
            )

    @staticmethod
    def _tag(connection: sqlite3.Connection, run_id: str, tags: Mapping[str, str]) -> None:
        connection.executemany(
            "INSERT OR REPLACE INTO tags (key, value, run_uuid) VALUES (?, ?, ?)",
            [(key, value, run_id) for key, value in tags.items()],
        )

    @staticmethod
    def _measure(connection: sqlite3.Connection, run_id: str, update: Update) -> None:
        rows = [
            (metric.key, *_storable(metric.value), metric.timestamp, metric.step, run_id) for metric in update.metrics
        ]
        connection.executemany(
            "INSERT OR IGNORE INTO metrics (key, value, is_nan, timestamp, step, run_uuid) VALUES (?, ?, ?, ?, ?, ?)",
            rows,
        )
        latest: dict[str, tuple[int, int, float, int]] = {}
        for key, value, is_nan, timestamp, step, _ in rows:
            latest[key] = max(latest.get(key, (-sys.maxsize, 0, 0.0, 0)), (step, timestamp, value, is_nan))
        connection.executemany(
            _LATEST,
            [(key, value, at, step, is_nan, run_id) for key, (step, at, value, is_nan) in latest.items()],
        )

    def upload(self, run: Run, artifact: Artifact) -> None:
        target = Path(run.artifacts.removeprefix("file://"), artifact.place)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if artifact.text is not None:
                _replace(target, artifact.text)
            elif artifact.source is not None and artifact.source.is_dir():
                shutil.rmtree(target, ignore_errors=True)  # files of an earlier version must not stay among these
                shutil.copytree(artifact.source, target)
            elif artifact.source is not None and artifact.source.exists():
                _replace(target, artifact.source)
        except OSError as error:
            raise StoreAway(f"{target}: artifacts must be writable: {error}") from error

    def register(self, model: str, run: Run, place: str, tags: Mapping[str, str]) -> None:
        # Rare, at the end, and of the registry's own making: MLflow does this one.
        from raytuner.tracking.client_store import ClientStore

        ClientStore(f"sqlite:///{self._path}").register(model, run, place, tags)

    def close(self) -> None:
        pass


def _storable(value: float) -> tuple[float, int]:
    """A metric's value and its is_nan flag, as MLflow stores what SQL cannot."""
    if math.isnan(value):
        return 0.0, 1
    return (math.copysign(sys.float_info.max, value) if math.isinf(value) else value), 0


def _replace(target: Path, content: str | Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    if isinstance(content, str):
        temporary.write_text(content, encoding="utf-8")
    else:
        shutil.copyfile(content, temporary)
    temporary.replace(target)
