"""An experiment that is given more to do: earlier trials are kept, told to search and scheduler, and go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conductor_tools import ASHA, PROMOTE, Driver, curve, make_plan, result, run_until_cut

from raytuner.engine.control import Stop
from raytuner.engine.threadhost import ThreadHost
from raytuner.errors import SpaceError
from raytuner.journal import Decided, Event, Extended, TrialAsked, TrialStarted
from raytuner.training import Trial

TIME_IS_UP = "the time budget is used up"
STEPS = {"metric": "loss", "mode": "min", "max_steps": 27}
WIDE = {"x": {"type": "float", "low": 0.0, "high": 1.0}, "y": {"type": "float", "low": 0.0, "high": 1.0}}


def extended(**fields: Any) -> Extended:
    return Extended(**{"definition": {}, "anew": True, **fields})


def finished_at(driver: Driver, step: int) -> list[str]:
    return [trial.id for trial in driver.trials if trial.status == "finished" and trial.step == step]


def starts_after_extension(driver: Driver) -> list[tuple[str, int]]:
    events = driver.events(Event)
    place = max(number for number, event in enumerate(events) if isinstance(event, Extended))
    return [(event.trial, event.step) for event in events[place:] if isinstance(event, TrialStarted)]


def test_more_trials_are_as_if_there_had_been_as_many_from_the_start(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"scheduler": ASHA, "tags": {"search": "listener"}}
    (tmp_path / "whole").mkdir()
    expected = result(Driver(make_plan(tmp_path / "whole", **fields, budget={"trials": 14})).run())
    Driver(make_plan(tmp_path, **fields, budget={"trials": 6})).run()
    more = make_plan(tmp_path, **fields, budget={"trials": 14})
    assert result(Driver(more, extended=extended(anew=False)).run()) == expected


@pytest.mark.parametrize("scheduler", ["none", ASHA, PROMOTE], ids=["none", "stop", "promote"])
def test_more_steps_go_on_from_where_trials_had_ended(tmp_path: Path, scheduler: Any) -> None:
    first = Driver(make_plan(tmp_path, scheduler=scheduler, budget={"trials": 30})).run()
    done = finished_at(first, 9)
    assert done
    values = {trial.id: trial.value for trial in first.trials}
    plan = make_plan(tmp_path, scheduler=scheduler, budget={"trials": 30}, objective=STEPS)
    driver = Driver(plan, extended=extended(reopened=done)).run()
    assert len(driver.trials) == 30, "no new trial"
    started = starts_after_extension(driver)
    assert {step for trial, step in started if trial in done} == {9}, "from their last checkpoint"
    went_on = {trial for trial, _ in started}
    assert went_on <= set(done)
    order = sorted(done, key=lambda trial: values[trial] or 0.0)
    if scheduler == "none":
        assert went_on == set(done) == set(finished_at(driver, 27))
    else:  # rung 9 is one now, and the best third of it goes on, at least
        assert order[0] in went_on
        assert len(went_on) < len(done)
        assert order[-1] not in went_on
    for trial in driver.trials:
        assert [step.step for step in trial.steps] == list(range(1, trial.step + 1)), "nothing is trained again"


@pytest.mark.parametrize("scheduler", [ASHA, PROMOTE], ids=["stop", "promote"])
def test_a_driver_that_dies_after_an_extension_changes_nothing(tmp_path: Path, scheduler: Any) -> None:
    fields: dict[str, Any] = {"tags": {"search": "listener"}}

    def extend(folder: Path, cut: int | None) -> Driver:
        first = Driver(make_plan(folder, **fields, scheduler=scheduler, budget={"trials": 8})).run()
        plan = make_plan(folder, **fields, scheduler=scheduler, budget={"trials": 12}, objective=STEPS)
        event = extended(reopened=finished_at(first, 9))
        if cut is None:
            return Driver(plan, extended=event).run()
        run_until_cut(plan, cut, extended=event)
        return Driver(plan).run()

    (tmp_path / "whole").mkdir()
    whole = extend(tmp_path / "whole", None)
    expected = result(whole)
    events = len(whole.events(Event)) - 60
    for cut in range(2, max(events, 40), 7):
        folder = tmp_path / f"cut-{cut}"
        folder.mkdir()
        assert result(extend(folder, cut)) == expected, f"cut after event {cut}"


def test_another_space_keeps_the_trials_with_what_they_had(tmp_path: Path) -> None:
    first = Driver(make_plan(tmp_path, budget={"trials": 5})).run()
    configs = {trial.id: {**trial.config, "y": 0.25} for trial in first.trials}
    plan = make_plan(tmp_path, space=WIDE, budget={"trials": 9}, search="genetic", scheduler=ASHA)
    driver = Driver(plan, extended=extended(configs=configs)).run()
    assert [trial.config["y"] for trial in driver.trials[:5]] == [0.25] * 5
    assert [trial.value for trial in driver.trials[:5]] == [trial.value for trial in first.trials]
    known = driver.conductor.search.trials
    assert len(driver.trials) == len(known) == 9
    assert known["000001"].config == configs["000001"]
    assert known["000002"].status == "failed"
    assert known["000001"].values[9] == first.trials[0].value
    assert "x" in driver.trials[8].config
    assert "y" in driver.trials[8].config
    rungs = driver.conductor.scheduler.state_dict()["rungs"]
    assert len(rungs[0][1]) == 8, "the trials that were before stand in the new rungs"
    replayed = Driver(plan)
    assert replayed.conductor.scheduler.state_dict() == driver.conductor.scheduler.state_dict()
    replayed.close()


def test_failed_trials_start_again(tmp_path: Path) -> None:
    broken = {"000002", "000004"}

    def train(trial: Trial) -> None:
        for step in trial.steps(nothing=[0]):
            if trial.id in broken:
                raise ValueError("a bug")
            trial.report(loss=1.0 / step)

    plan = make_plan(tmp_path, budget={"trials": 5})
    first = Driver(plan, train=train).run()
    assert first.state.count("failed") == 2
    failed = sorted(broken)
    broken.clear()
    driver = Driver(plan, train=train, extended=extended(anew=False, retried=failed)).run()
    assert [trial.status for trial in driver.trials] == ["finished"] * 5
    assert [trial for trial, _ in starts_after_extension(driver)] == failed
    assert {trial.status for trial in driver.conductor.search.trials.values()} == {"finished"}


def test_a_configuration_by_hand_comes_next_and_beside_the_budget(tmp_path: Path) -> None:
    driver = Driver(make_plan(tmp_path, budget={"trials": 4}), slots=1)
    spec = driver.next()
    assert spec is not None
    driver.conductor.proposals.prepare("000002")  # the search thinks about that one already
    assert driver.conductor.enqueue({"x": 0.4}) == "000003"
    with pytest.raises(SpaceError, match=r"x: must be from 0\.0 to 1\.0"):
        driver.conductor.enqueue({"x": 3.0})
    driver.close()
    again = Driver(make_plan(tmp_path, budget={"trials": 4})).run()
    assert len(again.trials) == 5
    assert "000002" not in again.state.trials, "the search's proposal was never handed out"
    by_hand = again.state.trials["000003"]
    assert (by_hand.source, by_hand.config, by_hand.status) == ("user", {"x": 0.4}, "finished")
    assert [event.trial for event in again.events(TrialStarted)][:2] == ["000001", "000003"]
    assert again.conductor.search.trials["000003"].status == "finished", "the search has learnt from it"
    assert len(again.events(TrialAsked)) == 5
    assert not again.events(Decided)


@pytest.mark.parametrize("scheduler", ["none", ASHA, PROMOTE], ids=["none", "stop", "promote"])
@pytest.mark.parametrize("anew", [False, True])
def test_more_time_is_as_if_there_had_been_as_much_from_the_start(tmp_path: Path, scheduler: Any, anew: bool) -> None:
    """What the time had cut off goes on; search and scheduler have heard of no end."""
    fields: dict[str, Any] = {"scheduler": scheduler, "budget": {"trials": 7}, "checkpoints": {"every_steps": 1}}
    fields["tags"] = {"search": "listener"}
    (tmp_path / "whole").mkdir()
    expected = result(Driver(make_plan(tmp_path / "whole", **fields)).run())
    plan = make_plan(tmp_path, **fields)
    first = Driver(plan)
    out_of_time(first, after=6)
    cut = [trial.id for trial in first.trials if trial.status == "stopped" and trial.reason == TIME_IS_UP]
    assert len(cut) == 1
    driver = Driver(plan, extended=extended(anew=anew, reopened=cut)).run()
    assert starts_after_extension(driver)[0][0] == cut[0]
    assert starts_after_extension(driver)[0][1] > 0, "from its last checkpoint"
    for trial in driver.trials:
        assert [step.step for step in trial.steps] == list(range(1, trial.step + 1)), "nothing is trained again"
    if anew:
        assert len(driver.trials) == 7
    else:
        assert result(driver) == expected
        assert result(Driver(plan).run()) == expected, "and a replay comes to the same"


def out_of_time(driver: Driver, after: int) -> None:
    """Have the time budget end in the middle of a trial, after so many steps of all."""
    steps = [0]

    def train(trial: Trial) -> None:
        def report(**metrics: float) -> None:
            reports(metrics)
            steps[0] += 1
            if steps[0] >= after and trial.reported_steps in (2, 5, 8):  # between two rungs
                driver.conductor.stop(TIME_IS_UP)
                driver.stops[0].set(Stop(TIME_IS_UP))

        reports = trial.report
        trial.report = report  # type: ignore[method-assign, assignment]
        curve(trial)

    driver.hosts = [ThreadHost(train, stop=driver.stops[0])]
    driver.run()
