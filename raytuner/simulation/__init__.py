"""Search and scheduler cores against tables of real trainings: any number of workers, a virtual clock, no Ray."""

from raytuner.simulation.cluster import Budget, Cluster, Run, simulate_run
from raytuner.simulation.made import MADE
from raytuner.simulation.picture import check_picture
from raytuner.simulation.simulate import MARKS, Simulation, load_table, simulate
from raytuner.simulation.tables import Curve, Reference, Table, read_table, table_names

__all__ = [
    "MADE",
    "MARKS",
    "Budget",
    "Cluster",
    "Curve",
    "Reference",
    "Run",
    "Simulation",
    "Table",
    "check_picture",
    "load_table",
    "read_table",
    "simulate",
    "simulate_run",
    "table_names",
]
