"""The search for those who don't want to choose one: it takes, proposal by proposal, what serves best."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from raytuner.components import Options
from raytuner.search.base import Observation, Search
from raytuner.search.bayesian import BayesianOptions, BayesianSearch
from raytuner.search.genetic import GeneticOptions, GeneticSearch
from raytuner.space import Config, Space

__all__ = ["AutoOptions", "AutoSearch"]

FEW = 2000
"""Trials up to which the Gaussian process is the better guide, for all that it sees only some of them."""
CROWD = 300
"""Trials under way up to which it is, and up to which it can keep up with asking for as many again."""
SHARE = 10
"""Beyond either, one of so many proposals is still the process's."""


class AutoOptions(Options):
    """Bayesian optimisation; beyond 2,000 trials, or 300 under way, mostly evolution."""

    type: Literal["auto"] = "auto"
    """The kind of search."""


class AutoSearch(Search):
    """``bayesian`` up to 2,000 trials and 300 under way; beyond, ``genetic``, but for every tenth proposal.

    A Gaussian process makes most of each trial, with one rung or several; a proposal of its takes about a tenth of a
    second, however many trials there are. Evolution takes milliseconds, and profits from numbers. Both learn from all
    trials, whoever proposed them. A finite space is searched until nothing of it is left.
    """

    Options = AutoOptions

    def __init__(self, space: Space, **arguments: Any) -> None:
        super().__init__(space, **arguments)
        own = {"seed": self.seed, "first": self.first}
        self._bayesian = BayesianSearch(space, options=BayesianOptions(), **own)
        self._genetic = GeneticSearch(space, options=GeneticOptions(), **own)
        self._share()

    @staticmethod
    def choice(trials: int | None, slots: int, size: int | None, rungs: int) -> str:
        """What it will do, for people.

        trials: None when they are not limited. slots: trials at once. size: of the space, None when it is infinite.
        rungs: the steps at which values are told, the last one included.
        """
        most = min(number for number in (trials, size, math.inf) if number is not None)
        how = "bayesian, which learns most from each trial"
        if rungs > 1:
            how += f", with a model for each of {rungs} rungs"
        if min(slots, most) > CROWD:
            how += f"; beyond {CROWD} trials at once mostly genetic, since proposals must be cheap"
        elif most > FEW:
            how += f"; after {FEW} trials mostly genetic, since proposals must be cheap"
        if most == size:
            how += f"; until all of the {size} configurations were tried"
        return how

    def warm_up(self) -> None:
        self._bayesian.warm_up()
        self._genetic.warm_up()

    def forget(self) -> None:
        self._share()
        for member in self._members:
            member.forget()

    def _propose(self, rng: np.random.Generator, number: int) -> Config | None:
        under_way = sum(trial.status in ("pending", "running") for trial in self.trials.values())
        many = len(self.trials) >= FEW or under_way >= CROWD
        member = self._genetic if many and number % SHARE else self._bayesian
        config = member._propose(rng, number)
        self.why = member.why
        return config

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
