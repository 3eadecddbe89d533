"""Everything that is wrong with the data of an experiment, when pydantic has refused it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from raytuner.definition.checks import Parts, cross_problems
from raytuner.definition.components import PARAMETERS, options_class
from raytuner.definition.messages import Path, dotted, nearest, suggestion, translate
from raytuner.definition.sections import Budget, Checkpoints, Cluster, Objective, Resources, Tracking
from raytuner.errors import Problem
from raytuner.schedulers import SCHEDULERS
from raytuner.search import SEARCHES
from raytuner.space import ChoicePrior

__all__ = ["all_problems"]

_SECTIONS: dict[str, type[BaseModel]] = {
    "objective": Objective,
    "budget": Budget,
    "resources": Resources,
    "checkpoints": Checkpoints,
    "tracking": Tracking,
    "cluster": Cluster,
}


def all_problems(model: type[BaseModel], error: ValidationError, data: Mapping[str, Any]) -> list[Problem]:
    """The problems of the fields, and those between the fields that are right."""
    found = translate(
        error.errors(include_url=False), data, lambda path: _remedy(path, _known_keys(model, data, path[:-1]))
    )
    paths = [path for path, _ in found]
    problems = [problem for path, problem in found if not _is_misspelt(model, data, path, problem, paths)]
    return problems + cross_problems(_parts(model, data, paths))


def _is_misspelt(
    model: type[BaseModel], data: Mapping[str, Any], path: Path, problem: Problem, paths: Sequence[Path]
) -> bool:
    """Whether a needed key is there under a misspelt name, which is a problem already."""
    if problem.got != "nothing":
        return False
    known = _known_keys(model, data, path[:-1])
    return any(
        other[:-1] == path[:-1] and other[-1] not in known and nearest(other[-1], known) == path[-1]
        for other in paths
        if other
    )


def _known_keys(model: type[BaseModel], data: Mapping[str, Any], path: Path) -> list[str]:
    """The keys that the mapping at ``path`` may have."""
    here = _at(data, path)
    found: type[BaseModel] | None = None
    if not path:
        found = model
    elif path[0] == "space" and len(path) == 2:
        found = PARAMETERS.get(str(_get(here, "type")))
    elif path[0] == "space" and path[2:] == ("prior",):
        found = ChoicePrior  # as for numbers
    elif path[0] in ("search", "scheduler") and len(path) == 1:
        found = options_class(SEARCHES if path[0] == "search" else SCHEDULERS, _get(here, "type"))
    elif len(path) == 1:
        found = _SECTIONS.get(str(path[0]))
    return list(found.model_fields) if found else []


def _remedy(path: Path, known: list[str]) -> str:
    """A suggestion for an unknown key: one like it here, or the section in which it is known."""
    key = path[-1]
    if nearest(key, known) is None:
        homes = [name for name, section in _SECTIONS.items() if key in section.model_fields]
        if homes:
            return f"did you mean {dotted((homes[0], key))!r}?"
    return suggestion(key, known, "known keys")


def _at(data: Any, path: Path) -> Any:
    for part in path:
        data = data[part] if isinstance(part, int) else _get(data, part)
    return data


def _get(data: Any, key: str) -> Any:
    return data.get(key) if isinstance(data, Mapping) else getattr(data, key, None)


def _parts(model: type[BaseModel], data: Mapping[str, Any], paths: Sequence[Path]) -> Parts:
    """The sections of ``data`` that are right in themselves."""
    broken_at = {path[:length] for path in paths for length in range(1, len(path) + 1)}

    def whole(name: str) -> Any:
        field = model.model_fields[name]
        value = data[name] if name in data else field.get_default(call_default_factory=True)
        return None if (name,) in broken_at else _validated(field, value)

    space, broken = data.get("space"), frozenset[str]()
    if isinstance(space, Mapping):
        broken = frozenset(name for name in space if not isinstance(name, str) or ("space", name) in broken_at)
        sound = {name: value for name, value in space.items() if name not in broken}
        space = _validated(model.model_fields["space"], sound)
    constraints = data.get("constraints")
    texts = enumerate(constraints) if isinstance(constraints, (list, tuple)) else ()
    return Parts(
        space=space if isinstance(space, dict) else None,
        constraints={place: text for place, text in texts if isinstance(text, str)},
        defaults=whole("defaults"),
        objective=whole("objective"),
        search=whole("search"),
        scheduler=whole("scheduler"),
        budget=whole("budget"),
        resources=whole("resources"),
        checkpoints=whole("checkpoints"),
        has_test=data.get("test") is not None,
        broken=broken,
    )


def _validated(field: FieldInfo, value: Any) -> Any:
    try:
        return TypeAdapter(field.rebuild_annotation()).validate_python(value)
    except ValidationError:
        return None
