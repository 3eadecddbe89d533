"""Whether an MLflow store answers, without MLflow: a look that a node can take in a moment."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from raytuner.tracking.address import database

__all__ = ["reach"]

ANSWER_SECONDS = 8.0


def reach(uri: str) -> str:
    """Why an MLflow store cannot be used from here; an empty string when it answers, and lets this process in.

    uri: absolute, as ``resolve_uri`` gives it. Nothing is written to it.
    """
    if uri.startswith(("http://", "https://")):
        return _server(uri)
    if uri == "databricks" or uri.startswith("databricks:") or database(uri) is not None:
        return ""
    return _database(uri)


def _server(uri: str) -> str:
    import requests

    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    address = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search"
    try:
        answer = requests.post(
            address,
            json={"max_results": 1},
            timeout=ANSWER_SECONDS,
            headers={"Authorization": f"Bearer {token}"} if token else None,
            auth=(user, password) if user and not token else None,
            verify=os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() not in ("true", "1"),
        )
    except requests.exceptions.RequestException as error:
        kind = "it does not answer" if isinstance(error, requests.exceptions.Timeout) else "it cannot be reached"
        return f"{kind} ({type(error).__name__}); start the server, or mend the address or the network"
    if answer.status_code in (401, 403):
        return (
            f"it refuses (HTTP {answer.status_code}); set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, on the head node; a server that knows its hosts must allow this one "
            "(mlflow server --allowed-hosts)"
        )
    if answer.status_code != 200 or "json" not in answer.headers.get("Content-Type", ""):
        return f"what answers is no MLflow server (HTTP {answer.status_code}); mend the address"
    return ""


def _database(uri: str) -> str:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    arguments = {"connect_timeout": int(ANSWER_SECONDS)} if urlsplit(uri).scheme.startswith("postgresql") else {}
    try:
        create_engine(uri, connect_args=arguments).connect().close()
    except ImportError as error:
        missing = error.name or error
        extra = "raytuner[postgresql]" if uri.startswith("postgresql") else missing
        return f"its driver is not installed ({missing}); add {extra} to the nodes' image, or to cluster.requirements"
    except (SQLAlchemyError, ValueError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        return f"it cannot be used ({reason}); start the database, or mend the address, the user or the password"
    return ""
