"""Genetic search: children of good configurations, one after the other or by generations."""

from __future__ import annotations

import math
from bisect import insort
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator

from raytuner.components import Options
from raytuner.errors import SpaceError
from raytuner.search.base import Search, Trial
from raytuner.search.ranking import ranked
from raytuner.search.sobol import EVENLY, SobolPoints
from raytuner.search.surrogate import RankSurrogate
from raytuner.search.threads import one_thread
from raytuner.search.variation import Individual, Variation
from raytuner.space import Config, Space, broken_rule

__all__ = ["GeneticOptions", "GeneticSearch"]

STEP = 0.3
"""Standard deviation of a mutation's step, in the unit cube: about that of the prior, which is 0.29."""
ROUNDS = 5
"""Times at most that the best looking child has children itself before it is proposed."""
GAIN = 0.2
"""How fast the mutation rate follows success; the time constant is its inverse, in trials."""
SUCCESS = 0.2
"""The share of successful children at which the mutation rate is right (Rechenberg's 1/5)."""
ATTEMPTS = 20
"""Children that may be invalid or old ones before a configuration is drawn at random."""
REDRAWS = 10
"""New values for what a mutation changes, before it changes less."""


class GeneticOptions(Options):
    """Children of good configurations: each inherits from one or two of them, and differs in a few parameters."""

    type: Literal["genetic"] = "genetic"
    """The kind of search."""
    mode: Literal["steady", "generational"] = "steady"
    """``steady``: every child may descend from any trial that has a result. ``generational``: trial k belongs to
    generation k // population, and only earlier generations are parents."""
    population: int = Field(100, ge=2, le=100_000)
    """The youngest trials with a result, which may be parents; in generations, also the size of one."""
    tournament: int = Field(20, ge=1, le=100_000)
    """Members of the population, drawn at random, of which the best becomes a parent."""
    startup: int = Field(10, ge=2, le=100_000)
    """Trials with a result before which configurations fill the space evenly. In generations, the first one does."""
    crossover: float = Field(0.5, ge=0, le=1)
    """The chance that a child has two parents."""
    mutation: float | None = Field(None, gt=0, le=1)
    """The chance of each parameter to change; one does at least, unless crossover alone makes a new configuration.
    Adapts itself to success, if left out."""
    candidates: int = Field(20, ge=1, le=1000)
    """Children that are made at a time at most, of which the one that looks best by what is known is proposed, or has
    children in turn. How many is drawn anew for each proposal, so that some are greedy and others plain evolution,
    which 1 always is."""
    elitism: int = Field(1, ge=0, le=100_000)
    """The best trials of all, which stay in the population whatever their age."""
    generations: int | None = Field(None, ge=1)
    """In generations: how many there are before the search ends; no end, if left out."""

    @model_validator(mode="after")
    def _generations_need_their_mode(self) -> GeneticOptions:
        if self.generations is not None and self.mode != "generational":
            raise broken_rule("generations needs mode: generational", f"mode={self.mode!r}", "leave generations out")
        return self


@dataclass(frozen=True)
class _Pool:
    """What a child may know."""

    order: list[Individual]
    """Everybody with a result, failed trials included, from best to worst."""
    members: list[Individual]
    """The population: who may be a parent, from best to worst."""
    rate: float
    """The chance of a parameter to change."""


class GeneticSearch(Search):
    """Evolution without a barrier: an ask looks at the trials that have a result by then, and waits for none.

    1. *Start*: points of a scrambled Sobol sequence, after ``first``.
    2. *Selection*: by tournament from the youngest trials (aging evolution; Real et al. 2019), and the elite. Trials
       stopped early are compared at a step that they share with others, see ``ranked``; failed trials, and those
       without a result, are never parents.
    3. *Variation*: uniform crossover and mutation, typed, see ``Variation``. The mutation rate follows the 1/5 success
       rule (Rechenberg 1973) over the record: a success is a child that would become a parent at once.
    4. *Repair*: a child that violates a constraint gets other values for what changed, then fewer changes.
    5. *Informed choice* (Rasheed and Hirsh 2000): of a random number of children, the one that would rank best, see
       ``RankSurrogate``; a random number of times, it has children in turn, of whom the same is asked. Failed trials
       rank last, so that regions in which trials fail are left.

    No child repeats a configuration, whether known or under way. When children are no longer new or valid, as in a
    space that is nearly used up, configurations are drawn at random. A trial told from outside the space teaches
    nothing.
    """

    Options = GeneticOptions

    def __init__(self, space: Space, **arguments: Any) -> None:
        super().__init__(space, **arguments)
        assert isinstance(self.options, GeneticOptions)
        self.settings = self.options
        self._points = SobolPoints(space, self.seed)
        self._variation = Variation(space)
        self._individuals: dict[str, Individual | None] = {}

    @classmethod
    def most_proposals(cls, options: BaseModel) -> int | None:
        assert isinstance(options, GeneticOptions)
        return None if options.generations is None else options.population * options.generations

    @classmethod
    def startup_trials(cls, options: BaseModel) -> int:
        assert isinstance(options, GeneticOptions)
        return options.population if options.mode == "generational" else options.startup

    def warm_up(self) -> None:
        self._points.warm_up()

    def forget(self) -> None:
        self._points.restart()
        self._individuals.clear()

    def _propose(self, rng: np.random.Generator, number: int) -> Config | None:
        settings = self.settings
        if settings.generations is not None and number >= settings.population * settings.generations:
            return None
        pool = self._pool(number)
        if pool is None:
            self.why = EVENLY
            return self._points.first(self.is_new) or self._draw(rng)
        child = self._most_promising(pool, rng)
        if child is None:
            return self._draw(rng)
        self.why = child.descent
        return child.config

    def _pool(self, number: int) -> _Pool | None:
        """Who may be known to child ``number``; None when these are too few."""
        settings = self.settings
        trials = self._known(number)
        order, comparable = ranked(trials, settings.startup)
        if comparable < (settings.startup if settings.mode == "steady" else 2):
            return None
        place = {name: index for index, name in enumerate(order)}
        sound = [name for name in trials if name in place and trials[name].status != "failed"]
        chosen = {*sound[-settings.population :], *order[: min(settings.elitism, len(sound))]}
        everybody = {name: individual for name in order if (individual := self._individual(name, trials[name]))}
        rate = settings.mutation or self._rate([place[name] for name in trials if name in place])
        return _Pool(
            order=list(everybody.values()),
            members=[individual for name, individual in everybody.items() if name in chosen],
            rate=rate,
        )

    def _known(self, number: int) -> dict[str, Trial]:
        """The trials of this space; in generations, those from before the generation of child ``number``."""
        end = None
        if self.settings.mode == "generational":
            first = number - number % self.settings.population
            end = self._asked[first] if first < number else None
        known = {}
        for name, trial in self.trials.items():
            if name == end:
                break
            if self._individual(name, trial) is not None:
                known[name] = trial
        return known

    def _individual(self, trial_id: str, trial: Trial) -> Individual | None:
        """A trial with its place in the unit cube; None when it lies outside of the space."""
        if trial_id not in self._individuals:
            try:
                found = Individual(trial.config, self.space.to_unit(trial.config), trial_id)
            except SpaceError:  # somebody else's trial, of another space
                found = None
            self._individuals[trial_id] = found
        return self._individuals[trial_id]

    def _rate(self, ranks: list[int]) -> float:
        """The mutation rate after trials of these ranks, in the order of the record.

        It starts at one parameter a child, and is never less than that or more than half of them.
        """
        dims = max(int(self._variation.variable.sum()), 1)
        most = math.log(max(dims / 2, 1.0))
        strength = 0.0  # the logarithm of how many parameters change
        earlier: list[int] = []
        for rank in ranks:
            if len(earlier) >= self.settings.startup:
                # On average, the best of a tournament of t among n is number n / (t + 1).
                parent = earlier[len(earlier) // (self.settings.tournament + 1)]
                strength += GAIN * ((rank < parent) - SUCCESS)
                strength = min(max(strength, 0.0), most)
            insort(earlier, rank)
        return math.exp(strength) / dims

    @one_thread()
    def _most_promising(self, pool: _Pool, rng: np.random.Generator) -> Individual | None:
        """The best looking of several children and their children; None when none is valid and new."""
        wanted = int(rng.integers(1, self.settings.candidates, endpoint=True))
        children = self._children(pool, wanted, wanted + ATTEMPTS, rng)
        if len(children) < 2:
            return children[0] if children else None
        surrogate = RankSurrogate(
            np.array([individual.genes for individual in pool.order]), self._variation.unordered, rng
        )
        for _ in range(int(rng.integers(ROUNDS, endpoint=True))):
            best = _best(children, surrogate)
            children = [best, *self._children(pool, wanted, wanted, rng, best)]
        return _best(children, surrogate)

    def _children(
        self, pool: _Pool, wanted: int, attempts: int, rng: np.random.Generator, parent: Individual | None = None
    ) -> list[Individual]:
        """At most ``wanted`` valid and new ones."""
        children: list[Individual] = []
        for _ in range(attempts):
            child = self._child(pool, rng, parent)
            if child is not None:
                children.append(child)
            if len(children) == wanted:
                break
        return children

    def _child(self, pool: _Pool, rng: np.random.Generator, parent: Individual | None = None) -> Individual | None:
        """A valid and new child, of ``parent`` or of one that wins a tournament; None when repair has failed."""
        variation = self._variation
        parents: tuple[Individual, ...] = (parent or self._parent(pool, rng),)
        genes = parents[0].genes
        if rng.random() < self.settings.crossover:
            parents = (*parents, self._parent(pool, rng))
            genes = variation.cross(genes, parents[1].genes, rng)
        prior = rng.random(len(genes))  # for parameters that no parent has
        genes = np.where(np.isnan(genes), prior, genes)
        config = variation.config(genes, parents)
        free = np.array([name in config for name in self.space.names]) & variation.variable
        chosen: NDArray[np.bool_] = free & (rng.random(len(genes)) < pool.rate)
        if free.any() and not chosen.any() and not self._fits(config):
            chosen[rng.choice(np.flatnonzero(free))] = True
        for _ in range(REDRAWS):
            mutated = variation.mutate(genes, chosen, STEP, rng)
            config = variation.config(mutated, parents)
            if self._fits(config):
                return self._born(config, parents)
        for index in rng.permutation(np.flatnonzero(chosen)):
            mutated[index] = genes[index]
            config = variation.config(mutated, parents)
            if self._fits(config):
                return self._born(config, parents)
        return None

    def _born(self, config: Config, parents: tuple[Individual, ...]) -> Individual:
        """A child of parents of which one may be no more than a child itself."""
        known = [known for parent in parents for known in (parent.parents or (parent,))]
        return Individual(config, self.space.to_unit(config), parents=tuple({one.trial: one for one in known}.values()))

    def _parent(self, pool: _Pool, rng: np.random.Generator) -> Individual:
        return pool.members[int(rng.integers(len(pool.members), size=self.settings.tournament).min())]

    def _fits(self, config: Config) -> bool:
        return self.space.satisfies(config) and self.is_new(config)


def _best(children: list[Individual], surrogate: RankSurrogate) -> Individual:
    return children[int(np.argmin(surrogate.guess(np.array([child.genes for child in children]))))]
