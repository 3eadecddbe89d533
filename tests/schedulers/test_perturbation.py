"""Small changes to configurations: small, valid, and to the named parameters only."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytuner.schedulers.perturbation import Perturbation
from raytuner.space import Choice, Float, Int, Space
from raytuner.testing.spaces import MIXED, spaces


def changes(space: Space, config: dict[str, Any], *names: str, resample: float = 0.0, factor: float = 1.2) -> list[Any]:
    perturb = Perturbation(space, names, factor=factor, resample=resample)
    return [perturb(config, np.random.default_rng(seed)) for seed in range(40)]


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        (Float(low=1e-4, high=1.0, log=True), 0.1, {0.12, 0.1 / 1.2}),
        (Float(low=1e-4, high=1.0, log=True), 0.95, {0.95 / 1.2}),  # up would leave the bounds
        (Float(low=0.0, high=0.5), 0.0, {0.05}),  # a tenth of the range: zero is no trap
        (Float(low=0.0, high=0.5), 0.2, {0.15, 0.25}),
        (Float(low=0.0, high=0.5, step=0.1), 0.2, {0.1, 0.3}),  # a step at least
        (Int(low=1, high=100), 50, {40, 60}),
        (Int(low=1, high=4), 4, {3}),
        (Int(low=32, high=512, step=32, log=True), 32, {64}),
        (Choice(values=[16, 32, 64, 128], ordered=True), 32, {16, 64}),
        (Choice(values=[16, 32, 64, 128], ordered=True), 16, {32}),
        (Choice(values=["a", "b", "c"]), "a", {"a", "b", "c"}),
        (Choice(values=["only"]), "only", {"only"}),
    ],
)
def test_each_kind_changes_in_its_way(parameter: Any, value: Any, expected: set[Any]) -> None:
    found = [config["p"] for config in changes(Space({"p": parameter}), {"p": value}, "p")]
    if isinstance(value, float):
        assert {round(number, 9) for number in found} == {round(number, 9) for number in expected}
    else:
        assert set(found) == expected


def test_both_directions_are_as_likely() -> None:
    space = Space({"lr": Float(low=1e-4, high=1.0, log=True)})
    perturb = Perturbation(space, ["lr"], factor=2.0, resample=0.0)
    ups = Counter(perturb({"lr": 0.01}, np.random.default_rng(seed))["lr"] > 0.01 for seed in range(400))
    assert 160 < ups[True] < 240


def test_a_value_may_be_drawn_anew_from_its_prior() -> None:
    space = Space({"lr": Float(low=1e-4, high=1.0, log=True)})
    drawn = np.log10([config["lr"] for config in changes(space, {"lr": 0.01}, "lr", resample=1.0)])
    assert drawn.min() < -3
    assert drawn.max() > -1
    some = [config["lr"] for config in changes(space, {"lr": 0.01}, "lr", resample=0.5)]
    near = sum(bool(np.isclose(value, 0.012) or np.isclose(value, 0.01 / 1.2)) for value in some)
    assert 8 < near < 32


def test_others_stay_to_the_last_digit() -> None:
    space = Space({"lr": Float(low=1e-4, high=1.0, log=True), "wd": Float(low=1e-6, high=0.3, log=True)})
    for config in changes(space, {"lr": 0.0123456789, "wd": 0.000123456789}, "lr"):
        assert config["wd"] == 0.000123456789
        assert config["lr"] != 0.0123456789


def test_a_condition_that_comes_to_hold_brings_its_parameter() -> None:
    space = Space(
        {"optimizer": Choice(values=["sgd", "adam"]), "momentum": Float(low=0.0, high=0.9, when={"optimizer": "sgd"})}
    )
    found = changes(space, {"optimizer": "adam"}, "optimizer")
    assert {tuple(sorted(config)) for config in found} == {("optimizer",), ("momentum", "optimizer")}
    momenta = [config["momentum"] for config in found if "momentum" in config]
    assert len(set(momenta)) == len(momenta)
    gone = changes(space, {"optimizer": "sgd", "momentum": 0.5}, "optimizer")
    assert {"optimizer": "adam"} in gone


def test_constraints_hold_and_what_nothing_valid_is_near_stays() -> None:
    space = Space({"a": Int(low=1, high=10), "b": Int(low=1, high=10)}, ["a + b == 10"])
    for config in changes(space, {"a": 5, "b": 5}, "a", "b"):
        assert config["a"] + config["b"] == 10
    assert all(config == {"a": 5, "b": 5} for config in changes(space, {"a": 5, "b": 5}, "a"))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_always_within_the_space(data: st.DataObject) -> None:
    space = data.draw(st.one_of(st.just(MIXED), spaces()))
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    names = data.draw(st.lists(st.sampled_from(space.names), min_size=1, unique=True))
    perturb = Perturbation(space, names, factor=data.draw(st.floats(1.01, 10)), resample=data.draw(st.floats(0, 1)))
    config = space.sample(rng)
    for _ in range(3):
        found = perturb(config, rng)
        assert space.problems(found) == []
        brought = set(found) - set(config)
        for name in set(found) - set(names) - brought:
            assert found[name] == config[name]
        config = found
