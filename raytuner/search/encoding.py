"""Configurations as rows of numbers for models, many at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raytuner.space import Choice, Config, Space
from raytuner.space.axes import Continuous

__all__ = ["Encoder"]

Array = NDArray[np.float64]
CELLS = 1024
"""Values up to which a parameter's cells are listed; beyond, it counts as continuous."""
INACTIVE = 0.5
"""Where a row stands in a dimension that does not exist for it: its parents' dimensions already set it apart."""


class Encoder:
    """Rows in the unit cube, as ``Space.to_unit`` lays it out, each standing where its configuration does.

    ``nominal`` (dims,): whether a dimension is a choice without an order.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        parameters = [space.parameters[name] for name in space.names]
        self.nominal = np.array([isinstance(p, Choice) and not p.ordered for p in parameters])
        self._middles: list[Array | None] = []
        self._edges: list[Array | None] = []
        for parameter in parameters:
            axis = parameter.axis
            if isinstance(axis, Continuous) or axis.size is None or axis.size > CELLS:
                self._middles.append(None)
                self._edges.append(None)
                continue
            middles = np.array([axis.to_unit(value) for value in axis.grid(axis.size)])
            self._middles.append(middles)
            self._edges.append(np.array(axis.edges()))
        parents = {parent for names in space.parents.values() for parent in names}
        self._parents = [index for index, name in enumerate(space.names) if name in parents]
        self._active: dict[bytes, NDArray[np.bool_]] = {}

    def cells(self, dim: int) -> Array | None:
        """The middles of a dimension's cells, ascending; None where it counts as continuous."""
        return self._middles[dim]

    def rows(self, configs: Sequence[Config]) -> Array:
        """(configs, dims): their places. Raises SpaceError for one outside the space."""
        places = np.array([self._space.to_unit(config) for config in configs]).reshape(-1, len(self.nominal))
        return np.where(np.isnan(places), INACTIVE, places)

    def settled(self, rows: Array) -> Array:
        """The rows moved to where their configurations stand: on cells' middles, and inactive dimensions aside."""
        rows = np.clip(rows, 0.0, 1.0)
        for dim, (middles, edges) in enumerate(zip(self._middles, self._edges, strict=True)):
            if middles is not None and edges is not None:
                rows[:, dim] = middles[np.searchsorted(edges, rows[:, dim], side="right")]
        if self._parents:
            rows[~self.active(rows)] = INACTIVE
        return rows

    def active(self, rows: Array) -> NDArray[np.bool_]:
        """(rows, dims): which parameters exist. The rows' cells must be settled."""
        if not self._parents:
            return np.ones(rows.shape, dtype=bool)
        masks = []
        for row in rows:
            key = row[self._parents].tobytes()
            if key not in self._active:
                if len(self._active) > 10_000:  # a condition on a continuous parameter
                    self._active.clear()
                names = set(self._space.from_unit(row))
                self._active[key] = np.array([name in names for name in self._space.names])
            masks.append(self._active[key])
        return np.array(masks)
