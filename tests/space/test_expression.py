"""Expressions compute what Python computes, and nothing else gets through."""

from __future__ import annotations

import contextlib
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytuner.errors import SpaceError
from raytuner.space import Expression

CONFIG = {"width": 64, "depth": 3, "lr": 0.01, "optimizer": "sgd", "bias": True, "layers": [64, 64], "nothing": None}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("width * depth <= 1024", True),
        ("1 < depth < 3", False),
        ("depth // 2 + width % 10 - 2 ** depth", 1 + 4 - 8),
        ("lr / 2", 0.005),
        ("-depth + +width", 61),
        ("not bias or optimizer == 'sgd'", True),
        ("optimizer in ['sgd', 'adam'] and optimizer not in ('adam',)", True),
        ("width if bias else depth", 64),
        ("min(width, depth, 10) + max(1, 2) + abs(-lr)", 5.01),
        ("layers == [64, 64] and layers in [(64, 64), [1]]", True),
        ("nothing == None", True),
        ("2 ** -1", 0.5),
        ("optimizer != 'adam' and optimizer < 'z'", True),
    ],
)
def test_computes_what_python_computes(text: str, value: object) -> None:
    assert Expression(text).evaluate(CONFIG) == value


def test_names_are_the_parameters_it_speaks_of() -> None:
    assert Expression("min(width, abs(depth)) < 3 and optimizer in ['width']").names == {"width", "depth", "optimizer"}


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "().__class__",
        "width.real",
        "layers[0] > 1",
        "open('x')",
        "print(1)",
        "(lambda: 1)()",
        "[x for x in layers]",
        "{1: 2}",
        "{1, 2}",
        "f'{width}'",
        "(x := 3) > 2",
        "width is None",
        "min(*layers)",
        "min(width, 1, key=abs)",
        "min(width)",
        "abs(1, 2)",
        "min",
        "width @ depth",
        "width << 3",
        "width | 1",
        "~width",
        "b'x' == b'x'",
        "1j > 0",
        "... == 1",
        "width; depth",
        "import os",
        "width = 3",
        "",
        "   ",
        "width >",
        "yield 1",
        "await x",
        "(" * 300 + "1" + ")" * 300,
        "-" * 900 + "1 > 0",
        "not " * 100 + "bias",
        "1 + " * 300 + "1",
        "\0",
    ],
)
def test_refuses_what_is_not_an_expression(text: str) -> None:
    if text == "min":  # a name like any other, which is then no parameter of the space
        assert Expression(text).names == {"min"}
        return
    with pytest.raises(SpaceError) as caught:
        Expression(text)
    assert caught.value.problems[0].rule
    assert caught.value.problems[0].remedy


@pytest.mark.parametrize(
    "text",
    [
        "9 ** 9 ** 9 > 1",
        "((9 ** 300) ** 300) > 1",
        "10.0 ** 400 > 1",
        "width / 0 > 1",
        "depth % 0 == 1",
        "(-8) ** 0.5 > 1",
        "2 ** -100000 > 0",
        "optimizer * 1000000000 == 1",
        "'a' + 'b' == 'ab'",
        "'%99999999d' % 1 == 1",
        "layers + layers == 1",
        "optimizer > 3",
        "layers < 3",
        "nothing < 3",
        "-optimizer == 1",
        "abs(optimizer) == 1",
        "width in optimizer",
        "missing > 3",
    ],
)
def test_what_cannot_be_computed_is_an_error_with_its_text(text: str) -> None:
    with pytest.raises(SpaceError, match="got") as caught:
        Expression(text).evaluate(CONFIG)
    assert caught.value.problems[0].got == repr(text)


def test_a_constraint_must_be_true_or_false() -> None:
    assert Expression("width > 3").holds(CONFIG) is True
    with pytest.raises(SpaceError, match="true or false"):
        Expression("width * depth").holds(CONFIG)


def test_evaluation_leaves_short_circuits_alone() -> None:
    assert Expression("optimizer == 'sgd' or optimizer > 3").evaluate(CONFIG) is True
    assert Expression("bias and width").evaluate(CONFIG) == 64


def test_survives_pickling() -> None:
    assert pickle.loads(pickle.dumps(Expression("width > 3"))).evaluate(CONFIG) is True


@given(st.text(max_size=60))
def test_any_text_is_an_expression_or_a_space_error(text: str) -> None:
    with contextlib.suppress(SpaceError):
        Expression(text).evaluate(CONFIG)


@given(
    st.recursive(
        st.integers(-50, 50).map(str) | st.sampled_from(["width", "depth", "lr"]),
        lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "<", "==", "and", "or"]), inner).map(
            lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
        ),
        max_leaves=12,
    )
)
def test_agrees_with_python(text: str) -> None:
    assert Expression(text).evaluate(CONFIG) == eval(text, {"__builtins__": {}}, dict(CONFIG))
