"""Trials of several processes on real Ray: together they begin, are stopped, paused, copied, killed and resumed."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, events_of, processes_of, raytuner, run_until, start_driver, wait_until

from raytuner.journal import Exploited, Folder, Retried, TrialStarted, replay

SHARE = {"cpu": 0.25, "gpu": 1}
LEARNER: dict[str, Any] = {
    "train": "torch_objectives:learner",
    "space": {"rate": {"type": "float", "low": 0.0, "high": 1.0}},
}


def all_is_free(ray: Any) -> bool:
    free, there = ray.available_resources(), ray.cluster_resources()
    groups = ray.util.placement_group_table().values()
    return all(abs(free.get(kind, 0.0) - there[kind]) < 1e-6 for kind in ("CPU", "GPU")) and all(
        group["state"] == "REMOVED" for group in groups
    )


def test_gangs_of_four_on_six_gpus_start_and_stop_fifty_times_and_leave_nothing(ray: Any, run: Run) -> None:
    state, folder = run(
        **LEARNER,
        objective={"metric": "loss", "mode": "min", "max_steps": 8},
        scheduler={"type": "asha", "grace_steps": 1, "reduction_factor": 2, "min_agreement": -1},
        budget={"trials": 50},
        resources={"workers": 4, **SHARE},
    )
    assert state.status == "finished"
    assert {t.status for t in state.trials.values()} == {"finished", "stopped"}
    started = events_of(folder, TrialStarted)
    assert len(started) == 50
    for event in started:
        gpus = [*event.gpus, *(gpu for rank in event.ranks for gpu in rank["gpus"])]
        assert len(set(gpus)) == 4, "each rank has a GPU of its own"
    for trial in state.trials.values():
        assert [s.step for s in trial.steps] == list(range(1, trial.step + 1))
        assert all(s.metrics["ranks"] == 0 + 1 + 2 + 3 for s in trial.steps)
        assert trial.last["learnt"] == pytest.approx(trial.step * trial.config["rate"], rel=1e-5)
        left = {(folder.trial(trial.id) / f"rank-{rank}.txt").read_text() for rank in range(4)}
        assert len(left) == 1, "all ranks came equally far"
    wait_until(lambda: all_is_free(ray), 10, "all resources are free")
    assert not processes_of(str(folder.path))


def test_gangs_of_two_drivers_compete_for_one_cluster(ray: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Six GPUs are one gang and a half: that each held a part would be a deadlock."""
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    drivers = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        fields = {**LEARNER, "name": name, "budget": {"trials": 4}, "resources": {"workers": 4, **SHARE}}
        fields["objective"] = {"metric": "loss", "mode": "min", "max_steps": 3}
        drivers.append(start_driver(tmp_path / name, "torch_objectives", **fields))
    try:
        said = [process.communicate(timeout=150)[0] for process, _ in drivers]
    finally:
        for process, _ in drivers:
            process.kill()
    assert [process.returncode for process, _ in drivers] == [0, 0], said
    for _, folder in drivers:
        assert [(t.status, t.step) for t in replay(folder).trials.values()] == [("finished", 3)] * 4
    wait_until(lambda: all_is_free(ray), 20, "all resources are free")


@pytest.mark.parametrize("placement", ["pack", "spread"])
def test_ray_is_asked_for_the_placement_that_was_wanted(ray: Any, run: Run, placement: str) -> None:
    before = set(ray.util.placement_group_table())
    state, _ = run(
        **LEARNER,
        objective={"metric": "loss", "mode": "min", "max_steps": 2},
        budget={"trials": 1},
        resources={"workers": 2, "placement": placement, **SHARE},
    )
    assert state.status == "finished"
    new = [group for name, group in ray.util.placement_group_table().items() if name not in before]
    strategies = {group["strategy"] for group in new if len(group["bundles"]) == 2}
    assert strategies == {placement.upper()}, "on one node, spread is no more than a wish"


def test_a_population_of_gangs(run: Run) -> None:
    state, folder = run(
        **LEARNER,
        objective={"metric": "learnt", "mode": "max", "max_steps": 6},
        scheduler={"type": "pbt", "mutate": ["rate"], "population": 4, "perturbation_interval": 2},
        resources={"workers": 2, **SHARE},
    )
    assert state.status == "finished"
    assert [(t.status, t.step) for t in state.trials.values()] == [("finished", 6)] * 4
    assert events_of(folder, Exploited)
    for trial in state.trials.values():
        parts = state.lineage(trial.id, 6)
        learnt = sum(config["rate"] * (last - first + 1) for _, first, last, config in parts)
        assert trial.last["learnt"] == pytest.approx(learnt, rel=1e-5)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_fails_fails_the_gang_at_once(run: Run, rank: int) -> None:
    state, folder = run(
        train="torch_objectives:bad",
        space={
            "way": {"type": "choice", "values": ["kill", "raise", "hang"]},
            "rank": {"type": "choice", "values": [rank]},
        },
        search="grid",
        objective={"metric": "loss", "mode": "min", "max_steps": 4},
        resources={"workers": 3, **SHARE},
        step_timeout=3,
    )
    whose = f"rank {rank}: " if rank else ""
    ends = {t.config["way"]: t for t in state.trials.values()}
    assert {(t.status, t.step) for t in ends.values()} == {("failed", 1)}
    assert ends["kill"].reason.startswith(f"{whose}the trial's process ended by SIGKILL in step 2")
    assert ends["raise"].reason == f"{whose}ValueError: no such luck"
    assert ends["raise"].error is not None
    assert "raise ValueError" in ends["raise"].error["traceback"]
    assert ends["hang"].reason == "step 2 took longer than step_timeout=3s"
    killed, raised = ends["kill"], ends["raise"]
    again = [event.at for event in events_of(folder, Retried) if event.trial == killed.id]
    assert len(again) == 3, "killed from outside may be nobody's fault"
    assert raised.ended_at - raised.steps[-1].time < 1.5, "at once"
    for before, after in pairwise([killed.steps[-1].time, *again, killed.ended_at]):
        assert after - before < 1.5, "at once, each time"


def test_a_rank_that_returns_early_is_the_one_that_is_told(run: Run) -> None:
    state, _ = run(
        train="torch_objectives:bad",
        space={"way": {"type": "choice", "values": ["return"]}, "rank": {"type": "choice", "values": [1]}},
        objective={"metric": "loss", "mode": "min", "max_steps": 4},
        budget={"trials": 1},
        resources={"workers": 3, **SHARE},
    )
    (trial,) = state.trials.values()
    assert (trial.status, trial.step) == ("failed", 1)
    assert trial.reason.startswith("rank 1 returned after step 1, rank 0, rank 2 went on; every rank must")


def drawn(folder: Folder, rank: int) -> list[list[str]]:
    """What a rank noted: attempt, step, a random number, and the norm of its model."""
    lines = (folder.trial("000001") / f"rank-{rank}.txt").read_text().splitlines()
    return [line.split() for line in lines]


NETWORK: dict[str, Any] = {
    "train": "torch_objectives:network",
    "test": "torch_objectives:network_test",
    "space": {"pause": {"type": "choice", "values": [0.0, 0.2]}},
    "objective": {"metric": "loss", "mode": "min", "max_steps": 8},
    "budget": {"trials": 1},
    "resources": {"workers": 2, "cpu": 0.5},
    "checkpoints": {"every_steps": 1},
}


def test_ddp_keeps_ranks_alike_and_a_resumed_gang_goes_on_as_if_nothing_had_happened(run: Run, tmp_path: Path) -> None:
    undisturbed, folder = run(**NETWORK, name="whole", defaults={"pause": 0.0})
    assert undisturbed.trials["000001"].status == "finished", undisturbed.trials["000001"].error
    whole = [drawn(folder, rank) for rank in (0, 1)]
    assert [line[3] for line in whole[0]] == [line[3] for line in whole[1]], "one model"
    assert not {line[2] for line in whole[0]} & {line[2] for line in whole[1]}, (
        "each rank has random numbers of its own"
    )
    (test,) = undisturbed.tests
    assert test.metrics["world"] == 1
    assert test.metrics["test_norm"] > 0

    third = Path("trials", "000001", "checkpoints", "000003-1")
    cut = run_until(
        lambda results: results.path.joinpath(third).exists(),
        tmp_path,
        "torch_objectives",
        **NETWORK,
        name="cut",
        defaults={"pause": 0.2},
    )
    raytuner("resume", str(cut.path))
    state = replay(cut)
    assert state.trials["000001"].attempt > 1
    for rank in (0, 1):
        last = {line[1]: line[2:] for line in drawn(cut, rank)}
        assert last == {line[1]: line[2:] for line in whole[rank]}


def test_a_gang_that_loses_a_seat_goes_on_from_its_checkpoint(ray: Any, run: Run, tmp_path: Path) -> None:
    checkpoints = tmp_path / "results" / "test" / "trials" / "000001" / "checkpoints"

    def kill_a_seat() -> None:
        wait_until(lambda: (checkpoints / "000003-1").exists(), 60, "three steps are done")
        (seat,) = processes_of("ray::Seat")
        seat.kill()

    killer = threading.Thread(target=kill_a_seat)
    killer.start()
    state, folder = run(
        train="torch_objectives:learner",
        space={"rate": {"type": "choice", "values": [1.0]}, "pause": {"type": "choice", "values": [0.3]}},
        objective={"metric": "loss", "mode": "min", "max_steps": 10},
        budget={"trials": 1},
        resources={"workers": 2, **SHARE},
        checkpoints={"every_steps": 1},
    )
    killer.join()
    (trial,) = state.trials.values()
    assert (trial.status, trial.step) == ("finished", 10)
    assert trial.last["learnt"] == 10.0
    starts = events_of(folder, TrialStarted)
    assert len(starts) == 2
    assert starts[1].step >= 3, "not from scratch"
    wait_until(lambda: all_is_free(ray), 10, "all resources are free")
