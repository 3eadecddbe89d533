"""MLflow's own pages on the right store."""

from __future__ import annotations

import sys

from raytuner.errors import TrackingError
from raytuner.tracking.address import artifact_root, database, resolve_uri

__all__ = ["ui_command"]


def ui_command(uri: str, port: int = 5000, host: str = "127.0.0.1") -> list[str]:
    """The command that serves MLflow's UI on the store at ``uri``.

    Raises TrackingError for a server, which has its UI at its own address, and for a store that is not there yet.
    """
    uri = resolve_uri(uri)
    if uri.startswith(("http", "databricks")):
        raise TrackingError(f"tracking.mlflow: the store is a server, got {uri}; open that address in a browser")
    path = database(uri)
    if path is not None and not path.exists():
        raise TrackingError(f"{path}: there is no MLflow store yet; `raytuner run` creates it")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", host, "--port", str(port)]
    root = artifact_root(uri)
    return command if root is None else [*command, "--default-artifact-root", root]
