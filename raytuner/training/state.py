"""What a trial keeps from step to step: collected for a checkpoint, copied in memory, put back after a restart."""

from __future__ import annotations

import copy
import os
import random
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np

from raytuner.errors import CheckpointError

__all__ = ["collect", "restore", "rng_states", "seed_everything", "set_rng_states", "snapshot"]

RNG = "__rng__"


def collect(objects: Mapping[str, Any]) -> dict[str, Any]:
    """The state of each named object: its ``state_dict()``, a generator's state, or the value itself."""
    state: dict[str, Any] = {}
    for name, value in objects.items():
        torch = sys.modules.get("torch")
        if isinstance(value, np.random.Generator):
            state[name] = value.bit_generator.state
        elif isinstance(value, random.Random):
            state[name] = value.getstate()
        elif isinstance(value, np.random.RandomState) or (torch is not None and isinstance(value, torch.Generator)):
            state[name] = value.get_state()
        elif hasattr(value, "state_dict"):
            state[name] = _unwrapped(value).state_dict()
        else:
            state[name] = value
    return state


def _unwrapped(value: Any) -> Any:
    """The module itself, where it is wrapped for several processes: it is restored with another number of them too."""
    parallel = sys.modules.get("torch.nn.parallel")
    if parallel is not None and isinstance(value, parallel.DistributedDataParallel):
        return value.module
    return value


def snapshot(state: Any) -> Any:
    """A copy in memory that later training steps do not change; tensors are copied to the CPU."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(state, torch.Tensor):
        tensor = state.detach()
        return tensor.clone() if tensor.device.type == "cpu" else tensor.to("cpu", copy=True)
    if isinstance(state, np.ndarray):
        return state.copy()
    if isinstance(state, dict):
        copied = {key: snapshot(value) for key, value in state.items()}
        if type(state) is dict:
            return copied
        same = copy.copy(state)  # OrderedDict and the like, with its attributes (a state_dict's _metadata)
        same.update(copied)
        return same
    if type(state) in (list, tuple):
        return type(state)(snapshot(value) for value in state)
    if isinstance(state, (str, bytes, int, float, bool, type(None))):
        return state
    return copy.deepcopy(state)


def restore(objects: MutableMapping[str, Any], saved: Mapping[str, Any], *, as_built: bool = False) -> None:
    """Put ``saved`` back into the named objects: in place where there is a way, else by replacing the entry.

    as_built: the settings of torch's optimizers and learning-rate schedules (learning rate, weight decay, momentum)
    stay what they were built with, and do not come from the other configuration that the state was saved under. A
    schedule goes on where it was, in proportion to its new base.
    Raises CheckpointError when a name was not saved, or does not fit.
    """
    built = {name: _settings(target) for name, target in objects.items()} if as_built else {}
    _restore(objects, saved)
    for name, settings in built.items():
        _settle(objects[name], settings)


def _settings(target: Any) -> Any:
    """The settings of an optimizer, a list of one mapping a group, or the base learning rates of a schedule."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    if isinstance(target, torch.optim.Optimizer):
        return [{key: value for key, value in group.items() if key != "params"} for group in target.param_groups]
    if isinstance(target, torch.optim.lr_scheduler.LRScheduler) and hasattr(target, "base_lrs"):
        return list(target.base_lrs)
    return None


def _settle(target: Any, built: Any) -> None:
    if built is None:
        return
    if hasattr(target, "param_groups"):
        for group, settings in zip(target.param_groups, built, strict=True):
            base, new = group.get("initial_lr"), settings.get("initial_lr")  # which a schedule leaves there
            now = group["lr"] * new / base if base and new is not None else settings["lr"]
            group.update({**settings, "lr": now})
    else:
        before = target.base_lrs
        target.base_lrs = built
        if hasattr(target, "_last_lr"):
            target._last_lr = [
                now * new / old if old else new for now, new, old in zip(target._last_lr, built, before, strict=True)
            ]


def _restore(objects: MutableMapping[str, Any], saved: Mapping[str, Any]) -> None:
    for name, target in objects.items():
        if name not in saved:
            raise CheckpointError(
                f"the checkpoint holds no {name!r}, only {sorted(k for k in saved if k != RNG)}; "
                "pass the same names to trial.steps() and trial.restore() as when it was saved"
            )
        try:
            objects[name] = _put(target, saved[name])
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint's {name!r} does not fit what was passed ({type(error).__name__}: {error}); "
                "build it from trial.config, as when it was saved"
            ) from error


def _put(target: Any, saved: Any) -> Any:
    torch = sys.modules.get("torch")
    if isinstance(target, np.random.Generator):
        target.bit_generator.state = saved
    elif isinstance(target, random.Random):
        target.setstate(saved)
    elif isinstance(target, np.random.RandomState) or (torch is not None and isinstance(target, torch.Generator)):
        target.set_state(saved)
    elif hasattr(target, "load_state_dict"):
        _unwrapped(target).load_state_dict(saved)
    elif isinstance(target, np.ndarray):
        _check_shape(target, saved)
        target[...] = saved
    elif torch is not None and isinstance(target, torch.Tensor):
        _check_shape(target, saved)
        with torch.no_grad():
            target.copy_(saved)
    elif isinstance(target, dict):
        target.clear()
        target.update(saved)
    elif isinstance(target, list):
        target[:] = saved
    else:
        return saved
    return target


def _check_shape(target: Any, saved: Any) -> None:
    """An array would take a smaller one, spread out."""
    if tuple(target.shape) != tuple(saved.shape):
        raise ValueError(f"its shape is {tuple(saved.shape)}, not {tuple(target.shape)}")


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and (where it is loaded) torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch = sys.modules.get("torch")
    if torch is not None:
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
            torch.default_generator.manual_seed(seed)  # no device to seed; looking for some takes 5 ms in a new process
        else:
            torch.manual_seed(seed)


def rng_states() -> dict[str, Any]:
    """The states of the global generators, those of CUDA only when it is in use."""
    states: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state()}
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = torch.get_rng_state()
        if torch.cuda.is_initialized():
            states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_rng_states(states: Mapping[str, Any]) -> None:
    """Put the global generators back to ``states``."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch = sys.modules.get("torch")
    if torch is not None and "torch" in states:
        torch.set_rng_state(states["torch"].cpu())
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"].cpu())
