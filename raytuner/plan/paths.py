"""Where results and runs go: relative paths of a definition made absolute."""

from __future__ import annotations

import os
import re
from pathlib import Path

from raytuner.definition import Experiment
from raytuner.errors import Problem

__all__ = ["absolute", "storage_problems"]

_SQLITE = "sqlite:///"


def absolute(experiment: Experiment, cwd: Path) -> Experiment:
    """The experiment with its storage and its tracking address absolute: as seen from ``cwd``.

    Addresses such as ``s3://...`` or ``http://...`` are kept. Runs go to an SQLite file in the storage by default.
    """
    storage = experiment.storage if _is_address(experiment.storage) else _absolute(experiment.storage, cwd)
    tracking = experiment.tracking
    if tracking is not None:
        mlflow = tracking.mlflow or f"{_SQLITE}{storage}/mlflow.db"
        tracking = tracking.model_copy(update={"mlflow": _absolute_uri(mlflow, cwd)})
    return experiment.model_copy(update={"storage": storage, "tracking": tracking})


def storage_problems(storage: str) -> list[Problem]:
    """Why an absolute storage cannot be used, as far as that can be seen without writing to it."""
    if _is_address(storage):
        rule, remedy = "only folders are supported in this version", "use a folder, for a cluster a shared one"
        return [Problem("storage", rule, repr(storage), remedy)]
    folder = Path(storage)
    for there in (folder, *folder.parents):
        if there.exists():
            if not there.is_dir():
                return [Problem("storage", "it must be a folder", f"the file {there}", "name a folder")]
            if not os.access(there, os.W_OK | os.X_OK):
                return [Problem("storage", "the folder must be writable", str(there), "name one that is yours")]
            break
    return []


def _is_address(storage: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", storage) is not None


def _absolute(path: str, cwd: Path) -> str:
    return os.path.normpath(cwd / Path(path).expanduser())


def _absolute_uri(uri: str, cwd: Path) -> str:
    if not uri.startswith(_SQLITE):
        return uri
    path, mark, query = uri.removeprefix(_SQLITE).partition("?")
    return f"{_SQLITE}{_absolute(path, cwd)}{mark}{query}"
