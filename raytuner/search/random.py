"""Random search: independent draws."""

from __future__ import annotations

from typing import Literal

import numpy as np

from raytuner.components import Options
from raytuner.search.base import Search
from raytuner.space import Config

__all__ = ["RandomOptions", "RandomSearch"]


class RandomOptions(Options):
    """Configurations from the prior: evenly, or evenly in the logarithm, within the bounds."""

    type: Literal["random"] = "random"
    """The kind of search."""


class RandomSearch(Search):
    """Draws from the prior, never the same configuration twice."""

    Options = RandomOptions

    def _propose(self, rng: np.random.Generator, number: int) -> Config | None:
        return self._draw(rng)
