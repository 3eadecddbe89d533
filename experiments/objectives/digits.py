"""A multi-layer perceptron on scikit-learn's digits: 1,797 real images of 8×8 pixels, ten classes.

Half of the images train, a quarter validates (what the search sees), a quarter tests (what it never sees).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from raytuner import Trial


class Part(NamedTuple):
    images: Tensor
    """(n, 64), standardised."""
    labels: Tensor
    """(n,)"""


def prepare() -> dict[str, Part]:
    """Load and split the data: once a node; every trial shares it."""
    data = load_digits()
    images, labels = data.data.astype("float32"), data.target
    fit, rest, fit_labels, rest_labels = train_test_split(
        images, labels, test_size=0.5, random_state=0, stratify=labels
    )
    validation, test, validation_labels, test_labels = train_test_split(
        rest, rest_labels, test_size=0.5, random_state=0, stratify=rest_labels
    )
    mean, scale = fit.mean(0), fit.std(0) + 1.0

    def part(x, y) -> Part:
        return Part(torch.from_numpy((x - mean) / scale), torch.from_numpy(y).long())

    return {
        "train": part(fit, fit_labels),
        "validation": part(validation, validation_labels),
        "test": part(test, test_labels),
    }


def build(config: dict) -> nn.Module:
    """``depth`` hidden layers of ``width`` units."""
    layers: list[nn.Module] = []
    size = 64
    for _ in range(config["depth"]):
        layers += [nn.Linear(size, config["width"]), nn.ReLU(), nn.Dropout(config["dropout"])]
        size = config["width"]
    return nn.Sequential(*layers, nn.Linear(size, 10))


def make_optimizer(config: dict, model: nn.Module) -> torch.optim.Optimizer:
    if config["optimizer"] == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=config["lr"], momentum=config["momentum"], weight_decay=config["weight_decay"]
        )
    return torch.optim.AdamW(model.parameters(), lr=config["lr"], weight_decay=config["weight_decay"])


def fit_one_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, data: Part, batch: int) -> float:
    """Return the mean training loss."""
    model.train()
    total = 0.0
    for rows in torch.randperm(len(data.labels)).split(batch):
        loss = nn.functional.cross_entropy(model(data.images[rows]), data.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows)
    return total / len(data.labels)


@torch.no_grad()
def evaluate(model: nn.Module, data: Part) -> tuple[float, float]:
    """Return loss and accuracy."""
    model.eval()
    logits = model(data.images)
    loss = nn.functional.cross_entropy(logits, data.labels).item()
    return loss, (logits.argmax(1) == data.labels).float().mean().item()


def train(trial: Trial) -> None:
    data = trial.prepared
    model = build(trial.config).to(trial.device)
    optimizer = make_optimizer(trial.config, model)
    for _ in trial.steps(model=model, optimizer=optimizer):
        train_loss = fit_one_epoch(model, optimizer, data["train"], trial.config["batch"])
        val_loss, val_accuracy = evaluate(model, data["validation"])
        trial.report(val_accuracy=val_accuracy, val_loss=val_loss, train_loss=train_loss)


def test(trial: Trial) -> dict[str, float]:
    model = build(trial.config)
    trial.restore(model=model)
    loss, accuracy = evaluate(model, trial.prepared["test"])
    return {"test_accuracy": accuracy, "test_loss": loss}
