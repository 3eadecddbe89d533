"""What an experiment has come to, read from its journal: frames, status, report, the best model."""

from raytuner.analysis.best import best, best_lines, export
from raytuner.analysis.reading import Savings
from raytuner.analysis.report import report, write_report
from raytuner.analysis.results import BestTrial, Results, load
from raytuner.analysis.status import status, status_lines, under_way
from raytuner.analysis.usage import usage, usage_lines
from raytuner.analysis.why import why, why_lines

__all__ = [
    "BestTrial",
    "Results",
    "Savings",
    "best",
    "best_lines",
    "export",
    "load",
    "report",
    "status",
    "status_lines",
    "under_way",
    "usage",
    "usage_lines",
    "why",
    "why_lines",
    "write_report",
]
