"""Population-based training on real Ray; a driver that is killed in it; and its winner, trained again."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, events_of, raytuner, run_until

from raytuner.journal import Exploited, Folder, TrialStarted, replay

NAMES = ["ada", "bob", "eve"]  # not mutated: they go along with what is copied
FIELDS: dict[str, Any] = {
    "train": "objectives:learner",
    "objective": {"metric": "learnt", "mode": "max", "max_steps": 12},
    "space": {
        "rate": {"type": "float", "low": 0.0, "high": 1.0},
        "pause": {"type": "choice", "values": [0.05]},
        "named": {"type": "choice", "values": NAMES},
    },
    "scheduler": {"type": "pbt", "mutate": ["rate"], "population": 6, "perturbation_interval": 2, "quantile": 0.34},
}


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("synchronous", [False, True])
def test_a_population_comes_to_its_end(run: Run, synchronous: bool) -> None:
    state, folder = run(**{**FIELDS, "scheduler": {**FIELDS["scheduler"], "synchronous": synchronous}})
    assert state.status == "finished"
    assert [(t.status, t.step) for t in state.trials.values()] == [("finished", 12)] * 6
    exploited = events_of(folder, Exploited)
    assert len(exploited) >= 3
    assert all(event.source_step >= event.step for event in exploited)
    assert not synchronous or all(event.source_step == event.step for event in exploited)
    for trial in state.trials.values():
        parts = state.lineage(trial.id, 12)
        assert trial.last["learnt"] == pytest.approx(sum(p[3]["rate"] * (p[2] - p[1] + 1) for p in parts))


def test_a_population_survives_its_driver_and_its_winner_is_trained_again(tmp_path: Path) -> None:
    tracking = {"mlflow": f"sqlite:///{tmp_path}/mlflow.db"}
    folder = run_until(lambda results: events_of(results, Exploited), tmp_path, **FIELDS, tracking=tracking)
    before = replay(folder)
    raytuner("resume", str(folder.path))
    state = replay(folder)
    assert state.status == "finished"
    assert [(t.status, t.step) for t in state.trials.values()] == [("finished", 12)] * 6
    for trial in state.trials.values():
        assert trial.phases[: len(before.trials[trial.id].phases)] == before.trials[trial.id].phases
        parts = state.lineage(trial.id, 12)
        assert all(one[2] + 1 == two[1] for one, two in pairwise(parts))
        assert trial.last["learnt"] == pytest.approx(sum(p[3]["rate"] * (p[2] - p[1] + 1) for p in parts))
    attempts = [(e.trial, e.attempt) for e in events_of(folder, TrialStarted)]
    assert len(set(attempts)) == len(attempts)

    best = raytuner("best", str(folder.path), "--json")
    assert best["value"] == pytest.approx(
        sum(p["config"]["rate"] * (p["last_step"] - p["first_step"] + 1) for p in best["schedule"])
    )
    raytuner("replay", str(folder.path))
    again = raytuner("best", str(tmp_path / "results" / "own-replay"), "--json")
    assert (again["value"], again["step"]) == (pytest.approx(best["value"]), best["step"])
    assert [p["config"] for p in again["schedule"]] == [p["config"] for p in best["schedule"]]
    (trial,) = replay(Folder(tmp_path / "results" / "own-replay")).trials.values()
    assert trial.source == "replay"
    page = (tmp_path / "results" / "own-replay" / "report.md").read_text()
    assert "These are the defaults" not in page
    assert f"trial {best['trial']} of `{folder.where}`, trained again from scratch; there it had learnt " in page
    _check_mlflow(f"sqlite:///{tmp_path}/mlflow.db", state)


def _check_mlflow(uri: str, state: Any) -> None:
    """One run a trial, what changes as metrics by step, the copies as tags, the lineage with the experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (experiment,) = [found for found in client.search_experiments() if found.name == "own"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.data.tags["raytuner.kind"] == "experiment"]
    children = {run.data.tags["raytuner.trial"]: run for run in runs if run is not parent}
    assert sorted(children) == sorted(state.trials)
    for name, run in children.items():
        trial = state.trials[name]
        assert run.info.status == "FINISHED"
        assert float(run.data.params["rate"]) == trial.asked["rate"]
        assert run.data.tags.get("raytuner.exploits", "0") == str(len(trial.phases) - 1)
        rates = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "config/rate")}
        names = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "config/named-index")}
        for phase in trial.phases:
            if phase.after < 12:
                assert rates[phase.after + 1] == phase.config["rate"]
                in_force = [names[step] for step in sorted(names) if step <= phase.after + 1]
                assert not names or in_force[-1] == NAMES.index(phase.config["named"])
        if len({phase.config["named"] for phase in trial.phases}) > 1:
            assert names[1] == NAMES.index(trial.asked["named"])
        if len(trial.phases) > 1:
            assert json.loads(run.data.tags["raytuner.config"]) == trial.current
    assert {"lineage.json", "lineage.svg"} <= {found.path for found in client.list_artifacts(parent.info.run_id)}
