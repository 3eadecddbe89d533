"""Whether a constraint can hold at all, by interval arithmetic: certain where sampling could only fail to find."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from typing import NamedTuple

from raytuner.space import Choice, Float, Int

__all__ = ["never_holds"]


class _Range(NamedTuple):
    """All values lie between low and high."""

    low: float
    high: float


_UNKNOWN = _Range(-math.inf, math.inf)


def never_holds(text: str, parameters: Mapping[str, Float | Int | Choice]) -> bool:
    """Whether the expression is false for every value of its parameters. False when this cannot be told."""
    return _truth(ast.parse(text.strip(), mode="eval").body, parameters) is False


def _truth(node: ast.expr, parameters: Mapping[str, Float | Int | Choice]) -> bool | None:
    """True or false when it is so for all values, else None."""
    match node:
        case ast.Constant(bool() as value):
            return value
        case ast.UnaryOp(ast.Not(), operand):
            inner = _truth(operand, parameters)
            return None if inner is None else not inner
        case ast.BoolOp(op, values):
            parts = [_truth(value, parameters) for value in values]
            decisive = isinstance(op, ast.Or)
            if decisive in parts:
                return decisive
            return None if None in parts else not decisive
        case ast.Compare(left, ops, comparators):
            sides = [_range(side, parameters) for side in (left, *comparators)]
            parts = [_compare(op, sides[i], sides[i + 1]) for i, op in enumerate(ops)]
            return False if False in parts else None if None in parts else True
    return None


def _compare(op: ast.cmpop, left: _Range, right: _Range) -> bool | None:
    match op:
        case ast.Lt():
            return True if left.high < right.low else False if left.low >= right.high else None
        case ast.LtE():
            return True if left.high <= right.low else False if left.low > right.high else None
        case ast.Gt():
            return _compare(ast.Lt(), right, left)
        case ast.GtE():
            return _compare(ast.LtE(), right, left)
        case ast.Eq():
            return False if left.high < right.low or right.high < left.low else None
    return None


def _range(node: ast.expr, parameters: Mapping[str, Float | Int | Choice]) -> _Range:
    match node:
        case ast.Constant(int() | float() as value) if math.isfinite(value) and abs(value) < 1e300:
            return _Range(value, value)
        case ast.Name(name) if name in parameters:
            return _parameter_range(parameters[name])
        case ast.UnaryOp(ast.USub(), operand):
            low, high = _range(operand, parameters)
            return _Range(-high, -low)
        case ast.UnaryOp(ast.UAdd(), operand):
            return _range(operand, parameters)
        case ast.BinOp(left, op, right):
            return _compute(op, _range(left, parameters), _range(right, parameters))
        case ast.Call(ast.Name("abs"), [argument]):
            low, high = _range(argument, parameters)
            return _Range(max(low, -high, 0.0), max(-low, high))
        case ast.Call(ast.Name("min" | "max" as name), arguments):
            ranges = [_range(argument, parameters) for argument in arguments]
            pick = min if name == "min" else max
            return _Range(pick(each.low for each in ranges), pick(each.high for each in ranges))
    return _UNKNOWN


def _parameter_range(parameter: Float | Int | Choice) -> _Range:
    if not isinstance(parameter, Choice):
        return _Range(parameter.low, parameter.high)
    numbers = [value for value in parameter.values if isinstance(value, (int, float))]
    return _Range(min(numbers), max(numbers)) if len(numbers) == len(parameter.values) else _UNKNOWN


def _compute(op: ast.operator, left: _Range, right: _Range) -> _Range:
    """Bounds, widened unless whole, so that rounding makes nothing impossible."""
    if not all(map(math.isfinite, (*left, *right))):
        return _UNKNOWN
    match op:
        case ast.Add():
            return _widen([left.low + right.low, left.high + right.high])
        case ast.Sub():
            return _widen([left.low - right.high, left.high - right.low])
        case ast.Mult():
            return _widen([a * b for a in left for b in right])
        case ast.Div() if not right.low <= 0 <= right.high:
            return _widen([a / b for a in left for b in right])
    return _UNKNOWN


def _widen(ends: list[float]) -> _Range:
    if not all(map(math.isfinite, ends)):
        return _UNKNOWN
    low, high = min(ends), max(ends)
    if all(isinstance(end, int) for end in ends):
        return _Range(low, high)
    return _Range(low - 1e-12 * abs(low), high + 1e-12 * abs(high))
