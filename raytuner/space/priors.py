"""Where the best value of a parameter is believed to be: a distribution on the parameter's axis.

A prior makes the axis wide where the best is believed, and narrow elsewhere, so whatever draws evenly from [0, 1], or
walks on it, looks there first. Nothing becomes impossible; a wrong prior costs trials.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

__all__ = ["Confidence", "Warp"]

Confidence = Literal["low", "medium", "high"]
"""How sure somebody is of a prior."""
DEVIATIONS: dict[Confidence, float] = {"low": 0.5, "medium": 0.25, "high": 0.125}
"""Standard deviation of the belief in a number or an ordered choice, as a share of its axis; as in NePS, the package of
Mallik et al.: PriorBand, 2023."""
ODDS: dict[Confidence, float] = {"low": 2.0, "medium": 4.0, "high": 6.0}
"""How many times as likely as each other one the believed value of an unordered choice is; as in NePS, too."""
UNIFORM = 0.5
"""The share of draws that ignore the belief in a number, so that no value gets more than twice as rare: what PriorBand
draws at its lowest rung, where configurations come in."""
PIECES = 256
"""Pieces of the distribution function; at high confidence, 32 of them are one standard deviation."""


@dataclass(frozen=True)
class Warp:
    """A distribution function on [0, 1], linear on pieces of equal width: there and back without loss, and monotone
    to the last digit.
    """

    heights: tuple[float, ...]
    """Its values at the ends of the pieces, from 0 to 1, each above the one before."""

    @classmethod
    def normal(cls, centre: float, confidence: Confidence, pieces: int = PIECES) -> Warp:
        """A normal distribution within [0, 1], as in piBO (Hvarfner et al. 2022), mixed with the uniform one.

        centre: in [0, 1].
        """
        scale = DEVIATIONS[confidence] * math.sqrt(2)
        below = [math.erf((index / pieces - centre) / scale) for index in range(pieces + 1)]
        shares = [(end - start) / (below[-1] - below[0]) for start, end in pairwise(below)]
        return cls._of([UNIFORM / pieces + (1 - UNIFORM) * share for share in shares])

    @classmethod
    def favouring(cls, index: int, confidence: Confidence, pieces: int) -> Warp:
        """One piece is more likely than each of the others."""
        return cls._of([ODDS[confidence] if place == index else 1.0 for place in range(pieces)])

    @classmethod
    def _of(cls, weights: Sequence[float]) -> Warp:
        *heights, total = accumulate(weights, initial=0.0)
        return cls((*(height / total for height in heights), 1.0))

    def forward(self, place: float) -> float:
        """The probability below a place in [0, 1]."""
        pieces = len(self.heights) - 1
        index = min(int(place * pieces), pieces - 1)
        start, end = self.heights[index], self.heights[index + 1]
        return min(start + (place * pieces - index) * (end - start), end)

    def backward(self, probability: float) -> float:
        """The place below which so much of the probability in [0, 1] is."""
        pieces = len(self.heights) - 1
        index = min(bisect_right(self.heights, probability) - 1, pieces - 1)
        start, end = self.heights[index], self.heights[index + 1]
        return (index + (probability - start) / (end - start)) / pieces
