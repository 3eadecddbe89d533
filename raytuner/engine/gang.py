"""A distributed trial's processes: rank 0 beside the slot, and one in each further bundle of its placement group.

The slot holds the placement group as long as it lives, with an actor (a seat) in every bundle but the first. An attempt
begins with rank 0's process, which says where it can be met; then the seats start theirs. The first rank that fails
ends the attempt: the others are killed at once, and what is told is how that one failed.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raytuner.engine.batch import Batch
from raytuner.engine.host import ProcessHost, StopRequest
from raytuner.engine.job import SlotJob
from raytuner.engine.supply import open_supply
from raytuner.training.trial import TrialSpec

__all__ = ["GangHost", "SeatLostError"]

SEAT_SECONDS = 60.0
"""How long a seat may take to come up: its resources are held for it already."""
BLAME_SECONDS = 0.5
"""How long to wait, after a rank has failed, for one that failed before it and was heard later."""
LEAVE_SECONDS = 5.0
"""How long the other ranks may take to leave once rank 0 has finished, or their processes were killed."""
CRASHES = ("signal", "killed", "exit", "timeout", "memory", "gpu_memory")


class SeatLostError(RuntimeError):
    """An actor of the gang is gone: the slot is of no use any more, and Ray Tune replaces it."""


class Seat:
    """The actor that runs one further rank. Two threads: ``run`` keeps one busy."""

    def __init__(self, job: str) -> None:
        self._stop = StopRequest()
        self._attempt = ""
        loaded = SlotJob.loads(job)
        self._supply = open_supply(loaded.storage, loaded.folder)
        self._host = ProcessHost(loaded.server, step_timeout=None, stop=self._stop)
        self._gpus = tuple(str(gpu) for gpu in ray.get_gpu_ids())
        self._address = ray.util.get_node_ip_address()

    def place(self) -> dict[str, Any]:
        """Where the rank runs: ``node`` and ``gpus``."""
        return {"node": self._address, "gpus": list(self._gpus)}

    def node_id(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def run(self, spec: str) -> dict[str, Any]:
        """Run the rank's process until it ends: ``end``, ``at`` (when), and the ``messages`` that it left."""
        self._stop.clear()
        attempt = replace(TrialSpec.from_dict(json.loads(spec)), gpus=self._gpus, address=self._address)
        self._attempt = f"{attempt.trial}-{attempt.attempt}"
        self._supply.begin(attempt, give_up=lambda: self._stop.pending)
        self._host.begin(attempt)
        messages: list[dict[str, Any]] = []
        while True:
            batch = self._host.collect()
            self._supply.secure(batch, give_up=lambda: True)
            messages += batch.messages
            if batch.end is not None:
                return {"end": batch.end, "at": self._host.ended_at, "messages": messages}

    def leave(self, attempt: str) -> None:
        """End the rank's process at once, if it is still of that attempt: calls may overtake each other."""
        if attempt == self._attempt:
            self._stop.fail({"status": "stopped", "reason": "the trial has ended", "step": 0, "error": None})


@dataclass
class _Ended:
    """How a rank's process ended."""

    rank: int
    end: dict[str, Any]
    at: float

    @property
    def failed(self) -> bool:
        return self.end["error"] is not None

    @property
    def blame(self) -> tuple[bool, float]:
        """Smallest for the rank that began it: what follows a crash are the others' errors about a peer that left."""
        return self.end["error"]["kind"] not in CRASHES, self.at


class GangHost(ProcessHost):
    """A host whose attempts have a process in each bundle of ``group``; ``self`` runs rank 0's."""

    def __init__(self, job: SlotJob, group: PlacementGroup, stop: StopRequest) -> None:
        super().__init__(job.server, step_timeout=job.step_timeout, stop=stop)
        self._address = ray.util.get_node_ip_address()
        bundles = group.bundle_specs
        seat = ray.remote(Seat)
        self._seats = [
            seat.options(
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                resources={k: v for k, v in bundle.items() if k not in ("CPU", "GPU", "memory")},
                max_concurrency=2,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            ).remote(job.dumps())
            for index, bundle in enumerate(bundles)
            if index > 0
        ]
        self.places: list[dict[str, Any]] = ray.get([s.place.remote() for s in self._seats], timeout=SEAT_SECONDS)
        """Where the further ranks run, from rank 1 on: ``node`` and ``gpus`` of each."""
        self.nodes: list[str] = ray.get([s.node_id.remote() for s in self._seats], timeout=SEAT_SECONDS)
        """The same, as Ray names the nodes."""
        self._outcomes: list[_Ended] = []
        self._messages: list[dict[str, Any]] = []
        self._lost = ""
        self._watcher: threading.Thread | None = None
        self._changed = threading.Condition()

    def begin(self, spec: TrialSpec) -> None:
        super().begin(replace(spec, world_size=1 + len(self._seats), address=self._address))

    def _take(self, batch: Batch, message: dict[str, Any]) -> None:
        if message["m"] == "meet":
            self._call(message["at"])
        else:
            super()._take(batch, message)

    def _call(self, meet: str) -> None:
        """Start the other ranks."""
        assert self._spec is not None
        self._outcomes, self._messages = [], []
        runs = {
            seat.run.remote(json.dumps(asdict(replace(self._spec, rank=rank, meet=meet)))): rank
            for rank, seat in enumerate(self._seats, start=1)
        }
        self._watcher = threading.Thread(target=self._watch, args=(runs,), name="gang", daemon=True)
        self._watcher.start()

    def _watch(self, runs: dict[Any, int]) -> None:
        """Take in how the other ranks end; the first that fails ends the attempt, once its brothers had their say."""
        waiting = list(runs)
        failure: dict[str, Any] | None = None
        limit = 0.0
        while waiting:
            left = None if failure is None else max(0.0, limit - time.monotonic())
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=left)
            for done in ready:
                ended = self._outcome(runs[done], done)
                with self._changed:
                    self._outcomes.append(ended)
                    self._changed.notify_all()
                if ended.failed and failure is None:
                    failure, limit = ended.end, time.monotonic() + BLAME_SECONDS
            if failure is not None and (not waiting or time.monotonic() >= limit):
                self._stop.fail(failure)
                failure = None

    def _outcome(self, rank: int, done: Any) -> _Ended:
        try:
            outcome = ray.get(done)
        except ray.exceptions.RayError as error:
            self._lost = f"rank {rank} was lost: {str(error).strip().splitlines()[-1]}"
            lost = {"kind": "lost", "message": self._lost, "traceback": ""}
            return _Ended(rank, {"status": "failed", "reason": self._lost, "step": 0, "error": lost}, 0.0)
        self._messages += [m for m in outcome["messages"] if m["m"] in ("warning", "logged")]
        return _Ended(rank, outcome["end"], outcome["at"])

    def collect(self) -> Batch:
        batch = super().collect()
        if batch.end is not None:
            batch.end = self._settle(batch.end)
            batch.messages += self._messages
            self._messages = []
            if self._lost:
                raise SeatLostError(self._lost)
        return batch

    def _settle(self, end: dict[str, Any]) -> dict[str, Any]:
        """Have all ranks end, and say how the gang did."""
        failed = end["error"] is not None
        self._wait_for_seats(BLAME_SECONDS if failed else LEAVE_SECONDS if end["status"] == "finished" else 0.0)
        with self._changed:
            ended = list(self._outcomes)
        self._dismiss()
        if not failed:
            return end
        failures = [e for e in ended if e.failed]
        if not any(e.end is end for e in failures):
            failures.append(_Ended(0, end, self.ended_at))
        first = min(failures, key=lambda e: e.blame)
        if first.rank == 0:
            return first.end
        error = first.end["error"]
        named = error["kind"] == "lost" or error["message"].startswith("rank ")
        message = error["message"] if named else f"rank {first.rank}: {error['message']}"
        return {**first.end, "step": self._step, "reason": message, "error": {**error, "message": message}}

    def _wait_for_seats(self, seconds: float) -> None:
        if self._watcher is not None:
            with self._changed:
                self._changed.wait_for(lambda: len(self._outcomes) == len(self._seats), timeout=seconds)

    def _dismiss(self) -> None:
        """End what still runs, and wait until it has."""
        watcher, self._watcher = self._watcher, None
        if watcher is None:
            return
        if watcher.is_alive():
            assert self._spec is not None
            attempt = f"{self._spec.trial}-{self._spec.attempt}"
            for seat in self._seats:
                seat.leave.remote(attempt)
            watcher.join(LEAVE_SECONDS)
        if watcher.is_alive():
            self._lost = self._lost or "a rank's process could not be ended"
        self._stop.clear()

    def end(self) -> None:
        super().end()
        if hasattr(self, "_seats"):  # not while this is made
            self._dismiss()

    def close(self) -> None:
        super().close()
        for seat in self._seats:
            with suppress(ray.exceptions.RayError):
                ray.kill(seat)
