"""Where the files of cluster/ are, and the versions that they have to agree with."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT.parent / "shared" / "schemas"


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def pins() -> dict[str, str]:
    """Version by package, of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.lower().split("==") for line in lines if "==" in line)


def pinned_in(text: str) -> dict[str, str]:
    """Version by package, of every ``package==version`` in a text."""
    return {name.lower(): version for name, version in re.findall(r"([A-Za-z0-9_.-]+)==([A-Za-z0-9.]+)", text)}


def schema_file(name: str) -> Path:
    if not (SCHEMAS / name).exists():
        pytest.skip(f"the schema {name} is not in {SCHEMAS}")
    return SCHEMAS / name


@cache
def options_of(program: str, command: str) -> set[str]:
    """The options that a command of an installed program knows, by its ``--help``."""
    path = Path(sys.executable).with_name(program)
    shown = subprocess.run([path, command, "--help"], capture_output=True, text=True, timeout=120, check=True)
    return set(re.findall(r"(?<![\w-])--[a-z0-9][a-z0-9-]*", shown.stdout))
