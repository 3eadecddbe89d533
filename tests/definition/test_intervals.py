"""Interval arithmetic refuses only what cannot be."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytuner.definition.intervals import never_holds
from raytuner.errors import SpaceError
from raytuner.space import Choice, Expression, Float, Int

SPACE = {
    "a": Int(low=-3, high=4),
    "b": Int(low=1, high=5),
    "c": Choice(values=(-2, 0, 7)),
    "word": Choice(values=("x", 1)),
    "lr": Float(low=0.5, high=2.0),
}


@pytest.mark.parametrize(
    "text",
    [
        "a > 4",
        "a + b >= 10",
        "a * c > 28",
        "0 > b",
        "lr > 2",
        "lr / b > 2.0001",
        "-a < -4",
        "abs(a) > 4",
        "min(a, b) > 4",
        "max(a, c) > 7",
        "a > 1 and b > 9",
        "a > 9 or b > 9",
        "not b > 0",
        "a == 5",
        "1 < lr < 0.5",
        "False",
        "a - b * lr > 3.6",
    ],
)
def test_is_certain_of_the_impossible(text: str) -> None:
    assert never_holds(text, SPACE)


@pytest.mark.parametrize(
    "text",
    [
        "a >= 4",
        "a + b >= 9",
        "a / a == 1",
        "a / c > 99",
        "a ** 2 > 99",
        "b % 2 > 99",
        "word == 3",
        "a in [9]",
        "a != 9",
    ],
)
def test_leaves_the_rest_to_others(text: str) -> None:
    assert not never_holds(text, SPACE)


NUMBERS = st.sampled_from(["a", "b", "c", "0", "1", "2.5", "-3"])
TERMS = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner),
        st.builds("{}({}, {})".format, st.sampled_from(["min", "max"]), inner, inner),
        st.builds("abs({})".format, inner),
        st.builds("-{}".format, inner),
    ),
    max_leaves=5,
)
COMPARISONS = st.builds("{} {} {}".format, TERMS, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), TERMS)
RULES = st.one_of(
    COMPARISONS,
    st.builds("({}) {} ({})".format, COMPARISONS, st.sampled_from(["and", "or"]), COMPARISONS),
    st.builds("not ({})".format, COMPARISONS),
)


@given(text=RULES)
def test_never_refuses_what_holds_somewhere(text: str) -> None:
    def holds(config: dict[str, object]) -> bool:
        try:
            return Expression(text).holds(config)
        except SpaceError:
            return False

    if never_holds(text, SPACE):
        grid = itertools.product(range(-3, 5), range(1, 6), (-2, 0, 7))
        assert not any(holds(dict(zip("abc", values, strict=True))) for values in grid)
