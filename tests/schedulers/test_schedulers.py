"""What holds for every scheduler, and how one is found by its name."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
from pydantic import BaseModel

from raytuner.errors import SearchError
from raytuner.schedulers import (
    SCHEDULERS,
    AshaOptions,
    AshaScheduler,
    Decision,
    NoneOptions,
    NoneScheduler,
    OutsideOptions,
    Scheduler,
    build_scheduler,
)


def test_no_scheduler_lets_everything_go_on() -> None:
    scheduler = build_scheduler(NoneOptions(), None, 0)
    assert isinstance(scheduler, NoneScheduler)
    assert scheduler.decision_steps() == ()
    assert not scheduler.decides_at(1)
    assert scheduler.on_report("A", 1, 0.5).action == "continue"
    assert scheduler.next_to_resume() is None
    assert scheduler.expected_rungs(7) == []
    assert build_scheduler(NoneOptions(), 10, 0).expected_rungs(7) == [(10, 7.0)]
    scheduler.load_state_dict(scheduler.state_dict())


@pytest.mark.parametrize(("name", "found"), SCHEDULERS.items())
def test_options_name_their_scheduler(name: str, found: type[Any]) -> None:
    assert found.Options().type == name
    assert isinstance(build_scheduler(found.Options(), 9, 0), found)
    assert found.Options.model_json_schema()["additionalProperties"] is False
    for field in found.Options.model_json_schema()["properties"].values():
        assert field["description"]


class HalfOptions(BaseModel):
    eager: bool = False


class Half(AshaScheduler):
    Options = HalfOptions  # type: ignore[assignment]

    def __init__(self, options: HalfOptions, *, max_steps: int | None, seed: int) -> None:
        super().__init__(AshaOptions(reduction_factor=2), max_steps=max_steps, seed=seed)
        self.eager = options.eager


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("some_plug_in")
    monkeypatch.setitem(sys.modules, "some_plug_in", module)
    own = {"Options": HalfOptions}
    duck = {name: getattr(NoneScheduler, name) for name in dir(NoneScheduler) if not name.startswith("_")} | own
    vars(module).update(Half=Half, Bare=int, function=print)
    vars(module).update(Duck=type("Duck", (), duck), Empty=type("Empty", (Scheduler,), own))
    return module


def test_a_scheduler_from_elsewhere(plug_in: types.ModuleType) -> None:
    options = OutsideOptions.model_validate({"type": "some_plug_in:Half", "eager": True})
    scheduler = build_scheduler(options, 8, 0)
    assert isinstance(scheduler, Half)
    assert scheduler.eager is True
    assert scheduler.on_report("A", 1, 0.5) == Decision("continue", "rung 1: 1st of 1, the best half (1) goes on")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "no_such_module_anywhere:X"}, "must be importable"),
        ({"type": "some_plug_in:Missing"}, "must be importable"),
        ({"type": "some_plug_in:function"}, "must be a class"),
        ({"type": "some_plug_in:Bare"}, "must have its Options"),
        ({"type": "some_plug_in:Empty"}, "must have decision_steps"),
        ({"type": "some_plug_in:Duck"}, r"must derive from raytuner\.schedulers\.Scheduler"),
        ({"type": "some_plug_in:Half", "eager": "maybe"}, r"scheduler\.eager: .* got 'maybe'"),
    ],
)
def test_a_scheduler_from_elsewhere_that_is_wrong(
    plug_in: types.ModuleType, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(SearchError, match=message):
        build_scheduler(OutsideOptions.model_validate(fields), 8, 0)


def test_an_unknown_name() -> None:
    class Odd(BaseModel):
        type: str = "ashaa"

    with pytest.raises(SearchError, match="use one of asha, none"):
        build_scheduler(Odd(), 8, 0)
