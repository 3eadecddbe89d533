"""Which trials are better, when not all of them have run equally long."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from raytuner.search.base import Trial

__all__ = ["best_and_others", "ranked", "ranked_by_rung"]


def ranked(trials: Mapping[str, Trial], enough: int) -> tuple[list[str], int]:
    """The ids of the trials with a result, from best to worst, and how many of them are in the first group.

    1. Trials that reached the *shared step*, by their value there. It is the highest step told that ``enough`` trials
       have reached, so that a value after 27 steps is never compared with one after 3. A finished trial has reached
       every step, with its last value.
    2. Trials that have not reached it, since they were stopped before or are too young to tell.
    3. Failed trials.

    Trials without a result (pending ones above all) are left out; equals stay in the order of the record.
    """
    measured, failed = _measured(trials)
    if not measured:
        return failed, 0
    reach = sorted((_reach(trial) for trial in measured.values()), reverse=True)
    told = {step for trial in measured.values() for step in trial.values}
    shared = max((step for step in told if step <= reach[min(enough, len(reach)) - 1]), default=min(told))
    first = [name for name, trial in measured.items() if _reach(trial) >= shared]
    first.sort(key=lambda name: _value_at(measured[name], shared))
    rest = [name for name, trial in measured.items() if _reach(trial) < shared]
    rest.sort(key=lambda name: (-_reach(measured[name]), _value_at(measured[name], shared)))
    return [*first, *rest, *failed], len(first)


def ranked_by_rung(trials: Mapping[str, Trial]) -> tuple[list[str], int]:
    """The ids of the trials with a result, from best to worst, and how many of them have a value.

    1. Trials that have come to their own end, by their last value.
    2. The others: those that went further first, and by their last value where they went equally far. Who went on was
       chosen by a scheduler, and values of different steps are never compared.
    3. Failed trials.

    Trials without a result (pending ones above all) are left out; equals stay in the order of the record.
    """
    measured, failed = _measured(trials)
    order = sorted(measured, key=lambda name: (-_reach(measured[name]), _last_value(measured[name])))
    return [*order, *failed], len(order)


def best_and_others(trials: int, most: int) -> NDArray[np.intp]:
    """``most`` places, or all of fewer, of an order from best to worst: half of them the best, the others evenly."""
    if trials <= most:
        return np.arange(trials)
    half = most // 2
    return np.concatenate([np.arange(half), half + np.linspace(0, trials - half - 1, half).astype(np.intp)])


def _measured(trials: Mapping[str, Trial]) -> tuple[dict[str, Trial], list[str]]:
    """The trials with a value, and the ids of those that failed."""
    measured = {name: trial for name, trial in trials.items() if trial.values and trial.status != "failed"}
    return measured, [name for name, trial in trials.items() if trial.status == "failed"]


def _last_value(trial: Trial) -> float:
    return trial.values[max(trial.values)]


def _reach(trial: Trial) -> float:
    """The last step that a trial can be compared at."""
    return math.inf if trial.status == "finished" else max(trial.values)


def _value_at(trial: Trial, step: int) -> float:
    """The value at the last step told up to this one; the earliest when all came later."""
    if step in trial.values:
        return trial.values[step]
    earlier = [known for known in trial.values if known <= step]
    return trial.values[max(earlier) if earlier else min(trial.values)]
