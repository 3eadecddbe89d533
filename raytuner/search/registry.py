"""Searches by their type's name."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from raytuner.components import resolve
from raytuner.errors import Problem, SearchError
from raytuner.search.auto import AutoSearch
from raytuner.search.base import Search
from raytuner.search.bayesian import BayesianSearch
from raytuner.search.cmaes import CmaEsSearch
from raytuner.search.genetic import GeneticSearch
from raytuner.search.grid import GridSearch
from raytuner.search.hyperopt import HyperOptSearch
from raytuner.search.optuna import OptunaSearch
from raytuner.search.random import RandomSearch
from raytuner.search.sobol import SobolSearch
from raytuner.space import Config, Space

__all__ = ["SEARCHES", "build_search"]

SEARCHES: dict[str, type[Search]] = {
    "auto": AutoSearch,
    "bayesian": BayesianSearch,
    "cmaes": CmaEsSearch,
    "genetic": GeneticSearch,
    "grid": GridSearch,
    "hyperopt": HyperOptSearch,
    "optuna": OptunaSearch,
    "random": RandomSearch,
    "sobol": SobolSearch,
}
"""The searches of this package."""


def build_search(options: BaseModel, space: Space, seed: int, first: Sequence[Config] = ()) -> Search:
    """The search that the options describe; imports it when its type is ``package.module:Class``.

    Raises SearchError when it cannot be built or cannot express the space.
    """
    found, own = resolve(options, SEARCHES, Search, where="search")
    reasons = found.supports(space, own)
    if reasons:
        raise SearchError("\n".join(str(Problem("search", reason)) for reason in reasons))
    search: Search = found(space, seed=seed, first=first, options=own)
    return search
