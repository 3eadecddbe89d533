"""What the benchmarks say when they cannot run."""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_a_peer_that_is_not_installed_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    method = importlib.import_module("quality_methods").Method("syne-evolution")

    def version(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(SystemExit, match=r'syne-evolution needs the package syne-tune; pip install -e "\.\[bench\]"'):
        print(method.version)
