"""The sections of a definition: objective, budget, resources, checkpoints, tracking."""

from __future__ import annotations

import warnings
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from raytuner.definition.amounts import CpuAmount, GpuAmount, WorkerCount
from raytuner.definition.names import ClusterAddress, MetricName, RelativePath, Text, TrackingUri
from raytuner.definition.quantities import Duration, Size

__all__ = ["Budget", "Checkpoints", "Cluster", "Count", "Objective", "Replay", "Resources", "Tracking"]

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
    gpu_hours: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Hours of GPUs that trials may hold in all, after which they stop in the same way."""


class Resources(_Section):
    """What one trial gets: so many workers, and each of these the CPUs and GPUs."""

    workers: WorkerCount = 1
    """Processes that train a trial together, each with the CPUs and GPUs below; a number, or an expression."""
    placement: Literal["pack", "spread"] = "pack"
    """Whether a trial's workers go on as few nodes as possible, or on as many."""
    cpu: CpuAmount = 1.0
    """CPU cores of a worker, such as 2, or 0.5 so that trials share one; or an expression over the parameters."""
    gpu: GpuAmount = 0.0
    """GPUs of a worker: 0, a share such as 0.25, a whole number, auto for the share that trials are seen to need, or an
    expression over the parameters such as 1 if width <= 512 else 2."""
    accelerator: Text | None = None
    """The type of GPU that a worker needs, as Ray names it, such as H100."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that a worker's node must have."""
    mps: Annotated[bool, Field(strict=True)] = False
    """Whether trials that share a GPU do so through CUDA's multi-process service, where a node has it."""
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
    trials: Count | None = None
    """How many of the trials that have ended keep theirs, the best ones; all, if left out."""
    disk: Size | None = None
    """The disk space that the experiment's checkpoints may take together, such as 10GB."""


class Cluster(_Section):
    """The Ray cluster that ``raytuner launch`` hands the experiment to, and what goes there with it."""

    address: ClusterAddress | None = None
    """The address of the cluster's dashboard, such as http://head:8265; RAY_ADDRESS, if left out."""
    requirements: RelativePath | None = None
    """A file of pip requirements that the nodes install for this experiment; what their image has, if left out."""
    include: list[RelativePath] = Field(default_factory=list)
    """Files and folders that go along though git does not know them; patterns such as data/*.json."""
    limit: Size = 100 * 2**20
    """The size that all files that go along may have together."""


class Replay(_Section):
    """What an experiment of one trial trains again, as ``raytuner replay`` writes it."""

    experiment: Text
    """The experiment that the trial is from: its folder, or its address."""
    trial: Text
    """The trial."""
    value: float
    """The value that it had."""
    step: Count
    """The step of that value."""


with warnings.catch_warnings():
    # Pydantic takes `register` for ABCMeta.register, which no instance has.
    warnings.filterwarnings("ignore", message='Field name "register"')

    class Tracking(_Section):
        """Where runs are tracked."""

        mlflow: TrackingUri | None = None
        """The MLflow store: sqlite:///path, or a server's http address; an SQLite file in the storage, if left out."""
        register: Text | None = None
        """The name under which the best model is registered in MLflow; not registered, if left out."""
