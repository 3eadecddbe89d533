"""How many configurations a space has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from raytuner.space.axes import Axis
from raytuner.space.conditions import Rule

__all__ = ["COUNTABLE", "count"]

COUNTABLE = 100_000
"""Combinations of parents' values that are looked through before giving up."""


def count(
    names: Sequence[str], axes: Mapping[str, Axis], conditions: Mapping[str, Rule | None], points: int
) -> int | None:
    """The number of configurations within the conditions, with ``points`` values for every continuous parameter.

    Parameters that conditions tie together are counted together, by going through the values of the parents among
    them; the rest is multiplied. None when that would be more than 100 000 combinations.

    names: parents before children.
    """
    total = 1
    for group in _groups(names, conditions):
        parents = {parent for name in group for parent in _parents(conditions[name])}
        combinations = prod(axes[name].grid_size(points) for name in parents)
        if combinations > COUNTABLE:
            return None
        total *= sum(
            prod(
                axes[name].grid_size(points)
                for name in group
                if name not in parents and _exists(conditions[name], config)
            )
            for config in _configs([name for name in group if name in parents], axes, conditions, points, {})
        )
    return total


def _groups(names: Sequence[str], conditions: Mapping[str, Rule | None]) -> list[list[str]]:
    """The names, those together that are tied by conditions; each group in the order of ``names``."""
    group_of: dict[str, list[str]] = {}
    for name in names:
        group = [name]
        for parent in _parents(conditions[name]):
            if group_of[parent] is not group:
                group = group_of[parent] + group
                group_of.update(dict.fromkeys(group, group))
        group_of[name] = group
    place = {name: index for index, name in enumerate(names)}
    unique = {id(group): group for group in group_of.values()}
    return [sorted(group, key=lambda name: place[name]) for group in unique.values()]


def _configs(
    names: Sequence[str],
    axes: Mapping[str, Axis],
    conditions: Mapping[str, Rule | None],
    points: int,
    config: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """Every combination of the parents' values. The same dict is given again and again."""
    if not names:
        yield config
        return
    name, rest = names[0], names[1:]
    if not _exists(conditions[name], config):
        yield from _configs(rest, axes, conditions, points, config)
        return
    for value in axes[name].grid(points):
        config[name] = value
        yield from _configs(rest, axes, conditions, points, config)
    del config[name]


def _parents(rule: Rule | None) -> tuple[str, ...]:
    return rule.names if rule else ()


def _exists(rule: Rule | None, config: Mapping[str, Any]) -> bool:
    return rule is None or (all(parent in config for parent in rule.names) and rule.holds(config))
