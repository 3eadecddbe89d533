"""Points of a low-discrepancy sequence."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raytuner.components import Options
from raytuner.search.base import Search
from raytuner.space import Config, Space

__all__ = ["SobolOptions", "SobolPoints", "SobolSearch"]

BLOCK = 64
"""Points of the sequence that are computed at a time; a power of two, which the sequence's balance needs."""
SKIPS = 1000
"""Points in a row that may be invalid or old before a search draws independently instead."""
SCRAMBLE = 2**32 - 1
"""The stream that scrambles the sequence, apart from those of the asks."""
EVENLY = "the next of points that fill the space evenly"
"""How such a configuration came about, for people."""


class SobolOptions(Options):
    """Points of a scrambled Sobol sequence, which leave smaller gaps than independent draws."""

    type: Literal["sobol"] = "sobol"
    """The kind of search."""


class SobolPoints:
    """The points of a scrambled Sobol sequence as configurations.

    Owen scrambling by the seed; Joe and Kuo's direction numbers, as in scipy.stats.qmc.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self._space = space
        self._seed = seed
        self._next = 0  # points before this one are invalid or old, so this may be forgotten
        self._block: tuple[int, NDArray[np.float64]] | None = None

    @staticmethod
    def warm_up() -> None:
        """Imports what the first point needs."""
        importlib.import_module("scipy.stats.qmc")

    def restart(self) -> None:
        """Forgets which points were invalid or old."""
        self._next = 0

    def first(self, is_new: Callable[[Config], bool]) -> Config | None:
        """The first point that is valid and new; None when 1000 in a row, counted from the last one, are not."""
        for _ in range(SKIPS):
            config = self._space.from_unit(self._point(self._next))
            if self._space.satisfies(config) and is_new(config):
                return config
            self._next += 1
        return None

    def _point(self, index: int) -> NDArray[np.float64]:
        """Point ``index`` of the scrambled sequence: (dims,) in [0, 1)."""
        start = index - index % BLOCK
        if self._block is None or self._block[0] != start:
            from scipy.stats import qmc  # half a second that only searches pay which ask for points

            sequence = qmc.Sobol(len(self._space.names), rng=np.random.default_rng([self._seed, SCRAMBLE]))
            if start:
                sequence.fast_forward(start)
            self._block = (start, sequence.random(BLOCK))
        return np.asarray(self._block[1][index - start], dtype=np.float64)


class SobolSearch(Search):
    """Proposal k is the k-th point of the sequence that is valid and new.

    Whatever was told, and however often the process was restarted.
    """

    Options = SobolOptions

    def __init__(self, space: Space, **arguments: Any) -> None:
        super().__init__(space, **arguments)
        self._points = SobolPoints(space, self.seed)

    def warm_up(self) -> None:
        self._points.warm_up()

    def forget(self) -> None:
        self._points.restart()

    def _propose(self, rng: np.random.Generator, number: int) -> Config | None:
        self.why = EVENLY
        return self._points.first(self.is_new) or self._draw(rng)
