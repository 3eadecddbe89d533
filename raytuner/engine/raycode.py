"""Code that was written for Ray Tune, run as a training function of ours: functions of a config, and Trainables."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

from raytuner.errors import TrialError
from raytuner.training.trial import Trial

__all__ = ["adapt_class", "adapt_function"]


def _numbers(result: dict[str, Any]) -> dict[str, Any]:
    """The numeric metrics of a Ray result, nested ones with slashes, without those that Ray filled in."""
    from ray.tune.result import AUTO_RESULT_KEYS

    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}/{key}" if prefix else str(key), inner)
        elif (isinstance(value, Real) or hasattr(value, "item")) and not isinstance(value, bool):
            flat[prefix] = value

    walk("", {k: v for k, v in result.items() if k not in AUTO_RESULT_KEYS and k not in ("config", "done")})
    return flat


class _Session:
    """Stands in for Ray Tune's session: what ``ray.tune.report``, ``get_checkpoint`` and ``get_context`` look at."""

    world_rank = None  # how Ray tells a Tune session from a Train session

    def __init__(self, trial: Trial) -> None:
        from ray.tune import Checkpoint

        self._trial = trial
        self.loaded_checkpoint = Checkpoint.from_directory(str(trial.checkpoint)) if trial.checkpoint else None
        self.experiment_name = trial.dir.parent.parent.name
        self.trial_name = self.trial_id = self.run_id = trial.id
        self.trial_dir = str(trial.dir)
        self.trial_resources = None
        self.storage = None

    def report(self, metrics: dict[str, Any], checkpoint: Any = None, checkpoint_dir_name: str | None = None) -> None:
        files = None
        if checkpoint is not None:
            files = Path(checkpoint.to_directory(tempfile.mkdtemp(prefix=".files-", dir=self._trial.dir)))
        self._trial._report(_numbers(metrics), files)


def adapt_function(function: Callable[[dict[str, Any]], Any]) -> Callable[[Trial], Any]:
    """A plain Ray Tune function, ``def train(config)`` with ``ray.tune.report``, as a function of a trial."""

    def train(trial: Trial) -> None:
        from ray.train._internal import session

        session._session = _Session(trial)
        try:
            result = function(dict(trial.config))
        finally:
            session._session = None
        if isinstance(result, dict):
            trial._report(_numbers(result))
        elif isinstance(result, Real) and not isinstance(result, bool):
            trial._report({trial._spec.metric: result})
        elif result is not None:
            raise TrialError(
                f"a Ray Tune function may return nothing, a number or a dict, got {type(result).__name__}; "
                "call ray.tune.report() instead"
            )

    return train


class _Saved:
    """A Ray Trainable as something with a state."""

    def __init__(self, trainable: Any) -> None:
        self._trainable = trainable

    def state_dict(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            value = self._trainable.save_checkpoint(folder)
            files = {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in Path(folder).rglob("*")
                if path.is_file()
            }
        counters = {name: getattr(self._trainable, name) for name in ("_iteration", "_time_total")}
        return {"value": value if isinstance(value, dict) else None, "files": files, "counters": counters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in state["files"].items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self._trainable.load_checkpoint(folder if state["value"] is None else state["value"])
        for name, value in state["counters"].items():
            setattr(self._trainable, name, value)


def adapt_class(cls: Callable[..., Any]) -> Callable[[Trial], Any]:
    """A Ray ``Trainable`` class as a function of a trial: a ``train()`` of it is a step."""

    def train(trial: Trial) -> None:
        trainable = cls(config=dict(trial.config))
        try:
            if trial.max_steps is None:
                while _step(trainable, trial):
                    pass
            else:
                for _ in trial.steps(trainable=_Saved(trainable)):
                    if not _step(trainable, trial):
                        break
            trial.finish()  # what has been cleaned up cannot be saved
        finally:
            trainable.stop()

    return train


def _step(trainable: Any, trial: Trial) -> bool:
    result = trainable.train()
    trial._report(_numbers(result))
    return not result.get("done")
