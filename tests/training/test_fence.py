"""An attempt that was given up touches nothing any more, though it may not know."""

from pathlib import Path

import numpy as np
import pytest
from trial_tools import Tape, attempt, make_spec, newest_first, standing

from raytuner.training import Trial
from raytuner.training.channel import ChannelClosed
from raytuner.training.fence import Fence


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("asleep_in", [1, 3])
def test_an_attempt_that_wakes_after_another_began_changes_nothing(tmp_path: Path, asleep_in: int) -> None:
    """The channel still takes what it says, as where its node was cut off from the driver's."""
    seen = {}

    def train(trial: Trial) -> None:
        weights = np.zeros(1)
        for step in trial.steps(weights=weights):
            weights += 1
            assert weights[0] == step
            if trial.attempt == 1 and step == asleep_in:
                second = make_spec(tmp_path, attempt=2, checkpoints=newest_first(tmp_path))
                seen["end"], _ = attempt(second, train)
                seen["files"] = files(tmp_path)
            trial.report(loss=1.0 / step)

    tape = Tape()
    with pytest.raises(ChannelClosed):
        attempt(make_spec(tmp_path, policy={"every_steps": 1, "keep": 2}), train, tape)
    assert seen["end"]["status"] == "finished"
    assert files(tmp_path) == seen["files"]
    assert standing(tmp_path)[-1] == "000005-2"


def test_an_attempt_that_begins_too_late_does_not_begin(tmp_path: Path) -> None:
    Fence(tmp_path).put(3)

    def train(trial: Trial) -> None:
        raise AssertionError("it must not get here")

    with pytest.raises(ChannelClosed):
        attempt(make_spec(tmp_path, attempt=2), train)
    assert list(files(tmp_path)) == ["attempt"]


def test_it_is_never_put_back(tmp_path: Path) -> None:
    fence = Fence(tmp_path / "new")
    fence.check(1)
    fence.put(3)
    fence.put(2)
    fence.check(3)
    with pytest.raises(ChannelClosed):
        fence.check(2)
