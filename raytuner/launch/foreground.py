"""``raytuner try``: the training function in this process, on the defaults, for a few steps."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from raytuner.definition import import_from
from raytuner.plan import Plan
from raytuner.training.attempt import run_attempt
from raytuner.training.entry import load_module, resolve
from raytuner.training.gang import join_alone
from raytuner.training.trial import TrialSpec

__all__ = ["try_defaults"]


class _Printer:
    """A channel that prints what the trial says, and lets it go on."""

    def send(self, message: dict[str, Any]) -> None:
        match message["m"]:
            case "report":
                metrics = ", ".join(f"{name} {value:.5g}" for name, value in message["metrics"].items())
                print(f"step {message['step']}: {metrics}  ({message['seconds']:.2f} s)")
            case "warning":
                print(f"warning: {message['text']}", file=sys.stderr)
            case "checkpoint":
                print(f"step {message['step']}: checkpoint of {message['bytes']:,} bytes")

    def poll(self) -> dict[str, Any] | None:
        return None

    def wait(self) -> dict[str, Any]:
        return {"op": "go"}


def try_defaults(plan: Plan, *, steps: int) -> bool:
    """Train ``plan``'s defaults (or, without any, a random configuration) for ``steps`` steps; True if that went well.

    Nothing is recorded; checkpoints go to a temporary folder.
    """
    experiment = plan.experiment
    config = experiment.defaults or plan.space.sample(np.random.default_rng(experiment.seed))
    print(", ".join(f"{name}={value}" for name, value in config.items()))
    os.environ.update(experiment.env)
    import_from(plan.import_root)
    began = time.monotonic()
    function = resolve(experiment.train, plan.import_root)
    prepare = getattr(load_module(experiment.train, plan.import_root), "prepare", None)
    prepared = prepare() if callable(prepare) else None
    kind = plan.code["train"].kind
    if kind in ("ray_function", "ray_class"):
        from raytuner.engine import raycode

        function = (raycode.adapt_function if kind == "ray_function" else raycode.adapt_class)(function)
    print(f"imported in {time.monotonic() - began:.1f} s")
    workers = max(needs.workers for needs in plan.needs)
    if workers > 1:
        print(f"one process here, as rank 0 of 1; a run has {workers} workers a trial")
        join_alone()
    most = experiment.objective.max_steps
    gpus = (os.environ.get("CUDA_VISIBLE_DEVICES", "0"),) if plan.needs[-1].gpu else ()
    with tempfile.TemporaryDirectory(prefix="raytuner-try-") as folder:
        spec = TrialSpec(
            trial="000001",
            attempt=1,
            config=config,
            seed=plan.trial_seed("000001"),
            dir=str(Path(folder)),
            metric=experiment.objective.metric,
            mode=experiment.objective.mode,
            select=experiment.objective.select,
            max_steps=min(steps, most) if most is not None else None,
            gpus=gpus,
        )
        end = run_attempt(spec, _Printer(), function, prepared)
    if end["error"] is not None:
        print(end["error"]["traceback"] or end["error"]["message"], file=sys.stderr)
        return False
    print(end["reason"])
    return True
