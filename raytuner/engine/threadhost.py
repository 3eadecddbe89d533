"""Trials inside the actor (``isolation: actor``), for those that need Ray itself. What they lose: a stop waits for
the end of the step, ``step_timeout`` cannot end a step, output is the actor's, and a crash takes the slot along.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from raytuner.engine.batch import Batch
from raytuner.engine.host import BATCH_SECONDS, StopRequest
from raytuner.training.attempt import describe_error, run_attempt
from raytuner.training.trial import TrialSpec

__all__ = ["ThreadHost"]

END_SECONDS = 5.0


class _QueueChannel:
    """A channel between two threads."""

    def __init__(self) -> None:
        self.said: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def send(self, message: dict[str, Any]) -> None:
        self.said.put(message)

    def poll(self) -> dict[str, Any] | None:
        try:
            return self.requests.get_nowait()
        except queue.Empty:
            return None

    def wait(self) -> dict[str, Any]:
        return self.requests.get()


class ThreadHost:
    """Runs ``function`` in a thread of this process."""

    def __init__(self, function: Callable[[Any], Any], *, stop: StopRequest) -> None:
        self._function = function
        self._stop = stop
        self._spec: TrialSpec | None = None
        self._thread: threading.Thread | None = None
        self._channel = _QueueChannel()
        self._waiting = False

    def begin(self, spec: TrialSpec) -> None:
        self.end()
        self._spec, self._waiting = spec, False
        channel = self._channel = _QueueChannel()

        def run() -> None:
            try:
                end = run_attempt(spec, channel, self._function)
            except BaseException as error:  # a KeyboardInterrupt in this thread is the user's own
                described = describe_error(error)
                end = {"status": "failed", "reason": described["message"], "step": 0, "error": described}
            channel.send({"m": "end", **end})

        self._thread = threading.Thread(target=run, name=f"trial-{spec.trial}", daemon=True)
        self._thread.start()

    def collect(self) -> Batch:
        assert self._spec is not None
        batch = Batch(self._spec.trial, self._spec.attempt)
        stopped = self._pass_on_stop()
        if self._waiting:
            self._waiting = False
            if not stopped:
                self._channel.requests.put({"op": "go"})
        began = time.monotonic()
        while True:
            try:
                message = self._channel.said.get(timeout=0.1)
            except queue.Empty:
                message = None
            self._pass_on_stop()
            match message:
                case None:
                    pass
                case {"m": "decide", "step": step}:
                    batch.decide, self._waiting = step, True
                    return batch
                case {"m": "end"}:
                    batch.end = {k: message[k] for k in ("status", "reason", "step", "error")}
                    self._thread = None
                    return batch
                case _:
                    batch.messages.append(message)
            if batch.messages and time.monotonic() - began >= BATCH_SECONDS:
                return batch

    def _pass_on_stop(self) -> bool:
        stop = self._stop.take()
        if stop is not None:
            self._channel.requests.put({"op": "stop", "reason": stop.reason})
        return stop is not None

    def end(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._channel.requests.put({"op": "stop", "reason": "the slot is needed"})
        thread.join(END_SECONDS)
        if thread.is_alive():
            # A thread cannot be killed: the slot leaves, and Ray starts another.
            os._exit(1)

    def close(self) -> None:
        self.end()
