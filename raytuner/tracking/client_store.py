"""Any other MLflow store, a server above all, through MLflow's own client."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from raytuner.definition import without_password
from raytuner.errors import TrackingError
from raytuner.tracking.address import artifact_root, database
from raytuner.tracking.store import EXPERIMENT, PARENT, TRIAL, Artifact, Birth, Run, StoreAway, Update

__all__ = ["ClientStore", "calm_environment"]

_Answer = TypeVar("_Answer")

_METRICS = 800  # an MLflow batch takes 1000 entries and 1 MB
_AT_ONCE = 8
"""Runs that are written at the same time: most of it is waiting for the store."""
_PAIRS = 50  # ... of which 100 parameters (6000 characters each) and 100 tags (8000)

_PERMANENT = frozenset({
    "BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "PERMISSION_DENIED", "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST", "ENDPOINT_NOT_FOUND",
    "FEATURE_DISABLED", "NOT_IMPLEMENTED", "NOT_FOUND", "MALFORMED_REQUEST",
})  # fmt: skip

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # we try again ourselves; MLflow's own retries block for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_TRUNCATE_LONG_VALUES": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@contextmanager
def calm_environment() -> Iterator[None]:
    """MLflow without telemetry and without retries of its own, unless the user's environment says otherwise."""
    added = {key: value for key, value in _ENVIRONMENT.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


class ClientStore:
    """The runs in the store at ``uri``, which may be anything that MLflow can write to."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._shown = without_password(uri)
        self.experiment_id = ""
        self._pool = ThreadPoolExecutor(1 if uri.startswith("sqlite") else _AT_ONCE, "mlflow")
        self._client: Any = self._ask(self._connect)

    def _connect(self) -> Any:
        from mlflow.tracking import MlflowClient

        return MlflowClient(self._uri, registry_uri=self._uri)

    def _ask(self, question: Callable[..., _Answer], *arguments: Any) -> _Answer:
        try:
            return question(*arguments)
        except TrackingError:
            raise
        except Exception as error:
            code = getattr(error, "error_code", "")
            said = _short(str(error))
            if code in _PERMANENT:
                raise TrackingError(f"{self._shown}: MLflow refused what was written: {said}") from error
            if database(self._uri) is not None and "out-of-date database schema" in str(error):
                raise TrackingError(
                    f"{self._shown}: the store was made by an older MLflow; take a copy of the file, then run "
                    f"`mlflow db upgrade {self._shown}`"
                ) from error
            raise StoreAway(f"{self._shown}: the MLflow store must answer, and it does not: {said}") from error

    def find(self, experiment: str, key: str, labels: Mapping[str, str]) -> dict[str, Run]:
        return self._ask(self._find, experiment, key, labels)

    def _find(self, experiment: str, key: str, labels: Mapping[str, str]) -> dict[str, Run]:
        from mlflow.entities import ViewType

        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            root = artifact_root(self._uri)
            location = f"{root}/{experiment}" if root else None
            created = self._client.create_experiment(experiment, artifact_location=location, tags=dict(labels))
            self.experiment_id = str(created)
            return {}
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"{self._shown}: the MLflow experiment {experiment!r} must not be deleted, and it is; restore it with "
                f"`mlflow experiments restore -x {found.experiment_id}`, or give this experiment another name"
            )
        self.experiment_id = str(found.experiment_id)
        found_runs: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id],
                filter_string=f"tags.`{EXPERIMENT}` = '{key}'",
                run_view_type=ViewType.ALL,
                page_token=token,
            )
            found_runs.extend(page)
            token = page.token
            if not token:
                break
        # The last one wins below: a living run before a deleted one, then the oldest.
        found_runs.sort(key=lambda run: (run.info.lifecycle_stage == "active", -run.info.start_time))
        return {run.data.tags.get(TRIAL, PARENT): Run(run.info.run_id, run.info.artifact_uri) for run in found_runs}

    def create(self, births: Mapping[str, Birth], parent: Run | None) -> dict[str, Run]:
        def one(birth: Birth) -> Run:
            nesting = {"mlflow.parentRunId": parent.id} if parent else {}
            tags = {**birth.tags, **nesting, "mlflow.user": birth.user}
            run = self._ask(self._client.create_run, self.experiment_id, birth.started, tags, birth.name)
            return Run(run.info.run_id, run.info.artifact_uri)

        return dict(zip(births, self._pool.map(one, births.values()), strict=True))

    def write(self, updates: Mapping[str, Update]) -> None:
        written = [self._pool.submit(self._ask, self._write, run_id, update) for run_id, update in updates.items()]
        wait(written)
        problems = [error for each in written if (error := each.exception()) is not None]
        for error in problems:
            if not isinstance(error, TrackingError) or isinstance(error, StoreAway):
                raise error
        refused = [str(error) for error in problems]  # one run that was deleted must not hold up all others
        if refused:
            raise TrackingError(f"{len(refused)} runs could not be written; the first: {refused[0]}")

    def _write(self, run_id: str, update: Update) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics = iter([Metric(m.key, m.value, m.timestamp, m.step) for m in update.metrics])
        params = iter([Param(key, value) for key, value in self._new(run_id, update.params).items()])
        tags = iter([RunTag(key, value) for key, value in update.tags.items()])
        while True:
            batch = list(islice(metrics, _METRICS)), list(islice(params, _PAIRS)), list(islice(tags, _PAIRS))
            if not any(batch):
                break
            self._client.log_batch(run_id, metrics=batch[0], params=batch[1], tags=batch[2])
        if update.status is not None and update.ended is not None:
            self._client.set_terminated(run_id, update.status, update.ended)
        elif update.status is not None:
            self._client.update_run(run_id, status=update.status)

    def _new(self, run_id: str, params: Mapping[str, str]) -> Mapping[str, str]:
        # MLflow refuses a whole batch over one parameter that changed.
        there = self._client.get_run(run_id).data.params if params else {}
        return {key: value for key, value in params.items() if key not in there}

    def upload(self, run: Run, artifact: Artifact) -> None:
        self._ask(self._upload, run, artifact)

    def _upload(self, run: Run, artifact: Artifact) -> None:
        place = PurePosixPath(artifact.place)
        parent = None if str(place.parent) == "." else str(place.parent)
        if artifact.text is not None:
            self._client.log_text(run.id, artifact.text, str(place))
        elif artifact.source is not None and artifact.source.is_dir():
            self._client.log_artifacts(run.id, str(artifact.source), str(place))
        elif artifact.source is not None and artifact.source.exists():
            with tempfile.TemporaryDirectory() as folder:  # the client cannot rename on the way
                copy = Path(folder, place.name)
                shutil.copyfile(artifact.source, copy)
                self._client.log_artifact(run.id, str(copy), parent)

    def register(self, model: str, run: Run, place: str, tags: Mapping[str, str]) -> None:
        self._ask(self._register, model, run, place, tags)

    def _register(self, model: str, run: Run, place: str, tags: Mapping[str, str]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for version in self._client.search_model_versions(f"run_id='{run.id}'"):
            if version.name == model and tags.items() <= version.tags.items():
                return
        self._client.create_model_version(
            model, source=f"{run.artifacts}/{place}", run_id=run.id, tags=dict(tags), await_creation_for=0
        )

    def close(self) -> None:
        self._pool.shutdown()


def _short(text: str) -> str:
    """What is at the bottom of a network error, which comes wrapped in several others; else the beginning."""
    found = re.search(r"\[Errno -?\d+\] [\w ]+|(?:Read|Connect) timed out", text)
    return found[0] if found else " ".join(text.split())[:300]
