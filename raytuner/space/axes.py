"""The mathematics of one parameter: its values on [0, 1], how many there are, and a grid over them.

An axis cuts [0, 1] into one cell per value, as wide as the value is likely, so that a uniform draw in [0, 1] is a draw
from the parameter's prior, and the middle of a value's cell stands for the value. A belief in one of the values (see
``raytuner.space.priors``) is a warp of the axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Protocol

from raytuner.space.keys import canonical
from raytuner.space.priors import PIECES, Confidence, Warp

__all__ = ["Axis", "Continuous", "Lattice", "Levels"]


class Axis(Protocol):
    """The values of one parameter, laid out on [0, 1]."""

    @property
    def size(self) -> int | None:
        """The number of values; None when they are continuous."""

    def to_unit(self, value: Any) -> float:
        """The place of a value in [0, 1]. Raises ValueError for one that has no place."""

    def from_unit(self, u: float) -> Any:
        """The value whose cell holds u; u is clipped to [0, 1]."""

    def grid(self, points: int) -> Iterator[Any]:
        """All values in order, or ``points`` of them from end to end when they are continuous."""

    def grid_size(self, points: int) -> int:
        """The number of values that ``grid`` gives."""


@dataclass(frozen=True)
class Continuous:
    """Every number from low to high, evenly or evenly in its logarithm."""

    low: float
    high: float
    log: bool
    warp: Warp | None = None

    def favouring(self, value: float, confidence: Confidence) -> Continuous:
        """The same axis with a belief in a value."""
        return replace(self, warp=Warp.normal(self.to_unit(value), confidence))

    @property
    def size(self) -> int | None:
        return None

    def to_unit(self, value: Any) -> float:
        if self.log:
            u = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        else:
            u = (value - self.low) / (self.high - self.low)
        return _forward(self.warp, _clip(u))

    def from_unit(self, u: float) -> float:
        u = _clip(u)
        if u in (0.0, 1.0):  # the bounds themselves, whatever rounding does to exp and log
            return self.high if u else self.low
        u = _backward(self.warp, u)
        if self.log:
            value = math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + u * (self.high - self.low)
        return min(max(value, self.low), self.high)

    def grid(self, points: int) -> Iterator[float]:
        if points == 1:
            yield self.from_unit(0.5)
            return
        yield from (self.from_unit(i / (points - 1)) for i in range(points))

    def grid_size(self, points: int) -> int:
        return points


@dataclass(frozen=True)
class Lattice:
    """low, low + step, ... up to high, evenly or evenly in the logarithm; whole numbers when low and step are.

    In the logarithm, value v owns [v - step/2, v + step/2]; the lowest reaches as far below as above (in the
    logarithm), since low - step/2 may be zero.
    """

    low: Decimal
    step: Decimal
    count: int
    log: bool
    whole: bool
    warp: Warp | None = None

    @classmethod
    def of(cls, low: float, high: float, step: float, *, log: bool) -> Lattice:
        """The lattice with these bounds; steps are decimal fractions, so that 0.1 + 2 * 0.1 is 0.3."""
        whole = isinstance(low, int) and isinstance(step, int)
        first, width = Decimal(repr(low)), Decimal(repr(step))
        # A bound that misses the lattice by rounding (0.1 * 3) still counts as reached.
        count = int((Decimal(repr(high)) - first) / width + Decimal("1e-9")) + 1
        return cls(first, width, count, log, whole)

    def favouring(self, value: float, confidence: Confidence) -> Lattice:
        """The same axis with a belief in a value."""
        # Where cells are even, with a piece for each of them, a value stays in the middle of its cell.
        pieces = PIECES if self.log else min(self.count, PIECES)
        return replace(self, warp=Warp.normal(self.to_unit(value), confidence, pieces))

    @property
    def size(self) -> int | None:
        return self.count

    @property
    def last(self) -> Any:
        return self.value(self.count - 1)

    def value(self, index: int) -> Any:
        exact = self.low + index * self.step
        return int(exact) if self.whole else float(exact)

    def index(self, value: float) -> int:
        """The nearest value's place in the lattice, counted from 0."""
        if self.whole and isinstance(value, int):
            index = round((value - int(self.low)) / int(self.step))
        else:
            index = round((value - float(self.low)) / float(self.step))
        return min(max(index, 0), self.count - 1)

    def _ends(self) -> tuple[float, float]:
        low, half = float(self.low), float(self.step) / 2
        return 2 * math.log(low) - math.log(low + half), math.log(float(self.last) + half)

    def to_unit(self, value: Any) -> float:
        if not self.log:
            return _forward(self.warp, (self.index(value) + 0.5) / self.count)
        start, end = self._ends()
        u = _clip((math.log(float(self.value(self.index(value)))) - start) / (end - start))
        return _forward(self.warp, u)

    def cell(self, u: float) -> int:
        """The place in the lattice of the value whose cell holds u, counted from 0; u is clipped to [0, 1]."""
        u = _backward(self.warp, _clip(u))
        if not self.log:
            return min(int(u * self.count), self.count - 1)
        start, end = self._ends()
        return self.index(math.exp(start + u * (end - start)))

    def edges(self) -> list[float]:
        """Where one cell ends and the next begins: ascending, one fewer than values."""
        if not self.log:
            return _even_edges(self.warp, self.count)
        start, end = self._ends()
        tops = (math.log(float(self.value(index)) + float(self.step) / 2) for index in range(self.count - 1))
        return [_forward(self.warp, _clip((top - start) / (end - start))) for top in tops]

    def from_unit(self, u: float) -> Any:
        return self.value(self.cell(u))

    def grid(self, points: int) -> Iterator[Any]:
        return (self.value(index) for index in range(self.count))

    def grid_size(self, points: int) -> int:
        return self.count


class Levels:
    """Any values, in the order given, all equally likely but for the warp."""

    def __init__(self, values: Sequence[Any], warp: Warp | None = None) -> None:
        self.values = tuple(values)
        self.warp = warp
        self._places = {level_key(value): index for index, value in enumerate(self.values)}

    def favouring(self, value: Any, confidence: Confidence, *, ordered: bool) -> Levels:
        """The same axis with a belief in a value, and also in its neighbours if there is an order."""
        u, count = self.to_unit(value), len(self.values)
        warp = Warp.normal(u, confidence, count) if ordered else Warp.favouring(self.cell(u), confidence, count)
        return Levels(self.values, warp)

    @property
    def size(self) -> int | None:
        return len(self.values)

    def index(self, value: Any) -> int | None:
        """The place of a value, counted from 0; None when it is not one of the values."""
        return self._places.get(level_key(value))

    def to_unit(self, value: Any) -> float:
        index = self.index(value)
        if index is None:
            raise ValueError(f"{value!r} is not one of {list(self.values)}")
        return _forward(self.warp, (index + 0.5) / len(self.values))

    def cell(self, u: float) -> int:
        """The place of the value whose cell holds u, counted from 0; u is clipped to [0, 1]."""
        return min(int(_backward(self.warp, _clip(u)) * len(self.values)), len(self.values) - 1)

    def edges(self) -> list[float]:
        """Where one cell ends and the next begins: ascending, one fewer than values."""
        return _even_edges(self.warp, len(self.values))

    def from_unit(self, u: float) -> Any:
        return self.value(self.cell(u))

    def value(self, index: int) -> Any:
        """The value at a place; a list is copied, so that nobody can change the space through a configuration."""
        value = self.values[index]
        return list(value) if isinstance(value, list) else value

    def grid(self, points: int) -> Iterator[Any]:
        return (self.value(index) for index in range(len(self.values)))

    def grid_size(self, points: int) -> int:
        return len(self.values)


def level_key(value: Any) -> Any:
    """A hashable form in which True and 1 differ, and 1 and 1.0 do not."""
    value = canonical(value)
    return (type(value), tuple(map(level_key, value)) if isinstance(value, list) else value)


def _clip(u: float) -> float:
    if math.isnan(u):
        raise ValueError("a place in [0, 1] must be a number, got nan")
    return min(max(u, 0.0), 1.0)


def _forward(warp: Warp | None, u: float) -> float:
    return u if warp is None else warp.forward(u)


def _backward(warp: Warp | None, u: float) -> float:
    return u if warp is None else warp.backward(u)


def _even_edges(warp: Warp | None, count: int) -> list[float]:
    return [_forward(warp, index / count) for index in range(1, count)]
