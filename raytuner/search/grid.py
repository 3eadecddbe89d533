"""Grid search: every combination of values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from raytuner.components import Options
from raytuner.search.base import Search
from raytuner.space import Config, Space

__all__ = ["GridOptions", "GridSearch"]

MOST = 1_000_000
"""Configurations beyond which a grid is refused: nobody waits for its end, and its start is no sample of it."""


class GridOptions(Options):
    """Every combination of values, once."""

    type: Literal["grid"] = "grid"
    """The kind of search."""
    points: int = Field(5, ge=1, le=1000)
    """Values, from end to end, of a float without ``step``. Other parameters get all their values."""


class GridSearch(Search):
    """Every combination of values within conditions and constraints; the parameter written last varies fastest."""

    Options = GridOptions

    def __init__(self, space: Space, **arguments: Any) -> None:
        super().__init__(space, **arguments)
        assert isinstance(self.options, GridOptions)
        self._rest: Iterator[Config] = space.grid(self.options.points)

    @classmethod
    def supports(cls, space: Space, options: BaseModel | None = None) -> list[str]:
        points = options.points if isinstance(options, GridOptions) else GridOptions().points
        size = space.grid_size(points)
        if size is not None and size <= MOST:
            return []
        shown = "more than can be counted" if size is None else f"{size:,}"
        return [f"a grid has at most {MOST:,} configurations, this one has {shown}; give wide parameters a step"]

    def forget(self) -> None:
        assert isinstance(self.options, GridOptions)
        self._rest = self.space.grid(self.options.points)

    def _propose(self, rng: np.random.Generator, number: int) -> Config | None:
        # What the iterator has left behind was proposed or told, so a fresh iterator comes to the same place.
        self.why = "the next cell of the grid"
        return next((config for config in self._rest if self.is_new(config)), None)
