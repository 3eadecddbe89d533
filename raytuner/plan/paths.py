"""Where results and runs go: relative paths of a definition made absolute."""

from __future__ import annotations

import os
from pathlib import Path

from raytuner.definition import Experiment
from raytuner.errors import Problem
from raytuner.storage.address import SCHEMES, is_address, join, work_folder

__all__ = ["absolute", "experiment_place", "storage_problems", "tracking_uri"]

_SQLITE = "sqlite:///"


def absolute(experiment: Experiment, cwd: Path) -> Experiment:
    """The experiment with its storage and its tracking address absolute: as seen from ``cwd``.

    Addresses such as ``s3://...`` or ``http://...`` are kept. Runs go to an SQLite file in the storage by default; for
    an object store that is left open, as each machine has its own.
    """
    storage = experiment.storage.removeprefix("file://")
    if not is_address(storage):
        storage = _absolute(storage, cwd)
    tracking = experiment.tracking
    if tracking is not None and (tracking.mlflow or not is_address(storage)):
        mlflow = tracking.mlflow or f"{_SQLITE}{storage}/mlflow.db"
        tracking = tracking.model_copy(update={"mlflow": _absolute_uri(mlflow, cwd)})
    return experiment.model_copy(update={"storage": storage, "tracking": tracking})


def tracking_uri(experiment: Experiment) -> str | None:
    """The MLflow store of an experiment that is absolute; None without tracking."""
    if experiment.tracking is None:
        return None
    return experiment.tracking.mlflow or f"{_SQLITE}{work_folder(experiment.storage)}/mlflow.db"


def experiment_place(experiment: Experiment) -> str:
    """Where an experiment with an absolute storage lies: its own folder, or its address in an object store."""
    storage, name = experiment.storage, experiment.name
    return join(storage, name) if is_address(storage) else str(Path(storage) / name)


def storage_problems(storage: str) -> list[Problem]:
    """Why an absolute storage cannot be used, as far as that can be seen without writing to it."""
    if is_address(storage):
        scheme, _, place = storage.partition("://")
        if "@" in place.partition("/")[0] and scheme in ("s3", "gs", "gcs"):
            rule, remedy = "an address must not hold credentials, as it is written down", "put them in the environment"
            return [Problem("storage", rule, f"{scheme}://...@...", remedy)]
        if scheme in SCHEMES and place.strip("/"):
            return []
        rule = f"it must be a folder, or an address that begins with {', '.join(f'{s}://' for s in SCHEMES)}"
        return [Problem("storage", rule, repr(storage), "write results/, or s3://bucket/folder")]
    folder = Path(storage)
    for there in (folder, *folder.parents):
        if there.exists():
            if not there.is_dir():
                return [Problem("storage", "it must be a folder", f"the file {there}", "name a folder")]
            if not os.access(there, os.W_OK | os.X_OK):
                return [Problem("storage", "the folder must be writable", str(there), "name one that is yours")]
            break
    return []


def _absolute(path: str, cwd: Path) -> str:
    return os.path.normpath(cwd / Path(path).expanduser())


def _absolute_uri(uri: str, cwd: Path) -> str:
    if not uri.startswith(_SQLITE):
        return uri
    path, mark, query = uri.removeprefix(_SQLITE).partition("?")
    return f"{_SQLITE}{_absolute(path, cwd)}{mark}{query}"
