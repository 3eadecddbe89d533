"""Spaces: conditions, constraints, counting, the unit cube."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raytuner.errors import SpaceError
from raytuner.space import Choice, Float, Int, Space, config_key

DIGITS = Space(
    {
        "momentum": Float(low=0, high=0.99, when={"optimizer": "sgd"}),
        "nesterov": Choice(values=[True, False], when="momentum > 0.5"),
        "lr": Float(low=1e-4, high=0.1, log=True),
        "depth": Int(low=1, high=4),
        "width": Int(low=32, high=512, step=32, log=True),
        "optimizer": Choice(values=["sgd", "adam"]),
        "batch": Choice(values=[32, 64, 128], ordered=True),
        "layers": Choice(values=[[64, 64], [128]]),
    },
    ["width * depth <= 1024", "momentum + lr < 1"],
)
GOOD = {"lr": 1e-3, "depth": 2, "width": 128, "optimizer": "adam", "batch": 64, "layers": [128]}


def rules(space: Space, config: dict[str, Any]) -> dict[str, str]:
    return {problem.where: problem.rule for problem in space.problems(config)}


def test_parents_come_before_children_and_the_rest_as_written() -> None:
    assert DIGITS.names == ("optimizer", "momentum", "nesterov", "lr", "depth", "width", "batch", "layers")
    assert list(DIGITS.parameters) == ["momentum", "nesterov", "lr", "depth", "width", "optimizer", "batch", "layers"]


def test_a_child_of_an_inactive_parent_is_inactive() -> None:
    assert DIGITS.active({**GOOD, "momentum": 0.9}) == ("optimizer", "lr", "depth", "width", "batch", "layers")
    assert "nesterov" in DIGITS.active({**GOOD, "optimizer": "sgd", "momentum": 0.9})
    assert "nesterov" not in DIGITS.active({**GOOD, "optimizer": "sgd", "momentum": 0.1})


def test_a_good_configuration_has_no_problems() -> None:
    assert DIGITS.problems(GOOD) == []
    assert DIGITS.problems({**GOOD, "optimizer": "sgd", "momentum": 0.9, "nesterov": True}) == []


def test_every_problem_is_found_at_once() -> None:
    bad = {"optimizr": "sgd", "optimizer": "adam", "momentum": 0.5, "lr": 2, "depth": True, "width": 33}
    found = rules(DIGITS, bad)
    assert set(found) == {"optimizr", "momentum", "lr", "depth", "width", "batch", "layers"}
    assert found["momentum"] == "exists only when optimizer is 'sgd'"
    (unknown,) = [problem for problem in DIGITS.problems(bad) if problem.where == "optimizr"]
    assert unknown.remedy == "did you mean 'optimizer'?"


def test_nothing_is_said_of_children_whose_parent_is_wrong() -> None:
    assert set(rules(DIGITS, {**GOOD, "optimizer": "sdg", "momentum": 0.5})) == {"optimizer"}


def test_a_constraint_holds_only_where_all_its_parameters_are_active() -> None:
    tight = Space(DIGITS.parameters, ["momentum < 0"])
    assert tight.problems(GOOD) == []
    (problem,) = tight.problems({**GOOD, "optimizer": "sgd", "momentum": 0.2})
    assert str(problem) == "constraints: momentum < 0 must hold, got momentum=0.2; change one of these"


def test_a_constraint_that_cannot_be_computed_does_not_hold() -> None:
    space = Space({"a": Int(low=0, high=1), "b": Int(low=0, high=3)}, ["b / a < 3"])
    assert {config["a"] for config in space.grid(1)} == {1}
    assert rules(space, {"a": 0, "b": 1}) == {"constraints": "b / a < 3 must hold"}


@pytest.mark.parametrize(
    ("parameters", "constraints", "where", "message"),
    [
        ({}, [], "space", "at least one parameter"),
        ({"a b": Int(low=1, high=2)}, [], "space.a b", "letters, digits and _"),
        ({"lambda": Int(low=1, high=2)}, [], "space.lambda", "keyword"),
        ({"größe": Int(low=1, high=2)}, [], "space.größe", "letters, digits and _"),
        ({"a": Int(low=1, high=2, when={"b": 1})}, [], "space.a.when", "speak of parameters"),
        ({"a": Int(low=1, high=2, when="c > 1")}, [], "space.a.when", "speak of parameters"),
        ({"a": Int(low=1, high=2, when="a > 1")}, [], "space.a.when", "circle"),
        ({"a": Int(low=1, high=2, when="1 < 2")}, [], "space.a.when", "must name a parent"),
        ({"a": Int(low=1, high=2, when="os.x")}, [], "space.a.when", "not allowed"),
        (
            {"a": Int(low=1, high=2, when="b > 1"), "b": Int(low=1, high=2, when={"a": 2})},
            [],
            "space.a.when",
            "circle, got a -> b -> a",
        ),
        (
            {"o": Choice(values=["sgd", "adam"]), "m": Int(low=1, high=2, when={"o": "sdg"})},
            [],
            "space.m.when.o",
            "did you mean 'sgd'",
        ),
        (
            {"o": Choice(values=["sgd", "adam"]), "m": Int(low=1, high=2, when="o == 'sdg'")},
            [],
            "space.m.when",
            "must hold for some values",
        ),
        (
            {"a": Int(low=1, high=4), "m": Int(low=1, high=2, when={"a": 5})},
            [],
            "space.m.when.a",
            "use one from 1 to 4",
        ),
        (
            {"a": Int(low=1, high=4), "m": Int(low=1, high=2, when={"a": []})},
            [],
            "space.m.when.a",
            "must allow a value",
        ),
        ({"x": Float(low=0, high=1), "m": Int(low=1, high=2, when={"x": 0.5})}, [], "space.m.when.x", "continuous"),
        ({"a": Int(low=1, high=2)}, ["a + 1"], "constraints[0]", "true or false"),
        ({"a": Int(low=1, high=2)}, ["a < 3", "b < 3"], "constraints[1]", "did you mean|known are"),
        ({"a": Int(low=1, high=2)}, ["1 < 3"], "constraints[0]", "must name a parameter"),
        ({"a": Choice(values=["x", 1])}, ["a > 0"], "constraints[0]", "cannot be ordered"),
        ({"a": Int(low=1, high=2)}, ["a.real > 1"], "constraints[0]", "not allowed"),
    ],
)
def test_refuses_a_wrong_definition(parameters: Any, constraints: list[str], where: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message) as caught:
        Space(parameters, constraints)
    assert [problem.where for problem in caught.value.problems] == [where]


def test_all_problems_of_a_definition_come_together() -> None:
    with pytest.raises(SpaceError) as caught:
        Space({"a b": Int(low=1, high=2), "c": Int(low=1, high=2, when="d > 1")}, ["import os"])
    assert [problem.where for problem in caught.value.problems] == ["space.a b", "space.c.when", "constraints[0]"]


def test_conditions_tell_true_from_one() -> None:
    space = Space(
        {
            "flag": Choice(values=[True, 1, "1"]),
            "a": Int(low=1, high=2, when={"flag": True}),
            "b": Int(low=1, high=2, when={"flag": [1, "1"]}),
        }
    )
    assert space.active({"flag": True}) == ("flag", "a")
    assert space.active({"flag": 1}) == ("flag", "b")
    assert space.active({"flag": 1.0}) == ("flag", "b")
    assert space.size == 3 * 2


def test_a_list_in_a_condition_is_one_value_if_the_parent_has_it() -> None:
    parent = Choice(values=[[64, 64], [128]])
    space = Space({"layers": parent, "a": Int(low=1, high=2, when={"layers": [64, 64]})})
    assert space.active({"layers": [64, 64]}) == ("layers", "a")
    space = Space({"layers": parent, "a": Int(low=1, high=2, when={"layers": [[64, 64], [128]]})})
    assert space.active({"layers": [128]}) == ("layers", "a")


def test_a_condition_with_several_parents_needs_them_all() -> None:
    parameters = {"a": Int(low=1, high=2), "b": Int(low=1, high=2), "c": Int(low=1, high=9, when={"a": 1, "b": [2]})}
    space = Space(parameters)
    assert space.active({"a": 1, "b": 2}) == ("a", "b", "c")
    assert space.active({"a": 1, "b": 1}) == ("a", "b")
    assert space.size == 3 + 9


def test_counts_configurations_not_combinations() -> None:
    free = {f"x{i}": Int(low=1, high=1000) for i in range(10)}
    assert Space(free).size == 1000**10
    nested = Space(
        {
            "kind": Choice(values=["a", "b", "c"]),
            "depth": Int(low=1, high=4, when={"kind": ["a", "b"]}),
            "skip": Choice(values=[True, False], when="depth > 2"),
            "free": Int(low=1, high=5),
        }
    )
    # kind c: 1; a and b: depths 1, 2 alone, 3, 4 with two skips each.
    assert nested.size == (1 + 2 * (2 + 2 * 2)) * 5
    assert Space({"lr": Float(low=0, high=1)}).size is None
    assert Space({"n": Int(low=1, high=10**6), "m": Int(low=1, high=2, when="n > 3")}).size is None  # too many to count


def test_a_grid_has_exactly_its_size() -> None:
    space = Space(
        {
            "a": Choice(values=["x", "y"]),
            "b": Int(low=1, high=3, when={"a": "x"}),
            "c": Choice(values=[1, 2], when="b >= 2"),
            "d": Float(low=0, high=1, step=0.25),
        }
    )
    configs = list(space.grid(1))
    assert len(configs) == space.size == (1 + 1 + 2 * 2) * 5
    assert len({config_key(config) for config in configs}) == len(configs)
    assert all(space.problems(config) == [] for config in configs)


def test_a_grid_gives_continuous_parameters_their_points() -> None:
    space = Space({"lr": Float(low=1, high=100, log=True), "x": Float(low=0, high=1, when="lr > 5")})
    configs = list(space.grid(3))
    assert len(configs) == space.grid_size(3) == 1 + 3 + 3
    assert configs[0] == {"lr": 1.0}
    assert [config["x"] for config in configs[1:4]] == [0, 0.5, 1]


def test_a_grid_stays_within_the_constraints_and_prunes_early() -> None:
    # 100 ** 6 combinations, of which the first constraint leaves one value per pair.
    names = list("abcdef")
    chain = [f"{x} == {y}" for x, y in pairwise(names)]
    space = Space({name: Int(low=1, high=100) for name in names}, chain)
    assert len(list(space.grid(1))) == 100


def test_samples_are_valid_and_follow_the_seed() -> None:
    first = [DIGITS.sample(np.random.default_rng([0, k])) for k in range(200)]
    assert all(DIGITS.problems(config) == [] for config in first)
    assert first == [DIGITS.sample(np.random.default_rng([0, k])) for k in range(200)]
    assert {"nesterov" in config for config in first} == {True, False}


def test_log_samples_are_even_in_the_logarithm() -> None:
    space = Space({"lr": Float(low=1e-4, high=1, log=True)})
    rng = np.random.default_rng(0)
    below = sum(space.sample(rng)["lr"] < 1e-2 for _ in range(2000))
    assert abs(below - 1000) < 4 * math.sqrt(2000 / 4)  # 4 standard deviations


def test_sampling_gives_up_on_constraints_that_nobody_can_fulfil() -> None:
    open_ended = Space({"x": Float(low=0, high=1)}, ["x > 1"])
    with pytest.raises(SpaceError, match="none of 1000 draws"):
        open_ended.sample(np.random.default_rng(0))
    assert open_ended.satisfiable(np.random.default_rng(0)) is None
    finite = Space({"a": Int(low=1, high=3), "b": Int(low=1, high=3)}, ["a + b > 6"])
    with pytest.raises(SpaceError, match="no configuration fulfils them"):
        finite.sample(np.random.default_rng(0))
    assert finite.satisfiable(np.random.default_rng(0)) is False
    assert DIGITS.satisfiable(np.random.default_rng(0)) is True


def test_a_needle_in_a_finite_space_is_found() -> None:
    needle = Space({"a": Int(low=1, high=100), "b": Int(low=1, high=100)}, ["a == 77 and b == 3"])
    assert needle.sample(np.random.default_rng(1)) == {"a": 77, "b": 3}
    assert needle.satisfiable(np.random.default_rng(1), tries=10) is True


def test_the_unit_cube_and_back() -> None:
    unit = DIGITS.to_unit(GOOD)
    assert unit.shape == (8,)
    place = dict(zip(DIGITS.names, unit, strict=True))
    assert math.isnan(place["momentum"])
    assert math.isnan(place["nesterov"])
    assert place["lr"] == pytest.approx(1 / 3)
    assert place["optimizer"] == 0.75
    assert place["batch"] == 0.5
    back = DIGITS.from_unit(unit)
    assert back.pop("lr") == pytest.approx(1e-3)
    assert back == {name: value for name, value in GOOD.items() if name != "lr"}


def test_the_unit_cube_is_strict() -> None:
    with pytest.raises(SpaceError, match="lr"):
        DIGITS.to_unit({**GOOD, "lr": 5})
    with pytest.raises(SpaceError, match="must be given"):
        DIGITS.to_unit({"lr": 1e-3})
    with pytest.raises(SpaceError, match="where active, got nan"):
        DIGITS.from_unit([0.9, 0.5, 0.5, math.nan, 0.5, 0.5, 0.5, 0.5])
    with pytest.raises(SpaceError, match="must have 8 values"):
        DIGITS.from_unit([0.5])
    # Beyond the cube is its edge, and an inactive nan is ignored.
    config = DIGITS.from_unit([2.0, math.nan, math.nan, -1, -1, -1, -1, -1])
    assert config == {"optimizer": "adam", "lr": 1e-4, "depth": 1, "width": 32, "batch": 32, "layers": [64, 64]}


def test_nobody_can_change_the_space_through_a_configuration() -> None:
    DIGITS.from_unit([0.9] * 8)["layers"].append(1)
    for config in DIGITS.grid(1):
        config["layers"].append(1)
    assert DIGITS.parameters["layers"] == Choice(values=[[64, 64], [128]])
    with pytest.raises(TypeError):
        DIGITS.parameters["lr"] = Int(low=1, high=2)  # type: ignore[index]


def test_a_space_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(DIGITS))
    assert again == DIGITS
    assert again.names == DIGITS.names
    assert again != Space(DIGITS.parameters)


def test_the_key_of_a_configuration() -> None:
    key = config_key({"a": 1, "b": [1, 2]})
    assert len(key) == 16
    assert int(key, 16) >= 0
    assert key == config_key({"b": (1.0, 2), "a": np.float64(1.0)})
    assert config_key({"a": 0.0}) == config_key({"a": -0.0})
    values = [True, 1, "1", 1.5, None, "", [], [1], [[1]], 2**60, 2**60 + 1, "true"]
    assert len({config_key({"a": value}) for value in values}) == len(values)
    with pytest.raises(TypeError, match="a configuration holds"):
        config_key({"a": object()})


@pytest.mark.parametrize("room", ["space", "search", "schedulers"])
def test_importing_stays_light(room: str) -> None:
    code = (
        "import sys, time, numpy, pydantic\n"
        "class Warm(pydantic.BaseModel): pass\n"
        "start = time.process_time()\n"
        f"import raytuner.{room}\n"
        "spent = time.process_time() - start\n"
        "heavy = {'ray', 'torch', 'mlflow', 'hyperopt', 'scipy', 'pandas', 'sklearn'} & set(sys.modules)\n"
        "import json; print(json.dumps([spent, sorted(heavy)]))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    )
    spent, heavy = json.loads(output.stdout)
    assert heavy == []
    assert spent < 0.25  # seconds of CPU; about 0.06 where this was written


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Random spaces with conditions of any depth: each parameter may depend on one before it."""
    parameters: dict[str, Float | Int | Choice] = {}
    for index in range(draw(st.integers(1, 6))):
        when: dict[str, Any] | str | None = None
        if parameters and draw(st.booleans()):
            parent = draw(st.sampled_from(sorted(parameters)))
            values = list(islice(parameters[parent].axis.grid(3), 3))
            if isinstance(parameters[parent], Float):
                when = f"{parent} >= {values[1]}"
            else:
                when = {parent: draw(st.lists(st.sampled_from(values), min_size=1, max_size=2))}
        kind = draw(st.sampled_from(["float", "int", "choice"]))
        if kind == "float":
            parameters[f"p{index}"] = Float(low=0.5, high=8, log=draw(st.booleans()), when=when)
        elif kind == "int":
            low, count, step = draw(st.integers(1, 9)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
            log = draw(st.booleans())
            parameters[f"p{index}"] = Int(low=low, high=low + count * step, step=step, log=log, when=when)
        else:
            values = draw(st.lists(st.sampled_from([1, 2, "a", True, None]), min_size=1, max_size=4, unique_by=repr))
            parameters[f"p{index}"] = Choice(values=values, ordered=draw(st.booleans()), when=when)
    names = draw(st.permutations(sorted(parameters)))
    return Space({name: parameters[name] for name in names})


@given(spaces(), st.integers(0, 2**32))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_samples_of_any_space_are_valid_and_find_their_place(space: Space, seed: int) -> None:
    config = space.sample(np.random.default_rng(seed))
    assert space.problems(config) == []
    assert tuple(config) == space.active(config)
    unit = space.to_unit(config)
    assert {name for name, u in zip(space.names, unit, strict=True) if not math.isnan(u)} == set(config)
    assert np.nanmin(unit) >= 0
    assert np.nanmax(unit) <= 1
    again = space.from_unit(unit)
    assert again == pytest.approx(config) if all(not isinstance(v, str) for v in config.values()) else list(again)
    assert set(again) == set(config)


@given(spaces())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_grids_of_any_space_are_complete_and_free_of_duplicates(space: Space) -> None:
    configs = list(islice(space.grid(2), 5000))
    assert len({config_key(config) for config in configs}) == len(configs)
    assert len(configs) == min(space.grid_size(2) or 0, 5000)
    assert all(space.problems(config) == [] for config in configs[:50])
    if space.size is not None:
        assert space.size == space.grid_size(2)
