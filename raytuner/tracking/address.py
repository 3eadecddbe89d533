"""Where runs go: what a tracking address may be, and what it means on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from raytuner.errors import TrackingError

__all__ = ["artifact_root", "database", "resolve_uri"]

_SERVERS = ("http", "https", "databricks")
_DATABASES = ("postgresql", "mysql", "mssql")
_SQLITE = "sqlite:///"


def resolve_uri(uri: str, cwd: str | os.PathLike[str] | None = None) -> str:
    """The address, absolute: ``sqlite:///x.db`` is meant relative to ``cwd`` (the caller's folder by default).

    Raises TrackingError for a folder (MLflow 3.17 writes no file stores), an in-memory database, and for anything
    that is no address of an MLflow store.
    """
    text = uri.strip()
    scheme = urlsplit(text).scheme.partition("+")[0].lower()
    if text.startswith(_SQLITE):
        name = text.removeprefix(_SQLITE)
        if not name or name.startswith(":memory:"):
            raise TrackingError(
                f"tracking.mlflow: an SQLite store needs a file, got {uri!r}; use sqlite:///results/mlflow.db"
            )
        return f"{_SQLITE}{os.path.abspath(Path(cwd or '.') / Path(name).expanduser())}"
    if scheme in _SERVERS:
        return text.rstrip("/")
    if scheme in _DATABASES:
        return text
    if scheme == "sqlite":
        raise TrackingError(
            f"tracking.mlflow: an SQLite address has three slashes before a relative path and four before an absolute "
            f"one, got {uri!r}; use sqlite:///results/mlflow.db"
        )
    remedy = f"sqlite:///{text}" if text.endswith((".db", ".sqlite")) else "sqlite:///results/mlflow.db"
    raise TrackingError(
        f"tracking.mlflow: an MLflow store is a database (sqlite:///...) or a server (http://...), got {uri!r}; "
        f"MLflow no longer writes into plain folders, use {remedy}"
    )


def database(uri: str) -> Path | None:
    """The file of an SQLite address; None for any other store."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) and "?" not in uri else None


def artifact_root(uri: str) -> str | None:
    """Where the artifacts of an SQLite store lie: ``mlartifacts`` beside it. None where a server decides."""
    path = database(uri)
    return None if path is None else str(path.parent / "mlartifacts")
