"""Which configurations to try. Ask/tell algorithms without Ray."""

from raytuner.components import OutsideOptions
from raytuner.search.auto import AutoOptions, AutoSearch
from raytuner.search.base import Observation, Search, Status
from raytuner.search.bayesian import BayesianOptions, BayesianSearch
from raytuner.search.cmaes import CmaEsOptions, CmaEsSearch
from raytuner.search.genetic import GeneticOptions, GeneticSearch
from raytuner.search.grid import GridOptions, GridSearch
from raytuner.search.hyperopt import HyperOptOptions, HyperOptSearch
from raytuner.search.optuna import OptunaOptions, OptunaSearch
from raytuner.search.random import RandomOptions, RandomSearch
from raytuner.search.registry import SEARCHES, build_search
from raytuner.search.sobol import SobolOptions, SobolSearch

__all__ = [
    "SEARCHES",
    "AutoOptions",
    "AutoSearch",
    "BayesianOptions",
    "BayesianSearch",
    "CmaEsOptions",
    "CmaEsSearch",
    "GeneticOptions",
    "GeneticSearch",
    "GridOptions",
    "GridSearch",
    "HyperOptOptions",
    "HyperOptSearch",
    "Observation",
    "OptunaOptions",
    "OptunaSearch",
    "OutsideOptions",
    "RandomOptions",
    "RandomSearch",
    "Search",
    "SobolOptions",
    "SobolSearch",
    "Status",
    "build_search",
]
