"""Made-up tables, for a first try and for tests: no measurements, but the troubles that real trainings have."""

from __future__ import annotations

import math

import numpy as np

from raytuner.simulation.tables import Curve, Reference, Table
from raytuner.space import Choice, Config, Float, Int, Space

__all__ = ["MADE", "MadeBranches", "MadeCurves"]


class MadeCurves(Table):
    """27 steps of a network that learns fast with a large learning rate, well with the right one, and diverges beyond.

    Wider and deeper networks end lower and take longer. Good starts do not always end well, as in real trainings.
    """

    name = "made/curves"
    steps = 27
    reference = Reference(best=0.05, median=0.385)

    def __init__(self) -> None:
        self.space = Space(
            {
                "lr": Float(low=1e-5, high=1.0, log=True),
                "momentum": Float(low=0.0, high=0.99),
                "width": Int(low=16, high=512, log=True),
                "depth": Int(low=1, high=5),
                "dropout": Float(low=0.0, high=0.8),
                "activation": Choice(values=("relu", "tanh", "sigmoid")),
            }
        )

    def curve(self, config: Config, steps: int, repetition: int = 0) -> Curve:
        at = np.arange(1, steps + 1)
        effective = math.log10(config["lr"] / (1.0 - config["momentum"]))
        deep = 0.25 * (config["depth"] - 1) * {"relu": 0.3, "tanh": 0.6, "sigmoid": 1.0}[config["activation"]]
        off = effective - (-1.5 - deep)  # the best rate of a deep network is lower
        capacity = math.log2(config["width"] / 16) / 5 * (0.6 + 0.1 * config["depth"])
        floor = 0.05 + 0.3 * (1.0 - min(capacity, 1.0)) ** 2 + 0.25 * abs(config["dropout"] - 0.25) * capacity
        floor += 0.06 * min(off, 4.0) ** 2 if off < 0 else 0.12 * off
        rate = 0.35 * 10 ** (0.5 * min(off, 0.5)) * (1.2 - config["dropout"])
        values = floor + (0.9 - floor) * np.exp(-rate * at)
        if off > 1.0:  # it diverges, the sooner the larger
            values = np.where(at > 8.0 / off, np.nan, values)
        seconds = 2.0 + config["width"] / 64.0 * config["depth"]
        return Curve(np.minimum(values, 0.9), seconds * at.astype(np.float64))


class MadeBranches(Table):
    """One step, and a space with branches: the better optimizer has parameters that the other lacks."""

    name = "made/branches"
    reference = Reference(best=0.0, median=0.77)

    def __init__(self) -> None:
        adam, sgd = {"optimizer": "adam"}, {"optimizer": "sgd"}
        self.space = Space(
            {
                "optimizer": Choice(values=("sgd", "adam", "rprop")),
                "lr": Float(low=1e-5, high=1.0, log=True),
                "beta": Float(low=0.5, high=0.999, when=adam),
                "momentum": Float(low=0.0, high=0.99, when=sgd),
                "nesterov": Choice(values=(True, False), when=sgd),
                "batch": Choice(values=(16, 32, 64, 128, 256), ordered=True),
            }
        )

    def curve(self, config: Config, steps: int, repetition: int = 0) -> Curve:
        rate, batch = math.log10(config["lr"]), math.log2(config["batch"])
        match config["optimizer"]:
            case "adam":
                value = 0.12 * (rate + 3.0) ** 2 + 4.0 * (config["beta"] - 0.9) ** 2
            case "sgd":
                value = 0.1 + 0.15 * (rate + 1.0 + config["momentum"]) ** 2 + 0.1 * (not config["nesterov"])
            case _:
                value = 0.8 + 0.05 * (rate + 2.0) ** 2
        value += 0.02 * (batch - 6.0) ** 2
        return Curve(np.array([value]), np.array([4000.0 / config["batch"]]))


MADE: dict[str, type[Table]] = {table.name: table for table in (MadeCurves, MadeBranches)}
"""The made-up tables by name."""
