"""The page about the files, against the files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from cluster_tools import CLUSTER, ROOT

PAGE = (CLUSTER / "README.md").read_text()


def test_what_it_names_is_there() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", PAGE)
    paths = re.findall(r"(?<![\w/-])cluster/[\w./-]*\w", PAGE.replace("cluster/docker/secrets/", ""))
    assert [link for link in links if not (CLUSTER / link).exists()] == []
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert len(links) >= 7
    assert len(paths) >= 10


def test_it_tells_of_every_file() -> None:
    """Or of its folder."""
    assert [path.name for path in CLUSTER.iterdir() if path.name != "README.md" and path.name not in PAGE] == []


def test_the_commands_are_there() -> None:
    for program in ("ray", "raytuner"):
        path = Path(sys.executable).with_name(program)
        shown = subprocess.run([path, "--help"], capture_output=True, text=True, timeout=60, check=True)
        commands = set(re.findall(rf"^    {program} ([a-z-]+)", PAGE, flags=re.MULTILINE))
        assert commands
        assert commands <= set(re.findall(r"^ +([a-z-]+)", shown.stdout, flags=re.MULTILINE))
