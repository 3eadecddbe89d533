"""The MNIST experiment: its data, its augmentation, and a few steps of training, on made digits."""

from __future__ import annotations

import gzip
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from raytuner.definition import load

ROOT = Path(__file__).parents[2]


@pytest.fixture
def mnist(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.delenv("RAYTUNER_DATA", raising=False)
    spec = importlib.util.spec_from_file_location("mnist_objective", ROOT / "experiments" / "objectives" / "mnist.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def idx(path: Path, numbers: np.ndarray[Any, Any], dims: int) -> None:
    """As MNIST's files are: a header of four bytes and four a dimension, then bytes; compressed."""
    path.write_bytes(gzip.compress(bytes(4 + 4 * dims) + numbers.astype(np.uint8).tobytes()))


def test_the_digits_are_downloaded_once(mnist: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(50) % 10
    images = np.repeat(labels, 28 * 28).reshape(-1, 28, 28)
    idx(tmp_path / "train-images-idx3-ubyte.gz", images, 3)
    idx(tmp_path / "train-labels-idx1-ubyte.gz", labels, 1)
    monkeypatch.setattr(mnist, "SOURCE", tmp_path.as_uri())
    monkeypatch.setattr(mnist, "CACHE", tmp_path / "cache" / "digits.npz")
    monkeypatch.setattr(mnist, "DIGITS", 40)
    got, classes = mnist.digits()
    assert got.shape == (40, 28, 28)
    assert (got[:, 0, 0] == classes).all(), "each image keeps its label"
    (tmp_path / "train-images-idx3-ubyte.gz").unlink()
    assert (mnist.digits()[1] == classes).all()


def test_a_folder_without_the_digits_is_named(
    mnist: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "RAYTUNER_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"mnist10k.npz: RAYTUNER_DATA must name a folder.*unset it"):
        mnist.digits()


def test_augmentation_is_as_strong_as_asked(mnist: ModuleType) -> None:
    torch.manual_seed(0)
    images = torch.rand(20, 1, 28, 28)
    assert torch.allclose(mnist.augment(images, 0.0), images, atol=1e-5)
    changes = [float((mnist.augment(images, strength) - images).abs().mean()) for strength in (0.05, 0.3, 1.0)]
    assert 0 < changes[0] < changes[1] < changes[2]


def test_it_learns(mnist: ModuleType) -> None:
    torch.manual_seed(0)
    labels = torch.arange(600) % 10
    images = torch.zeros(600, 1, 28, 28)
    images[torch.arange(600), 0, 2 + 2 * labels] = 3.0  # a bar, whose height tells the class
    data = mnist.Part(images, labels)
    config = {"dropout": 0.1, "label_smoothing": 0.0, "augment": 0.1}
    model = mnist.build(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    before = mnist.evaluate(model, data)
    for _ in range(3):
        mnist.fit_some(model, optimizer, data, torch.randperm(600), 32, config)
    after = mnist.evaluate(model, data)
    assert after[0] < 0.5 * before[0]
    assert after[1] > 0.6 > before[1]


def test_the_definitions_are_valid() -> None:
    experiment = load(str(ROOT / "experiments" / "mnist_pbt.yaml"))
    assert set(experiment.scheduler.mutate) <= set(experiment.space)  # type: ignore[attr-defined]
    assert load(str(ROOT / "experiments" / "mnist_ddp.yaml")).resources.workers == 2
