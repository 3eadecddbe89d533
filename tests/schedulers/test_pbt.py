"""Population-based training: who copies whom, who waits, and that everybody comes to the end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytuner.errors import SearchError
from raytuner.schedulers import PbtOptions, PbtScheduler, Resume
from raytuner.space import Choice, Config, Float, Space

SPACE = Space({"lr": Float(low=1e-4, high=1.0, log=True), "width": Choice(values=[16, 32])})


def pbt(*, max_steps: int = 100, seed: int = 0, space: Space = SPACE, **options: Any) -> PbtScheduler:
    given = {"mutate": ["lr"], "population": 4, "perturbation_interval": 10, **options}
    scheduler = PbtScheduler(PbtOptions(**given), max_steps=max_steps, seed=seed)
    scheduler.use(space)
    return scheduler


def started(scheduler: PbtScheduler, names: str = "ABCD", **options: Any) -> PbtScheduler:
    for place, name in enumerate(names):
        scheduler.on_start(name, {"lr": 0.1 / (place + 1), "width": 16 if place % 2 else 32}, **options)
    return scheduler


# -- who copies whom ------------------------------------------------------------------------------------------------


def test_the_worst_goes_on_from_the_best_with_other_values() -> None:
    scheduler = started(pbt())
    for name, value in (("A", 0.1), ("B", 0.2), ("C", 0.3)):
        assert scheduler.on_report(name, 10, value).action == "continue"
    decision = scheduler.on_report("D", 10, 0.4)
    assert decision.action == "exploit"
    assert decision.reason == "step 10: 4 of 4, among the worst 1: goes on from A"
    assert decision.exploit is not None
    assert decision.exploit.source == "A"
    assert decision.exploit.config["width"] == 32  # as A has it: its state has that shape
    assert decision.exploit.config["lr"] != 0.1
    assert 1e-4 <= decision.exploit.config["lr"] <= 1.0


def test_who_comes_first_is_compared_one_decision_later_by_the_same_step() -> None:
    scheduler = started(pbt())
    actions = [scheduler.on_report(name, 10, value).action for name, value in zip("DCBA", (4, 3, 2, 1), strict=True)]
    assert actions == ["continue"] * 4  # D came first: there was nobody to compare it with
    assert scheduler.on_report("A", 20, 0.5).reason == "step 10: 1 of 4, not among the worst 1"
    decision = scheduler.on_report("D", 20, 0.1)  # better than all were at step 10; but it was the worst there
    assert (decision.action, decision.reason) == ("exploit", "step 10: 4 of 4, among the worst 1: goes on from A")


def test_what_was_reported_before_a_copy_does_not_count_against_the_copy() -> None:
    scheduler = started(pbt())
    for name, value in (("A", 0.1), ("B", 0.2), ("C", 0.3)):
        scheduler.on_report(name, 10, value)
    assert scheduler.on_report("D", 10, 0.4).action == "exploit"
    assert scheduler.on_report("D", 20, 0.4).reason == "step 20: 1 of 1, not among the worst 0"


def test_what_is_copied_next_is_the_new_configuration() -> None:
    scheduler = started(pbt(resample_probability=0))
    for name, value in (("A", 0.1), ("B", 0.2), ("C", 0.3)):
        scheduler.on_report(name, 10, value)
    first = scheduler.on_report("D", 10, 0.4).exploit
    for name, value in (("D", 0.01), ("B", 0.2), ("C", 0.3)):
        scheduler.on_report(name, 20, value)
    second = scheduler.on_report("A", 20, 0.4).exploit
    assert first is not None
    assert second is not None
    assert second.source == "D"
    ratio = second.config["lr"] / first.config["lr"]
    assert ratio == pytest.approx(1.2) or ratio == pytest.approx(1 / 1.2)


def test_who_is_ahead_and_bad_waits_until_a_better_one_has_come_as_far() -> None:
    scheduler = started(pbt())
    for name, value in (("D", 0.9), ("A", 0.1), ("B", 0.2), ("C", 0.3)):
        scheduler.on_report(name, 10, value)
    decision = scheduler.on_report("D", 20, 0.8)
    assert decision.action == "pause"
    assert "waits until one of the best has come as far" in decision.reason
    assert scheduler.next_to_resume() is None
    assert scheduler.on_report("B", 20, 0.15).action == "continue"
    assert scheduler.next_to_resume() is None  # B is not the best
    assert scheduler.on_report("A", 20, 0.05).action == "continue"
    resumed = scheduler.next_to_resume()
    assert resumed is not None
    assert resumed.trial_id == "D"
    assert resumed.exploit is not None
    assert resumed.exploit.source == "A"
    assert scheduler.next_to_resume() is None


def test_who_is_far_behind_does_not_count() -> None:
    scheduler = started(pbt())
    for step in (10, 20, 30):
        for name, value in (("A", 0.1), ("B", 0.2), ("C", 0.3)):
            scheduler.on_report(name, step, value)
    scheduler.on_report("D", 10, 0.01)
    assert scheduler.on_report("C", 40, 0.3).action == "continue"  # three of four are at 30 or 40: too few to copy


def test_nobody_copies_before_burn_in() -> None:
    scheduler = started(pbt(burn_in=20))
    for step, expected in ((10, "continue"), (20, "exploit")):
        for name, value in (("A", 0.1), ("B", 0.2), ("C", 0.3)):
            scheduler.on_report(name, step, value)
        assert scheduler.on_report("D", step, 0.4).action == expected


def test_the_defaults_are_trained_as_they_are_and_may_be_copied() -> None:
    scheduler = pbt()
    scheduler.on_start("D", {"lr": 0.5, "width": 16}, baseline=True)
    started(scheduler, "ABC")
    for name, value in (("A", 0.1), ("B", 0.2), ("C", 0.3)):
        scheduler.on_report(name, 10, value)
    assert scheduler.on_report("D", 10, 0.4).action == "continue"
    for name, value in (("D", 0.01), ("B", 0.2), ("C", 0.3)):
        scheduler.on_report(name, 20, value)
    copied = scheduler.on_report("A", 20, 0.4).exploit
    assert copied is not None
    assert copied.source == "D"


@pytest.mark.parametrize("status", ["failed", "stopped", "finished"])
def test_who_has_ended_is_not_copied(status: str) -> None:
    scheduler = started(pbt(population=8, quantile=0.5), "ABCDEFGH")
    for place, name in enumerate("ABCDEFG"):
        scheduler.on_report(name, 10, place)
    scheduler.on_end("A", status)
    for name in "BCD":
        scheduler.on_end(name, "failed")
    decision = scheduler.on_report("H", 10, 9.0)
    assert decision.exploit is not None
    # Of those that count, the best half; who has finished counts, but trains no more.
    assert decision.exploit.source in ("E" if status == "finished" else "EF")


def test_a_tournament_is_lost_to_a_better_one_only() -> None:
    wins = losses = 0
    for seed in range(40):
        scheduler = started(pbt(exploit="tournament", population=4, seed=seed))
        for name, value in (("A", 0.1), ("B", 0.2), ("D", 0.4)):
            scheduler.on_report(name, 10, value)
        decision = scheduler.on_report("C", 10, 0.3)
        if decision.exploit is None:
            wins += 1
            assert "better than D" in decision.reason
        else:
            losses += 1
            assert decision.exploit.source in "AB"
    assert 6 < wins < 22  # one in three is worse
    assert losses == 40 - wins


def test_reports_are_minimised_and_finite() -> None:
    with pytest.raises(SearchError, match="finite values only, got nan"):
        started(pbt()).on_report("A", 10, float("nan"))


# -- with fewer slots than members ------------------------------------------------------------------------------------


def test_who_has_trained_makes_room_and_is_judged_when_it_goes_on() -> None:
    scheduler = started(pbt(), "AB")
    assert scheduler.on_report("B", 10, 0.9).action == "pause"
    assert scheduler.on_report("A", 10, 0.1).action == "pause"
    assert scheduler.next_to_resume(fresh=True) is None  # C and D come first
    started(scheduler, "CD")
    assert scheduler.on_report("C", 10, 0.2).action == "continue"
    assert scheduler.on_report("D", 10, 0.3).action == "continue"
    resumed = scheduler.next_to_resume()
    assert resumed is not None
    assert resumed.trial_id == "B"  # first, while A still waits at the step at which it is copied
    assert resumed.exploit is not None
    assert scheduler.next_to_resume() == Resume("A", "step 10: 1 of 4, not among the worst 1")


def test_without_more_trials_to_start_the_paused_go_on() -> None:
    scheduler = started(pbt(), "AB")
    scheduler.on_report("A", 10, 0.1)
    scheduler.on_report("B", 10, 0.9)
    assert [scheduler.next_to_resume(fresh=False) is not None for _ in range(3)] == [True, True, False]


def test_together_all_wait_for_the_last_and_who_copies_goes_first() -> None:
    scheduler = started(pbt(synchronous=True, quantile=0.5))
    for name, value in (("A", 0.1), ("C", 0.3), ("D", 0.4)):
        assert scheduler.on_report(name, 10, value).action == "pause"
        assert scheduler.next_to_resume() is None
    assert scheduler.on_report("B", 10, 0.2).action == "pause"
    order = [scheduler.next_to_resume() for _ in range(4)]
    assert [resumed.trial_id for resumed in order if resumed] == ["D", "C", "A", "B"]
    assert [resumed.exploit is not None for resumed in order if resumed] == [True, True, False, False]
    assert scheduler.next_to_resume() is None


def test_together_nobody_waits_for_those_that_have_ended() -> None:
    scheduler = started(pbt(synchronous=True))
    for name in "ABC":
        scheduler.on_report(name, 10, 0.1)
    scheduler.on_end("D", "failed")
    assert scheduler.next_to_resume() is not None


# -- a whole population -----------------------------------------------------------------------------------------------


@dataclass
class Toy:
    """The paper's toy problem (section 4.1): Q = 1.2 - |theta|^2, of which each parameter sees one half."""

    theta: np.ndarray[Any, Any]

    def train(self, config: Config) -> float:
        self.theta = self.theta - 0.02 * np.array([config["h0"], config["h1"]]) * self.theta
        return 1.2 - float(self.theta @ self.theta)


TOY = Space({"h0": Float(low=0.0, high=1.0), "h1": Float(low=0.0, high=1.0)})


def play(
    scheduler: PbtScheduler, slots: int, seed: int, *, reload_at: int = -1, slow: bool = True
) -> tuple[list[str], float]:
    """Train a population on so many slots of different speeds; the record of decisions, and the best value."""
    rng = np.random.default_rng(seed)
    most, population = scheduler.max_steps or 0, scheduler.settings.population
    states: dict[str, tuple[int, Toy, Config]] = {}
    saved: dict[str, tuple[int, Toy]] = {}
    running: dict[str, float] = {}  # when each is at its next step
    log: list[str] = []
    best, ended, now = -np.inf, 0, 0.0
    pace = {f"{n:02d}": float(np.exp(rng.normal(0, 0.7 if slow else 0))) for n in range(population)}

    def exploit(name: str, found: Any) -> None:
        step, toy = saved[found.source]
        assert step >= states[name][0], "never back"
        assert TOY.problems(found.config) == []
        states[name] = (step, Toy(toy.theta.copy()), dict(found.config))
        saved[name] = (step, Toy(toy.theta.copy()))

    while True:
        while len(running) < slots:
            resumed = scheduler.next_to_resume(fresh=len(states) < population)
            if resumed is not None:
                assert resumed.trial_id not in running
                if resumed.exploit is not None:
                    exploit(resumed.trial_id, resumed.exploit)
                log.append(f"{resumed.trial_id}: {resumed.reason}")
                running[resumed.trial_id] = now + pace[resumed.trial_id]
            elif len(states) < population:
                name = f"{len(states):02d}"
                states[name] = (0, Toy(np.array([0.9, 0.9])), TOY.sample(rng))
                scheduler.on_start(name, states[name][2])
                running[name] = now + pace[name]
            else:
                break
        if not running:
            assert ended == population, "all come to the end"
            return log, best
        name = min(running, key=lambda other: (running[other], other))
        now = running[name]
        step, toy, config = states[name]
        value = toy.train(config)
        step += 1
        best = max(best, value)
        states[name] = (step, toy, config)
        running[name] = now + pace[name]
        if step >= most:
            del running[name]
            scheduler.on_end(name, "finished")
            ended += 1
        elif scheduler.decides_at(step):
            saved[name] = (step, Toy(toy.theta.copy()))
            decision = scheduler.on_report(name, step, -value)
            log.append(f"{name}: {decision.reason}")
            if decision.action == "pause":
                del running[name]
            elif decision.exploit is not None:
                exploit(name, decision.exploit)
        if len(log) == reload_at:
            state = json.loads(json.dumps(scheduler.state_dict()))
            scheduler = pbt_of(scheduler)
            scheduler.load_state_dict(state)


def pbt_of(scheduler: PbtScheduler) -> PbtScheduler:
    fresh = PbtScheduler(scheduler.settings, max_steps=scheduler.max_steps, seed=scheduler.seed)
    fresh.use(TOY)
    return fresh


@settings(max_examples=60, deadline=None)
@given(
    population=st.integers(4, 12),
    slots=st.integers(1, 14),
    exploit=st.sampled_from(["truncation", "tournament"]),
    synchronous=st.booleans(),
    quantile=st.sampled_from([0.25, 0.5]),
    interval=st.integers(1, 9),
    seed=st.integers(0, 50),
)
def test_everybody_comes_to_the_end_and_a_reload_changes_nothing(
    population: int, slots: int, exploit: str, synchronous: bool, quantile: float, interval: int, seed: int
) -> None:
    options = {
        "population": population,
        "exploit": exploit,
        "synchronous": synchronous,
        "quantile": quantile,
        "perturbation_interval": interval,
        "mutate": ["h0", "h1"],
    }
    whole, _ = play(pbt(max_steps=20, space=TOY, **options), slots, seed)
    again, _ = play(pbt(max_steps=20, space=TOY, **options), slots, seed, reload_at=max(1, len(whole) // 2))
    assert again == whole
    assert not synchronous or exploit == "tournament" or any("goes on from" in line for line in whole)


@pytest.mark.parametrize("synchronous", [False, True])
@pytest.mark.parametrize("slots", [3, 10])
def test_it_solves_the_toy_problem_that_no_fixed_configuration_solves_so_fast(slots: int, synchronous: bool) -> None:
    alone, together = [], []
    for seed in range(5):
        options = {"population": 10, "mutate": ["h0", "h1"], "synchronous": synchronous, "perturbation_interval": 4}
        together.append(play(pbt(max_steps=100, space=TOY, seed=seed, **options), slots, seed)[1])
        options["burn_in"] = 1000  # nobody copies anybody: random search
        alone.append(play(pbt(max_steps=100, space=TOY, seed=seed, **options), slots, seed)[1])
    assert np.median(together) > np.median(alone)


# -- what it refuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mutate": []}, r"scheduler\.mutate: pbt must know which parameters .* got none; name some of lr, width"),
        (
            {"mutate": ["lrr"]},
            r"scheduler\.mutate: must name parameters of the space, got 'lrr'; use some of lr",
        ),
        ({"population": 3}, r"scheduler: at least one trial must be among the best.* got quantile=0.25, population=3"),
        ({"perturbation_interval": 100}, r"scheduler: pbt needs objective.max_steps above .*perturbation_interval"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SearchError, match=message):
        pbt(**options)


def test_a_state_of_something_else_is_refused() -> None:
    with pytest.raises(SearchError, match="must be one of pbt's"):
        pbt().load_state_dict({"rungs": []})
