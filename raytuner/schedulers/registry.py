"""Schedulers by their type's name."""

from __future__ import annotations

from pydantic import BaseModel

from raytuner.components import resolve
from raytuner.schedulers.asha import AshaScheduler
from raytuner.schedulers.base import Scheduler
from raytuner.schedulers.none import NoneScheduler
from raytuner.schedulers.pbt import PbtScheduler
from raytuner.schedulers.schedule import ScheduleScheduler
from raytuner.space import Space

__all__ = ["SCHEDULERS", "build_scheduler"]

SCHEDULERS: dict[str, type[Scheduler]] = {
    "asha": AshaScheduler,
    "none": NoneScheduler,
    "pbt": PbtScheduler,
    "schedule": ScheduleScheduler,
}
"""The schedulers of this package."""


def build_scheduler(options: BaseModel, max_steps: int | None, seed: int, space: Space | None = None) -> Scheduler:
    """The scheduler that the options describe; imports it when its type is ``package.module:Class``.

    space: what it is told of before anything else, where there is one.

    Raises SearchError when it cannot be built.
    """
    found, own = resolve(options, SCHEDULERS, Scheduler, where="scheduler")
    scheduler: Scheduler = found(own, max_steps=max_steps, seed=seed)
    if space is not None:
        scheduler.use(space)
    return scheduler
