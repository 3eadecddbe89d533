"""Search by a tree of Parzen estimators (TPE), as hyperopt computes it.

Bergstra, Bardenet, Bengio and Kégl: Algorithms for Hyper-Parameter Optimization, NIPS 2011.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import Field

from raytuner.components import Options
from raytuner.errors import SpaceError
from raytuner.search.base import Search, Trial
from raytuner.search.ranking import ranked
from raytuner.space import Choice, Config, Space

__all__ = ["HyperOptOptions", "HyperOptSearch"]


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

    1. Trials that reached the *shared step*, by their value there. It is the highest step told that ``startup`` trials
       (or as many as count as good, if these are more) have reached, so that a value after 27 steps is never compared
       with one after 3. A finished trial has reached every step, with its last value.
    2. Trials that have not reached it, since they were stopped before or are too young to tell.
    3. Failed trials: they lost, but are not forgotten, else the region in which trials fail would look unexplored and
       attract all others.
    4. Trials under way, of which nothing is known: others keep away from them.

    At most as many trials count as good as are in the first group; without any, configurations are drawn at random.
    A trial told from outside the space teaches nothing.
    """

    Options = HyperOptOptions

    def __init__(self, space: Space, **arguments: Any) -> None:
        super().__init__(space, **arguments)
        assert isinstance(self.options, HyperOptOptions)
        self.tpe = self.options
        self._places: dict[str, dict[str, float] | None] = {}

    def warm_up(self) -> None:
        importlib.import_module("hyperopt.tpe")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._places.clear()

    def _propose(self, rng: np.random.Generator, number: int) -> Config | None:
        order, comparable = self._ranking()
        if len(order) < self.tpe.startup or not comparable:
            return self._draw(rng)
        candidates = self.tpe.candidates
        while candidates:
            config = self._suggest(order, comparable, candidates, int(rng.integers(2**31)))
            if self.space.satisfies(config) and self.is_new(config):
                return config
            candidates //= 2  # less greedy: with one candidate, it is a draw from the model of good configurations
        return self._draw(rng)

    def _good(self, trials: int) -> int:
        """How many of so many trials hyperopt takes for good ones."""
        return min(math.ceil(self.tpe.gamma * math.sqrt(trials)), 25)

    def _ranking(self) -> tuple[list[str], int]:
        """The trials with a result from best to worst, and how many of them are in the first group."""
        here = {name: trial for name, trial in self.trials.items() if self._place(name, trial) is not None}
        return ranked(here, max(self.tpe.startup, self._good(len(self.trials))))

    def _suggest(self, order: list[str], comparable: int, candidates: int, seed: int) -> Config:
        from hyperopt import tpe

        rank = {name: index for index, name in enumerate(order)}
        documents = []
        for index, (name, trial) in enumerate(self.trials.items()):
            place = self._place(name, trial)
            if place is not None and (name in rank or trial.status in ("pending", "running", "paused")):
                documents.append(_document(index, place, rank.get(name), self._domain.params))
        gamma = self.tpe.gamma
        if self._good(len(documents)) > comparable:
            gamma = (comparable - 0.5) / math.sqrt(len(documents))
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
            values, levels = answer["misc"]["vals"].get(name), self._categories[name]
            unit.append(0.5 if not values else (values[0] + 0.5) / levels if levels else float(values[0]))
        return self.space.from_unit(unit)

    @cached_property
    def _categories(self) -> dict[str, int]:
        """The number of categories of each parameter; 0 for one that has an order, and hence a place in (0, 1)."""
        return {
            name: len(parameter.values) if isinstance(parameter, Choice) and not parameter.ordered else 0
            for name, parameter in self.space.parameters.items()
        }

    @cached_property
    def _domain(self) -> Any:
        """hyperopt's picture of the space: (0, 1) for what has an order, categories for the rest."""
        from hyperopt import hp
        from hyperopt.base import Domain

        labels = {}
        for name, levels in self._categories.items():
            if levels != 1:  # hyperopt has nothing to say about a constant
                labels[name] = hp.randint(name, levels) if levels else hp.uniform(name, 0.0, 1.0)
        return Domain(None, labels)

    def _place(self, trial_id: str, trial: Trial) -> dict[str, float] | None:
        """A trial's values in hyperopt's picture, active parameters only; None when it lies outside of the space."""
        if trial_id not in self._places:
            try:
                unit = self.space.to_unit(trial.config).tolist()
            except SpaceError:  # somebody else's trial, of another space
                self._places[trial_id] = None
                return None
            self._places[trial_id] = {
                name: int(u * self._categories[name]) if self._categories[name] else u
                for name, u in zip(self.space.names, unit, strict=True)
                if not math.isnan(u)
            }
        return self._places[trial_id]


class _Known:
    """The little that ``tpe.suggest`` wants of hyperopt's Trials, without its copies and checks of every document."""

    def __init__(self, documents: list[dict[str, Any]]) -> None:
        self.trials = documents

    def __len__(self) -> int:
        return len(self.trials)

    def new_trial_docs(self, ids: Any, specs: Any, results: Any, miscs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"misc": misc} for misc in miscs]


def _document(tid: int, place: dict[str, float], rank: int | None, labels: Any) -> dict[str, Any]:
    values = {name: [place[name]] if name in place else [] for name in labels}
    ids = {name: [tid] if name in place else [] for name in labels}
    return {"tid": tid, "misc": {"tid": tid, "idxs": ids, "vals": values}, "result": {"loss": rank}}
