"""What tracking needs of the saved plan: the user's words, and what the runs are labelled with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Details", "read_details"]


@dataclass(frozen=True)
class Details:
    """Parts of ``plan.json``; all empty where there is none."""

    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    search: str = ""
    scheduler: str = ""
    mutated: tuple[str, ...] = ()
    """The parameters that change while a trial trains."""
    choices: Mapping[str, list[Any]] = field(default_factory=dict)
    """The values of the choices that are not all numbers, in the order of the definition."""
    register: str = ""
    """The name of the registered model that the best checkpoint becomes a version of."""

    def measure(self, name: str, value: Any) -> tuple[str, float | None]:
        """A parameter's value as a metric: its name and itself, or what tells it from the other values of a choice."""
        if name in self.choices:
            return f"{name}-index", _place(value, self.choices[name])
        return name, float(value) if _is_number(value) else None


def read_details(path: Path) -> Details:
    """The details in the plan at ``path``; none where there is no plan.

    The plan was checked when the experiment started, so that nothing is checked again here.
    """
    try:
        data = _mapping(_mapping(json.loads(path.read_text(encoding="utf-8"))).get("experiment"))
    except (OSError, ValueError):
        return Details()
    tracking = data.get("tracking")
    return Details(
        description=str(data.get("description") or ""),
        tags={str(key): str(value) for key, value in _mapping(data.get("tags")).items()},
        search=_kind(data.get("search")),
        scheduler=_kind(data.get("scheduler")),
        mutated=_mutated(data.get("scheduler")),
        choices=_choices(data.get("space")),
        register=str(_mapping(tracking).get("register") or ""),
    )


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _mutated(scheduler: Any) -> tuple[str, ...]:
    """Of population-based training, and of a fixed schedule."""
    options = _mapping(scheduler)
    changed = [name for change in options.get("changes") or () for name in _mapping(change.get("config"))]
    return tuple(dict.fromkeys([*(options.get("mutate") or ()), *changed]))


def _choices(space: Any) -> dict[str, list[Any]]:
    values = {name: list(_mapping(parameter).get("values") or ()) for name, parameter in _mapping(space).items()}
    return {name: several for name, several in values.items() if not all(map(_is_number, several))}


def _place(value: Any, values: list[Any]) -> float | None:
    shown = [json.dumps(each) for each in values]  # to Python, true is 1
    wanted = json.dumps(value)
    return float(shown.index(wanted)) if wanted in shown else None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _kind(value: Any) -> str:
    return str(value.get("type") or "") if isinstance(value, Mapping) else str(value or "")
