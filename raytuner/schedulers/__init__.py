"""Which running trials go on, pause, stop, or copy another. Decision cores without Ray."""

from raytuner.components import OutsideOptions
from raytuner.schedulers.asha import AshaOptions, AshaScheduler
from raytuner.schedulers.base import Decision, Exploit, Resume, Scheduler
from raytuner.schedulers.none import NoneOptions, NoneScheduler
from raytuner.schedulers.pbt import PbtOptions, PbtScheduler
from raytuner.schedulers.registry import SCHEDULERS, build_scheduler
from raytuner.schedulers.schedule import Change, ScheduleOptions, ScheduleScheduler

__all__ = [
    "SCHEDULERS",
    "AshaOptions",
    "AshaScheduler",
    "Change",
    "Decision",
    "Exploit",
    "NoneOptions",
    "NoneScheduler",
    "OutsideOptions",
    "PbtOptions",
    "PbtScheduler",
    "Resume",
    "ScheduleOptions",
    "ScheduleScheduler",
    "Scheduler",
    "build_scheduler",
]
