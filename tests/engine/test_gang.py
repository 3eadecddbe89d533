"""Several processes that train one trial, without the actors around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from host_tools import Outcome, make_host, serving, trial_spec

from raytuner.engine.control import Stop
from raytuner.engine.serverclient import ServerSpec

SOURCE = """
import itertools
import torch


def train(trial):
    return globals()[trial.config["way"]](trial)


def together(trial):
    shared, mine = torch.zeros(2), []
    sampler = trial.sampler(range(12))
    seeded = torch.rand(1).item()
    for step in trial.steps(shared=shared):
        shares = trial._gang.collect(list(sampler))
        assert sorted(itertools.chain(*shares)) == list(range(12)), "each item once"
        mine.append(torch.rand(1).item())
        shared += 1
        values = {op: trial.reduce({"v": trial.rank}, op)["v"] for op in ("mean", "sum", "min", "max")}
        assert values == {"mean": 1.0, "sum": 3.0, "min": 0.0, "max": 2.0}
        trial.report(loss=trial.rank + 1.0 / step)
    drawn = trial._gang.collect((seeded, mine))
    assert len({first for first, _ in drawn}) == 1, "alike until steps()"
    assert len({tuple(later) for _, later in drawn}) == 3, "and then not"


def counted(trial):
    state = torch.zeros(1)
    for step in trial.steps(state=state):
        state += 1
        assert state.item() == step
        trial.report(loss=1.0 / step)


def loose(trial):
    for step in range(1, 100):
        trial.report(trial.reduce({"loss": trial.rank + 1.0 / step}))


def leaving(trial):
    for step in trial.steps():
        if step == 3 and trial.rank == trial.config["code"]:
            return
        trial.report(loss=1.0)


def apart(trial):
    for step in trial.steps():
        loss = trial.reduce({"loss": 1.0}) if step < 2 or trial.rank == 1 else {"loss": 1.0}
        trial.report(loss)


def differing(trial):
    for _ in trial.steps():
        trial.report(trial.reduce({"loss": 1.0, f"own{trial.rank}": 2.0}))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerSpec]:
    with serving(tmp_path_factory.mktemp("gang"), SOURCE, preload=("torch.distributed",)) as spec:
        yield spec


def gang(server: ServerSpec, folder: Path, way: str, size: int = 3, stop_at: int = 0, **fields: Any) -> list[Outcome]:
    """What became of each rank. stop_at: the deciding step at which rank 0 is asked to stop."""
    spec = trial_spec(folder, way, trial="000001", world_size=size, address="127.0.0.1", **fields)
    hosts = [make_host(server) for _ in range(size)]
    outcomes = [Outcome(replace(spec, rank=rank)) for rank in range(size)]
    hosts[0][0].begin(spec)
    while not outcomes[0].of("meet"):
        outcomes[0].batches.append(hosts[0][0].collect())
    (meet,) = (message["at"] for message in outcomes[0].of("meet"))
    for rank in range(1, size):
        hosts[rank][0].begin(replace(spec, rank=rank, meet=meet))
    for (host, stop), outcome in zip(hosts, outcomes, strict=True):
        while not outcome.batches or outcome.batches[-1].end is None:
            outcome.batches.append(host.collect())
            if stop_at and outcome.batches[-1].decide == stop_at:
                stop.set(Stop("enough"))
        host.close()
    return outcomes


def test_three_processes_train_one_trial(server: ServerSpec, tmp_path: Path) -> None:
    ranks = gang(server, tmp_path, "together")
    assert [rank.end["status"] for rank in ranks] == ["finished"] * 3, [rank.end for rank in ranks]
    assert [m["metrics"]["loss"] for m in ranks[0].of("report")] == [1 / n for n in range(1, 6)]
    assert [len(rank.of("checkpoint")) for rank in ranks] == [len(ranks[0].of("checkpoint")), 0, 0]
    assert [path.name for path in (ranks[0].dir / "checkpoints").iterdir()] == ["000005-1"]


def test_a_stop_reaches_all_and_another_number_of_them_goes_on(server: ServerSpec, tmp_path: Path) -> None:
    first = gang(server, tmp_path, "counted", decides=(4,), stop_at=4)
    assert [(rank.end["status"], rank.end["step"]) for rank in first] == [("stopped", 4)] * 3
    assert {rank.end["reason"] for rank in first} == {"enough"}
    checkpoint = first[0].dir / "checkpoints" / "000004-1"
    later = gang(server, tmp_path, "counted", size=2, attempt=2, checkpoints=(str(checkpoint),))
    assert [(rank.end["status"], rank.end["step"]) for rank in later] == [("finished", 5)] * 2
    assert [rank.of("started")[0]["step"] for rank in later] == [4, 4]


def test_reports_outside_steps_are_steps_of_all(server: ServerSpec, tmp_path: Path) -> None:
    ranks = gang(server, tmp_path, "loose", size=2)
    assert [(rank.end["status"], rank.end["step"]) for rank in ranks] == [("finished", 5)] * 2
    assert len(ranks[0].steps) == 5


def test_ranks_that_report_other_metrics_are_told(server: ServerSpec, tmp_path: Path) -> None:
    for rank in gang(server, tmp_path, "differing", size=2):
        assert "every rank must give the same metrics, got ['loss', 'own0'] from rank 0" in rank.end["reason"]


@pytest.mark.parametrize(("rank", "others"), [(0, "rank 1, rank 2"), (1, "rank 0, rank 2")])
def test_a_rank_that_returns_early_is_named_on_all(server: ServerSpec, tmp_path: Path, rank: int, others: str) -> None:
    for outcome in gang(server, tmp_path, "leaving", code=rank):
        assert outcome.end["status"] == "failed"
        assert outcome.end["reason"].startswith(f"rank {rank} returned after step 2, {others} went on; every rank must")


def test_ranks_that_call_different_things_do_not_wait_for_each_other(server: ServerSpec, tmp_path: Path) -> None:
    for outcome in gang(server, tmp_path, "apart", size=2):
        assert outcome.end["reason"].startswith("rank 1 is not where rank 0 is: one of them calls trial.reduce()")
