"""Which running trials go on, pause or stop. Decision cores without Ray."""

from raytuner.components import OutsideOptions
from raytuner.schedulers.asha import AshaOptions, AshaScheduler
from raytuner.schedulers.base import Decision, Scheduler
from raytuner.schedulers.none import NoneOptions, NoneScheduler
from raytuner.schedulers.registry import SCHEDULERS, build_scheduler

__all__ = [
    "SCHEDULERS",
    "AshaOptions",
    "AshaScheduler",
    "Decision",
    "NoneOptions",
    "NoneScheduler",
    "OutsideOptions",
    "Scheduler",
    "build_scheduler",
]
