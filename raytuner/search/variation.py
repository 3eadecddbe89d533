"""Mutation and crossover on the unit cube of a space, for every kind of parameter and for branches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytuner.space import Choice, Config, Space
from raytuner.space.axes import Continuous, Lattice, Levels

__all__ = ["Individual", "Variation"]

Genes = NDArray[np.float64]


@dataclass(frozen=True)
class Individual:
    """A configuration and its place in the unit cube."""

    config: Config
    genes: Genes
    """(dims,) in [0, 1], nan for inactive parameters."""
    trial: str = ""
    """The trial that it is known from, if it is."""
    parents: tuple[Individual, ...] = ()
    """The known ones that it descends from, if it is a child."""

    @property
    def descent(self) -> str:
        """Whose child it is, and what is its own, for people."""
        own = [name for name, value in self.config.items() if all(p.config.get(name) != value for p in self.parents)]
        *most, last = dict.fromkeys(parent.trial for parent in self.parents)
        whose = f"{', '.join(most)} and {last}" if most else last
        return f"a child of {whose}" + (f", with another {', '.join(own)}" if own else "")


class Variation:
    """How children differ from their parents. Draws from the generator passed in and keeps nothing."""

    def __init__(self, space: Space) -> None:
        self._space = space
        place = {name: index for index, name in enumerate(space.names)}
        self._axes = [space.parameters[name].axis for name in space.names]
        self._parents = [[place[parent] for parent in sorted(space.parents[name])] for name in space.names]
        self.unordered = np.array([_unordered(space, name) for name in space.names])
        """(dims,): which parameters are choices without an order."""
        self.variable = np.array([axis.size != 1 for axis in self._axes])
        """(dims,): which parameters have more than one value."""

    def cross(self, one: Genes, other: Genes, rng: np.random.Generator) -> Genes:
        """Uniform crossover that keeps branches whole: (dims,), nan where neither parent has a value.

        A parameter comes from either parent with equal chance (Syswerda 1989). A conditional one comes from where its
        condition's parameters came from; it is free to choose when both parents agree in these. What the chosen parent
        lacks is taken from the other.
        """
        coins = rng.random(len(one)) < 0.5
        source = np.zeros(len(one), dtype=bool)
        for index, parents in enumerate(self._parents):
            bound = [parent for parent in parents if not _same(one[parent], other[parent])]
            source[index] = source[bound[-1]] if bound else coins[index]
        chosen: Genes = np.where(source, other, one)
        spare = np.where(source, one, other)
        return np.where(np.isnan(chosen), spare, chosen)

    def mutate(self, genes: Genes, chosen: NDArray[np.bool_], step: float, rng: np.random.Generator) -> Genes:
        """A copy whose ``chosen`` parameters have other values.

        An unordered choice takes any other value. A number or an ordered choice makes a normal step of standard
        deviation ``step``, reflected at the bounds, and at least one step of its lattice.
        """
        child = genes.copy()
        for index in np.flatnonzero(chosen):
            axis, u = self._axes[index], float(genes[index])
            if self.unordered[index]:
                assert isinstance(axis, Levels)
                child[index] = _other_level(axis, u, rng)
            else:
                moved = _reflected(u + step * float(rng.standard_normal()))
                child[index] = moved if isinstance(axis, Continuous) else _on_lattice(axis, u, moved)
        return child

    def config(self, genes: Genes, parents: tuple[Individual, ...]) -> Config:
        """The configuration at a place without nan; a number that a parent has is that number, to the last digit."""
        config = self._space.from_unit(genes)
        for index, name in enumerate(self._space.names):
            if name in config and isinstance(self._axes[index], Continuous):
                for parent in parents:
                    if parent.genes[index] == genes[index]:
                        config[name] = parent.config[name]
        return config


def _unordered(space: Space, name: str) -> bool:
    parameter = space.parameters[name]
    return isinstance(parameter, Choice) and not parameter.ordered


def _same(one: float, other: float) -> bool:
    return one == other or (np.isnan(one) and np.isnan(other))


def _other_level(axis: Levels, u: float, rng: np.random.Generator) -> float:
    other = int(rng.integers(len(axis.values) - 1))
    return axis.to_unit(axis.value(other + (other >= axis.cell(u))))


def _on_lattice(axis: Lattice | Levels, u: float, moved: float) -> float:
    """The place of the value at ``moved``; of the neighbour on that side when this is the value at ``u``."""
    here, there = axis.cell(u), axis.cell(moved)
    assert axis.size is not None
    if here == there:
        up = (moved > u or here == 0) and here < axis.size - 1
        there = here + 1 if up else here - 1
    return axis.to_unit(axis.value(there))


def _reflected(u: float) -> float:
    """Back into [0, 1], as a ball from walls."""
    u = abs(u) % 2.0
    return 2.0 - u if u > 1.0 else u
