"""What trials of different lengths would have reached at the same step, from those that went further."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from raytuner.search.base import Trial

__all__ = ["at_last_step"]

Array = NDArray[np.float64]
PAIRS = 3
"""Trials that were seen at both of two steps before the way from one to the other is learnt from them."""


def at_last_step(trials: Sequence[Trial]) -> tuple[Array, Array]:
    """For each trial, its value at the last step that any has reached, as expected, and that guess's variance.

    A trial that ended before is led from step to step, each by the line through the trials that were seen at both. The
    slope lies between 0 (the early value says nothing) and 1 (differences last): trials that went on were picked for a
    good early value, and their regression to the mean must not be taken for a trend. A finished trial is where it is,
    whatever its steps: it has no more to come.
    """
    steps = sorted({step for trial in trials for step in trial.values})
    values = np.array([trial.values[max(trial.values)] for trial in trials])
    variances = np.zeros(len(trials))
    last = np.array([steps[-1] if trial.status == "finished" else max(trial.values) for trial in trials])
    for here, there in pairwise(steps):
        waiting = last == here
        if not waiting.any():
            continue
        slope, shift, variance = _line(_pairs(trials, here, there))
        values[waiting] = shift + slope * values[waiting]
        variances[waiting] = slope**2 * variances[waiting] + variance
        last[waiting] = there
    return values, variances


def _pairs(trials: Sequence[Trial], here: int, there: int) -> Array:
    """(pairs, 2): the values of the trials that were seen at both steps."""
    return np.array([(t.values[here], t.values[there]) for t in trials if here in t.values and there in t.values])


def _line(pairs: Array) -> tuple[float, float, float]:
    """Slope, shift and residual variance of the second value on the first."""
    if len(pairs) < PAIRS:
        return 1.0, 0.0, 0.0
    early, late = pairs.T
    spread = float(early.var())
    slope = float(np.clip(np.cov(early, late, bias=True)[0, 1] / spread, 0.0, 1.0)) if spread > 0 else 1.0
    shift = float(np.median(late - slope * early))
    return slope, shift, float(np.mean((late - shift - slope * early) ** 2))
