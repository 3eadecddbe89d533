"""A cheap guess at how a configuration would rank, from those that are known."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from raytuner.search.gaussian import matern
from raytuner.search.ranking import best_and_others
from raytuner.search.relevance import relevance

__all__ = ["RankSurrogate"]

Array = NDArray[np.float64]
MOST = 100
"""Known configurations that it sees at most, which bounds its time."""
LENGTH = 0.5
"""The length scale, in square roots of the number of dimensions: those are what distances in a cube grow with."""
NOISE = 0.1
"""The variance of the noise, in parts of the signal's: by so much alike configurations may differ in rank."""


class RankSurrogate:
    """Kernel ridge regression on ranks, which is the mean of a Gaussian process whose parameters are given, not fitted.

    Ranks are told as normal scores (Blom 1958), so that only the order counts and the best stand out. The kernel is
    Matern 5/2 (Rasmussen and Williams 2006, ch. 4) over distances in which a parameter counts as far as ranks depend on
    it, see ``relevance``.

    known: (trials, dims) places in the unit cube, from the best to the worst, nan where a parameter is inactive.
    unordered: (dims,), which parameters are choices without an order.
    """

    def __init__(self, known: Array, unordered: NDArray[np.bool_], rng: np.random.Generator) -> None:
        self._unordered = unordered
        self._relevance = relevance(known, rng)
        trials, dims = known.shape
        some = best_and_others(trials, MOST)
        self._known = known[some]
        self._length = LENGTH * math.sqrt(dims)
        self._weights = self._solved(_normal_scores(trials)[some])

    def guess(self, places: Array) -> Array:
        """(n,): the expected normal score of the rank at (n, dims) places; the lower, the better."""
        guesses: Array = self._kernel(places) @ self._weights
        return guesses

    def _solved(self, scores: Array) -> Array:
        from scipy.linalg import solve

        kernel = self._kernel(self._known)
        kernel[np.diag_indices(len(kernel))] += NOISE
        return np.asarray(solve(kernel, scores - scores.mean(), assume_a="pos"))

    def _kernel(self, places: Array) -> Array:
        """(n, known)"""
        return matern(self._squares(places) / self._length**2)

    def _squares(self, places: Array) -> Array:
        """(n, known): squared Euclidean distances, each parameter weighted; 1 between two values of an unordered
        choice, and where only one of two is active.
        """
        squares = np.zeros((len(places), len(self._known)))
        for dim, weight in enumerate(self._relevance):
            one, other = places[:, dim, None], self._known[None, :, dim]
            inactive = np.isnan(one), np.isnan(other)
            apart = (one != other).astype(float) if self._unordered[dim] else np.abs(one - other)
            squares += weight * np.where(inactive[0] | inactive[1], inactive[0] != inactive[1], apart) ** 2
        return squares


def _normal_scores(trials: int) -> Array:
    """(trials,): what is expected of so many draws from a normal distribution, in their order."""
    from scipy.special import ndtri

    return np.asarray(ndtri((np.arange(trials) + 0.5) / trials))
