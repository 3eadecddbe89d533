"""What the benchmarks train: the digits MLP with small steps, spins of a known length, and nothing at all."""

from __future__ import annotations

import time

import torch

from raytuner import Trial

MAX_STEPS = 27
MATRIX = torch.ones(128, 128)


def spin(seconds: float) -> None:
    """Keep a core busy, as training does, for about so many seconds of its time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        MATRIX @ MATRIX


def spinning(trial: Trial) -> None:
    megabytes = trial.config.get("megabytes", 0)
    state = {"weights": torch.zeros(megabytes, 2**18)} if megabytes else {}
    for _ in trial.steps(**state):
        spin(trial.config["seconds"])
        trial.report(loss=trial.config["x"])


def counting(trial: Trial) -> None:
    """Steps that take no time, of a curve that depends on two parameters."""
    for step in trial.steps(count=0):
        trial.report(loss=(trial.config["x"] - 0.3) ** 2 + trial.config["momentum"] / step)


# -- the digits work: one epoch of a small MLP is a step of about 15 ms ------------------------------------------------


def load_digits_data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.data.astype("float32")) / 16.0
    labels = torch.from_numpy(data.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    fit, held = order[:1300], order[1300:]
    return images[fit], labels[fit], images[held], labels[held]


class Digits:
    """The model and its training, the same for every framework."""

    def __init__(self, config: dict, data: tuple) -> None:
        torch.set_num_threads(1)
        self.data = data
        self.model = torch.nn.Sequential(
            torch.nn.Linear(64, config["width"]),
            torch.nn.ReLU(),
            torch.nn.Linear(config["width"], 10),
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=config["lr"], momentum=config["momentum"])
        self.batch = 64

    def epoch(self) -> float:
        images, labels, held_images, held_labels = self.data
        for rows in torch.randperm(len(labels)).split(self.batch):
            loss = torch.nn.functional.cross_entropy(self.model(images[rows]), labels[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        with torch.no_grad():
            return (self.model(held_images).argmax(1) == held_labels).float().mean().item()


def prepare() -> tuple:
    return load_digits_data()


def digits(trial: Trial) -> None:
    work = Digits(trial.config, trial.prepared)
    for _ in trial.steps(model=work.model, optimizer=work.optimizer):
        trial.report(accuracy=work.epoch())


def digits_for_ray(config: dict) -> None:
    """As a Ray Tune user would write it."""
    from ray import tune

    work = Digits(config, load_digits_data())
    for _ in range(MAX_STEPS):
        tune.report({"accuracy": work.epoch()})
