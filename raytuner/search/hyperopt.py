"""Search by a tree of Parzen estimators (TPE), as hyperopt computes it.

Bergstra, Bardenet, Bengio and Kégl: Algorithms for Hyper-Parameter Optimization, NIPS 2011.
"""

from __future__ import annotations

import importlib
import math
from contextlib import suppress
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from pydantic import Field

from raytuner.components import Options
from raytuner.errors import SpaceError
from raytuner.search.base import Search, Trial
from raytuner.search.ranking import ranked_by_rung
from raytuner.search.threads import one_thread
from raytuner.space import Choice, Config, Space
from raytuner.space.axes import Levels

__all__ = ["HyperOptOptions", "HyperOptSearch"]

OTHERS = 200
"""Trials that are not good, and trials under way, of which hyperopt is shown so many of each at most: it takes time in
proportion to them."""
Place = dict[str, list[float]]
"""A value a parameter, none where it is inactive: a category's number, or a place in (0, 1)."""
UNDER_WAY = ("pending", "running", "paused")


class HyperOptOptions(Options):
    """A tree of Parzen estimators: configurations that resemble the best so far, and not the rest."""

    type: Literal["hyperopt"] = "hyperopt"
    """The kind of search."""
    startup: int = Field(10, ge=1, le=100_000)
    """Trials with a result before which configurations are drawn at random."""
    candidates: int = Field(24, ge=1, le=10_000)
    """Draws from the model of good configurations, of which the most promising is proposed."""
    gamma: float = Field(0.25, gt=0, le=10)
    """Of n trials, ``ceil(gamma * sqrt(n))`` count as good, at most 25."""


class HyperOptSearch(Search):
    """TPE by ``hyperopt.tpe.suggest`` on the unit cube, one label per parameter.

    The estimators of TPE are independent of one another, so a conditional parameter needs no nesting: it learns from
    the trials in which it was active, and its draw is dropped where it is inactive.

    Who counts as better (hyperopt uses the order of the losses only, so it is given ranks):

    1. Trials that came to their own end, by their last value.
    2. The others with a value: those that a scheduler let go further first, and by their last value where they went
       equally far, so that values of different steps are never compared. BOHB (Falkner, Klein and Hutter 2018) models
       the highest budget with enough trials; here lower rungs fill up while few have come far.
    3. Failed trials: they lost, but are not forgotten, else the region in which trials fail would look unexplored and
       attract all others. Unlike other old trials, they keep their weight.
    4. Trials under way, of which nothing is known: others keep away from them.

    Only trials with a value count as good; without any, configurations are drawn at random.
    hyperopt is shown all the good ones. Of many others it is shown the newest, which are close to the good ones and
    have the most weight with it, and as many older ones, taken evenly from the best to the worst.
    A trial told from outside the space teaches nothing.
    """

    Options = HyperOptOptions

    def __init__(self, space: Space, **arguments: Any) -> None:
        super().__init__(space, **arguments)
        assert isinstance(self.options, HyperOptOptions)
        self.tpe = self.options
        self._places: dict[str, Place | None] = {}

    def warm_up(self) -> None:
        importlib.import_module("hyperopt.tpe")

    def forget(self) -> None:
        self._places.clear()

    def _propose(self, rng: np.random.Generator, number: int) -> Config | None:
        order, measured = self._ranking()
        if len(order) < self.tpe.startup or not measured:
            return self._draw(rng)
        documents, gamma = self._documents(order, measured)
        candidates = self.tpe.candidates
        self.why = f"resembles the best {self._good(len(order))} of {len(order)} trials and not the others, by TPE"
        while candidates:
            config = self._suggest(documents, gamma, candidates, int(rng.integers(2**31)))
            if self.space.satisfies(config) and self.is_new(config):
                return config
            candidates //= 2  # less greedy: with one candidate, it is a draw from the model of good configurations
        return self._draw(rng)

    def _good(self, trials: int) -> int:
        """How many of so many trials hyperopt takes for good ones."""
        return min(math.ceil(self.tpe.gamma * math.sqrt(trials)), 25)

    def _ranking(self) -> tuple[list[str], int]:
        """The trials with a result from best to worst, and how many of them have a value."""
        here = {name: trial for name, trial in self.trials.items() if self._place(name, trial) is not None}
        return ranked_by_rung(here)

    def _documents(self, order: list[str], measured: int) -> tuple[list[dict[str, Any]], float]:
        """What hyperopt is shown, oldest first, failures last, and the gamma at which the good ones are good to it."""
        rank = {name: index for index, name in enumerate(order)}
        under_way = [
            name
            for name, trial in self.trials.items()
            if trial.status in UNDER_WAY and name not in rank and self._place(name, trial) is not None
        ]
        good = min(self._good(len(order) + len(under_way)), measured)
        others = set(order[good:])
        newest = set([name for name in self.trials if name in others][-OTHERS // 2 :])
        older = [name for name in order[good:] if name not in newest]
        shown = {*order[:good], *newest, *_evenly(older, OTHERS // 2), *_evenly(under_way, OTHERS)}
        record = [name for name in self.trials if name in shown]
        # hyperopt gives the newest 25 of the bad ones full weight, and forgets older ones: it must not forget failures.
        record.sort(key=lambda name: self.trials[name].status == "failed")
        documents = [_document(tid, self._places[name], rank.get(name)) for tid, name in enumerate(record)]
        return documents, (good - 0.5) / math.sqrt(len(documents))

    @one_thread()
    def _suggest(self, documents: list[dict[str, Any]], gamma: float, candidates: int, seed: int) -> Config:
        from hyperopt import tpe

        (answer,) = tpe.suggest(
            [len(self.trials)],
            self._domain,
            _Known(documents),
            seed,
            n_startup_jobs=0,
            n_EI_candidates=candidates,
            gamma=gamma,
            verbose=False,
        )
        unit = []
        for name in self.space.names:
            values, axis = answer["misc"]["vals"].get(name), self._categories.get(name)
            unit.append(0.5 if not values else axis.to_unit(axis.value(values[0])) if axis else float(values[0]))
        return self.space.from_unit(unit)

    @cached_property
    def _categories(self) -> dict[str, Levels]:
        """The parameters without an order; each of the others has a place in (0, 1)."""
        return {
            name: parameter.axis
            for name, parameter in self.space.parameters.items()
            if isinstance(parameter, Choice) and not parameter.ordered
        }

    @cached_property
    def _labels(self) -> set[str]:
        """The parameters that hyperopt is told of: it has nothing to say about a choice of one value."""
        return {name for name in self.space.names if name not in self._categories or self._categories[name].size != 1}

    @cached_property
    def _domain(self) -> Any:
        """hyperopt's picture of the space: (0, 1) for what has an order, categories for the rest."""
        from hyperopt import hp
        from hyperopt.base import Domain

        labels = {}
        for name in self.space.parameters:
            axis = self._categories.get(name)
            if name not in self._labels:
                continue
            if axis is None:
                labels[name] = hp.uniform(name, 0.0, 1.0)
            elif axis.warp is not None:
                labels[name] = hp.pchoice(name, [(end - start, 0) for start, end in pairwise([0, *axis.edges(), 1])])
            else:
                labels[name] = hp.randint(name, axis.size)
        return Domain(None, labels)

    def _place(self, trial_id: str, trial: Trial) -> Place | None:
        """Where hyperopt sees a trial; None when it lies outside of the space."""
        if trial_id not in self._places:
            place: Place | None = None
            with suppress(SpaceError):  # somebody else's trial, of another space
                unit = self.space.to_unit(trial.config).tolist()
                place = {
                    name: [] if math.isnan(u) else [self._categories[name].cell(u) if name in self._categories else u]
                    for name, u in zip(self.space.names, unit, strict=True)
                    if name in self._labels
                }
            self._places[trial_id] = place
        return self._places[trial_id]


def _evenly(names: list[str], most: int) -> list[str]:
    """At most so many of them, evenly from the first to the last."""
    if len(names) <= most:
        return names
    return [names[index] for index in np.linspace(0, len(names) - 1, most).round().astype(int)]


class _Known:
    """The little that ``tpe.suggest`` wants of hyperopt's Trials, without its copies and checks of every document."""

    def __init__(self, documents: list[dict[str, Any]]) -> None:
        self.trials = documents

    def __len__(self) -> int:
        return len(self.trials)

    def new_trial_docs(self, ids: Any, specs: Any, results: Any, miscs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"misc": misc} for misc in miscs]


def _document(tid: int, place: Place | None, rank: int | None) -> dict[str, Any]:
    assert place is not None
    ids = {name: [tid] * len(value) for name, value in place.items()}
    return {"tid": tid, "misc": {"tid": tid, "idxs": ids, "vals": place}, "result": {"loss": rank}}
