"""What trials of different lengths tell about the end: a Gaussian process a rung, each on top of the one before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raytuner.search.base import Trial
from raytuner.search.gaussian import GaussianProcess

__all__ = ["FidelityProcess", "at_rungs"]

Array = NDArray[np.float64]
ENOUGH = 3
"""Trials that were seen at a rung before anything is learnt from it."""
WEIGHT = 3.0
"""Trials' worth of belief that a difference at one rung is the same difference at the next."""


def at_rungs(trials: Sequence[Trial]) -> Array:
    """(trials, rungs): each trial's value at the rungs that were seen often enough; nan beyond the last it reached.

    A rung is a step at which trials were seen on their way; the last one stands for the end. A trial that came to its
    own end has no more to come, whatever its steps, and has its last value at all later rungs.
    """
    seen: Counter[int] = Counter()
    for trial in trials:
        last = max(trial.values)
        seen.update(step for step in trial.values if step < last or trial.status != "finished")
    steps = sorted(step for step, often in seen.items() if often >= ENOUGH)
    finished = np.array([trial.status == "finished" for trial in trials])
    values = np.full((len(trials), len(steps) + 1), np.nan)
    for row, trial in enumerate(trials):
        last = max(trial.values)
        for column, step in enumerate(steps):
            if step <= last or finished[row]:
                earlier = [known for known in trial.values if known <= step]
                values[row, column] = trial.values[max(earlier) if earlier else min(trial.values)]
        if finished[row]:
            values[row, -1] = trial.values[last]
        elif not steps or last < steps[0]:
            values[row, 0] = trial.values[last]
    if finished.sum() < ENOUGH and steps:
        values = values[:, :-1]
    return values


class FidelityProcess:
    """A recursive co-kriging: what a configuration comes to at the last rung, from what was seen at all of them.

    The value at a rung is ``slope * value at the rung before + difference``, the differences being a Gaussian process
    of their own, fitted to the trials that were seen at both (Kennedy and O'Hagan, 2000; Le Gratiet and Garnier, 2014).
    Who went on was chosen by the value at the rung before, which the difference is conditioned on, so the choice does
    not mislead; and where configurations start slowly and end well, those that went on say so for their neighbours.

    x: (trials, dims) and y: (trials, rungs), nan beyond the last rung that a trial reached, which nobody skips.
    """

    def __init__(self, x: Array, y: Array, nominal: NDArray[np.bool_], fitted: int) -> None:
        """fitted: to how many points, at most, the parameters of a process are fitted; its predictions use all."""
        self._processes = [GaussianProcess(x, y[:, 0], nominal, fitted=fitted)]
        self._slopes: list[float] = []
        for here in range(1, y.shape[1]):
            both = ~np.isnan(y[:, here])
            early, late = y[both, here - 1], y[both, here]
            slope = _slope(early, late)
            self._slopes.append(slope)
            self._processes.append(GaussianProcess(x[both], late - slope * early, nominal, fitted=fitted))

    def with_points(self, x: Array, reached: NDArray[np.int_]) -> FidelityProcess:
        """The same, after points at which all went as expected beyond the rungs that they have reached.

        reached: (points,), how many rungs each has been seen at already.
        """
        more = object.__new__(FidelityProcess)
        more._slopes = self._slopes
        more._processes = [
            process.with_points(x[reached <= rung]) if (reached <= rung).any() else process
            for rung, process in enumerate(self._processes)
        ]
        return more

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation at each rung, without noise, at (places, dims): (rungs, places) both."""
        (mean, *differences), deviations = zip(*(process.predict(x) for process in self._processes), strict=True)
        means = [mean]
        for slope, difference in zip(self._slopes, differences, strict=True):
            means.append(slope * means[-1] + difference)
        return np.array(means), self._combined(np.array(deviations))

    @property
    def noise(self) -> Array:
        """(rungs,): the standard deviation of the noise."""
        return self._combined(np.array([process.noise for process in self._processes]))

    @property
    def spread(self) -> Array:
        """(rungs,): the standard deviation of the signal."""
        return self._combined(np.array([process.spread for process in self._processes]))

    def _combined(self, deviations: Array) -> Array:
        variances = [deviations[0] ** 2]
        for slope, deviation in zip(self._slopes, deviations[1:], strict=True):
            variances.append(slope**2 * variances[-1] + deviation**2)
        return np.sqrt(variances)


def _slope(early: Array, late: Array) -> float:
    """Of the later value on the earlier: least squares, drawn to 1 by ``WEIGHT`` trials."""
    off, later = early - early.mean(), late - late.mean()
    belief = WEIGHT * float(early.var())
    below = float(off @ off) + belief
    return (float(off @ later) + belief) / below if below > 0 else 1.0
