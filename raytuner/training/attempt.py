"""One attempt of a trial, from calling the user's function to telling how it ended; the same in every process."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any

from raytuner.disk import means_full
from raytuner.errors import CheckpointError, RaytunerError, ReportError
from raytuner.training.channel import Channel, ChannelClosed
from raytuner.training.gang import join
from raytuner.training.state import seed_everything
from raytuner.training.trial import Trial, TrialSpec, TrialStop

__all__ = ["describe_error", "run_attempt", "run_test"]

OURS = (str(Path(__file__).resolve().parent.parent) + os.sep, "<frozen importlib", importlib.__file__)
TRACEBACK_LINES = 30
NO_GPU_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""What CUDA's own libraries say, which torch passes on as plain errors."""


def run_attempt(
    spec: TrialSpec, channel: Channel, function: Callable[[Trial], Any], prepared: Any = None
) -> dict[str, Any]:
    """Train, and return how it ended: ``status`` (finished, stopped, failed), ``reason``, ``step``, ``error``.

    Only ChannelClosed and KeyboardInterrupt pass through.
    """
    seed_everything(spec.seed)
    trial: Trial | None = None
    error: dict[str, Any] | None = None
    try:
        trial = Trial(spec, channel, prepared, join(spec, channel))
        source = str(trial._source) if trial._source else None
        channel.send({"m": "started", "step": trial.step, "checkpoint": source, "pid": os.getpid()})
        status, reason = _train(trial, function)
    except (KeyboardInterrupt, ChannelClosed):
        raise
    except BaseException as problem:
        error = describe_error(problem)
        status, reason = "failed", error["message"]
    step = trial.reported_steps if trial is not None else 0
    return {"status": status, "reason": reason, "step": step, "error": error}


def _train(trial: Trial, function: Callable[[Trial], Any]) -> tuple[str, str]:
    """Call the user's function; its status and reason when it ended well."""
    try:
        result = function(trial)
        trial.check_ending()
    except TrialStop as stop:
        trial.finish(save_last=stop.status == "finished")
        return stop.status, stop.reason
    with suppress(TrialStop):  # a stop that came meanwhile: the function has ended by itself
        _returned(trial, result)
    trial.finish()
    return "finished", _how_far(trial)


def run_test(
    spec: TrialSpec, channel: Channel, function: Callable[[Trial], Any], prepared: Any = None
) -> dict[str, Any]:
    """Call the test function on a checkpoint; return ``metrics`` and ``error``."""
    seed_everything(spec.seed)
    try:
        trial = Trial(spec, channel, prepared)
        result = function(trial)
        if not isinstance(result, Mapping):
            raise ReportError(
                f"the test function must return its metrics as a dict, got {type(result).__name__}; "
                'return {"test_accuracy": ...}'
            )
        metrics = {str(name): Trial._number(trial.step, str(name), value) for name, value in result.items()}
        return {"metrics": metrics, "error": None, "step": trial.step}
    except (KeyboardInterrupt, ChannelClosed):
        raise
    except BaseException as error:
        return {"metrics": {}, "error": describe_error(error), "step": 0}


def _how_far(trial: Trial) -> str:
    steps = trial.reported_steps
    if trial.max_steps is not None and steps >= trial.max_steps:
        return f"all {steps} step{'s' * (steps != 1)} done"
    return f"the function returned after step {steps}"


def _returned(trial: Trial, result: Any) -> None:
    is_number = hasattr(result, "item") or (isinstance(result, Real) and not isinstance(result, bool))
    if (isinstance(result, Mapping) or is_number) and trial.reported_steps:
        raise ReportError(
            "the training function reported its steps and returned a result too, which belongs to no step; "
            "report everything with trial.report() and return nothing"
        )
    if isinstance(result, Mapping):
        trial.report(result)
    elif is_number:
        trial.report({trial._spec.metric: result})
    elif result is not None:
        raise ReportError(
            f"the training function may return nothing, a number (the objective) or a dict of metrics, "
            f"got {type(result).__name__}; call trial.report() instead"
        )
    if trial.reported_steps == 0:
        raise ReportError(
            f"the training function returned without a report; call trial.report({trial._spec.metric}=...), "
            "or return the objective"
        )


def describe_error(error: BaseException) -> dict[str, Any]:
    """``kind`` (error, report, checkpoint, disk, memory, gpu_memory, exit), ``message`` and ``traceback`` (its end,
    from the user's code on).
    """
    if isinstance(error, ReportError):
        kind = "report"
    elif isinstance(error, CheckpointError):
        kind = "checkpoint"
    elif means_full(error):
        kind = "disk"
    elif isinstance(error, MemoryError):
        kind = "memory"
    elif any(map(_means_no_gpu_memory, _causes(error))):
        kind = "gpu_memory"
    elif isinstance(error, SystemExit):
        return {"kind": "exit", "message": f"the training function called sys.exit({error.code!r})", "traceback": ""}
    else:
        kind = "error"
    name, text = type(error).__name__, _text(error)
    if isinstance(error, RaytunerError):
        lines = _user_frames(error)
    else:
        tail = _user_traceback(error.__traceback__)
        lines = "".join(traceback.format_exception(type(error), error, tail)).splitlines()
    return {
        "kind": kind,
        "message": text if kind == "report" else f"{name}: {text}"[:2000],
        "traceback": "\n".join(lines[-TRACEBACK_LINES:]),
    }


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came of, as Python shows them."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _means_no_gpu_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in _text(error) for said in NO_GPU_MEMORY)


def _text(error: BaseException) -> str:
    try:
        return str(error) or "(no message)"
    except Exception:  # an error's own __str__ may be what fails
        return "(its message cannot be shown)"


def _user_frames(error: RaytunerError) -> list[str]:
    """An error of ours: where the user's code led to it, and nothing of ours; empty when no code of theirs did."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(OURS)]
    if not frames:
        return []
    head = "Traceback (most recent call last):\n"
    return "".join([head, *traceback.format_list(frames), f"{type(error).__name__}: {error}"]).splitlines()


def _user_traceback(tail: TracebackType | None) -> TracebackType | None:
    """The traceback without our own frames at its head: what a user wants to see begins in their function."""
    whole = tail
    while tail is not None and tail.tb_frame.f_code.co_filename.startswith(OURS):
        tail = tail.tb_next
    return tail or whole
