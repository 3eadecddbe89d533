"""An experiment whose folder has another name than when it was written: nothing is lost, nothing is trained again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conductor_tools import PROMOTE, Driver, make_plan, result, run_until_cut

from raytuner.journal import CheckpointRemoved

FIELDS: dict[str, Any] = {"scheduler": PROMOTE, "budget": {"trials": 14}, "checkpoints": {"every_steps": 1}}


def manifests(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("manifest.json")}


@pytest.mark.parametrize("cut", range(12, 100, 11))
def test_a_driver_that_died_goes_on_elsewhere_as_it_would_have_here(tmp_path: Path, cut: int) -> None:
    found = {}
    for moved in (False, True):
        root = tmp_path / str(moved)
        root.mkdir()
        run_until_cut(make_plan(root, **FIELDS), cut)
        plan = make_plan(root, **FIELDS)
        if moved:
            (root / "results").rename(root / "elsewhere")
            plan = make_plan(root, **FIELDS, storage=str(root / "elsewhere"))
        before = manifests(Path(plan.storage))
        driver = Driver(plan)
        kept = before & manifests(Path(plan.storage))
        driver.run()
        assert driver.conductor.warnings == []
        found[moved] = (result(driver), driver.state.steps, before - kept)
        removed = {event.path for event in driver.events(CheckpointRemoved)}
        stand = {path for trial in driver.trials for path in trial.checkpoints}
        assert not removed & stand
        assert stand == {str(path.parent) for path in Path(plan.storage).glob("trials/*/checkpoints/*/manifest.json")}
    assert found[True] == found[False]
