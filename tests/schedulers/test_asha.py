"""ASHA's decisions, against traces worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raytuner.errors import SearchError
from raytuner.schedulers import AshaOptions, AshaScheduler


def resumed(scheduler: AshaScheduler) -> str | None:
    """Who goes on next."""
    found = scheduler.next_to_resume()
    return found.trial_id if found is not None else None


def asha(form: Any = "stop", grace: int = 1, factor: int = 3, max_steps: int | None = 27) -> AshaScheduler:
    options = AshaOptions(form=form, grace_steps=grace, reduction_factor=factor)
    return AshaScheduler(options, max_steps=max_steps, seed=0)


def actions(scheduler: AshaScheduler, reports: list[tuple[str, int, float]]) -> list[str]:
    return [scheduler.on_report(*report).action for report in reports]


def reloaded(scheduler: AshaScheduler) -> AshaScheduler:
    assert isinstance(scheduler.options, AshaOptions)
    fresh = AshaScheduler(scheduler.options, max_steps=scheduler.max_steps, seed=scheduler.seed)
    fresh.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    return fresh


@pytest.mark.parametrize(
    ("grace", "factor", "max_steps", "rungs"),
    [(1, 3, 27, (1, 3, 9)), (1, 3, 28, (1, 3, 9, 27)), (2, 4, 100, (2, 8, 32)), (5, 2, 6, (5,)), (1, 2, 2, (1,))],
)
def test_rungs_lie_below_the_last_step(grace: int, factor: int, max_steps: int, rungs: tuple[int, ...]) -> None:
    scheduler = asha(grace=grace, factor=factor, max_steps=max_steps)
    assert scheduler.decision_steps() == rungs
    assert tuple(step for step in range(1, max_steps + 1) if scheduler.decides_at(step)) == rungs


@pytest.mark.parametrize("max_steps", [None, 1])
def test_needs_steps_to_save(max_steps: int | None) -> None:
    with pytest.raises(SearchError, match=r"max_steps above scheduler\.grace_steps"):
        asha(max_steps=max_steps)


@pytest.mark.parametrize(
    "wrong", [{"grace_steps": 0}, {"reduction_factor": 1}, {"form": "halve"}, {"grace": 1}, {"min_agreement": 2}]
)
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AshaOptions(**wrong)


def test_stop_lets_the_best_third_so_far_go_on() -> None:
    # ceil(n / 3) of the n in the rung go on: 1 of 1, 2, 3; 2 of 4, 5, 6; 3 of 7.
    trace = [
        ("A", 0.9, "continue"),  # 1st of 1
        ("B", 0.7, "continue"),  # 1st of 2
        ("C", 0.8, "stop"),  # 2nd of 3, one goes on
        ("D", 0.8, "stop"),  # 3rd of 4, two go on: C came first
        ("E", 0.75, "continue"),  # 2nd of 5
        ("F", 0.76, "stop"),  # 3rd of 6
        ("G", 0.76, "stop"),  # 4th of 7: F came first, three go on
        ("H", 0.1, "continue"),  # 1st of 8
    ]
    scheduler = asha()
    assert actions(scheduler, [(trial, 1, value) for trial, value, _ in trace]) == [action for *_, action in trace]


def test_each_rung_compares_its_own_trials() -> None:
    scheduler = asha()
    assert actions(scheduler, [("A", 1, 0.9), ("A", 3, 0.5), ("A", 9, 0.4)]) == ["continue"] * 3
    # B is 1st of 2 at rung 1, 2nd of 2 at rung 3, where ceil(2 / 3) = 1 goes on.
    assert actions(scheduler, [("B", 1, 0.8), ("B", 3, 0.6)]) == ["continue", "stop"]


def test_reasons_are_sentences_with_numbers() -> None:
    scheduler = asha(grace=3)
    for index in range(8):
        scheduler.on_report(f"{index}", 3, 0.1 * (index + 1))
    assert scheduler.on_report("x", 3, 0.41).reason == "rung 3: 5th of 9, the best third (3) goes on"
    half = asha(factor=2, form="promote", max_steps=10)
    assert half.on_report("a", 1, 2.0).reason == "rung 1: 1st of 1, the best half (0) goes on"
    for index in range(10):
        half.on_report(f"{index}", 1, index / 100)
    assert "11th of 12" in half.on_report("b", 1, 1.0).reason


def test_a_report_settles_every_rung_that_it_passes() -> None:
    scheduler = asha()
    actions(scheduler, [("A", 1, 0.5), ("A", 3, 0.4)])
    # B's first word comes at step 4: 0.45 enters rung 1, where it is 1st of 2, and rung 3, where it is 2nd of 2.
    decision = scheduler.on_report("B", 4, 0.45)
    assert decision.action == "stop"
    assert decision.reason.startswith("rung 3: 2nd of 2")
    # So C meets it in both.
    assert scheduler.on_report("C", 1, 0.47).reason.startswith("rung 1: 2nd of 3")
    assert scheduler.on_report("D", 9, 0.42).reason.startswith("rung 3: 2nd of 3")


def test_a_rung_that_it_passes_badly_stops_a_trial() -> None:
    scheduler = asha()
    actions(scheduler, [("A", 1, 0.5)])
    # 0.6 after three steps is worse than A's after one, though nobody else has reached rung 3.
    assert scheduler.on_report("B", 3, 0.6).reason == "rung 1: 2nd of 2, the best third (1) goes on"


def test_a_settled_rung_stays_settled() -> None:
    scheduler = asha()
    assert actions(scheduler, [("A", 1, 0.5), ("B", 1, 0.4)]) == ["continue", "continue"]
    scheduler.on_end("A", "failed")
    # A is tried again from its start: its rung knows it already.
    assert scheduler.on_report("A", 1, 9.9).action == "continue"
    assert scheduler.on_report("C", 1, 0.45).reason.startswith("rung 1: 2nd of 3")


@pytest.mark.parametrize(("step", "value"), [(1, float("nan")), (1, float("inf")), (0, 0.5)])
def test_a_report_must_be_comparable(step: int, value: float) -> None:
    with pytest.raises(SearchError, match="trial A"):
        asha().on_report("A", step, value)


@pytest.mark.parametrize("form", ["stop", "promote"])
def test_a_rung_whose_order_does_not_last_holds_nobody_back(form: Any) -> None:
    trusting = AshaScheduler(AshaOptions(form=form, min_agreement=-1), max_steps=27, seed=0)
    # Each is the best at rung 1, and the worst at rung 3: all six pairs are in the wrong order, (10 - 6) / (10 + 6).
    reports = [("A", 0.9, 0.1), ("B", 0.8, 0.2), ("C", 0.7, 0.3), ("D", 0.6, 0.4)]
    for scheduler in (doubting := asha(form), trusting):
        train(scheduler, reports)
    decision = doubting.on_report("E", 1, 0.95)
    assert decision.action == "continue"
    assert decision.reason == "rung 1: 5th of 5, all go on, since its order did not last (agreement 0.25)"
    assert resumed(doubting) != "E"
    assert doubting.on_report("E", 3, 0.9).action != "continue"  # rung 3 has not shown anything to its discredit
    assert trusting.on_report("E", 1, 0.95).action != "continue"


def train(scheduler: AshaScheduler, reports: list[tuple[str, float, float]]) -> None:
    """To rung 1 and rung 3, with these values."""
    for trial, early, late in reports:
        scheduler.on_report(trial, 1, early)
        scheduler.on_report(trial, 3, late)


def test_an_order_must_last_beyond_the_next_rung() -> None:
    scheduler = asha()
    for number in range(4):  # each better at rungs 1 and 3 than those before, and worse at rung 9
        for step, value in ((1, 0.9 - 0.1 * number), (3, 0.8 - 0.1 * number), (9, 0.1 + 0.1 * number)):
            scheduler.on_report(f"{number}", step, value)
    for step in (1, 3):
        decision = scheduler.on_report("last", step, 0.99)
        assert decision.action == "continue"
        assert "its order did not last (agreement 0.25)" in decision.reason


def test_a_rung_that_told_right_after_all_is_trusted_again() -> None:
    scheduler = asha()
    train(scheduler, [("A", 0.9, 0.1), ("B", 0.8, 0.2), ("C", 0.7, 0.3), ("D", 0.6, 0.4)])
    assert scheduler.on_report("E", 1, 99.0).action == "continue"
    train(scheduler, [(f"{number}", 1.0 + number, 1.0 + number) for number in range(12)])
    assert scheduler.on_report("F", 1, 99.0).action == "stop"


def test_stop_never_resumes() -> None:
    scheduler = asha()
    actions(scheduler, [("A", 1, 0.5), ("B", 1, 0.6), ("C", 1, 0.7)])
    assert scheduler.pauses is False
    assert scheduler.next_to_resume() is None


def test_promote_follows_algorithm_2() -> None:
    # reduction_factor 2, rungs 1, 2, 4: floor(n / 2) of a rung go on.
    scheduler = asha("promote", factor=2, max_steps=8)
    assert scheduler.pauses is True
    assert scheduler.on_report("A", 1, 0.5).action == "pause"  # floor(1 / 2) = 0
    assert scheduler.next_to_resume() is None
    assert scheduler.on_report("B", 1, 0.6).action == "pause"  # the best one is A, which waits
    assert resumed(scheduler) == "A"
    assert scheduler.next_to_resume() is None  # A is on its way
    assert scheduler.on_report("C", 1, 0.4).action == "continue"  # the best one is C itself
    assert scheduler.on_report("A", 2, 0.45).action == "pause"
    assert scheduler.on_report("D", 1, 0.7).action == "pause"  # best two: C, A, both promoted
    assert scheduler.next_to_resume() is None
    assert scheduler.on_report("C", 2, 0.47).action == "pause"  # 2nd of 2 in rung 2; A may go on
    assert scheduler.on_report("E", 1, 0.1).action == "pause"  # best two: E, C; but A in the higher rung comes first
    assert resumed(scheduler) == "A"
    assert resumed(scheduler) == "E"
    assert scheduler.next_to_resume() is None
    assert scheduler.on_report("A", 4, 0.4).action == "pause"
    assert scheduler.on_report("E", 2, 0.1).action == "continue"  # 1st of 3
    assert scheduler.on_report("E", 4, 0.1).action == "continue"  # 1st of 2
    assert scheduler.on_report("F", 1, 0.45).action == "continue"  # 3rd of 6, and nobody above may go on
    assert scheduler.on_report("G", 1, 0.55).action == "pause"  # 5th of 7
    assert scheduler.next_to_resume() is None


def test_promote_ties_go_to_the_first() -> None:
    scheduler = asha("promote", factor=2, max_steps=8)
    assert actions(scheduler, [("A", 1, 0.5), ("B", 1, 0.5)]) == ["pause", "pause"]
    assert resumed(scheduler) == "A"


def test_a_trial_that_has_ended_is_never_resumed() -> None:
    scheduler = asha("promote", factor=2, max_steps=8)
    actions(scheduler, [("A", 1, 0.1), ("B", 1, 0.2), ("C", 1, 0.3), ("D", 1, 0.4)])
    scheduler.on_end("A", "failed")
    assert resumed(scheduler) == "B"  # floor(4 / 2) = 2: A's place is not handed down, B has its own
    assert scheduler.next_to_resume() is None


def test_a_rung_that_was_jumped_over_promotes_nobody() -> None:
    scheduler = asha("promote", factor=2, max_steps=8)
    assert scheduler.on_report("A", 2, 0.1).action == "pause"  # in rungs 1 and 2
    assert scheduler.on_report("B", 1, 0.2).action == "pause"  # the best of rung 1 is A, which is beyond it
    assert scheduler.next_to_resume() is None


def test_a_state_of_other_rungs_is_refused() -> None:
    with pytest.raises(SearchError, match="rungs"):
        asha(max_steps=9).load_state_dict(asha().state_dict())


VALUES = st.lists(st.integers(0, 8).map(float), min_size=1, max_size=40)


@given(VALUES, st.integers(2, 5))
def test_stop_agrees_with_the_quantile(values: list[float], factor: int) -> None:
    # Among distinct values, value <= the linearly interpolated 1/factor quantile means place <= 1 + (n - 1) // factor.
    scheduler = asha(factor=factor, max_steps=100)
    seen: list[tuple[float, int]] = []
    for index, value in enumerate(values):
        seen.append((value, index))
        place = sorted(seen).index((value, index)) + 1
        expected = "continue" if place <= 1 + (len(seen) - 1) // factor else "stop"
        assert scheduler.on_report(f"{index}", 1, value).action == expected


def play(
    scheduler: AshaScheduler, values: list[float], workers: int, seed: int, *, reload: bool, lasts: bool = True
) -> list[str]:
    """Trains one trial per value with so many workers, in a random order of arrivals; promoted trials come first.

    lasts: whether the order of trials is the same at all rungs.
    """
    rng = np.random.default_rng(seed)
    steps = [*scheduler.decision_steps(), scheduler.max_steps]
    waiting = list(range(len(values)))
    running: list[tuple[int, int]] = []
    at = dict.fromkeys(waiting, 0)
    log = []
    while True:
        while len(running) < workers:
            next_one = resumed(scheduler)
            log.append(f"next {next_one}")
            if next_one is not None:
                running.append((int(next_one), at[int(next_one)]))
            elif waiting:
                running.append((waiting.pop(0), 0))
            else:
                break
        if not running:
            return log
        trial, rung = running.pop(int(rng.integers(len(running))))
        if steps[rung] == scheduler.max_steps:
            scheduler.on_end(str(trial), "finished")
            log.append(f"{trial} finished")
            continue
        value = values[trial] if lasts else values[(trial + 7 * rung) % len(values)]
        decision = scheduler.on_report(str(trial), steps[rung] or 0, value)
        log.append(f"{trial} {decision.action}: {decision.reason}")
        at[trial] = rung + 1
        if decision.action == "continue":
            running.append((trial, rung + 1))
        if reload:
            scheduler = reloaded(scheduler)


@given(VALUES, st.integers(2, 4), st.integers(1, 6), st.integers(0, 99))
def test_promote_finally_promotes_the_best_of_every_rung(
    values: list[float], factor: int, workers: int, seed: int
) -> None:
    scheduler = asha("promote", factor=factor, max_steps=factor**3)
    play(scheduler, values, workers, seed, reload=False)
    state = scheduler.state_dict()
    promoted = {rung: set(trials) for rung, trials in state["promoted"]}
    sizes = []
    for rung, entries in state["rungs"]:
        best = [trial for _, _, trial in entries[: len(entries) // factor]]
        assert set(best) <= promoted[rung]
        sizes.append(len(entries))
    # Whoever was promoted reached the next rung, and nobody else did.
    assert [len(promoted[rung]) for rung, _ in state["rungs"]][:-1] == sizes[1:]
    assert sizes[0] == len(values)


@pytest.mark.parametrize("form", ["stop", "promote"])
@given(VALUES, st.integers(2, 4), st.integers(1, 6), st.integers(0, 99), st.booleans())
def test_a_reloaded_scheduler_decides_alike(
    form: str, values: list[float], factor: int, workers: int, seed: int, lasts: bool
) -> None:
    logs = [
        play(asha(form, factor=factor, max_steps=factor**3), values, workers, seed, reload=reload, lasts=lasts)
        for reload in (False, True)
    ]
    assert logs[0] == logs[1]


def test_forecasts() -> None:
    # 9 trials one by one, best third promoted: Alg. 2 promotes early trials that later turn out not to be the best, so
    # a few more than floor(9 / 3) = 3 reach rung 3, and nearly none the end, which floor(3 / 3) = 1 would.
    promote = dict(asha("promote").expected_rungs(9))
    assert list(promote) == [1, 3, 9, 27]
    assert promote[1] == 9
    assert 3 <= promote[3] <= 5
    # stop: place n of n goes on with chance ceil(n / 3) / n at rung 1, sum over 1..9 = 4.6; 16 rounds, deviation 0.35.
    stop = dict(asha().expected_rungs(9))
    assert stop[1] == 9
    assert abs(stop[3] - 4.6) < 1.4
    assert stop[3] >= stop[9] >= stop[27] >= 1
    assert asha().expected_rungs(9) == asha().expected_rungs(9)
    # Many trials approach the plain fractions, and a forecast beyond 1000 is scaled.
    many = dict(asha("promote").expected_rungs(100_000))
    assert many[1] == 100_000
    assert many[3] == pytest.approx(100_000 / 3, rel=0.1)
    assert asha().expected_rungs(0) == [(1, 0.0), (3, 0.0), (9, 0.0), (27, 0.0)]
