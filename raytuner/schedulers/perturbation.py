"""Small changes to configurations, for trials that train on with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raytuner.space import Choice, Config, Space
from raytuner.space.axes import Continuous, Lattice, Levels

__all__ = ["Perturbation"]

REDRAWS = 20
"""New draws of all changes, before changes are taken back one by one."""


class Perturbation:
    """Changes the named parameters of a configuration a little, within bounds, conditions and constraints.

    By the kind of parameter:

    * A logarithmic number is multiplied or divided by ``factor``.
    * Another number moves up or down by ``(factor - 1) / 2`` of its range (0.1 of it with 1.2): a factor would never
      leave zero, where a dropout or a weight decay often is.
    * Numbers with steps move by one step at least; an ordered choice moves by one place.
    * An unordered choice has no small change: it is drawn anew.

    Whatever would leave the bounds moves the other way. With ``resample`` as its chance, a parameter is drawn anew from
    its prior instead. A conditional parameter that comes to life is drawn from its prior, one that ends is left out.
    """

    def __init__(self, space: Space, names: Sequence[str], *, factor: float, resample: float) -> None:
        self._space = space
        self._indices = [index for index, name in enumerate(space.names) if name in set(names)]
        self._factor = factor
        self._resample = resample

    def __call__(self, config: Config, rng: np.random.Generator) -> Config:
        """A changed copy; the configuration as it is when no change is valid."""
        unit = self._space.to_unit(config)
        for _ in range(REDRAWS):
            places = self._moved(unit, rng)
            found = self._config(config, places)
            if self._space.satisfies(found):
                return found
        for index in rng.permutation(list(places)).tolist():
            del places[index]
            found = self._config(config, places)
            if self._space.satisfies(found):
                return found
        return dict(config)

    def _moved(self, unit: NDArray[np.float64], rng: np.random.Generator) -> dict[int, float]:
        """The new places of the parameters that change, and places for those that may come to life."""
        places = {}
        for index in self._indices:
            drawn, up, anew = rng.random(3)
            if math.isnan(unit[index]):
                continue
            place = float(drawn) if anew < self._resample else self._neighbour(index, float(unit[index]), up < 0.5)
            if place is None:
                place = float(drawn)
            places[index] = place
        for index in np.flatnonzero(np.isnan(unit)).tolist():
            places[index] = float(rng.random())
        return places

    def _neighbour(self, index: int, u: float, up: bool) -> float | None:
        """A place near u; None where nothing is near."""
        parameter = self._space.parameters[self._space.names[index]]
        axis = parameter.axis
        if isinstance(axis, Levels):
            if not (isinstance(parameter, Choice) and parameter.ordered):
                return None
            cell = _step(axis.cell(u), 1 if up else -1, len(axis.values))
            return axis.to_unit(axis.value(cell))
        assert isinstance(axis, Continuous | Lattice)
        low, high = float(axis.low), float(axis.high if isinstance(axis, Continuous) else axis.last)
        value = float(axis.from_unit(u))
        moved = [self._changed(value, low, high, axis.log, direction) for direction in ((up, not up))]
        target = next((v for v in moved if low <= v <= high), min(max(moved[0], low), high))
        if isinstance(axis, Continuous):
            return axis.to_unit(target)
        here, there = axis.cell(u), axis.index(target)
        if here == there:
            there = _step(here, 1 if target > value else -1, axis.count)
        return axis.to_unit(axis.value(there))

    def _changed(self, value: float, low: float, high: float, log: bool, up: bool) -> float:
        if log:
            return value * self._factor if up else value / self._factor
        step = (self._factor - 1.0) / 2.0 * (high - low)
        return value + step if up else value - step

    def _config(self, config: Config, places: dict[int, float]) -> Config:
        """The configuration with some parameters at other places; all others as they are, to the last digit."""
        unit = self._space.to_unit(config)
        for index, place in places.items():
            unit[index] = place
        found = self._space.from_unit(np.nan_to_num(unit, nan=0.5))
        for index, name in enumerate(self._space.names):
            if name in found and name in config and index not in places:
                found[name] = config[name]
        return found


def _step(cell: int, direction: int, count: int) -> int:
    """The next cell in a direction, or in the other one at the end."""
    there = cell + direction
    return there if 0 <= there < count else max(cell - direction, 0) if count > 1 else cell
