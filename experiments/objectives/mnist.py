"""A small convolutional net on MNIST's digits, with augmentation and regularisation worth tuning while it trains.

The digits are those of ``$RAYTUNER_DATA/mnist10k.npz`` (arrays ``images``, (n, 28, 28) bytes, and ``labels``, (n,)),
else they are downloaded once. 10,000 of them are used: 6,000 train, 2,000 validate (what the search sees), 2,000 test.
"""

from __future__ import annotations

import gzip
import math
import os
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import numpy as np
import torch
from torch import Tensor, nn

from raytuner import Trial

SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist"
CACHE = Path("~/.cache/raytuner/mnist10k.npz")
DIGITS = 10_000
BATCH = 64
"""Digits in a batch, of all workers together."""
STEPS_AN_EPOCH = 2
MEAN, SCALE = 0.1307, 0.3081


class Part(NamedTuple):
    images: Tensor
    """(n, 1, 28, 28), standardised."""
    labels: Tensor
    """(n,)"""


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images, (10000, 28, 28) bytes, and labels, (10000,)."""
    folder = os.environ.get("RAYTUNER_DATA")
    path = Path(folder, "mnist10k.npz") if folder else CACHE.expanduser()
    if not path.exists() and folder:
        raise FileNotFoundError(f"{path}: RAYTUNER_DATA must name a folder with mnist10k.npz; unset it to download")
    if not path.exists():
        download(path)
    with np.load(path) as data:
        return data["images"], data["labels"]


def download(path: Path) -> None:
    """Fetch MNIST's training set, shuffle it, and keep the first digits at ``path``."""

    def fetch(name: str, header: int) -> np.ndarray:
        with urlopen(f"{SOURCE}/{name}-ubyte.gz", timeout=60) as answer:  # noqa: S310 - a fixed address
            return np.frombuffer(gzip.decompress(answer.read()), np.uint8, offset=header)

    images = fetch("train-images-idx3", 16).reshape(-1, 28, 28)
    labels = fetch("train-labels-idx1", 8)
    rows = np.random.default_rng(0).permutation(len(labels))[:DIGITS]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.npz")
    np.savez_compressed(temporary, images=images[rows], labels=labels[rows])
    temporary.replace(path)


def prepare() -> dict[str, Part]:
    """Load and split the digits: once a node; every trial shares them."""
    images, labels = digits()
    pixels = torch.from_numpy((images[:, None].astype("float32") / 255 - MEAN) / SCALE)
    classes = torch.from_numpy(labels.astype("int64"))
    fit, seen = int(0.6 * len(classes)), int(0.8 * len(classes))
    bounds = {"train": slice(0, fit), "validation": slice(fit, seen), "test": slice(seen, None)}
    return {name: Part(pixels[rows], classes[rows]) for name, rows in bounds.items()}


def build(config: dict) -> nn.Module:
    width = config.get("width", 16)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(config["dropout"]),
        nn.Linear(2 * width * 49, 64),
        nn.ReLU(),
        nn.Dropout(config["dropout"]),
        nn.Linear(64, 10),
    )


def augment(images: Tensor, strength: float) -> Tensor:
    """Turn, scale and shift each image a little: with strength 1 by up to 20 degrees, a fifth and 3 pixels."""
    count = len(images)
    turn, scale, right, down = (strength * (2 * torch.rand(4, count) - 1)).unbind()
    turn, scale = turn * math.radians(20), 1 + 0.2 * scale
    rows = [torch.stack([turn.cos() * scale, -turn.sin() * scale, right * 3 / 14], 1)]
    rows += [torch.stack([turn.sin() * scale, turn.cos() * scale, down * 3 / 14], 1)]
    grid = nn.functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def fit_some(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Part, rows: Tensor, batch: int, config: dict
) -> float:
    """Train on these rows once, in batches; return the mean training loss."""
    model.train()
    total = 0.0
    device = next(model.parameters()).device
    for some in rows.split(batch):
        images = augment(data.images[some], config["augment"]).to(device)
        labels = data.labels[some].to(device)
        loss = nn.functional.cross_entropy(model(images), labels, label_smoothing=config["label_smoothing"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(some)
    return total / len(rows)


@torch.no_grad()
def evaluate(model: nn.Module, data: Part) -> tuple[float, float]:
    """Return loss and accuracy."""
    model.eval()
    device = next(model.parameters()).device
    logits = model(data.images.to(device)).cpu()
    loss = nn.functional.cross_entropy(logits, data.labels).item()
    return loss, (logits.argmax(1) == data.labels).float().mean().item()


def train(trial: Trial) -> None:
    """With several workers, each trains on its share of every batch, and validates on its share of the digits."""
    config, digits, seen = trial.config, trial.prepared["train"], trial.prepared["validation"]
    model = trial.distribute(build(config))
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"], momentum=0.9, weight_decay=config["weight_decay"])
    order = trial.sampler(digits.labels)
    share = Part(*(part[trial.rank :: trial.world_size] for part in seen))
    for _ in trial.steps(model=model, optimizer=optimizer):
        rows = torch.tensor(list(order))
        rows = rows[: len(rows) // STEPS_AN_EPOCH]
        train_loss = fit_some(model, optimizer, digits, rows, BATCH // trial.world_size, config)
        val_loss, val_accuracy = evaluate(model, share)
        metrics = {"val_loss": val_loss, "val_accuracy": val_accuracy, "train_loss": train_loss}
        trial.report(trial.reduce(metrics))


def test(trial: Trial) -> dict[str, float]:
    model = build(trial.config)
    trial.restore(model=model)
    loss, accuracy = evaluate(model, trial.prepared["test"])
    return {"test_accuracy": accuracy, "test_loss": loss}
