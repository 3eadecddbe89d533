"""What is guessed of configurations that were never tried."""

from __future__ import annotations

import numpy as np

from raytuner.search.surrogate import MOST, RankSurrogate
from raytuner.space import Choice, Float, Space

ORDERED = np.zeros(4, dtype=bool)


def ordered_by(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    return places[np.argsort(values, kind="stable")]


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(np.argsort(np.argsort(one)), np.argsort(np.argsort(other)))[0, 1])


def valley(places: np.ndarray) -> np.ndarray:
    return np.asarray((places[:, 1] - 0.3) ** 2 + 0.1 * places[:, 2])


def test_it_knows_the_order_of_what_it_has_not_seen_whatever_the_scale_of_the_values() -> None:
    rng = np.random.default_rng(0)
    known, new = rng.random((60, 4)), rng.random((300, 4))
    surrogate = RankSurrogate(ordered_by(np.exp(30 * valley(known)), known), ORDERED, rng)
    assert correlation(surrogate.guess(new), valley(new)) > 0.9


def test_of_many_it_sees_the_best_and_some_others() -> None:
    rng = np.random.default_rng(0)
    known, new = rng.random((20 * MOST, 4)), rng.random((300, 4))
    surrogate = RankSurrogate(ordered_by(valley(known), known), ORDERED, rng)
    assert surrogate._kernel(new).shape == (300, MOST)
    assert correlation(surrogate.guess(new), valley(new)) > 0.9


def test_choices_have_no_order_and_an_inactive_parameter_is_a_value_of_its_own() -> None:
    space = Space({"kind": Choice(values=["a", "b", "c"]), "x": Float(low=0, high=1, when={"kind": "a"})})
    rng = np.random.default_rng(0)
    known = np.array([space.to_unit(space.sample(rng)) for _ in range(60)])
    kinds = [space.from_unit(np.nan_to_num(place))["kind"] for place in known]
    worth = np.array([1.0 if kind == "b" else 2.0 for kind in kinds])  # that in the middle is the best
    surrogate = RankSurrogate(ordered_by(worth, known), np.array([True, False]), rng)
    guesses = {
        kind: surrogate.guess(space.to_unit({"kind": kind} | ({"x": 0.5} if kind == "a" else {}))[None])[0]
        for kind in "abc"
    }
    assert guesses["b"] < min(guesses["a"], guesses["c"]) - 0.5
