"""A module without any import: what a trial costs by itself."""

from __future__ import annotations


def parabola(trial) -> float:
    return (trial.config["x"] - 2) ** 2
