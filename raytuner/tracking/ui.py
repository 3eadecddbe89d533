"""MLflow's own pages on the right store."""

from __future__ import annotations

import sys

from raytuner.definition import without_password
from raytuner.errors import TrackingError
from raytuner.journal import Folder
from raytuner.tracking.address import artifact_root, database, resolve_uri
from raytuner.tracking.progress import read_status

__all__ = ["ui_address", "ui_command"]


def ui_command(uri: str, port: int = 5000, host: str = "127.0.0.1") -> list[str]:
    """The command that serves MLflow's UI on the store at ``uri``.

    Raises TrackingError for a server, which has its UI at its own address, and for a store that is not there yet.
    """
    uri = resolve_uri(uri)
    if uri.startswith(("http", "databricks")):
        raise TrackingError(
            f"tracking.mlflow: the store is a server, got {without_password(uri)}; open that address in a browser"
        )
    path = database(uri)
    if path is not None and not path.exists():
        raise TrackingError(f"{path}: there is no MLflow store yet; `raytuner run` creates it")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", host, "--port", str(port)]
    root = artifact_root(uri)
    return command if root is None else [*command, "--default-artifact-root", root]


def ui_address(folder: Folder | None = None, port: int = 5000, host: str = "127.0.0.1") -> str:
    """The page to open: the runs of the experiment in ``folder``, or all experiments.

    An experiment that is tracked on a server is found there, whatever ``host`` and ``port``.
    """
    status = read_status(folder) if folder is not None else {}
    uri = str(status.get("uri", ""))
    base = uri if uri.startswith("http") else f"http://{host}:{port}"
    # Without the workflow MLflow opens its pages for agents, not those for training.
    place = f"experiments/{status['experiment_id']}/runs" if status.get("experiment_id") else "experiments"
    return f"{base}/#/{place}?workflowType=machine_learning"
