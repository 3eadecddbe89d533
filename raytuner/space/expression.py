"""Small expressions over parameters: ``width * depth <= 1024``, ``optimizer in ["sgd", "adam"]``.

An experiment file may come from somebody else, so an expression is parsed into a tree, checked against a list of what
is allowed, and walked by the interpreter below: nothing is ever handed to ``eval``, no attribute, subscript or call is
reachable but ``min``, ``max`` and ``abs``, and the size of every result is bounded.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from raytuner.errors import Problem, SpaceError

__all__ = ["Expression", "ExpressionTypeError"]

MAX_LENGTH = 1000
"""Characters that an expression may have."""
MAX_DEPTH = 40
"""Operators that may be nested in one another."""
MAX_BITS = 1024
"""Bits that a whole number may grow to by ``**``; a float has room for no more either."""

REMEDY = "use names, numbers, strings, + - * / // % **, comparisons, and, or, not, in, x if c else y, min, max, abs"
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
ORDERINGS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "abs": abs}


class ExpressionTypeError(SpaceError):
    """An expression mixes what cannot be mixed, such as a string and a number: a mistake in it, whatever the values."""


class Expression:
    """A checked expression over parameters. Raises SpaceError when the text is not one.

    >>> Expression("width * depth <= 1024").evaluate({"width": 256, "depth": 3})
    True
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._tree = _parse(text)
        _check(self._tree, text)
        functions = {id(node.func) for node in ast.walk(self._tree) if isinstance(node, ast.Call)}
        self.names: frozenset[str] = frozenset(
            node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name) and id(node) not in functions
        )
        """The parameters that the expression speaks of."""

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"

    def __reduce__(self) -> tuple[type[Expression], tuple[str]]:
        return Expression, (self.text,)

    def evaluate(self, config: Mapping[str, Any]) -> Any:
        """The value for a configuration that holds every one of ``names``.

        Raises ExpressionTypeError for types that do not mix, SpaceError for a missing name, a division by zero or a
        number out of all bounds.
        """
        try:
            return _evaluate(self._tree, config)
        except TypeError as error:
            raise ExpressionTypeError(self._problem(str(error), "compare and compute with like types")) from None
        except KeyError as error:
            raise SpaceError(self._problem(f"parameter {error} has no value", "give it one")) from None
        except (ArithmeticError, ValueError) as error:
            raise SpaceError(self._problem(str(error) or "out of bounds", "keep its numbers in bounds")) from None

    def holds(self, config: Mapping[str, Any]) -> bool:
        """Like ``evaluate``, for an expression that must answer True or False. Raises ExpressionTypeError otherwise."""
        value = self.evaluate(config)
        if not isinstance(value, bool):
            raise ExpressionTypeError(
                self._problem(f"must be true or false, but is {value!r}", "compare it with something, as in 'x <= 10'")
            )
        return value

    def _problem(self, rule: str, remedy: str) -> Problem:
        return Problem(where="", rule=rule, got=repr(self.text), remedy=remedy)


def _parse(text: str) -> ast.expr:
    if not isinstance(text, str) or not text.strip():
        raise SpaceError(Problem("", "an expression must be a text that is not empty", repr(text), REMEDY))
    if len(text) > MAX_LENGTH:
        raise SpaceError(
            Problem(
                "",
                f"an expression has at most {MAX_LENGTH} characters",
                f"{len(text)} characters",
                "split it",
            )
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # what Python only warns of is refused below
            warnings.simplefilter("ignore", DeprecationWarning)
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = getattr(error, "msg", None) or str(error) or "nested too deeply"
        raise SpaceError(Problem("", f"not an expression ({reason})", repr(text), REMEDY)) from None
    return tree


def _check(tree: ast.expr, text: str) -> None:
    """Raises SpaceError unless every node is allowed; goes level by level, since the depth may be any."""
    level: list[ast.expr] = [tree]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node, text)]
        if not level:
            return
    raise SpaceError(Problem("", f"an expression nests at most {MAX_DEPTH} operators", repr(text), "simplify it"))


def _children(node: ast.expr, text: str) -> list[ast.expr]:
    """What is below an allowed node. Raises SpaceError for one that is not allowed."""
    match node:
        case ast.Name() | ast.Constant(value=str() | int() | float() | None):
            return []
        case ast.BinOp(left, op, right) if type(op) in ARITHMETIC or isinstance(op, ast.Pow):
            return [left, right]
        case ast.UnaryOp(op, operand) if isinstance(op, ast.Not | ast.USub | ast.UAdd):
            return [operand]
        case ast.BoolOp(_, values):
            return values
        case ast.IfExp(test, body, orelse):
            return [test, body, orelse]
        case ast.List(elements) | ast.Tuple(elements):
            return elements
        case ast.Compare(left, ops, comparators) if not any(isinstance(op, ast.Is | ast.IsNot) for op in ops):
            return [left, *comparators]
        case ast.Call(ast.Name(name), arguments, keywords) if name in FUNCTIONS and not keywords:
            if len(arguments) != 1 if name == "abs" else len(arguments) < 2:
                rule = "abs takes one number" if name == "abs" else f"{name} takes two numbers or more"
                raise SpaceError(
                    Problem("", rule, repr(text), f"write {name}(x)" if name == "abs" else f"{name}(x, y)")
                )
            return arguments
    shown = ast.unparse(node) if not isinstance(node, ast.Constant) else repr(node.value)
    raise SpaceError(Problem("", f"{shown[:60]!r} is not allowed in an expression", repr(text), REMEDY))


def _evaluate(node: ast.expr, config: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value):
            return value
        case ast.Name(name):
            value = config[name]
            return list(value) if isinstance(value, tuple) else value
        case ast.List(elements) | ast.Tuple(elements):
            return [_evaluate(element, config) for element in elements]
        case ast.BinOp(left, op, right):
            return _compute(op, _evaluate(left, config), _evaluate(right, config))
        case ast.UnaryOp(ast.Not(), operand):
            return not _evaluate(operand, config)
        case ast.UnaryOp(op, operand):
            value = _number(_evaluate(operand, config))
            return -value if isinstance(op, ast.USub) else value
        case ast.BoolOp(op, values):
            result: Any = None
            for part in values:
                result = _evaluate(part, config)
                if bool(result) is isinstance(op, ast.Or):
                    break
            return result
        case ast.IfExp(test, body, orelse):
            return _evaluate(body if _evaluate(test, config) else orelse, config)
        case ast.Compare(first, ops, comparators):
            left_value = _evaluate(first, config)
            for compare, comparator in zip(ops, comparators, strict=True):
                right_value = _evaluate(comparator, config)
                if not _compare(compare, left_value, right_value):
                    return False
                left_value = right_value
            return True
        case ast.Call(ast.Name(name), arguments, _):
            return FUNCTIONS[name](*(_number(_evaluate(argument, config)) for argument in arguments))
    raise AssertionError(f"unchecked node {node!r}")


def _number(value: Any) -> int | float:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return value


def _compute(op: ast.operator, left: Any, right: Any) -> int | float:
    left, right = _number(left), _number(right)
    if not isinstance(op, ast.Pow):
        return _number(ARITHMETIC[type(op)](left, right))
    if isinstance(left, int) and isinstance(right, int) and abs(left).bit_length() * abs(right) > MAX_BITS:
        raise OverflowError(f"{left} ** {right} is too large")
    power = left**right
    if isinstance(power, complex):
        raise ValueError(f"({left}) ** {right} is not a real number")
    return _number(power)


def _compare(op: ast.cmpop, left: Any, right: Any) -> bool:
    match op:
        case ast.Eq():
            return bool(left == right)
        case ast.NotEq():
            return bool(left != right)
        case ast.In() | ast.NotIn():
            if not isinstance(right, list):
                raise TypeError(f"'in' needs a list such as [1, 2] on its right, not {right!r}")
            return (left in right) is isinstance(op, ast.In)
    if isinstance(left, str) is not isinstance(right, str) or not isinstance(left, str | int | float):
        raise TypeError(f"{left!r} and {right!r} cannot be ordered")
    return bool(ORDERINGS[type(op)](left, right if isinstance(left, str) else _number(right)))
