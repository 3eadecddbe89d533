"""The test function, run once on a checkpoint, on a slot's share of the cluster."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import ray

from raytuner.engine.host import FROM_OUTSIDE
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
    warned: list[str] = []
    while True:
        for message in client.wait(process, 60.0):
            match message["m"]:
                case "warning":
                    warned.append(message["text"])
                case "end":
                    return {"metrics": message["metrics"], "error": _explained(message["error"], warned)}
                case "exit":
                    return {"metrics": {}, "error": _gone(message)}


def _explained(error: dict[str, Any] | None, warned: list[str]) -> dict[str, Any] | None:
    """The error with what was said before it, such as that the checkpoint is damaged."""
    if error is None or not warned:
        return error
    return {**error, "message": "; ".join([*warned, error["message"]])}


def _gone(exit: dict[str, Any]) -> dict[str, Any]:
    """The error of a test whose process has ended before it returned."""
    code = exit["code"]
    if code is None:
        kind, text = "lost", "the node's process server ended, and the test with it"
    elif exit.get("no_memory"):
        kind, text = "memory", "the system killed the test's process, since there was no memory left"
    elif -code in FROM_OUTSIDE:
        kind, text = "killed", f"the test's process ended by {signal.Signals(-code).name}; it was killed from outside"
    else:
        kind, text = "exit", f"the test's process ended with {code} before it returned"
    return {"kind": kind, "message": text, "traceback": ""}


def run_test_on_cluster(
    job: SlotJob,
    spec: TrialSpec,
    *,
    resources: Mapping[str, float],
    labels: Mapping[str, str],
    keep_waiting: Callable[[], bool],
) -> dict[str, Any] | None:
    """``metrics``, ``error`` and ``seconds``; None where it was given up. ``keep_waiting`` is asked several times a
    second whether to go on.
    """
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
            return None
    try:
        result: dict[str, Any] = ray.get(reference)
    except ray.exceptions.RayError as problem:
        error = {"kind": "lost", "message": f"the test's slot was lost: {problem}", "traceback": ""}
        result = {"metrics": {}, "error": error}
    return {**result, "seconds": time.monotonic() - began}
