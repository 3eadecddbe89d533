"""Addresses and names: what a person gave, as MLflow takes it."""

from pathlib import Path

import pytest

from raytuner.errors import TrackingError
from raytuner.tracking import resolve_uri, ui_address, ui_command
from raytuner.tracking.naming import metric_key, param_value, run_name


@pytest.mark.parametrize(
    ("uri", "resolved"),
    [
        ("sqlite:///results/mlflow.db", "sqlite:////home/me/results/mlflow.db"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("sqlite:///../mlflow.db", "sqlite:////home/mlflow.db"),
        (" http://host:5000/ ", "http://host:5000"),
        ("https://user:pass@host/path", "https://user:pass@host/path"),
        ("postgresql+psycopg2://host/db", "postgresql+psycopg2://host/db"),
        ("databricks", None),
        ("databricks://profile", "databricks://profile"),
    ],
)
def test_addresses(uri: str, resolved: str | None) -> None:
    if resolved is None:
        with pytest.raises(TrackingError):
            resolve_uri(uri, "/home/me")
    else:
        assert resolve_uri(uri, "/home/me") == resolved


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        ("mlruns", "sqlite:///results/mlflow.db"),
        ("file:///data/mlruns", "no longer writes into plain folders"),
        ("results/mlflow.db", "use sqlite:///results/mlflow.db"),
        ("sqlite://results/mlflow.db", "three slashes"),
        ("sqlite:///", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("", "sqlite:///"),
    ],
)
def test_what_is_no_address(uri: str, remedy: str) -> None:
    with pytest.raises(TrackingError, match=remedy) as error:
        resolve_uri(uri)
    assert repr(uri) in str(error.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("val_accuracy", "val_accuracy"),
        ("val/acc @5", "val/acc _5"),
        ("größe", "größe"),
        ("a//b", "a__b"),
        ("/a", "_a"),
        ("../a", "___a"),
        ("", "_"),
        ("x" * 300, "x" * 250),
    ],
)
def test_metric_keys(name: str, key: str) -> None:
    assert metric_key(name) == key
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(key)


def test_values() -> None:
    assert [param_value(value) for value in (1, 0.1, True, None, "a", [1, 2])] == [
        "1",
        "0.1",
        "True",
        "None",
        "a",
        "[1, 2]",
    ]
    assert len(param_value("x" * 9000)) == 6000


def test_run_names() -> None:
    assert run_name("000017", {"lr": 0.00314159, "depth": 2, "act": "relu"}) == "000017 · lr=0.00314 depth=2 act=relu"
    assert run_name("000001", {"lr": 0.001}, "defaults") == "000001 · defaults"
    assert run_name("000002", {}) == "000002"
    long = run_name("000003", {f"parameter_{k}": 1.0 for k in range(20)})
    assert long.endswith("parameter_3=1 …")
    assert len(long) < 75


def test_the_pages(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(TrackingError, match="no MLflow store yet"):
        ui_command(uri)
    (tmp_path / "mlflow.db").touch()
    command = ui_command(uri, port=5005)
    assert command[1:5] == ["-m", "mlflow", "ui", "--backend-store-uri"]
    assert command[5:] == [
        uri, "--host", "127.0.0.1", "--port", "5005", "--default-artifact-root", f"{tmp_path}/mlartifacts",
    ]  # fmt: skip
    with pytest.raises(TrackingError, match="open that address"):
        ui_command("http://host:5000")
    assert ui_address(port=5005) == "http://127.0.0.1:5005/#/experiments?workflowType=machine_learning"
