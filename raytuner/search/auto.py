"""The search for those who don't want to choose one: it takes, proposal by proposal, what serves best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from raytuner.components import Options
from raytuner.search.base import Observation, Search
from raytuner.search.bayesian import BayesianOptions, BayesianSearch
from raytuner.search.genetic import GeneticOptions, GeneticSearch
from raytuner.space import Config, Space

__all__ = ["AutoOptions", "AutoSearch"]

FEW = 300
"""Trials up to which the Gaussian process sees all of them, and a proposal of its takes below half a second."""
CROWD = 100
"""Trials under way up to which the process can believe in each of them."""
SHARE = 10
"""Beyond either, one of so many proposals is still the process's."""


class AutoOptions(Options):
    """Bayesian optimisation while trials are few and dear, mostly evolution when they are many."""

    type: Literal["auto"] = "auto"
    """The kind of search."""


class AutoSearch(Search):
    """``bayesian`` up to 300 trials and 100 under way; beyond, ``genetic``, but for every tenth proposal.

    A Gaussian process makes most of each trial, but its cost grows with the cube of their number, and what it knows of
    hundreds under way is guesswork. Evolution costs milliseconds, and profits from numbers. Both learn from all trials,
    whoever proposed them. A finite space is searched until nothing of it is left.
    """

    Options = AutoOptions

    def __init__(self, space: Space, **arguments: Any) -> None:
        super().__init__(space, **arguments)
        own = {"seed": self.seed, "first": self.first}
        self._bayesian = BayesianSearch(space, options=BayesianOptions(), **own)
        self._genetic = GeneticSearch(space, options=GeneticOptions(), **own)
        self._share()

    @staticmethod
    def choice(trials: int | None) -> str:
        """What it will do in so many trials, for people; None when they are not limited."""
        if trials is not None and trials <= FEW:
            return "bayesian, since trials are few enough for a Gaussian process to learn from each"
        return f"bayesian for {FEW} trials, then mostly genetic, whose proposals stay cheap"

    def warm_up(self) -> None:
        self._bayesian.warm_up()
        self._genetic.warm_up()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._share()
        for member in self._members:
            member.forget()

    def _propose(self, rng: np.random.Generator, number: int) -> Config | None:
        pending = sum(trial.status == "pending" for trial in self.trials.values())
        many = len(self.trials) >= FEW or pending >= CROWD
        member = self._genetic if many and number % SHARE else self._bayesian
        return member._propose(rng, number)

    def _learn(self, observation: Observation) -> None:
        for member in self._members:
            member._learn(observation)

    @property
    def _members(self) -> tuple[BayesianSearch, GeneticSearch]:
        return self._bayesian, self._genetic

    def _share(self) -> None:
        """The members look at this search's own record."""
        for member in self._members:
            member.trials, member._asked, member._seen = self.trials, self._asked, self._seen
