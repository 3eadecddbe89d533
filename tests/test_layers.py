"""Who may know whom: read from the imports, so that a wall cannot be broken unseen."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import raytuner

PACKAGE = Path(raytuner.__file__).parent

MAY_KNOW = {
    "errors": set(),
    "components": {"errors"},
    "disk": set(),
    "storage": {"errors"},
    "space": {"errors"},
    "search": {"errors", "components", "space"},
    "schedulers": {"errors", "components", "space"},
    "testing": {"errors", "space", "search"},
    "definition": {"errors", "components", "space", "search", "schedulers"},
    "plan": {"errors", "storage", "space", "search", "schedulers", "definition"},
    "simulation": {"errors", "space", "search", "schedulers", "definition", "plan"},
    "journal": {"errors", "disk", "storage"},
    "training": {"errors", "disk"},
    "engine": {"errors", "disk", "storage", "schedulers", "search", "definition", "plan", "journal", "training"},
    "tracking": {"errors", "disk", "definition", "journal"},
    "analysis": {"errors", "storage", "journal", "training"},
    "launch": {
        "errors",
        "disk",
        "storage",
        "space",
        "definition",
        "plan",
        "journal",
        "training",
        "engine",
        "tracking",
        "analysis",
    },
    "cli": {"errors", "definition", "plan", "simulation", "journal", "tracking", "analysis", "launch"},
}
"""The rooms, and for each those that it imports from. Stricter than the order in docs/architecture.md allows."""

FOREIGN = {
    "ray": {"engine"},
    "pyarrow": {"storage"},
    "mlflow": {"tracking"},
    "hyperopt": {"search"},
    "optuna": {"search"},
    "cmaes": {"search"},
    "hypothesis": {"testing"},
    "matplotlib": {"simulation"},
    "pytest": {"testing"},
    "torch": {"training", "engine", "analysis"},
}
"""Foreign libraries, and the only rooms that import them."""


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, whether at its head, in a function or for types."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(node.module or "")
            if node.module == "raytuner":
                names.update(f"raytuner.{alias.name}" for alias in node.names)
    return names


def files() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room not in ("__init__", "__main__"):
            found.append((room, path))
    return found


@pytest.mark.parametrize(("room", "path"), files(), ids=lambda value: str(value).removeprefix(f"{PACKAGE}/"))
def test_a_room_knows_only_whom_it_may(room: str, path: Path) -> None:
    assert room in MAY_KNOW, "a new room must be entered above, and in docs/architecture.md"
    for name in imports_of(path):
        head, _, rest = name.partition(".")
        if head == "raytuner" and rest:
            other = rest.split(".")[0]
            allowed = other == room or other in MAY_KNOW[room] or other.startswith("__")
            assert allowed, f"{path}: {room} may not know {other}"
        assert room in FOREIGN.get(head, {room}), f"{path}: only {FOREIGN.get(head)} may import {head}"


def test_nobody_is_known_both_ways() -> None:
    order = list(MAY_KNOW)
    for room, known in MAY_KNOW.items():
        assert all(order.index(other) < order.index(room) for other in known), room


HEAVY = (
    *("ray", "pyarrow", "torch", "mlflow", "hyperopt", "optuna", "cmaes"),
    *("matplotlib", "pandas", "sklearn", "scipy", "rich"),
)


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_a_look_at_a_definition_imports_nothing_heavy(command: str) -> None:
    script = (
        f"import sys; from raytuner.cli import main; assert main([{command!r}, 'experiments/digits_mlp.yaml']) == 0;"
        f"loaded = [m for m in {HEAVY!r} if m in sys.modules]; assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=PACKAGE.parent, capture_output=True)


def test_the_public_names() -> None:
    for name in raytuner.__all__:
        assert getattr(raytuner, name) is not None
    assert sorted(raytuner.__all__) == [
        "Choice",
        "Experiment",
        "Float",
        "Int",
        "RaytunerError",
        "Results",
        "Trial",
        "extend",
        "load",
        "resume",
        "run",
        "simulate",
    ]
