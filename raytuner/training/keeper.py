"""When a trial's checkpoints are written, and which of them are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytuner.errors import CheckpointError, DiskFullError
from raytuner.training.channel import Channel
from raytuner.training.checkpoint import remove_checkpoint, sync_checkpoint, write_checkpoint
from raytuner.training.fence import Fence
from raytuner.training.state import snapshot

if TYPE_CHECKING:
    from raytuner.training.trial import TrialSpec

__all__ = ["CheckpointKeeper", "CheckpointPolicy"]

# A best-so-far checkpoint is written at once if the last write is this long ago, else held in memory: a trial that
# improves at every one of its 10 ms steps must not spend them on the disk. What is held is written before a decision,
# before the time budget ends, and when the trial ends; only a kill in the middle of a step can lose it.
QUIET_SECONDS = 1.0
ROOM_SECONDS = 0.5  # how often a trial that waits for room on the disk tries again
QUIET_SHARE = 20.0  # ... and never more than a twentieth of the time goes into writing


@dataclass(frozen=True)
class CheckpointPolicy:
    """When to write and what to keep; times in seconds."""

    best: bool = True
    every_steps: int | None = None
    every_time: float | None = 60.0
    keep: int = 1
    """How many of the last checkpoints to keep, besides the best one."""


class CheckpointKeeper:
    """Writes one attempt's checkpoints by policy, tells of each, and deletes those that are no longer needed.

    ``state`` gives what a checkpoint holds, as it is now.
    """

    def __init__(
        self, spec: TrialSpec, channel: Channel, policy: CheckpointPolicy, state: Callable[[], dict[str, Any]]
    ) -> None:
        self._spec = spec
        self._state = state
        self._channel = channel
        self._policy = policy
        self._folder = Path(spec.dir) / "checkpoints"
        self._fence = Fence(Path(spec.dir))
        self._objects: Mapping[str, Any] = {}
        self._reports: list[dict[str, Any]] = []
        self._best: tuple[float, int] | None = spec.best
        self._held: tuple[int, dict[str, Any]] | None = None
        self._files: Path | None = None
        self._written: dict[int, Path] = {}
        self._unsynced: set[int] = set()
        self._last_write = time.monotonic()
        self._next_best = 0.0
        self._full = False  # was the disk, when something was to be written last
        self._done = 0

    def continue_from(self, path: Path, manifest: Mapping[str, Any], older: Iterable[Path] = ()) -> None:
        """The attempt goes on from this checkpoint; it and ``older`` ones are kept as long as the policy wants them."""
        self._reports = list(manifest.get("reports", []))
        self._done = int(manifest["step"])
        self._written[self._done] = path
        for other in older:
            if other.is_dir():
                self._written.setdefault(int(other.name.partition("-")[0]), other)

    def watch(self, objects: Mapping[str, Any]) -> None:
        """Name what the checkpoints hold."""
        self._objects = objects

    def reported(self, report: Mapping[str, Any]) -> None:
        """A step was reported; its checkpoint, if any, is taken between the steps."""
        self._reports.append(dict(report))
        value = report["metrics"][self._spec.metric]
        better = self._best is None or (value > self._best[0] if self._spec.mode == "max" else value < self._best[0])
        if better or self._spec.select == "last":
            self._best = (value, int(report["step"]))

    def between_steps(self, step: int, demand: str = "") -> None:
        """Write step's checkpoint where the policy or ``demand`` (its reason) asks for it."""
        if self._files is not None:
            files, self._files = self._files, None
            self.save(step, reason="user", files=files)
        if self._objects and step > 0 and step not in self._written:
            now = time.monotonic()
            policy = self._policy
            is_best = policy.best and self._best is not None and self._best[1] == step
            every = bool(policy.every_steps and step % policy.every_steps == 0) or (
                policy.every_time is not None and now - self._last_write >= policy.every_time
            )
            if demand or every:
                self.save(step, reason=demand or "every", wait=bool(demand))
            elif is_best and now >= self._next_best:
                self.save(step, reason="best", wait=False)
            elif is_best and self._done < step:
                self._held = (step, snapshot(self._state()))
        self._done = max(self._done, step)
        if self._held is not None and time.monotonic() >= self._next_best:
            self.flush(wait=False)

    def flush(self, *, wait: bool = True) -> None:
        """Write the best so far if it is only held in memory. wait: for room, if the disk is full."""
        if self._held is not None:
            step, state = self._held
            if self._best is not None and self._best[1] == step and step not in self._written:
                self._write(step, "best", state, None, wait=wait)
            if not self._full:
                self._held = None

    def attach(self, files: Path) -> None:
        """Write this folder, which the user has filled, with the checkpoint between this step and the next."""
        self._files = files

    def save(self, step: int, *, reason: str, files: Path | None = None, wait: bool = True) -> None:
        """Write the checkpoint of ``step`` now. wait: for room, if the disk is full; else go on without."""
        self._write(step, reason, self._state() if self._objects else None, files, wait=wait)
        if self._held is not None and self._held[0] == step:
            self._held = None

    def _write(self, step: int, reason: str, state: dict[str, Any] | None, files: Path | None, *, wait: bool) -> None:
        began = time.monotonic()
        path = self._folder / f"{step:06d}-{self._spec.attempt}"
        reports = [report for report in self._reports if report["step"] <= step]
        meta = {
            "trial": self._spec.trial,
            "attempt": self._spec.attempt,
            "step": step,
            "seconds": reports[-1]["seconds"] if reports else 0.0,
            "reports": reports,
        }
        try:
            size = self._write_patiently(path, state, meta, files, wait=wait)
        except CheckpointError as error:
            full = isinstance(error, DiskFullError)
            if not full and reason not in ("best", "every", "last"):
                raise
            # Training goes on without a checkpoint that was only a precaution; the user is told.
            if not (full and self._full):
                self._channel.send({"m": "warning", "text": f"{error}; training goes on without it"})
            self._full = full
            self._last_write = time.monotonic()
            self._next_best = self._last_write + max(QUIET_SECONDS, QUIET_SHARE * (self._last_write - began))
            return
        self._full = False
        self._written[step] = path
        self._unsynced.add(step)
        self._last_write = time.monotonic()
        took = self._last_write - began
        self._next_best = self._last_write + max(QUIET_SECONDS, QUIET_SHARE * took)
        message = {"m": "checkpoint", "step": step, "path": str(path), "bytes": size, "reason": reason}
        self._channel.send(message)
        self._prune()

    def _write_patiently(
        self, path: Path, state: dict[str, Any] | None, meta: dict[str, Any], files: Path | None, *, wait: bool
    ) -> int:
        """Write a checkpoint, once there is room for it if the trial is to ``wait``; its bytes."""
        while True:
            try:
                return write_checkpoint(path, state, meta=meta, files=files, fence=self._fence)
            except DiskFullError as error:
                if not wait:
                    raise
                if not self._full:
                    self._channel.send({"m": "warning", "text": f"{error}; the trial waits until there is room"})
                self._full = True
            self._channel.send({"m": "waiting"})
            time.sleep(ROOM_SECONDS)

    def _prune(self) -> None:
        keep = set(sorted(self._written)[-self._policy.keep :]) if self._policy.keep else set()
        if self._policy.best and self._best is not None:
            # Until the best step's own checkpoint stands, the best of those that do is kept in its place.
            values = {r["step"]: r["metrics"][self._spec.metric] for r in self._reports}
            known = [s for s in self._written if s in values]
            sign = -1.0 if self._spec.mode == "max" else 1.0
            if self._best[1] in self._written:
                keep.add(self._best[1])
            elif known:
                keep.add(min(known, key=lambda s: (sign * values[s], s)))
        keep.add(max(self._written))  # the one just written or started from: a restart needs it
        doomed = [s for s in self._written if s not in keep]
        if doomed:
            self._fence.check(self._spec.attempt)
            for step in sorted(keep & self._unsynced):
                sync_checkpoint(self._written[step])
            self._unsynced.clear()
        for step in doomed:
            path = self._written.pop(step)
            remove_checkpoint(path)
            self._channel.send({"m": "removed", "path": str(path)})
