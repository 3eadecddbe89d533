"""What a driver refuses before it has created anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raytuner.definition import Experiment
from raytuner.errors import PlanError
from raytuner.launch import drive
from raytuner.plan import Machine
from raytuner.plan import compile as compile_plan


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"accelerator": "H100"}, r"resources.accelerator: some node must have it.* no accelerators, got H100"),
        ({"labels": {"zone": "a"}}, r"resources.labels: some node must have it.* no such labels, got zone=a"),
    ],
)
def test_what_this_machine_does_not_have(tmp_path: Path, resources: dict[str, Any], said: str) -> None:
    (tmp_path / "user.py").write_text("def train(trial): ...\n")
    experiment = Experiment(
        name="test",
        train="user:train",
        objective={"metric": "loss", "mode": "min"},
        space={"x": {"type": "float", "low": 0.0, "high": 1.0}},
        budget={"trials": 1},
        tracking="none",
        storage=str(tmp_path / "results"),
        resources=resources,
    )
    plan = compile_plan(experiment, import_root=tmp_path, machine=Machine(2, 0))
    with pytest.raises(PlanError, match=said):
        drive(plan, quiet=True)
    assert not (tmp_path / "results").exists()
