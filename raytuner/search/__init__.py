"""Which configurations to try. Ask/tell algorithms without Ray."""

from raytuner.components import OutsideOptions
from raytuner.search.base import Observation, Search, Status
from raytuner.search.grid import GridOptions, GridSearch
from raytuner.search.hyperopt import HyperOptOptions, HyperOptSearch
from raytuner.search.random import RandomOptions, RandomSearch
from raytuner.search.registry import SEARCHES, build_search

__all__ = [
    "SEARCHES",
    "GridOptions",
    "GridSearch",
    "HyperOptOptions",
    "HyperOptSearch",
    "Observation",
    "OutsideOptions",
    "RandomOptions",
    "RandomSearch",
    "Search",
    "Status",
    "build_search",
]
