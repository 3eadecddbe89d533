"""The virtual cluster: what it costs, whom it asks, and what it does when workers are lost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from raytuner.schedulers import AshaOptions, AshaScheduler, NoneOptions, NoneScheduler, Scheduler
from raytuner.search import Observation, RandomOptions, RandomSearch
from raytuner.simulation import Budget, Cluster, Curve, Reference, Run, Table, simulate_run
from raytuner.space import Config, Float, Space


class Straight(Table):
    """Every step takes 2 s; the value is x from the first step on, and nan above ``limit``."""

    name = "straight"
    reference = Reference(0.0, 0.5)

    def __init__(self, steps: int = 9, limit: float = 2.0) -> None:
        self.space = Space({"x": Float(low=0.0, high=1.0)})
        self.steps = steps
        self.limit = limit

    def curve(self, config: Config, steps: int, repetition: int = 0) -> Curve:
        value = config["x"] if config["x"] <= self.limit else math.nan
        return Curve(np.full(steps, value), 2.0 * np.arange(1, steps + 1))


class Watched(RandomSearch):
    """Remembers what it was told, and how many trials were under way at most."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.told: list[Observation] = []

    def tell(self, observation: Observation) -> None:
        self.told.append(observation)
        super().tell(observation)


def go(
    table: Table, scheduler: Scheduler | None = None, *, workers: int = 1, seed: int = 0, **more: Any
) -> tuple[Run, Watched]:
    fields = {name: more.pop(name) for name in ("stragglers", "failures") if name in more}
    search = Watched(table.space, seed=seed, options=RandomOptions(), first=more.pop("first", ()))
    scheduler = scheduler or NoneScheduler(NoneOptions(), max_steps=table.steps, seed=0)
    run = simulate_run(table, search, scheduler, Cluster(workers, **fields), Budget(**more), seed=seed)
    return run, search


def asha(table: Table, form: Any = "stop") -> AshaScheduler:
    return AshaScheduler(AshaOptions(form=form), max_steps=table.steps, seed=0)


def test_time_passes_as_the_table_says() -> None:
    run, search = go(Straight(), trials=6)
    assert (run.trials, run.steps, run.seconds, run.utilisation) == (6, 54, 108.0, 1.0)
    assert run.ends.tolist() == [18.0 * n for n in range(1, 7)]
    assert run.statuses == {"finished": 6}
    values = [search.trials[name].config["x"] for name in search.trials]
    assert run.regret == pytest.approx(min(values) / 0.5)
    assert run.regret_at_trials(2) == pytest.approx(min(values[:2]) / 0.5)
    assert run.regret_at_steps(10) == pytest.approx(min(values[:2]) / 0.5)  # the second has begun
    assert run.regret_at_time(17.0) == pytest.approx(values[0] / 0.5)
    assert math.isinf(run.regret_at_time(1.0))


def test_workers_share_the_work() -> None:
    run, _ = go(Straight(), workers=4, trials=6)
    assert run.seconds == 36.0
    assert run.utilisation == pytest.approx(6 / 8)
    slow, _ = go(Straight(), workers=4, trials=6, stragglers=0.5)
    assert slow.seconds != 36.0
    assert slow.steps == 54


def test_a_budget_of_steps_or_time_cuts_what_runs() -> None:
    run, _ = go(Straight(), workers=2, steps=20)
    assert run.steps == 20
    run, _ = go(Straight(), workers=2, seconds=40.0)
    assert run.times.max() <= 40.0
    assert run.statuses == {"finished": 4, "running": 2}
    assert run.utilisation == 1.0


def test_time_that_is_cut_off_counts_to_its_end() -> None:
    run, _ = go(Straight(), workers=2, seconds=39.0)
    assert (run.times.max(), run.seconds, run.utilisation) == (38.0, 39.0, 1.0)
    run, _ = go(Straight(), workers=2, seconds=1.0)  # before the first report
    assert (run.steps, run.seconds, run.utilisation) == (0, 1.0, 1.0)
    run, _ = go(Straight(), workers=4, steps=21)
    assert run.utilisation == 1.0


class Rising(Straight):
    """Every trial begins at 0.1 and gets worse, some more than others."""

    def curve(self, config: Config, steps: int, repetition: int = 0) -> Curve:
        return Curve(np.array([0.1, 0.5, 0.9 + config["x"]])[:steps], 2.0 * np.arange(1, steps + 1))


def test_the_regret_is_that_of_what_the_objective_selects() -> None:
    table = Rising(3)

    def regrets(select: Any) -> list[float]:
        search = RandomSearch(table.space, seed=0, options=RandomOptions(), first=[{"x": 0.2}, {"x": 0.0}])
        scheduler = NoneScheduler(NoneOptions(), max_steps=3, seed=0)
        run = simulate_run(table, search, scheduler, Cluster(), Budget(trials=2), seed=0, select=select)
        return (run.regrets * 0.5).tolist()

    assert regrets("best") == pytest.approx([0.1] * 6)
    assert regrets("last") == pytest.approx([0.1, 0.5, 1.1, 0.1, 0.5, 0.9])


def test_the_same_seed_is_the_same_run() -> None:
    table = Straight(27)
    runs = [
        go(table, asha(table), workers=5, trials=40, stragglers=0.3, failures=0.2, seed=seed)[0] for seed in (1, 1, 2)
    ]
    assert runs[0].times.tolist() == runs[1].times.tolist()
    assert runs[0].regrets.tolist() == runs[1].regrets.tolist()
    assert runs[0].lost == runs[1].lost > 0
    assert runs[0].times.tolist() != runs[2].times.tolist()


def test_asha_decides_as_it_would_anywhere() -> None:
    table = Straight(9)
    run, search = go(table, asha(table), trials=30)
    alone = asha(table)
    for trial_id, trial in search.trials.items():
        for step in (1, 3, 9):
            if step == 9:
                assert trial.status == "finished"
                break
            if alone.on_report(trial_id, step, trial.config["x"]).action == "stop":
                assert trial.status == "stopped"
                assert max(trial.values) == step
                break
    assert run.statuses["stopped"] > 10


def test_paused_trials_are_promoted() -> None:
    table = Straight(9)
    run, search = go(table, asha(table, "promote"), workers=3, trials=30)
    assert run.statuses["finished"] >= 3
    assert run.statuses["paused"] > 10
    best = min(search.trials.values(), key=lambda trial: trial.config["x"])
    assert best.status == "finished"


def test_the_baseline_is_never_stopped() -> None:
    table = Straight(9)
    _, search = go(table, asha(table), trials=12, first=[{"x": 1.0}])
    assert search.trials["000001"].status == "finished"


def test_a_training_that_diverges_is_told_as_failed() -> None:
    run, search = go(Straight(limit=0.5), trials=20)
    bad = [trial.config["x"] > 0.5 for trial in search.trials.values()]
    assert run.failed == bad
    assert {o.trial_id for o in search.told if o.status == "failed"} == {
        name for name, wrong in zip(search.trials, bad, strict=True) if wrong
    }
    assert all(o.value is None for o in search.told if o.status == "failed")
    assert run.ends[0] in (2.0, 18.0)


def test_a_lost_worker_costs_time_and_nothing_else() -> None:
    run, search = go(Straight(), workers=3, trials=30, failures=0.5)
    assert run.lost > 3
    assert run.busy > 30 * 18.0
    assert {trial.status for trial in search.trials.values()} == {"finished"}
    assert search.trials.keys() == {f"{n:06d}" for n in range(1, 31)}
    table = Straight(27)
    _, search = go(table, asha(table), workers=3, trials=30, failures=0.5)
    assert {trial.status for trial in search.trials.values()} == {"finished", "stopped"}


def test_a_trial_that_lost_its_worker_goes_on_from_its_last_rung() -> None:
    table = Straight(27)

    class Rungs(NoneScheduler):
        """Decides at step 9, and lets everybody go on."""

        def decision_steps(self) -> tuple[int, ...]:
            return (9,)

    plain, _ = go(table, workers=1, trials=40, failures=0.5)
    kept, _ = go(table, Rungs(NoneOptions(), max_steps=27, seed=0), workers=1, trials=40, failures=0.5)
    assert kept.lost > 0
    assert kept.busy < plain.busy
