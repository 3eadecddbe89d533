"""Bayesian optimisation: a Gaussian process says where an improvement is likely, and how large.

Jones, Schonlau and Welch: Efficient Global Optimization of Expensive Black-Box Functions, 1998.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raytuner.components import Options
from raytuner.errors import SpaceError
from raytuner.search.base import Search, Trial
from raytuner.search.encoding import Encoder
from raytuner.search.fidelity import FidelityProcess, at_rungs
from raytuner.search.ranking import best_and_others
from raytuner.search.sobol import EVENLY, SobolPoints
from raytuner.search.threads import one_thread
from raytuner.space import Config, Space

__all__ = ["BayesianOptions", "BayesianSearch"]

Array = NDArray[np.float64]
MOST_STARTUP = 4
"""Times as many trials as are enough to start with, when early stopping leaves few beyond the first rung."""
MOST = 300
"""Trials that the process sees at most, which bounds the time of a proposal."""
BELIEVED = 100
"""Trials under way that it believes in at most, the latest ones, for the same reason."""
LEAST_DOUBT = 0.01
"""What is known to so small a part of the signal's deviation counts as known; the more are under way, the larger."""
FITTED = 100
"""Trials that its parameters are fitted to at most, for the same reason."""
SCATTERED = 500
"""Places all over the space at which the improvement is first looked at."""
CENTRES, NEAR, ROUNDS = 5, 80, 3
"""Around the best few, so many neighbours, so many times."""


class BayesianOptions(Options):
    """Bayesian optimisation with a Gaussian process: the most promising configuration by all that is known."""

    type: Literal["bayesian"] = "bayesian"
    """The kind of search."""
    startup: int | None = Field(None, ge=2, le=100_000)
    """Trials with a result before which configurations are spread evenly; by default one more than parameters, at most
    10. With early stopping, so many beyond the first rung, or four times as many in all."""


class BayesianSearch(Search):
    """Expected improvement under a Gaussian process over the unit cube.

    * Values are compressed (see ``_compressed``); a failed trial counts as the worst of the others.
    * What was seen at the rungs of a scheduler is led to the end by a process for each rung on top of the one before
      (``raytuner.search.fidelity``). An improvement counts by the chance to get there: that the configuration comes to
      what it takes to go on at every rung, judged by the trials that did.
    * At the configurations under way of which nothing is known, the process has seen just what it expects (the kriging
      believer of Ginsbourger, Le Riche and Carraro, 2010): they raise no hopes, and nobody looks there again.
    * The improvement is augmented (Huang, Allen, Notz and Zeng: Global Optimization of Stochastic Black-Box Systems via
      Sequential Kriging Meta-Models, 2006), over the lowest mean of the trials known, not over a lucky value.
    * It is maximised over places all over the space, and by climbing from the best of them and of the trials, along one
      or a few dimensions, by steps of every size; an unordered choice takes another of its values.

    Beyond 300 trials, the process sees the best half of as many, and others from good to bad.
    """

    Options = BayesianOptions

    def __init__(self, space: Space, **arguments: Any) -> None:
        super().__init__(space, **arguments)
        assert isinstance(self.options, BayesianOptions)
        self._startup = self.options.startup or min(len(space.names) + 1, 10)
        self._points = SobolPoints(space, self.seed)
        self._rows: dict[str, Array | None] = {}

    def warm_up(self) -> None:
        SobolPoints.warm_up()
        importlib.import_module("scipy.optimize")

    def forget(self) -> None:
        self._points.restart()
        self._rows.clear()

    @one_thread()
    def _propose(self, rng: np.random.Generator, number: int) -> Config | None:
        here = {name: trial for name, trial in self.trials.items() if self._row(name, trial) is not None}
        measured = {name: trial for name, trial in here.items() if trial.values and trial.status != "failed"}
        values = at_rungs(list(measured.values()))
        beyond = int((~np.isnan(values[:, min(1, values.shape[1] - 1)])).sum())
        if len(measured) < self._startup or (beyond < self._startup and len(measured) < MOST_STARTUP * self._startup):
            self.why = f"{EVENLY}, since {len(measured)} results are too few for a model"
            return self._points.first(self.is_new) or self._draw(rng)
        failed = {name: trial for name, trial in here.items() if trial.status == "failed"}
        lost = np.full((len(failed), values.shape[1]), np.nan)
        lost[:, 0] = np.inf
        # Every other proposal sees the scale of the first, scattered trials: it looks for what is good at all, the
        # others for what is better than the many good ones that are there by then.
        scale = self._startup if number % 2 else len(measured)
        y = np.stack([_compressed(column, scale) for column in np.concatenate([values, lost]).T], axis=1)
        known = {**measured, **failed}
        rows = self._placed(known)
        some = _representative(y)
        process = FidelityProcess(rows[some], y[some], self._encoder.nominal, FITTED)
        under_way = np.array([trial.status in ("running", "paused") for trial in known.values()])
        pending = [name for name, trial in here.items() if trial.status == "pending"][-BELIEVED:]
        believed, reached = rows[under_way], (~np.isnan(y)).sum(axis=1)[under_way]
        if pending:
            believed = np.concatenate([self._placed(pending), believed])
            reached = np.concatenate([np.zeros(len(pending), dtype=int), reached])
        if len(believed):
            process = process.with_points(believed, reached)
        places = np.concatenate([rows[some], believed])
        expected = process.predict(places)[0][-1]
        ranked = places[np.argsort(expected, kind="stable")]
        doubt = max(process.noise[-1], LEAST_DOUBT * math.sqrt(1 + len(believed)) * process.spread[-1])
        undecided = np.array([trial.status == "running" for trial in known.values()])
        self.why = (
            f"the greatest expected improvement, by a Gaussian process that saw {len(some)} of {len(known)} trials"
        )
        if len(believed):
            self.why += f" and keeps away from {len(believed)} under way"
        target = _Target(float(expected.min()), float(doubt), _cutoffs(y, undecided))
        return self._most_promising(process, ranked, target, rng)

    def _placed(self, names: Iterable[str]) -> Array:
        return np.array([self._rows[name] for name in names])

    def _row(self, name: str, trial: Trial) -> Array | None:
        """A trial's place; None when it lies outside of the space."""
        if name not in self._rows:
            try:
                self._rows[name] = self._encoder.rows([trial.config])[0]
            except SpaceError:  # somebody else's trial, of another space
                self._rows[name] = None
        return self._rows[name]

    def _most_promising(
        self, process: FidelityProcess, ranked: Array, target: _Target, rng: np.random.Generator
    ) -> Config | None:
        """The new, valid configuration of the largest expected improvement that a climb from many places finds."""
        centres = ranked[:CENTRES]
        scattered = self._encoder.settled(rng.random((SCATTERED, ranked.shape[1])))
        candidates = np.concatenate([scattered, *(self._near(centre, NEAR, rng) for centre in centres)])
        gains = _expected_improvement(process, candidates, target)
        for _ in range(ROUNDS):
            top = candidates[np.argsort(-gains, kind="stable")[:CENTRES]]
            more = np.concatenate([self._near(centre, NEAR // 2, rng) for centre in top])
            candidates = np.concatenate([candidates, more])
            gains = np.concatenate([gains, _expected_improvement(process, more, target)])
        for row in candidates[np.argsort(-gains, kind="stable")]:
            config = self.space.from_unit(row)
            if self.space.satisfies(config) and self.is_new(config):
                return config
        return self._draw(rng)

    def _near(self, centre: Array, number: int, rng: np.random.Generator) -> Array:
        """Neighbours: one or two dimensions moved, by steps of many sizes."""
        dims = len(centre)
        rows = np.tile(centre, (number, 1))
        chosen = rng.random((number, dims)) < min(1.0, 1.5 / dims)
        chosen[np.arange(number), rng.integers(dims, size=number)] = True
        scale = 10.0 ** rng.uniform(-2.0, -0.3, size=(number, 1))
        moved = rows + rng.normal(size=rows.shape) * scale
        moved = np.abs(moved) % 2.0
        moved = np.where(moved > 1.0, 2.0 - moved, moved)
        for dim in range(dims):
            middles = self._encoder.cells(dim)
            if middles is None or len(middles) < 2:
                continue
            if self._encoder.nominal[dim]:
                moved[:, dim] = middles[rng.integers(len(middles), size=number)]
                continue
            at = int(np.abs(middles - centre[dim]).argmin())
            step = np.rint((moved[:, dim] - centre[dim]) * len(middles)).astype(int)
            step = np.where(step == 0, np.where(moved[:, dim] > centre[dim], 1, -1), step)
            moved[:, dim] = middles[np.clip(at + step, 0, len(middles) - 1)]
        rows[chosen] = moved[chosen]
        return self._encoder.settled(rows)

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.space)


def _representative(y: Array) -> NDArray[np.intp]:
    """All trials while they are few; then the best ones by what they reached, and as many of the rest, evenly."""
    reached = (~np.isnan(y)).sum(axis=1)
    last = y[np.arange(len(y)), reached - 1]
    order = np.lexsort((last, -reached))
    return np.sort(order[best_and_others(len(y), MOST)])


def _compressed(values: Array, scale: int) -> Array:
    """What the process is fitted to: even near the best value, logarithmic beyond the median, so that a few terrible
    trials do not drown the differences between good ones. An infinite value counts as the worst finite one, and the
    median is that of the first so many finite ones.
    """
    finite = values[np.isfinite(values)]
    best, worst = finite.min(), finite.max()
    unit = float(np.median(finite[:scale])) - best or float(worst - best) or 1.0
    return np.asarray(np.log1p((np.minimum(values, worst) - best) / unit))


@dataclass(frozen=True)
class _Target:
    """What a configuration must come to."""

    best: float
    """The lowest expected value at the end so far, which it should be below."""
    doubt: float
    """The deviation to which values at the end count as known."""
    cutoffs: Array
    """(rungs - 1,): the value at each rung beyond which it would not go on."""


def _cutoffs(y: Array, undecided: NDArray[np.bool_]) -> Array:
    """(rungs - 1,): what trials must come to at each rung to go on, if those that went on are the best there."""
    there = ~np.isnan(y)
    cutoffs = np.full(y.shape[1] - 1, np.inf)
    for rung in range(len(cutoffs)):
        went_on = there[:, rung + 1]
        settled = there[:, rung] & (went_on | ~undecided)
        share = went_on.sum() / settled.sum()
        if share < 1.0:
            cutoffs[rung] = np.quantile(y[settled, rung], share)
    return cutoffs


def _expected_improvement(process: FidelityProcess, rows: Array, target: _Target) -> Array:
    """Augmented: of no use where a further look would tell little, since it was near enough already."""
    from scipy.special import ndtr

    means, deviations = process.predict(rows)
    mean, deviation = means[-1], deviations[-1]
    z = (target.best - mean) / deviation
    improvement = deviation * (np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) + z * ndtr(z))
    improvement *= 1.0 - target.doubt / np.hypot(deviation, target.doubt)
    if len(target.cutoffs):  # good ones are good at all rungs, so that the least chance is about the chance of all
        spread = np.hypot(deviations[:-1], process.noise[:-1, None])
        improvement *= ndtr((target.cutoffs[:, None] - means[:-1]) / spread).min(axis=0)
    return np.asarray(improvement)
