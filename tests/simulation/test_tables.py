"""Tables of the format benchtables-1, written by the tests, and the made-up ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raytuner.errors import SearchError
from raytuner.simulation import MADE, Reference, load_table, table_names
from raytuner.space import Choice, Int

REFERENCE = {"best": 0.1, "median": 0.5}


def write_tables(folder: Path) -> Path:
    """A grid, a pool and a surrogate."""
    rng = np.random.default_rng(0)
    losses = np.linspace(0.0, 65535, 6 * 2).reshape(6, 2).astype(np.uint16)
    np.savez(folder / "grid.npz", loss=losses, runtime=np.arange(6, dtype=np.uint16) * 10000)
    x = np.column_stack([np.logspace(-4, 0, 5), np.arange(1, 6)])
    valid = np.array([[0.9, 0.5, 0.3]] * 5) + np.arange(5)[:, None] * 0.01
    valid[2, 1:] = np.nan
    np.savez(folder / "pool.npz", X=x, valid=valid)
    weights = rng.normal(size=(3, 2)).astype(np.float32)
    head = {
        "inputs": ["x_cat", "x_cont"],
        "output": "y",
        "const": ["w", "b"],
        "prog": [
            ["Cast", ["x_cat"], ["c"], {"to": 1}],
            ["Concat", ["x_cont", "c"], ["all"], {"axis": 1}],
            ["Gemm", ["all", "w", "b"], ["h"], {}],
            ["Sigmoid", ["h"], ["y"], {}],
        ],
        "meta": {
            "y_names": ["time", "acc"],
            "cont_names": ["epoch", "lambda"],
            "cat_names": ["kind"],
            "encoding": {"kind": {"#na#": 0, "a": 1, "b": 2}},
        },
    }
    archive = {"head": np.frombuffer(json.dumps(head).encode(), np.uint8), "c0": weights, "c1": np.zeros(2, np.float32)}
    np.savez(folder / "net.npz", **archive)
    instances: list[dict[str, Any]] = [
        {
            "id": "made/grid",
            "kind": "table",
            "file": "grid.npz",
            "space": [
                {"name": "batch.size", "type": "ordinal", "choices": [16, 32, 64]},
                {"name": "op", "type": "cat", "choices": ["relu", "tanh"]},
            ],
            "fidelity": None,
            "quant": {"loss": {"lo": 0.0, "hi": 1.0, "log": False}, "runtime": {"lo": 0.0, "hi": 1.0, "log": True}},
            "ref": REFERENCE,
        },
        {
            "id": "made/pool",
            "kind": "pool",
            "file": "pool.npz",
            "space": [
                {"name": "lr", "type": "float", "low": 1e-4, "high": 1.0, "log": True},
                {"name": "depth", "type": "int", "low": 1, "high": 5},
            ],
            "fidelity": {"name": "step", "type": "int", "low": 1, "high": 3, "resumable": True},
            "ref": {**REFERENCE, "cap": 1.5, "log": True},
        },
        {
            "id": "made/net",
            "kind": "surrogate",
            "net": "net.npz",
            "space": [
                {"name": "kind", "type": "cat", "choices": ["a", "b"]},
                {
                    "name": "lambda",
                    "type": "float",
                    "low": 0.0,
                    "high": 1.0,
                    "condition": {"parent": "kind", "in": ["b"]},
                },
            ],
            "fidelity": {"name": "epoch", "type": "int", "low": 1, "high": 4, "resumable": True},
            "metric": {"name": "acc", "scale": -1.0, "offset": 1.0},
            "runtime": "time",
            "fixed": {},
            "ref": REFERENCE,
        },
    ]
    (folder / "index.json").write_text(json.dumps({"format": "benchtables-1", "instances": instances}))
    return folder


def test_a_grid_answers_with_its_cells_and_knows_the_mean(tmp_path: Path) -> None:
    table = load_table(write_tables(tmp_path) / "made/grid")
    assert list(table.space.names) == ["batch_size", "op"]
    batch = table.space.parameters["batch_size"]
    assert isinstance(batch, Choice)
    assert batch.ordered
    config = {"batch_size": 32, "op": "tanh"}  # the fourth of six cells, so losses 6 and 7 of 12 in 0..1
    values = [table.curve(config, 1, repetition).values.tolist() for repetition in range(3)]
    assert values == [[pytest.approx(6 / 11, abs=1e-4)], [pytest.approx(7 / 11, abs=1e-4)], values[0]]
    assert table.true_value(config, values[0][0]) == pytest.approx(6.5 / 11, abs=1e-4)
    assert table.curve(config, 1).seconds.tolist() == [pytest.approx(np.exp(30000 / 65535))]


def test_a_pool_answers_with_the_nearest_and_caps_what_diverged(tmp_path: Path) -> None:
    table = load_table(write_tables(tmp_path) / "made/pool")
    assert table.steps == 3
    assert isinstance(table.space.parameters["depth"], Int)
    assert table.curve({"lr": 1.2e-4, "depth": 1}, 3).values.tolist() == [0.9, 0.5, 0.3]
    assert table.curve({"lr": 1e-2, "depth": 3}, 3).values.tolist() == [pytest.approx(0.92), 1.5, 1.5]
    assert table.curve({"lr": 1e-2, "depth": 3}, 2).seconds.tolist() == [1.0, 2.0]
    assert table.reference.regret(np.sqrt(0.1 * 0.5)) == pytest.approx(0.5)


def test_a_surrogate_is_computed_as_its_program_says(tmp_path: Path) -> None:
    folder = write_tables(tmp_path)
    with np.load(folder / "net.npz") as archive:
        weights = archive["c0"].astype(np.float64)

    def accuracy(epoch: int, lam: float, code: int) -> float:
        return float(1 / (1 + np.exp(-(np.array([epoch, lam, code]) @ weights)[1])))

    table = load_table(folder / "made/net")
    config = {"kind": "b", "lambda_": 0.3}
    expected = [1 - accuracy(epoch, 0.3, 2) for epoch in (1, 2, 3, 4)]
    assert table.curve(config, 4).values.tolist() == pytest.approx(expected, abs=1e-6)
    piecewise = load_table(folder / "made/net")
    assert piecewise.curve(config, 1).values.tolist() == pytest.approx(expected[:1], abs=1e-6)
    assert piecewise.curve(config, 4).values.tolist() == table.curve(config, 4).values.tolist()
    assert piecewise.curve(config, 4).seconds.tolist() == table.curve(config, 4).seconds.tolist()
    assert (np.diff(table.curve(config, 4).seconds) >= 0).all()
    # A parameter that does not exist in a configuration is missing for the network too.
    assert table.curve({"kind": "a"}, 1).values[0] == pytest.approx(1 - accuracy(1, 0.0, 1), abs=1e-6)


def test_an_operator_that_is_not_known_is_named(tmp_path: Path) -> None:
    folder = write_tables(tmp_path)
    with np.load(folder / "net.npz") as archive:
        arrays = dict(archive)
    head = json.loads(bytes(arrays["head"]).decode())
    head["prog"].append(["Softmax", ["y"], ["z"], {}])
    arrays["head"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    np.savez(folder / "net.npz", **arrays)
    with pytest.raises(SearchError, match="got Softmax"):
        load_table(folder / "made/net")


def test_a_wrong_name_gets_the_right_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tables(tmp_path)
    assert table_names(folder) == ["made/grid", "made/pool", "made/net"]
    with pytest.raises(SearchError, match="use one of made/grid, made/pool, made/net"):
        load_table(folder / "made/gird")
    with pytest.raises(SearchError, match="made/curves, made/branches, FOLDER/NAME"):
        load_table("nowhere/at-all")
    monkeypatch.setenv("RAYTUNER_TABLES", str(folder))
    assert load_table("made/pool").name == "made/pool"
    (folder / "index.json").write_text('{"format": "other", "instances": []}')
    with pytest.raises(SearchError, match="benchtables-1"):
        load_table("made/pool")


def test_a_path_is_a_path_whatever_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tables(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/index.json").write_text('{"format": "benchtables-1", "instances": []}')
    monkeypatch.setenv("RAYTUNER_TABLES", str(tmp_path / "other"))
    monkeypatch.chdir(tmp_path.parent)
    assert load_table(f"{tmp_path.name}/made/pool").name == "made/pool"
    with pytest.raises(SearchError, match="other"):
        load_table("made/pool")
    with pytest.raises(SearchError, match=r"a table is one of .*, got ''"):
        load_table("")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"file": "gone.npz"}, "must be whole, got FileNotFoundError"),
        ({"file": "index.json"}, "must be whole, got ValueError"),
        ({"kind": "odd"}, "its kind must be one of table, pool, surrogate, got 'odd'"),
        ({"space": None}, "must be whole, got TypeError"),
        ({"quant": {}}, "must be whole, got KeyError: 'loss'"),
    ],
)
def test_a_damaged_table_is_said_to_be_one(tmp_path: Path, damage: dict[str, Any], message: str) -> None:
    index = json.loads((write_tables(tmp_path) / "index.json").read_text())
    index["instances"][0] |= damage
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(SearchError, match=rf"made/grid: .*{message}"):
        load_table(tmp_path / "made/grid")
    del index["instances"][0]["space"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(SearchError, match=r"made/grid: .*must be"):
        load_table(tmp_path / "made/grid")


@pytest.mark.parametrize("name", MADE)
def test_made_up_tables_have_the_reference_that_they_claim(name: str) -> None:
    table = load_table(name)
    rng = np.random.default_rng(1)
    finals = []
    for _ in range(1000):
        curve = table.curve(table.space.sample(rng), table.steps)
        finite = curve.values[np.isfinite(curve.values)]
        finals.append(finite.min(initial=9.0))
        assert len(curve.values) == len(curve.seconds) == table.steps
        assert (np.diff(curve.seconds) > 0).all()
    assert np.median(finals) == pytest.approx(table.reference.median, rel=0.05)
    assert table.reference.best <= min(finals) < table.reference.best + 0.1 * table.reference.median


def test_regret_is_zero_at_the_best_and_one_at_the_median() -> None:
    assert [Reference(0.1, 0.5).regret(value) for value in (0.1, 0.5, 0.3)] == [0.0, 1.0, pytest.approx(0.5)]
    assert Reference(0.1, 0.5).regret(float("nan")) == float("inf")
