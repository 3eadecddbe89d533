"""What a person may write about a parameter, and what the message says when it is wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from raytuner.space import Choice, Float, Int, Parameter

ANY = TypeAdapter(Parameter)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "float", "low": 0.1, "high": 0.01}, "low < high must hold, got low=0.1, high=0.01; swap the bounds"),
        ({"type": "int", "low": 3, "high": 3}, "use a choice with one value"),
        ({"type": "float", "low": 0, "high": 1, "log": True}, "log needs low > 0"),
        ({"type": "float", "low": 0, "high": 1, "step": 0}, "greater than 0"),
        ({"type": "float", "low": 0, "high": 1, "step": 2}, "step must fit"),
        ({"type": "float", "low": 0, "high": 1, "step": 0.3}, "use high: 0.9 or high: 1.2"),
        ({"type": "int", "low": 1, "high": 10, "step": 2}, "use high: 9 or high: 11"),
        ({"type": "float", "low": 0, "high": math.inf}, "finite"),
        ({"type": "float", "low": -1e308, "high": 1e308}, "must be finite"),
        ({"type": "float", "low": "0", "high": 1}, "valid number"),
        ({"type": "int", "low": 1.0, "high": 2}, "valid integer"),
        ({"type": "int", "low": True, "high": 2}, "valid integer"),
        ({"type": "int", "low": 1, "high": 2**60}, "less than or equal"),
        ({"type": "float", "low": 0, "high": 1, "lgo": True}, "Extra inputs"),
        ({"type": "choice", "values": []}, "at least 1 item"),
        ({"type": "choice", "values": "sgd"}, "values must be a list"),
        ({"type": "choice", "values": ["a", "a"]}, "'a' twice"),
        ({"type": "choice", "values": [1, 1.0]}, "values must differ"),
        ({"type": "choice", "values": [[1, 2], [1, 2]]}, "values must differ"),
        ({"type": "choice", "values": [{"a": 1}]}, "must be a text"),
        ({"type": "choice", "values": [math.nan]}, "finite number"),
        ({"type": "choice", "values": [[[1]]]}, "a list of these"),
        ({"type": "int", "low": 1, "high": 2, "when": ""}, "must name a parent"),
        ({"type": "int", "low": 1, "high": 2, "when": {}}, "must name a parent"),
        ({"low": 1, "high": 2}, "type"),
    ],
)
def test_refuses_with_rule_and_remedy(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ANY.validate_python(fields)
    assert message in str(caught.value)


def test_broken_rules_can_be_read_apart() -> None:
    with pytest.raises(ValidationError) as caught:
        Float(low=1, high=0)
    (error,) = caught.value.errors()
    assert error["ctx"] == {
        "text": "low < high must hold, got low=1.0, high=0.0; swap the bounds",
        "rule": "low < high must hold",
        "got": "low=1.0, high=0.0",
        "remedy": "swap the bounds",
    }


def test_values_keep_their_types() -> None:
    values = Choice(values=["1", 1, 2.0, True, False, None, [1, "a"], "true"]).values
    assert [type(value) for value in values] == [str, int, float, bool, bool, type(None), list, str]


def test_every_field_is_described_in_the_schema_and_the_type_is_required() -> None:
    for name, model in ANY.json_schema()["$defs"].items():
        assert model["description"], name
        assert "type" in model["required"] or name.endswith("Prior"), name
        for key, field in model["properties"].items():
            assert field["description"], (name, key)


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        (Float(low=0, high=1), [0, 1, 0.5], [-0.1, 1.1, True, "0.5", None, math.nan, math.inf]),
        (Float(low=0, high=0.9, step=0.1), [0.3, 0.1 * 3, 0.9], [0.35, 1.0]),
        (Int(low=32, high=512, step=32), [32, 512], [33, 544, 64.0, True, "64"]),
        (Choice(values=[1, "a", True, [1, 2]]), [1, 1.0, "a", True, [1, 2], (1, 2)], [2, "b", False, [1], {}, None]),
        (Choice(values=[0, None]), [0, None], [False, ""]),
    ],
)
def test_which_values_belong(parameter: Float | Int | Choice, good: list[Any], bad: list[Any]) -> None:
    assert [parameter.problem(value) for value in good] == [None] * len(good)
    for value in bad:
        problem = parameter.problem(value, "space.x")
        assert problem is not None, value
        assert problem.where == "space.x"
        assert problem.remedy


def test_steps_are_decimal_fractions() -> None:
    assert list(Float(low=0, high=0.9, step=0.1).axis.grid(1)) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert list(Int(low=1, high=9, step=2).axis.grid(1)) == [1, 3, 5, 7, 9]


def test_a_continuous_grid_goes_from_end_to_end() -> None:
    assert list(Float(low=1, high=100, log=True).axis.grid(3)) == pytest.approx([1, 10, 100])
    assert list(Float(low=0, high=1).axis.grid(1)) == [0.5]
    assert list(Float(low=0, high=1).axis.grid(2)) == [0, 1]


def test_a_log_step_owns_its_share_of_the_logarithm() -> None:
    # 1, 2, 3, 4 own [1/1.5, 1.5], [1.5, 2.5], [2.5, 3.5], [3.5, 4.5], of log(4.5 * 1.5) in all.
    axis = Int(low=1, high=4, log=True).axis
    edges = [math.log(edge * 1.5) / math.log(4.5 * 1.5) for edge in (1.5, 2.5, 3.5)]
    for value, edge in enumerate(edges, start=1):
        assert axis.from_unit(edge - 1e-9) == value
        assert axis.from_unit(edge + 1e-9) == value + 1
    # ... so in a wide range each doubling is nearly as likely as the next.
    wide = Int(low=1, high=1024, log=True).axis
    values = [wide.from_unit((i + 0.5) / 4096) for i in range(4096)]
    shares = [sum(low <= value < 2 * low for value in values) / 4096 for low in (32, 64, 128, 256, 512)]
    assert max(shares) - min(shares) < 0.005


def floats() -> st.SearchStrategy[Float]:
    bounds = st.tuples(st.floats(1e-6, 1e6), st.floats(1e-3, 1e6))
    return st.builds(lambda b, log: Float(low=b[0], high=b[0] + b[1], log=log), bounds, st.booleans())


def lattices() -> st.SearchStrategy[Float | Int]:
    return st.builds(
        lambda low, step, count, log, whole: (
            Int(low=low, high=low + step * count, step=step, log=log)
            if whole
            else Float(low=low / 8, high=(low + step * count) / 8, step=step / 8, log=log)
        ),
        st.integers(1, 1000),
        st.integers(1, 50),
        st.integers(1, 300),
        st.booleans(),
        st.booleans(),
    )


@given(floats() | lattices(), st.floats(0, 1))
def test_any_place_is_a_value_within_bounds_and_on_a_step(parameter: Float | Int, u: float) -> None:
    value = parameter.axis.from_unit(u)
    assert parameter.problem(value) is None
    assert type(value) is (int if isinstance(parameter, Int) else float)


@given(lattices())
def test_every_step_has_a_place_of_its_own_and_they_are_in_order(parameter: Float | Int) -> None:
    axis = parameter.axis
    values = list(axis.grid(1))
    places = [axis.to_unit(value) for value in values]
    assert places == sorted(places)
    assert [axis.from_unit(place) for place in places] == values
    assert axis.from_unit(0) == values[0]
    assert axis.from_unit(1) == values[-1]


@given(floats(), st.floats(0, 1))
def test_a_continuous_value_finds_its_place_again(parameter: Float, u: float) -> None:
    # rel 1e-9: exp and log lose a few of 16 digits, more when the bounds are close together compared with their size.
    value = parameter.axis.from_unit(u)
    width = parameter.high - parameter.low
    assert parameter.axis.from_unit(parameter.axis.to_unit(value)) == pytest.approx(
        value, abs=1e-9 * width + 1e-12 * value
    )
