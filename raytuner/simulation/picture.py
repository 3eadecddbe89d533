"""A picture of simulated runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raytuner.errors import PlanError, Problem

if TYPE_CHECKING:
    from raytuner.simulation.simulate import Simulation

__all__ = ["check_picture", "counted", "draw"]

PICTURES = (".png", ".svg", ".pdf")


def check_picture(path: str | os.PathLike[str]) -> None:
    """Raises PlanError when no picture can be written to a path."""
    path = Path(path)
    if path.suffix.lower() not in PICTURES:
        rule = f"a picture's name must end in {', '.join(PICTURES)}"
        raise PlanError(str(Problem("plot", rule, str(path), f"use {path.parent / path.stem}.png")))
    if not path.parent.is_dir():
        raise PlanError(str(Problem("plot", "the picture's folder must exist", str(path.parent), "make it first")))


def counted(number: float, word: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{number:g} {word}{'s' * (number != 1)}"


def draw(simulation: Simulation, path: str | os.PathLike[str]) -> None:
    """Write a picture of the regret against trials, steps and virtual time: median, and quartiles shaded.

    Raises PlanError when there can be no picture at ``path``.
    """
    check_picture(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    shares = np.linspace(0.01, 1.0, 100)
    for place, axis in enumerate(("trials", "steps", "seconds")):
        spent = float(np.median([getattr(run, axis) for run in simulation.runs]))
        found = simulation.regrets(axis, shares.tolist())
        keep = np.isfinite(found).all(axis=1)
        low, middle, high = np.percentile(found[keep], [25, 50, 75], axis=1)
        axes = figure.add_subplot(1, 3, place + 1)
        axes.plot(shares[keep] * spent, middle)
        axes.fill_between(shares[keep] * spent, low, high, alpha=0.25)
        axes.set_xlabel({"seconds": "virtual time (s)"}.get(axis, axis))
        axes.grid(alpha=0.3)
        if len(low) and (low > 0).all():
            axes.set_yscale("log")
        if place == 0:
            axes.set_ylabel("regret")
    figure.suptitle(f"{simulation.title}, {counted(simulation.cluster.workers, 'worker')}")
    try:
        figure.savefig(os.fspath(path), dpi=120)
    except OSError as error:
        raise PlanError(str(Problem("plot", "the picture must be writable", str(error), "use another"))) from error
