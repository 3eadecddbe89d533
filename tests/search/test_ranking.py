"""Who counts as better when not all have run equally long."""

from __future__ import annotations

import numpy as np

from raytuner.search.base import Status, Trial
from raytuner.search.ranking import ranked


def trial(values: dict[int, float], status: Status) -> Trial:
    return Trial({}, status, values)


def test_values_are_compared_at_the_highest_step_that_enough_have_reached() -> None:
    trials = {
        "A": trial({1: 0.9, 3: 0.8, 9: 0.1}, "finished"),
        "B": trial({1: 0.8, 3: 0.5}, "stopped"),
        "C": trial({1: 0.7, 3: 0.6}, "running"),
        "D": trial({1: 0.2}, "running"),
        "E": trial({1: 0.95}, "stopped"),
        "F": trial({1: 0.01, 3: 0.01}, "failed"),
        "G": trial({}, "pending"),
    }
    # Three have reached step 3. D is too young to tell, E was stopped before, F is last, whatever it reported; of G
    # nothing is known.
    assert ranked(trials, 3) == (["B", "C", "A", "D", "E", "F"], 3)
    assert ranked(trials, 1) == (["A", "B", "C", "D", "E", "F"], 1)
    # All share the first step.
    assert ranked(trials, 5) == (["D", "C", "B", "A", "E", "F"], 5)


def test_a_finished_trial_is_compared_by_its_last_value() -> None:
    trials = {
        "A": trial({5: 0.3}, "finished"),
        "B": trial({9: 0.2}, "finished"),
        "C": trial({7: 0.1, 8: 0.4}, "finished"),
    }
    assert ranked(trials, 2) == (["B", "A", "C"], 3)


def test_equals_stay_in_the_order_of_the_record() -> None:
    trials = {str(number): trial({1: 0.5}, "finished") for number in (3, 1, 2)}
    assert ranked(trials, 2) == (["3", "1", "2"], 3)


def test_failures_alone_are_not_comparable() -> None:
    assert ranked({"A": trial({}, "failed"), "B": trial({}, "pending")}, 2) == (["A"], 0)


def test_a_value_between_the_steps_that_were_told_is_the_one_before() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        trials = {}
        for number in range(6):
            steps = sorted({1, *rng.integers(2, 10, size=3).tolist()})
            trials[str(number)] = trial({step: float(rng.random()) for step in steps}, "stopped")
        order, first = ranked(trials, 3)
        shared = min(max(trials[name].values) for name in order[:first])
        known = [[value for step, value in trials[name].values.items() if step <= shared][-1] for name in order[:first]]
        assert first >= 3
        assert known == sorted(known)
