"""The test function, run once on a checkpoint, on a slot's share of the cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import ray

from raytuner.engine.job import SlotJob
from raytuner.engine.serverclient import ServerClient
from raytuner.engine.supply import open_supply
from raytuner.training.trial import TrialSpec

__all__ = ["run_test_on_cluster"]


def _run(job: str, spec: str) -> dict[str, Any]:
    loaded = SlotJob.loads(job)
    supply = open_supply(loaded.storage, loaded.folder)
    client = ServerClient(loaded.server)
    gpus = tuple(str(gpu) for gpu in ray.get_gpu_ids())
    attempt = replace(TrialSpec.from_dict(json.loads(spec)), gpus=gpus)
    supply.begin(attempt, give_up=lambda: False)
    process = client.start("test", asdict(attempt), test=True)
    while True:
        for message in client.wait(process, 60.0):
            if message["m"] == "end":
                return {"metrics": message["metrics"], "error": message["error"]}
            if message["m"] == "exit":
                text = f"the test's process ended with {message['code']} before it returned"
                return {"metrics": {}, "error": {"kind": "exit", "message": text, "traceback": ""}}


def run_test_on_cluster(
    job: SlotJob,
    spec: TrialSpec,
    *,
    resources: Mapping[str, float],
    labels: Mapping[str, str],
    keep_waiting: Callable[[], bool],
) -> dict[str, Any]:
    """``metrics``, ``error`` and ``seconds``. ``keep_waiting`` is asked several times a second."""
    began = time.monotonic()
    others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    task = ray.remote(
        num_cpus=resources["CPU"],
        num_gpus=resources.get("GPU", 0),
        resources=others,
        label_selector=dict(labels),
        max_retries=0,
    )(_run)
    reference = task.remote(job.dumps(), json.dumps(asdict(spec)))
    while True:
        ready, _ = ray.wait([reference], timeout=0.2)
        if ready:
            break
        if not keep_waiting():
            ray.cancel(reference, force=True)
            error = {"kind": "stopped", "message": "the test was interrupted", "traceback": ""}
            return {"metrics": {}, "error": error, "seconds": time.monotonic() - began}
    try:
        result: dict[str, Any] = ray.get(reference)
    except ray.exceptions.RayError as problem:
        error = {"kind": "lost", "message": f"the test's slot was lost: {problem}", "traceback": ""}
        result = {"metrics": {}, "error": error}
    return {**result, "seconds": time.monotonic() - began}
