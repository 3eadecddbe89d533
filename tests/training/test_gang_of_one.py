"""What a distributed trial's function uses, in a trial of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trial_tools import attempt, make_spec

from raytuner.training import Trial

torch = pytest.importorskip("torch")


def test_one_process_is_a_gang_of_one(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        model = torch.nn.Linear(2, 1)
        assert trial.distribute(model) is model
        sampler = trial.sampler(range(10))
        orders = []
        for _ in trial.steps(model=model):
            orders.append(list(sampler))
            trial.report(trial.reduce({"loss": torch.tensor(2.0), "other": 1}))
        assert all(sorted(order) == list(range(10)) for order in orders)
        assert len({tuple(order) for order in orders}) == len(orders), "another order in every step"
        assert (trial.rank, trial.world_size) == (0, 1)

    end, tape = attempt(make_spec(tmp_path), train)
    assert end["status"] == "finished", end
    assert tape.of("report")[0]["metrics"] == {"loss": 2.0, "other": 1.0}


@pytest.mark.parametrize(
    ("metrics", "op", "words"),
    [
        ({"loss": 1.0}, "median", "op must be one of mean, sum, min, max, got 'median'"),
        ({"loss": "low"}, "mean", "the metric 'loss' must be a number, got str"),
    ],
)
def test_what_cannot_be_reduced(tmp_path: Path, metrics: dict[str, Any], op: str, words: str) -> None:
    end, _ = attempt(make_spec(tmp_path), lambda trial: trial.reduce(metrics, op))
    assert end["error"]["kind"] == "report"
    assert words in end["reason"]
