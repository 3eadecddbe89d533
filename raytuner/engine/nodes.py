"""The nodes of the cluster that this process is connected to, and how to have something done on each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["HEAD", "Growth", "NodeAnswer", "ask_every_node", "autoscaler"]

ANSWER_SECONDS = 60.0
HEAD = "node:__internal_head__"
"""The resource by which Ray marks the head node."""
COUNTED = ("CPU", "GPU")
"""The resources by which a node is told to be of a kind."""


@dataclass(frozen=True)
class NodeAnswer:
    """What one node said."""

    node: str
    host: str
    address: str
    head: bool
    resources: Mapping[str, float]
    answer: dict[str, Any]
    """What the function returned there; empty when it could not be called."""
    error: str = ""
    """Why it could not be called."""
    skew: float = 0.0
    """Seconds that its clock is ahead of this one's."""


@dataclass(frozen=True)
class Growth:
    """What an autoscaler may add."""

    kinds: tuple[tuple[dict[str, float], dict[str, str], int], ...]
    """Kinds of nodes: the resources and labels of one, and how many there may be; none where they are not known."""
    most: int | None = None
    """Nodes beside the head at most, of all kinds."""

    def left(self, workers: Sequence[Mapping[str, float]]) -> list[tuple[dict[str, float], dict[str, str]]]:
        """The resources and labels of the nodes that may still come. workers: the resources of those that came."""
        found = []
        for resources, labels, count in self.kinds:
            came = sum(all(worker.get(name, 0.0) == resources.get(name, 0.0) for name in COUNTED) for worker in workers)
            found += [(resources, labels)] * max(0, count - came)
        return found if self.most is None else found[: max(0, self.most - len(workers))]


def ask_every_node(function: Callable[..., dict[str, Any]], *arguments: Any) -> list[NodeAnswer]:
    """Call a function, which must be importable on the nodes, on each of them at the same time; the head first."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = [node for node in ray.nodes() if node["Alive"]]
    task, clock = ray.remote(function), ray.remote(_clock)
    called, asked = {}, {}
    for node in there:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": strategy}
        called[node["NodeID"]] = task.options(**options).remote(node["NodeID"], *arguments)
        asked[node["NodeID"]] = clock.options(**options)
    answers, limit = [], time.monotonic() + ANSWER_SECONDS
    for node in there:
        answer, error, skew = {}, "", 0.0
        try:
            answer = ray.get(called[node["NodeID"]], timeout=max(0.0, limit - time.monotonic()))
            before = time.time()
            then = ray.get(asked[node["NodeID"]].remote(), timeout=ANSWER_SECONDS)
            after = time.time()
            skew = then - min(max(then, before), after)  # what cannot be the way there and back
        except ray.exceptions.GetTimeoutError:
            error = f"no answer within {ANSWER_SECONDS:g} s"
        except ray.exceptions.RayError as failure:
            error = str(failure).strip().splitlines()[-1]
        answers.append(
            NodeAnswer(
                node=node["NodeID"],
                host=node["NodeManagerHostname"],
                address=node["NodeManagerAddress"],
                head=HEAD in node["Resources"],
                resources=node["Resources"],
                answer=answer,
                error=error,
                skew=skew,
            )
        )
    return sorted(answers, key=lambda each: (not each.head, each.address))


def _clock() -> float:
    return time.time()


@cache
def autoscaler() -> Growth | None:
    """What may join the cluster that this process is connected to, if this is its head; None without an autoscaler."""
    if "--no-monitor" in os.environ.get("KUBERAY_GEN_RAY_START_CMD", ""):
        return Growth(())  # KubeRay's is a container of its own, which alone knows the kinds of nodes
    import psutil
    import ray

    gcs = f"--gcs-address={ray.get_runtime_context().gcs_address}"
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if gcs in command and any(part.endswith("/monitor.py") for part in command):
            configs = [part.partition("=")[2] for part in command if part.startswith("--autoscaling-config=")]
            return _growth(Path(configs[0]).expanduser()) if configs and configs[0] else None
    return None


def _growth(config: Path) -> Growth:
    import yaml

    try:
        data = yaml.safe_load(config.read_text())
        most, kinds = data.get("max_workers"), []
        for name, kind in data["available_node_types"].items():
            count = kind.get("max_workers", most or 0)
            if name != data["head_node_type"] and count and kind.get("resources"):
                kinds.append((dict(kind["resources"]), dict(kind.get("labels") or {}), int(count)))
        return Growth(tuple(kinds), most)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return Growth(())
