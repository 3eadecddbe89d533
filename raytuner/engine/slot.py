"""The slot: a reusable Ray actor on its share of a node, which runs one attempt of a trial after the other.

To Ray Tune it is a ``Trainable`` with ``reset_config``, by the methods that it calls; it is not derived from it, since
importing that class costs each actor more than a second and 150 MB.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from typing import Any

import ray

from raytuner.engine.control import ControlLine, Stop
from raytuner.engine.host import Host, ProcessHost, StopRequest
from raytuner.engine.job import SlotJob
from raytuner.engine.supply import open_supply
from raytuner.training.trial import TrialSpec

__all__ = ["BATCH", "Slot"]

NODE_SECONDS = 0.3
"""How long after its process server a node may be seen to end."""
BATCH = "raytuner_batch"
"""The key of a result under which a batch travels."""


class Slot:
    """Ray Tune's view of a slot. Its config holds two strings: the job (constant) and the attempt.

    A trial's failure comes back as a result; only a bug of ours, or the loss of the slot, is an exception.
    """

    def __init__(self, config: dict[str, Any], storage: Any = None) -> None:
        self._job = SlotJob.loads(config["job"])
        self._name = ray.get_runtime_context().get_actor_id()
        self._node = ray.util.get_node_ip_address()
        self._raylet = os.getppid()
        self._stop = StopRequest()
        self._hurry = False
        self._line = ControlLine(self._job.control, self._on_stop, self._on_lost)
        self._supply = open_supply(self._job.storage, self._job.folder)
        self._gpus = tuple(str(gpu) for gpu in ray.get_gpu_ids())
        self._names: tuple[str | None, ...] = (None,)
        self._ranks: list[dict[str, Any]] = []
        self._nodes = [ray.get_runtime_context().get_node_id()]
        self._host = self._make_host()
        self._begin(config)

    def _make_host(self) -> Host:
        if self._job.isolation == "process":
            group = ray.util.get_current_placement_group()
            if group is not None and group.bundle_count > 1:
                from raytuner.engine.gang import GangHost

                gang = GangHost(self._job, group, stop=self._stop)
                self._ranks = gang.places
                self._nodes += gang.nodes
                return gang
            return ProcessHost(self._job.server, step_timeout=self._job.step_timeout, stop=self._stop)
        from raytuner.engine.actorcode import load_in_actor
        from raytuner.engine.threadhost import ThreadHost

        return ThreadHost(load_in_actor(self._job.server), stop=self._stop)

    def reset(self, new_config: dict[str, Any], storage: Any = None) -> bool:
        """Begin another attempt; the actor is Ray Tune's to reuse."""
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        spec = TrialSpec.from_dict(json.loads(config["attempt"]))
        self._host.end()
        self._stop.clear()
        self._hurry = False
        self._names = (spec.trial, f"{spec.trial}-{spec.attempt}", None)
        stop = self._line.asked(self._names)
        if stop is not None:
            self._hurry = True
            self._stop.set(stop)
        self._supply.begin(spec, give_up=lambda: self._hurry)
        self._host.begin(replace(spec, gpus=self._gpus))

    def train(self) -> dict[str, Any]:
        """The next batch of the attempt."""
        batch = self._host.collect()
        self._supply.secure(batch, give_up=lambda: self._hurry)
        if batch.end is not None and batch.end["error"] is not None and batch.end["error"]["kind"] == "lost":
            self._end_with_node()
        place = {"node": self._node, "gpus": self._gpus, "ranks": self._ranks, "nodes": self._nodes}
        return {BATCH: batch.dumps(), "slot": self._name, "place": json.dumps(place)}

    def _end_with_node(self) -> None:
        """If what was lost was the node, so is this slot: another attempt must not start here."""
        limit = time.monotonic() + NODE_SECONDS
        while os.getppid() == self._raylet:
            if time.monotonic() > limit:
                return
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)

    def _on_stop(self, trial: str | None, stop: Stop) -> None:
        if trial in self._names:
            self._hurry = True
            self._stop.set(stop)

    def _on_lost(self) -> None:
        # The driver is gone: Ray will end this actor some time; its trial has to end now.
        os.kill(os.getpid(), signal.SIGKILL)

    def stop(self) -> None:
        """Ray Tune needs the actor no longer."""
        self._line.close()
        self._host.end()
        self._supply.end()
