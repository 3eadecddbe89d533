"""How much each parameter says about which configurations are better."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["relevance"]

Array = NDArray[np.float64]


def relevance(genes: Array, rng: np.random.Generator) -> Array:
    """(dims,) weights of mean 1 for (trials, dims) genes in [0, 1], ordered from the best trial to the worst.

    Chatterjee's coefficient of the rank on each parameter (A new coefficient of correlation, 2021): 0 where the rank is
    independent of it, 1 where it is a function of it, rising or not. What chance alone makes of it (a standard
    deviation of ``sqrt(2 / 5 / trials)``) is granted to every parameter. ``nan``, an inactive parameter, counts as a
    value of its own; equal values are put in random order.
    """
    trials = len(genes)
    places = np.nan_to_num(genes, nan=-1.0)
    chance = rng.random(trials)
    weights = np.empty(genes.shape[1])
    for index, column in enumerate(places.T):
        ranks = np.lexsort((chance, column))  # those of the trials, in the order of their values
        weights[index] = 1.0 - 3.0 * float(np.abs(np.diff(ranks)).sum()) / max(trials**2 - 1, 1)
    weights = np.maximum(weights, 0.0) + math.sqrt(0.4 / trials)
    scaled: Array = weights / weights.mean()
    return scaled
