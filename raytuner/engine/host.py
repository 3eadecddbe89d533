"""Where the trials of a slot run: each in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from raytuner.engine.batch import Batch
from raytuner.engine.control import Stop
from raytuner.engine.serverclient import Process, ServerClient, ServerSpec
from raytuner.errors import TrialError
from raytuner.training.trial import TrialSpec

__all__ = ["BATCH_SECONDS", "FROM_OUTSIDE", "Host", "ProcessHost", "StopRequest"]

BATCH_SECONDS = 1.0
"""A batch is sent at least this often while a trial reports."""
STARTED_SECONDS = 0.1
"""That a trial has started is told by then, if nothing else is: it is what its devices wait for."""
STOP_SECONDS = 0.7
"""How long a trial that was asked to stop may take to reach the end of its step and write a checkpoint."""
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
"""What ends a process is somebody else's doing by these; by others, such as SIGSEGV, its own."""
LOG_LINES = 15
LOG_BYTES = 16_000


class StopRequest:
    """A request to end the trial that a slot runs, set from another thread."""

    def __init__(self) -> None:
        self._asked: deque[Stop] = deque()
        self._failures: deque[dict[str, Any]] = deque()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)

    def set(self, stop: Stop) -> None:
        self._asked.append(stop)
        self._writer.send(b"x")

    def fail(self, end: dict[str, Any]) -> None:
        """The attempt is over, and this is how: its process is to be killed at once."""
        self._failures.append(end)
        self._writer.send(b"x")

    def take_failure(self) -> dict[str, Any] | None:
        """How the attempt ended, if that was said since."""
        return self._failures.popleft() if self._failures else None

    def clear(self) -> None:
        """Forget what was asked of an earlier attempt."""
        self.take()
        self._failures.clear()

    def take(self) -> Stop | None:
        """The last request that has come in since, or None."""
        with suppress(BlockingIOError):
            self._reader.recv(1024)
        stop = None
        while self._asked:
            stop = self._asked.popleft()
        return stop

    @property
    def pending(self) -> bool:
        """Whether something was asked for that nobody has taken yet."""
        return bool(self._asked or self._failures)

    def fileno(self) -> int:
        return self._reader.fileno()


class Host(Protocol):
    """Runs attempts, one at a time."""

    def begin(self, spec: TrialSpec) -> None:
        """Start an attempt; one that still runs is ended first."""

    def collect(self) -> Batch:
        """Let the attempt go on, and return its next batch. Never raises for what the trial did."""

    def end(self) -> None:
        """End the attempt at once, if one runs."""


class ProcessHost:
    """Each attempt is a process forked by the node's warm server."""

    def __init__(self, server: ServerSpec, *, step_timeout: float | None, stop: StopRequest) -> None:
        self._client = ServerClient(server)
        self._step_timeout = step_timeout
        self._stop = stop
        self._client.wake_with(stop.fileno())
        self._spec: TrialSpec | None = None
        self._process: Process | None = None
        self._waiting = False
        self._begin_error: str | None = None
        self._step = 0
        self._step_began: float | None = None
        self._stop_by: float | None = None
        self._stop_reason = ""
        self._log_began = 0
        self.ended_at = 0.0
        """When the attempt ended (seconds since the epoch): as its process said, or as its end was seen."""

    def begin(self, spec: TrialSpec) -> None:
        self.end()
        self._spec, self._waiting, self._begin_error, self._step = spec, False, None, 0
        self._step_began = None  # the server may still be importing: not the trial's time
        self._stop_by = None
        self._log_began = self._log.stat().st_size if self._log.exists() else 0
        try:
            self._process = self._client.start(f"{spec.trial}-{spec.attempt}", asdict(spec))
        except TrialError as error:
            self._begin_error = str(error)

    def collect(self) -> Batch:
        assert self._spec is not None
        batch = Batch(self._spec.trial, self._spec.attempt)
        process = self._process
        if process is None:
            batch.end = self._ended("lost", self._begin_error or "the attempt's process is gone")
            return batch
        if self._pass_on_stop(process, batch):
            return batch
        if self._waiting:
            self._waiting = False
            self._step_began = time.monotonic()
            if self._stop_by is None:
                process.send({"op": "go"})
        began = time.monotonic()
        while True:
            now = time.monotonic()
            longest = STARTED_SECONDS if [m["m"] for m in batch.messages] == ["started"] else BATCH_SECONDS
            if batch.messages and now - began >= longest:
                return batch
            limits = [began + longest if batch.messages else None, self._stop_by, self._step_by]
            limit = min((limit for limit in limits if limit is not None), default=None)
            for message in self._client.wait(process, None if limit is None else max(0.0, limit - now)):
                self._take(batch, message)
            if batch.end is not None and self._process is not None:
                self._leave(process)
            if batch.end is not None or (batch.decide is not None and self._stop_by is None):
                return batch
            if self._pass_on_stop(process, batch):
                return batch
            now = time.monotonic()
            if self._stop_by is not None and now >= self._stop_by:
                self.end()
                batch.end = {"status": "stopped", "reason": self._stop_reason, "step": self._step, "error": None}
                return batch
            if self._step_by is not None and now >= self._step_by:
                self.end()
                batch.end = self._ended(
                    "timeout", f"step {self._step + 1} took longer than step_timeout={self._step_timeout:g}s"
                )
                return batch

    def _pass_on_stop(self, process: Process, batch: Batch) -> bool:
        """Ask the trial to stop, if that was requested; it is killed if it has not by ``_stop_by``. True when it is
        over already.
        """
        batch.end = self._stop.take_failure()
        if batch.end is not None:
            self.end()
            return True
        stop = self._stop.take()
        if stop is not None:
            by = time.monotonic() + max(STOP_SECONDS, stop.by - time.time() if stop.by is not None else 0.0)
            if self._stop_by is None:
                process.send({"op": "stop", "reason": stop.reason})
                self._stop_by, self._stop_reason = by, stop.reason
            elif by < self._stop_by:  # there was time, and now there is none
                self._stop_by, self._stop_reason = by, stop.reason
        return False

    @property
    def _step_by(self) -> float | None:
        """When the step in progress must have ended, unless it is to stop before."""
        if self._step_timeout is None or self._step_began is None or self._stop_by is not None:
            return None
        return self._step_began + self._step_timeout

    def _take(self, batch: Batch, message: dict[str, Any]) -> None:
        process = self._process
        assert process is not None
        match message["m"]:
            case "decide":
                batch.decide = message["step"]
                self._waiting = True
            case "end":
                self.ended_at = message["at"]
                batch.end = {k: message[k] for k in ("status", "reason", "step", "error")}
            case "exit":
                self._forget(process)
                if batch.end is None:
                    self.ended_at = time.time()
                    batch.end = self._crashed(message)
            case "waiting":  # for the disk, which is none of the step's time
                self._step_began = time.monotonic()
            case kind:
                if kind in ("report", "started"):
                    self._step, self._step_began = message["step"], time.monotonic()
                batch.messages.append(message)

    def _leave(self, process: Process) -> None:
        """Done with a process that ends by itself, or was killed. Where it held a GPU, the next trial may need the
        memory that it frees only as it exits.
        """
        assert self._spec is not None
        if not self._spec.gpus or not process.pid:
            self._forget(process)
            return
        limit = time.monotonic() + 2.0
        while time.monotonic() < limit:
            if any(m["m"] == "exit" for m in self._client.wait(process, limit - time.monotonic())):
                break
        else:
            self._client.kill(process)
        self._forget(process)

    def _forget(self, process: Process) -> None:
        self._client.forget(process)
        self._process = None

    def end(self) -> None:
        if self._process is not None:
            self._client.kill(self._process)
            self._leave(self._process)

    def _crashed(self, exit: dict[str, Any]) -> dict[str, Any]:
        code = exit["code"]
        if code is None:
            return self._ended("lost", "the node's process server ended, and the trial with it")
        if code >= 0:
            return self._ended("exit", f"the trial's process left with exit code {code} in step {self._step + 1}")
        name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
        if exit.get("no_memory"):
            text = f"the system killed the trial's process in step {self._step + 1}, since there was no memory left"
            return self._ended("memory", f"{text}; the process held {exit['max_rss'] / 2**30:.1f} GiB at most")
        outside = -code in FROM_OUTSIDE
        hint = "; it was killed from outside" if outside else ""
        text = f"the trial's process ended by {name} in step {self._step + 1}{hint}"
        return self._ended("killed" if outside else "signal", text)

    def _ended(self, kind: str, message: str) -> dict[str, Any]:
        error = {"kind": kind, "message": message, "traceback": self._log_tail()}
        return {"status": "failed", "reason": message, "step": self._step, "error": error}

    def _log_tail(self) -> str:
        """The end of what this attempt wrote to stderr."""
        try:
            with self._log.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_began, end - LOG_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-LOG_LINES:])

    @property
    def _log(self) -> Path:
        assert self._spec is not None
        return self._spec.logs / "stderr.log"

    def close(self) -> None:
        self.end()
        self._client.close()
