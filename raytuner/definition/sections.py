"""The sections of a definition: objective, budget, resources, checkpoints, tracking."""

from __future__ import annotations

import warnings
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from raytuner.definition.names import MetricName, Text, TrackingUri
from raytuner.definition.quantities import Duration, Size
from raytuner.space import broken_rule

__all__ = ["Budget", "Checkpoints", "Count", "Objective", "Resources", "Tracking"]

Count = Annotated[int, Field(strict=True, ge=1)]
"""A whole number of at least 1."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)


class Objective(_Section):
    """What is optimised."""

    metric: MetricName
    """The metric that trials report and that is optimised, such as val_accuracy."""
    mode: Literal["min", "max"]
    """Whether less (min) or more (max) of the metric is better."""
    max_steps: Count | None = None
    """The most steps (reports) that a trial takes; it ends by itself if left out."""
    select: Literal["best", "last"] = "best"
    """Whether a trial's value is the best of its steps, or its last."""


class Budget(_Section):
    """When the experiment ends: what is reached first."""

    trials: Count | None = None
    """Trials that are started at most."""
    time: Duration | None = None
    """Time after which running trials write a checkpoint and stop: 30m, 1h30m, 2d, or seconds."""


def _whole_above_one(gpu: float) -> float:
    if gpu > 1 and gpu != int(gpu):
        raise broken_rule("above 1, a number of GPUs must be whole", remedy=f"use {int(gpu)} or {int(gpu) + 1}")
    return gpu


class Resources(_Section):
    """What one trial gets: so many workers, and each of these the CPUs and GPUs."""

    workers: Count = 1
    """Processes that train a trial together, each with the CPUs and GPUs below."""
    placement: Literal["pack", "spread"] = "pack"
    """Whether a trial's workers go on as few nodes as possible, or on as many."""
    cpu: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 1.0
    """CPU cores of a worker; a fraction such as 0.5 lets trials share one."""
    gpu: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False), AfterValidator(_whole_above_one)] = 0.0
    """GPUs of a worker: 0, a fraction (trials share one), or a whole number."""
    concurrent_trials: Count | None = None
    """Trials that run at the same time at most; as many as the machine has room for, if left out."""


class Checkpoints(_Section):
    """Which checkpoints are written and kept."""

    best: Annotated[bool, Field(strict=True)] = True
    """Whether a trial's best checkpoint is kept."""
    every_steps: Count | None = None
    """Write one every so many steps."""
    every_time: Duration | None = 60.0
    """Write one when this much time has passed since the last; null for never."""
    keep: Count = 1
    """The last checkpoints that a trial keeps, besides its best."""
    disk: Size | None = None
    """The disk space that the experiment's checkpoints may take together, such as 10GB."""


with warnings.catch_warnings():
    # Pydantic takes `register` for ABCMeta.register, which no instance has.
    warnings.filterwarnings("ignore", message='Field name "register"')

    class Tracking(_Section):
        """Where runs are tracked."""

        mlflow: TrackingUri | None = None
        """The MLflow store: sqlite:///path, or a server's http address; an SQLite file in the storage, if left out."""
        register: Text | None = None
        """The name under which the best model is registered in MLflow; not registered, if left out."""
