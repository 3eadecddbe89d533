"""Tables and surrogates of real trainings: what a configuration would have reached, step by step, and how long it took.

A folder of tables has an ``index.json`` of the format ``benchtables-1``: a list of instances, each with its space, its
fidelity (the steps), its reference values, and the numpy archive that holds

* a complete grid (``kind: table``): ``loss`` (configurations, repetitions), ``runtime`` (configurations,), quantised;
* a pool (``kind: pool``): ``X`` (configurations, parameters) and ``valid`` (configurations, steps);
* a neural surrogate (``kind: surrogate``), see ``raytuner.simulation.surrogate``.

Losses are minimised throughout.
"""

from __future__ import annotations

import json
import keyword
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from raytuner.errors import Problem, SearchError
from raytuner.simulation.surrogate import Network
from raytuner.space import Choice, Config, Float, Int, Space, config_key

__all__ = ["Curve", "Reference", "Table", "has_table", "read_table", "table_names"]

FORMAT = "benchtables-1"
LEAST_SECONDS = 1e-2
"""A surrogate may answer with no time at all, or with one that runs backwards."""
DIGITS = 65535
AHEAD = 9
"""Steps that a surrogate is asked for at least: they take hardly more time than one, and are mostly wanted next."""
REMEMBERED = 50_000
"""Trainings that a surrogate keeps, so that one that goes on is not computed from its start again."""


class Curve(NamedTuple):
    """A training: its value and its time after each step."""

    values: NDArray[np.float64]
    """(steps,): the loss after each step; nan where the training had diverged."""
    seconds: NDArray[np.float64]
    """(steps,): time since the training's start, ascending."""


@dataclass(frozen=True)
class Reference:
    """What regret is measured with: 0 is the best known value, 1 that of a median random configuration."""

    best: float
    median: float
    log: bool = False
    """Whether the regret is that of the logarithms."""

    def regret(self, value: float) -> float:
        """Normalised regret of a loss; inf without one."""
        if not math.isfinite(value):
            return math.inf
        if not self.log:
            return (value - self.best) / (self.median - self.best)
        tiny = 1e-300
        low, middle, here = (math.log(max(v, tiny)) for v in (self.best, self.median, value))
        return (here - low) / (middle - low)


class Table(ABC):
    """Answers for the trainings of every configuration of a space.

    ``steps``: the most steps that a training takes. ``repetitions``: how often each configuration was trained.
    """

    name: str
    space: Space
    reference: Reference
    steps: int = 1
    repetitions: int = 1

    @abstractmethod
    def curve(self, config: Config, steps: int, repetition: int = 0) -> Curve:
        """The first ``steps`` steps of a training."""

    def true_value(self, config: Config, value: float) -> float:
        """What a configuration that was seen at ``value`` is really worth: without noise, ``value`` itself."""
        return value


class _Instance(Table):
    """What instances of the format have in common."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self.name = entry["id"]
        self._names = {parameter["name"]: _identifier(parameter["name"]) for parameter in entry["space"]}
        self.space = Space({self._names[p["name"]]: _parameter(p, self._names) for p in entry["space"]})
        reference = entry["ref"]
        self.reference = Reference(reference["best"], reference["median"], bool(reference.get("log")))


class _Grid(_Instance):
    def __init__(self, entry: Mapping[str, Any], folder: Path) -> None:
        super().__init__(entry)
        with np.load(folder / entry["file"]) as archive:
            self._losses = _dequantised(archive["loss"], entry["quant"]["loss"])
            self._seconds = _dequantised(archive["runtime"], entry["quant"]["runtime"])
        self._places = {
            self._names[p["name"]]: {json.dumps(choice): index for index, choice in enumerate(p["choices"])}
            for p in entry["space"]
        }
        self._shape = tuple(len(places) for places in self._places.values())
        self.repetitions = self._losses.shape[1]

    def _row(self, config: Config) -> int:
        return int(np.ravel_multi_index([p[json.dumps(config[name])] for name, p in self._places.items()], self._shape))

    def curve(self, config: Config, steps: int, repetition: int = 0) -> Curve:
        row = self._row(config)
        return Curve(self._losses[row, [repetition % self.repetitions]], self._seconds[[row]])

    def true_value(self, config: Config, value: float) -> float:
        return float(self._losses[self._row(config)].mean())


class _Pool(_Instance):
    """Answers with the nearest of its configurations in the unit cube."""

    def __init__(self, entry: Mapping[str, Any], folder: Path) -> None:
        super().__init__(entry)
        with np.load(folder / entry["file"]) as archive:
            rows, losses = archive["X"], archive["valid"].astype(np.float64)
            runtime = archive["runtime"].astype(np.float64) if "runtime" in archive.files else None
        whole = [p["type"] == "int" for p in entry["space"]]
        names = list(self._names.values())
        configs = [
            {name: int(v) if w else float(v) for name, v, w in zip(names, row, whole, strict=True)} for row in rows
        ]
        self._unit = np.stack([self.space.to_unit(config) for config in configs])
        cap = entry["ref"].get("cap", math.inf)
        self._losses = np.where(np.isfinite(losses), np.minimum(losses, cap), cap)
        self.steps = losses.shape[1]
        per_step = np.ones(len(rows)) if runtime is None else runtime / self.steps
        self._seconds = per_step[:, None] * np.arange(1, self.steps + 1)

    def curve(self, config: Config, steps: int, repetition: int = 0) -> Curve:
        row = int(((self._unit - self.space.to_unit(config)) ** 2).sum(axis=1).argmin())
        return Curve(self._losses[row, :steps], self._seconds[row, :steps])


class _Surrogate(_Instance):
    def __init__(self, entry: Mapping[str, Any], folder: Path) -> None:
        super().__init__(entry)
        self._network = _network(folder / entry["net"])
        meta = self._network.meta
        self._encoding, self._categories, self._numbers = meta["encoding"], meta["cat_names"], meta["cont_names"]
        metrics: list[str] = meta["y_names"]
        metric = entry["metric"]
        self._value, self._time = metrics.index(metric["name"]), metrics.index(entry["runtime"])
        self._offset, self._scale = metric.get("offset", 0.0), metric.get("scale", 1.0)
        alias = entry.get("alias") or {}
        self._written = {ours: alias.get(theirs, theirs) for theirs, ours in self._names.items()}
        self._fixed = dict(entry["fixed"])
        fidelity = entry["fidelity"]
        self._fidelity = self._numbers.index(fidelity["name"])
        if fidelity["type"] == "int" and fidelity["resumable"]:
            self._grid = np.arange(fidelity["low"], fidelity["high"] + 1, dtype=np.float64)
        else:  # a share of the data, say: not a training that goes on
            self._grid = np.array([fidelity["high"]], dtype=np.float64)
        self.steps = len(self._grid)
        self._known: dict[str, Curve] = {}

    def curve(self, config: Config, steps: int, repetition: int = 0) -> Curve:
        key = config_key(config)
        known = self._known.get(key, Curve(np.empty(0), np.empty(0)))
        if len(known.values) < steps:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            known = self._known[key] = self._extended(config, known, min(max(steps, AHEAD), self.steps))
        return Curve(known.values[:steps], known.seconds[:steps])

    def _extended(self, config: Config, known: Curve, steps: int) -> Curve:
        first = len(known.values)
        given = {self._written[name]: value for name, value in config.items()} | self._fixed
        # What a configuration has no value for is coded as missing; so is a value that the surrogate has never seen.
        codes = [self._encoding[c].get(str(given.get(c, "#na#")), 0) for c in self._categories]
        row = [float(given.get(name, 0.0)) for name in self._numbers]
        numbers = np.tile(np.array(row), (steps - first, 1))
        numbers[:, self._fidelity] = self._grid[first:steps]
        answer = self._network(np.tile(np.array(codes), (steps - first, 1)), numbers)
        raw = np.concatenate([known.seconds, np.maximum(answer[:, self._time], LEAST_SECONDS)])
        seconds = np.maximum(np.maximum.accumulate(raw), LEAST_SECONDS * np.arange(1, steps + 1))
        return Curve(np.concatenate([known.values, self._offset + self._scale * answer[:, self._value]]), seconds)


_KINDS: dict[str, type[Any]] = {"table": _Grid, "pool": _Pool, "surrogate": _Surrogate}


def table_names(folder: str | Path) -> list[str]:
    """The tables of a folder. Raises SearchError when it has no readable ``index.json``."""
    return list(_index(Path(folder)))


def read_table(path: str | Path) -> Table:
    """The table at ``FOLDER/NAME``, as in ``tables/lcbench/7593``, where the folder has an ``index.json``.

    Raises SearchError when there is none, and names those that there are.
    """
    path = Path(path)
    for folder in path.parents:
        if (folder / "index.json").is_file():
            entries, name = _index(folder), path.relative_to(folder).as_posix()
            if name not in entries:
                remedy = f"use one of {', '.join(entries)}"
                raise SearchError(str(Problem("table", f"must be one of {folder}", name, remedy)))
            return _built(entries[name], folder)
    rule = "a table is FOLDER/NAME, where the folder has an index.json"
    if (path / "index.json").is_file():
        raise SearchError(str(Problem("table", rule, str(path), f"add one of {', '.join(table_names(path))}")))
    raise SearchError(str(Problem("table", rule, str(path), "check the path")))


def has_table(path: Path) -> bool:
    """Whether there is a table at ``FOLDER/NAME``. Raises SearchError when the folder's index cannot be read."""
    folder = next((folder for folder in path.parents if (folder / "index.json").is_file()), None)
    return folder is not None and path.relative_to(folder).as_posix() in _index(folder)


def _built(entry: Mapping[str, Any], folder: Path) -> Table:
    where = str(folder / str(entry["id"]))
    kind = entry.get("kind")
    if kind not in _KINDS:
        raise SearchError(str(Problem(where, f"its kind must be one of {', '.join(_KINDS)}", repr(kind))))
    try:
        table: Table = _KINDS[kind](entry, folder)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, BadZipFile) as error:
        rule, got = "a table must be whole", f"{type(error).__name__}: {error}"
        raise SearchError(str(Problem(where, rule, got, f"look at {folder / 'index.json'}, or use another"))) from error
    return table


def _index(folder: Path) -> dict[str, Mapping[str, Any]]:
    path = folder / "index.json"
    try:
        index = json.loads(path.read_text())
        if index["format"] != FORMAT:
            raise SearchError(str(Problem(str(path), f"format must be {FORMAT}", repr(index["format"]))))
        return {entry["id"]: entry for entry in index["instances"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SearchError(str(Problem(str(path), "must be a readable index of tables", str(error)))) from error


@cache
def _network(path: Path) -> Network:
    return Network(path)


def _identifier(name: str) -> str:
    """A parameter's name as our spaces allow it: ``num.impute`` is num_impute, ``lambda`` is lambda_."""
    name = re.sub(r"\W", "_", name)
    return f"{name}_" if keyword.iskeyword(name) else name


def _parameter(given: Mapping[str, Any], names: Mapping[str, str]) -> Float | Int | Choice:
    condition = given.get("condition")
    when: Any = {names[condition["parent"]]: list(condition["in"])} if condition else None
    kind = given["type"]
    if kind in ("cat", "ordinal"):
        return Choice(values=tuple(given["choices"]), ordered=kind == "ordinal", when=when)
    bounds: dict[str, Any] = {"low": given["low"], "high": given["high"], "log": bool(given.get("log"))}
    return Int(**bounds, when=when) if kind == "int" else Float(**bounds, when=when)


def _dequantised(codes: NDArray[Any], scale: Mapping[str, Any]) -> NDArray[np.float64]:
    values = scale["lo"] + codes.astype(np.float64) * (scale["hi"] - scale["lo"]) / DIGITS
    return np.asarray(np.exp(values)) if scale["log"] else values
