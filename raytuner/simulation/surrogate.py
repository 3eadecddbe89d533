"""A neural surrogate of real trainings, stored as arrays and a list of operators in ONNX's sense, computed by numpy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raytuner.errors import Problem, SearchError

__all__ = ["Network"]

Array = NDArray[Any]
Operator = Callable[..., Array]
KINDS = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64}
"""numpy's types by ONNX's number."""


class Network:
    """A function from a row of categories and a row of numbers to a row of metrics.

    The file is a numpy archive: ``head``, JSON with ``inputs``, ``output``, ``meta``, the names of the constants, and
    the program (operator, inputs, outputs, attributes); and an array ``c0``, ``c1``, ... a constant.
    """

    def __init__(self, path: Path) -> None:
        """Raises SearchError when the program has an operator that is not known here."""
        with np.load(path) as archive:
            head = json.loads(bytes(archive["head"]).decode())
            self._constants: dict[str, Array] = {name: archive[f"c{i}"] for i, name in enumerate(head["const"])}
        self.meta: dict[str, Any] = head["meta"]
        self._output: str = head["output"]
        unknown = sorted({operator for operator, *_ in head["prog"]} - set(OPERATORS))
        if unknown:
            rule = f"a surrogate may use {', '.join(OPERATORS)}"
            raise SearchError(str(Problem(str(path), rule, ", ".join(unknown), "use another table")))
        self._program = [
            (OPERATORS[operator], attributes, inputs, outputs[0])
            for operator, inputs, outputs, attributes in head["prog"]
        ]

    def __call__(self, categories: Array, numbers: Array) -> NDArray[np.float64]:
        """categories: (rows, categories) of codes; numbers: (rows, numbers). Returns (rows, metrics)."""
        known: dict[str, Array] = {
            **self._constants,
            "x_cat": categories.astype(np.int32),
            "x_cont": numbers.astype(np.float32),
        }
        with np.errstate(all="ignore"):
            for operator, attributes, inputs, output in self._program:
                known[output] = operator(attributes, *(known[name] if name else None for name in inputs))
        return known[self._output].astype(np.float64)


def _divide(_: Mapping[str, Any], left: Array, right: Array) -> Array:
    whole = all(np.issubdtype(np.asarray(side).dtype, np.integer) for side in (left, right))
    return np.asarray(left // right if whole else left / right)


def _unsqueeze(_: Mapping[str, Any], array: Array, axes: Array) -> Array:
    found = sorted(int(axis) for axis in np.atleast_1d(axes))
    return np.expand_dims(array, tuple(found))


def _slice(_: Any, array: Array, starts: Array, ends: Array, axes: Any = None, steps: Any = None) -> Array:
    starts, ends = np.atleast_1d(starts), np.atleast_1d(ends)
    axes = np.arange(len(starts)) if axes is None else np.atleast_1d(axes)
    steps = np.ones(len(starts), int) if steps is None else np.atleast_1d(steps)
    where = [slice(None)] * array.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        where[int(axis)] = slice(int(start), int(min(end, 2**31)), int(step))
    return array[tuple(where)]


def _gemm(attributes: Mapping[str, Any], left: Array, right: Array, bias: Array | None = None) -> Array:
    product = left @ (right.T if attributes.get("transB") else right)
    return np.asarray(product if bias is None else product + bias)


def _batch_norm(a: Mapping[str, Any], x: Array, scale: Array, bias: Array, mean: Array, variance: Array) -> Array:
    return np.asarray((x - mean) / np.sqrt(variance + a["epsilon"]) * scale + bias)


OPERATORS: dict[str, Operator] = {
    "Add": lambda _, x, y: x + y,
    "BatchNormalization": _batch_norm,
    "Cast": lambda a, x: np.asarray(x).astype(KINDS[a["to"]]),
    "Concat": lambda a, *parts: np.concatenate(parts, axis=a["axis"]),
    "Cos": lambda _, x: np.cos(x),
    "Div": _divide,
    "Exp": lambda _, x: np.exp(x),
    "Gather": lambda a, x, index: np.take(x, index, axis=a.get("axis", 0)),
    "Gemm": _gemm,
    "Log": lambda _, x: np.log(x),
    "MatMul": lambda _, x, y: x @ y,
    "Mul": lambda _, x, y: x * y,
    "Neg": lambda _, x: -x,
    "Relu": lambda _, x: np.maximum(x, 0),
    "Round": lambda _, x: np.asarray(np.round(x)),
    "Shape": lambda _, x: np.asarray(x.shape, np.int64),
    "Sigmoid": lambda _, x: 1.0 / (1.0 + np.exp(-x)),
    "Sin": lambda _, x: np.sin(x),
    "Slice": _slice,
    "Sub": lambda _, x, y: x - y,
    "Unsqueeze": _unsqueeze,
}
