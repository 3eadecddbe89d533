"""The object that a training function works with."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, NoReturn

from raytuner.errors import CheckpointError, ReportError, TrialError
from raytuner.training import devices
from raytuner.training.channel import Channel
from raytuner.training.checkpoint import load_checkpoint, verify_checkpoint
from raytuner.training.fence import Fence
from raytuner.training.gang import Alone
from raytuner.training.keeper import CheckpointKeeper, CheckpointPolicy
from raytuner.training.state import RNG, collect, restore, rng_states, seed_everything, set_rng_states

__all__ = ["Trial", "TrialSpec", "TrialStop"]


SEED_STRIDE = 1_000_003
"""Sets apart the seeds of trials that go on from other checkpoints than their own."""


class TrialStop(BaseException):
    """Unwinds a training function that has nothing more to do. Not an Exception: user code must not catch it."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class TrialSpec:
    """Everything a process needs to know to run one attempt of a trial; plain data."""

    trial: str
    attempt: int
    config: dict[str, Any]
    seed: int
    dir: str
    """The trial's folder."""
    metric: str
    mode: str = "min"
    select: str = "best"
    max_steps: int | None = None
    decides: tuple[int, ...] | None = ()
    """Steps after which the scheduler decides; None means every step."""
    pauses: bool = False
    """The scheduler may pause at a deciding step: a checkpoint is taken before it is asked."""
    checkpoints: tuple[str, ...] = ()
    """Where to start from: the first of these that is whole."""
    deadline: float | None = None
    """When the time budget ends (seconds since the epoch)."""
    policy: Mapping[str, Any] = field(default_factory=dict)
    """Fields of CheckpointPolicy."""
    gpus: tuple[str, ...] = ()
    gpu: float = 0.0
    """The GPUs of a process; below 1 the share of its one."""
    cpus: float = 1.0
    rank: int = 0
    world_size: int = 1
    """How many processes train this trial together; each has this spec, with its own ``rank``."""
    address: str = ""
    """The IP address of the process' own node, where ``world_size`` is more than 1."""
    meet: str = ""
    """Where rank 0 waits for the others, ``host:port``; empty for itself."""
    best: tuple[float, int] | None = None
    """The best value so far and its step, of earlier attempts."""
    earlier_seconds: float = 0.0
    """Training time of earlier attempts: the checkpoint of another trial does not tell."""

    @property
    def logs(self) -> Path:
        """The folder of the process' stdout.log and stderr.log."""
        return Path(self.dir) / f"rank-{self.rank}" if self.rank else Path(self.dir)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrialSpec:
        """The spec that ``dataclasses.asdict`` and a trip through JSON made of one."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**plain)


class Trial:
    """One configuration being trained. A training function gets it as its only argument.

    >>> def train(trial):
    ...     model, optimizer = build(trial.config)
    ...     for step in trial.steps(model=model, optimizer=optimizer):
    ...         fit_one_epoch(model, optimizer)
    ...         trial.report(val_accuracy=evaluate(model))
    """

    def __init__(self, spec: TrialSpec, channel: Channel, prepared: Any = None, gang: Alone | None = None) -> None:
        self._spec = spec
        self._channel = channel
        self._gang = gang or Alone()
        self.rank = self._gang.rank
        """This process' place in a distributed trial, from 0 on; 0 otherwise."""
        self.world_size = self._gang.size
        """How many processes train this trial."""
        self.prepared = prepared
        """What the training module's ``prepare()`` returned; loaded once a node and shared. Do not change it."""
        self.id = spec.trial
        self.attempt = spec.attempt
        self.config: dict[str, Any] = dict(spec.config)
        """The parameters' values; parameters that are not active are absent."""
        self.seed = spec.seed
        """Seeds everything in this trial; the global generators were seeded with it already."""
        self.max_steps = spec.max_steps
        self.dir = Path(spec.dir)
        """The trial's own folder, kept with the results."""
        self.device = "cuda" if spec.gpus else "cpu"
        """Where to put models and data: ``cuda`` (the process sees its own GPUs only) or ``cpu``."""
        self.state: dict[str, Any] = {}
        """What ``steps(**state)`` was given; plain values are read, set and restored here."""
        self.checkpoint: Path | None = None
        """The files that ``checkpoint_dir()`` saved, when the trial starts from such a checkpoint."""
        self.step = 0
        """The step in progress, or the last one reported outside ``steps()``; 0 before the first."""
        self._reported = 0
        self._in_steps = False
        self._ending: TrialStop | ReportError | None = None
        self._started = time.monotonic()
        self._earlier_seconds = 0.0
        self._last_report = self._started
        self._step_seconds = 0.0
        self._source: Path | None = None
        self._foreign = False  # the start is another trial's checkpoint, or one with another configuration
        self._samplers: list[Any] = []
        self._memory = 0
        self.dir.mkdir(parents=True, exist_ok=True)
        self._keeper = CheckpointKeeper(spec, channel, CheckpointPolicy(**spec.policy), state=self._lead_state)
        if self.rank == 0:
            fence = Fence(self.dir)
            fence.check(spec.attempt)
            fence.put(spec.attempt)
            for leftover in (*self.dir.glob(".files-*"), *self.dir.glob("checkpoints/.*")):
                shutil.rmtree(leftover, ignore_errors=True)  # an earlier attempt was killed as it wrote
            self._open_start(spec.checkpoints)
        start = self._gang.share(self._source)
        if self.rank > 0 and start is not None:
            self._open_start((str(start),))

    # -- where the trial starts ---------------------------------------------------------------------------------

    def _open_start(self, candidates: tuple[str, ...]) -> None:
        paths = [Path(path) for path in candidates]
        for place, path in enumerate(paths):
            try:
                manifest = verify_checkpoint(path)
            except CheckpointError as error:
                self._channel.send({"m": "warning", "text": str(error)})
                continue
            self._source = path
            self.step = self._reported = int(manifest["step"])
            self._foreign = "origin" in manifest
            self._earlier_seconds = self._spec.earlier_seconds if self._foreign else float(manifest.get("seconds", 0.0))
            self._keeper.continue_from(path, manifest, older=paths[place + 1 :])
            if (path / "files").is_dir():
                self.checkpoint = path / "files"
            break
        if candidates and self._source is None:
            self._channel.send(
                {"m": "warning", "text": f"trial {self.id}: no checkpoint is whole; it starts from scratch"}
            )

    def steps(self, **state: Any) -> Iterator[int]:
        """The steps that are left to train, from 1 (or the one after the checkpoint's) to ``max_steps``.

        ``state`` names what a checkpoint must hold: anything with ``state_dict``/``load_state_dict``, NumPy
        generators, arrays and tensors (restored in place), and plain values (read and set them in ``trial.state``).
        The states of Python's, NumPy's and torch's global generators come along. Before the first step, all of it is
        restored if the trial goes on from a checkpoint.

        Every step must call ``report`` once. The scheduler's decisions and checkpoints take effect between steps.
        Raises TrialError without ``objective.max_steps``, ReportError for a step without a report.
        """
        if self.max_steps is None:
            raise TrialError(
                "trial.steps(): objective.max_steps must be set to know how many steps there are, got none; "
                "set it in the definition, or loop yourself and call trial.report()"
            )
        if self._in_steps:
            raise TrialError("trial.steps() may be used once in a trial, got a second call; merge the loops")
        self.state.update(state)
        if self._source is not None and state:
            saved = load_checkpoint(self._source, device=self._map_device())
            restore(self.state, saved, as_built=self._foreign)
            if self._foreign:  # with the same random numbers, it would see what its source sees, in the same order
                seed_everything(self._seed_of_rank(self._reported))
            else:
                self._continue_rng(saved.get(RNG))
        elif self.rank > 0:  # models and splits are the same on every rank until here; dropout need not be
            seed_everything(self._seed_of_rank(0))
        self._in_steps = True
        self._keeper.watch(self.state)
        self._last_report = time.monotonic()
        for step in range(self._reported + 1, self.max_steps + 1):
            self.step = step
            for sampler in self._samplers:
                sampler.set_epoch(step)
            yield step
            self.check_ending()
            if self._reported < step and self.rank == 0:
                raise ReportError(
                    f"step {step} ended without a report; call trial.report({self._spec.metric}=...) once in every step"
                )
            self._between_steps(step)

    def _seed_of_rank(self, step: int) -> int:
        return ((self.seed * SEED_STRIDE + step) * self.world_size + self.rank) % 2**31

    def _continue_rng(self, saved: Any) -> None:
        """Put the generators back to what they were on this rank; with another number of ranks, begin new ones."""
        ranks = saved if isinstance(saved, list) else [saved]
        if len(ranks) != self.world_size:
            seed_everything(self._seed_of_rank(self._reported))
        elif ranks[self.rank] is not None:
            set_rng_states(ranks[self.rank])

    def restore(self, **state: Any) -> None:
        """Load the named parts of the checkpoint that the trial starts from (in ``test``: the best one).

        Raises CheckpointError when there is none, or a name is not in it.
        """
        if self._source is None:
            raise CheckpointError(
                f"trial {self.id} has no checkpoint to restore; pass what must be kept to trial.steps(model=model)"
            )
        self.state.update(state)
        restore(self.state, load_checkpoint(self._source, device=self._map_device()))

    def _map_device(self) -> str:
        return "cpu"  # load_state_dict copies to where each parameter lives

    # -- what it reports ----------------------------------------------------------------------------------------

    def report(self, metrics: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Report the metrics of a step: finite or not, but numbers; the objective's must be among them, and finite.

        Outside ``steps()`` every report is a step of its own. Raises ReportError for anything else, and for a second
        report in one step.
        """
        self._report({**(metrics or {}), **more})

    def _report(self, values: Mapping[str, Any], files: Path | None = None) -> None:
        self.check_ending()
        if self._in_steps and self._reported >= self.step:
            raise ReportError(f"step {self.step} has reported already; one report a step, with all its metrics")
        step = self.step if self._in_steps else self._reported + 1
        if self.max_steps is not None and step > self.max_steps:
            self._end(self._all_done())
        if unnamed := [name for name in values if not isinstance(name, str)]:
            raise ReportError(f"step {step}: a metric's name must be a string, got {unnamed[0]!r}")
        numbers = {name: self._number(step, name, value) for name, value in values.items()}
        metric = self._spec.metric
        if metric not in numbers:
            raise ReportError(
                f"step {step} reported {sorted(numbers)}; the objective {metric!r} is missing; "
                f"report it, or set objective.metric to one of those"
            )
        now = time.monotonic()
        self._step_seconds, self._last_report = now - self._last_report, now
        self._reported = self.step = step
        if self.rank == 0:
            seconds = self._earlier_seconds + now - self._started
            self._tell({"step": step, "metrics": numbers, "time": time.time(), "seconds": seconds}, files)
        else:
            self._channel.send({"m": "report", "step": step})  # for the seat, which says where a rank has ended
        if not self._in_steps:
            self._between_steps(step)
            if self.max_steps is not None and step >= self.max_steps:
                self._end(self._all_done())

    def _tell(self, report: dict[str, Any], files: Path | None) -> None:
        step, value = report["step"], report["metrics"][self._spec.metric]
        if not math.isfinite(value):
            self._channel.send({"m": "report", **report})
            self._end(
                ReportError(f"step {step} reported {self._spec.metric}={value}; the objective must be a finite number")
            )
        self._keeper.reported(report)
        self._channel.send({"m": "report", **report})
        self._measure(step)
        if files is not None:
            self._keeper.save(step, reason="user", files=files)

    def _measure(self, step: int) -> None:
        """Tell how much GPU memory was needed: after the first steps, and when it has become more."""
        memory = devices.peak_memory() if self._spec.gpus else None
        if memory is not None and memory[0] > 1.05 * self._memory:
            self._memory = memory[0]
            self._channel.send({"m": "memory", "step": step, "gpu_memory": memory[0], "gpu_total": memory[1]})

    def _all_done(self) -> TrialStop:
        return TrialStop("finished", f"all {self.max_steps} step{'s' * (self.max_steps != 1)} done")

    def _end(self, ending: TrialStop | ReportError) -> NoReturn:
        self._ending = ending
        raise ending

    def check_ending(self) -> None:
        """Raise again what has ended the trial already, if the training function caught it and went on."""
        if self._ending is not None:
            raise self._ending

    @staticmethod
    def _number(step: int, name: str, value: Any) -> float:
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()
        if hasattr(value, "item") and getattr(value, "size", None) == 1:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ReportError(
                f"step {step}: the metric {name!r} must be a number, got {type(value).__name__} {str(value)[:60]!r}; "
                "convert it with float(), or log it with trial.log_text()"
            )
        return float(value)

    def _between_steps(self, step: int) -> None:
        """The head of the loop: checkpoints by policy, requests that have arrived, the scheduler's decision; for all
        but rank 0, what it says.
        """
        if self.rank > 0:
            self._reported = step
            self._follow()
            return
        stop = self._lead(step)
        self._gang.share({"stop": stop.reason if stop else None})
        if stop is not None:
            self._end(stop)
        self._last_report = time.monotonic()  # waiting is not training

    def _lead(self, step: int) -> TrialStop | None:
        spec = self._spec
        last = self.max_steps is not None and step >= self.max_steps
        decides = not last and (spec.decides is None or step in spec.decides)
        # The next step may be cut short: it is now or never.
        soon = spec.deadline is not None and time.time() + 1.5 * self._step_seconds > spec.deadline
        demand = "last" if last else "pause" if decides and spec.pauses else "demand" if soon else ""
        self._keeper.between_steps(step, demand=demand)
        if soon:
            self._keeper.flush()
        if last:
            return None
        request = self._channel.poll()
        if decides and request is None:
            self._keeper.flush()  # a stop is a kill, so the best so far must be on disk before the question
            self._channel.send({"m": "decide", "step": step})
            request = self._channel.wait()
        if request is not None and request["op"] == "stop":
            self._keeper.between_steps(step, demand="demand")
            return TrialStop("stopped", request.get("reason", "asked to stop"))
        return None

    def _lead_state(self) -> dict[str, Any]:
        """What a checkpoint holds, with every rank's part in it."""
        self._gang.share("state")
        return self._collect_state()

    def _collect_state(self) -> dict[str, Any]:
        state = collect(self.state)  # on every rank: to collect what is sharded may take them all
        ranks = self._gang.gather(rng_states())
        return {**state, RNG: ranks if self.world_size > 1 else ranks[0]}

    def _follow(self) -> None:
        """Do as rank 0 says, until it lets the trial go on."""
        while (said := self._gang.share(None)) == "state":
            self._collect_state()
        if said["stop"] is not None:
            self._end(TrialStop("stopped", said["stop"]))

    def finish(self, *, save_last: bool = True) -> None:
        """Write what is still to be written; called when the training function has returned."""
        self._gang.returned = self._reported
        if self.rank > 0:
            self._follow()
            return
        if save_last and self.step == self._reported:  # in the middle of a step, the state belongs to none
            self._keeper.between_steps(self._reported, demand="last")
        self._keeper.flush()
        self._gang.share({"stop": None})

    @property
    def reported_steps(self) -> int:
        """How many steps were reported, earlier attempts included."""
        return self._reported

    # -- with others, in a distributed trial ---------------------------------------------------------------------

    def distribute(self, model: Any, **options: Any) -> Any:
        """The torch module on the trial's device, wrapped in DistributedDataParallel where several processes train it.

        options: DistributedDataParallel's. Pass what this returns to ``steps()``: checkpoints hold the module itself,
        so that ``test`` restores them without a wrapper.
        """
        model = model.to(self.device)
        if self.world_size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model, **options)

    def sampler(self, data: Any, *, shuffle: bool = True, drop_last: bool = False) -> Any:
        """A torch sampler for a DataLoader with this rank's share of ``data``, in another order in every step.

        With one process it is all of the data. Ranks get equally many items: some are seen twice, or with
        ``drop_last`` some not at all, where the data cannot be divided.
        """
        from torch.utils.data import DistributedSampler

        sampler: Any = DistributedSampler(
            data, self.world_size, self.rank, shuffle=shuffle, seed=self.seed, drop_last=drop_last
        )
        self._samplers.append(sampler)
        return sampler

    def reduce(self, metrics: Mapping[str, Any], op: str = "mean") -> dict[str, float]:
        """Each metric over all ranks: their mean, sum, min or max. Every rank must call it with the same names.

        ``report`` takes rank 0's metrics: ``trial.report(trial.reduce({"loss": loss}))`` reports the mean of all.
        Raises ReportError for other names on another rank, an unknown ``op``, and what is no number.
        """
        return self._gang.reduce({name: self._number(self.step, name, value) for name, value in metrics.items()}, op)

    # -- what it saves by itself ----------------------------------------------------------------------------------

    @contextmanager
    def checkpoint_dir(self) -> Iterator[Path]:
        """An empty folder to save into by your own means; it becomes this step's checkpoint.

        In a later attempt, and in ``test``, ``trial.checkpoint`` is a folder with the same files. With ``steps()`` it
        is written at the head of the loop, with the step's report; without, at once, for the last step reported. In a
        distributed trial it is the same folder on all ranks, or only on those that ask; rank 0 must.
        """
        folder = self.dir / f".files-{self.attempt}"
        if self.world_size == 1:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        if self.rank > 0:
            return
        if self._in_steps:
            self._keeper.attach(folder)
        else:
            self._keeper.save(self._reported, reason="user", files=folder)

    # -- what it shows ----------------------------------------------------------------------------------------------

    def log_text(self, name: str, text: str) -> None:
        """Keep a text as ``name`` (such as ``notes.txt``) among the trial's artifacts."""
        path = self._artifact(name)
        path.write_text(text, encoding="utf-8")
        self._logged(name, path)

    def log_image(self, name: str, image: Any) -> None:
        """Keep an image as ``name`` (ending in .png or .jpg): an array of shape (height, width) or (height, width, 3
        or 4), uint8 or floats in [0, 1], or a PIL image.
        """
        path = self._artifact(name)
        if not hasattr(image, "save"):
            import numpy as np
            from PIL import Image

            array = np.asarray(image)
            if array.dtype != np.uint8:
                array = (np.clip(array, 0.0, 1.0) * 255).round().astype(np.uint8)
            image = Image.fromarray(array)
        image.save(path)
        self._logged(name, path)

    def log_figure(self, name: str, figure: Any) -> None:
        """Keep a Matplotlib figure as ``name`` (ending in .png, .svg or .pdf)."""
        path = self._artifact(name)
        figure.savefig(path, bbox_inches="tight")
        self._logged(name, path)

    def _artifact(self, name: str) -> Path:
        relative = Path(name)
        if relative.is_absolute() or ".." in relative.parts or not name.strip():
            raise TrialError(f"an artifact's name must be a relative path without '..', got {name!r}; name it plot.png")
        path = self.dir / "artifacts" / f"{self.step:06d}" / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _logged(self, name: str, path: Path) -> None:
        self._channel.send({"m": "logged", "step": self.step, "name": name, "path": str(path)})
