"""What every search promises."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from raytuner.errors import SearchError, SpaceError
from raytuner.search import (
    SEARCHES,
    GridOptions,
    HyperOptOptions,
    Observation,
    OutsideOptions,
    RandomOptions,
    Search,
    build_search,
)
from raytuner.space import Choice, Float, Int, Space, config_key

EVERY = [
    pytest.param(GridOptions(points=3), id="grid"),
    pytest.param(RandomOptions(), id="pseudo"),
    pytest.param(RandomOptions(method="sobol"), id="sobol"),
    pytest.param(HyperOptOptions(startup=4), id="hyperopt"),
]
MIXED = Space(
    {
        "lr": Float(low=1e-4, high=0.1, log=True),
        "dropout": Float(low=0, high=0.5, step=0.1),
        "depth": Int(low=1, high=4),
        "width": Int(low=32, high=512, step=32, log=True),
        "optimizer": Choice(values=["sgd", "adam", "lion"]),
        "momentum": Float(low=0, high=0.99, when={"optimizer": "sgd"}),
        "nesterov": Choice(values=[True, False], when="momentum > 0.5"),
        "batch": Choice(values=[32, 64, 128], ordered=True),
        "layers": Choice(values=[[64, 64], [128]]),
        "constant": Choice(values=["only"]),
    },
    ["width * depth <= 1024", "dropout < 0.3 or depth > 1"],
)
SMALL = Space(
    {"a": Int(low=1, high=3), "b": Choice(values=["x", "y"]), "c": Int(low=1, high=2, when={"b": "y"})},
    ["not (a == 3 and b == 'x')"],
)
FIRST = [
    {"lr": 0.01, "dropout": 0.1, "depth": 2, "width": 64, "optimizer": "adam", "batch": 32, "layers": [128]}
    | {"constant": "only"}
]


def value_of(config: dict[str, Any]) -> float:
    return float(sum(value for value in config.values() if isinstance(value, int | float)))


def finished(trial_id: str, config: dict[str, Any], value: float) -> Observation:
    return Observation(trial_id, config, 1, value, "finished")


def events(search: Search, trials: range, workers: int = 3) -> Iterator[dict[str, Any]]:
    """Asks with some trials under way at any time, and tells of all kinds of ends; yields what was asked."""
    under_way: list[tuple[str, dict[str, Any]]] = []
    for number in trials:
        trial_id = f"{number:06}"
        config = search.ask(trial_id)
        assert config is not None
        yield config
        search.tell(Observation(trial_id, config, 0, None, "pending"))
        under_way.append((trial_id, config))
        if len(under_way) < workers:
            continue
        trial_id, config = under_way.pop(0)
        if number % 5 == 4:
            search.tell(Observation(trial_id, config, 0, None, "failed"))
            continue
        search.tell(Observation(trial_id, config, 1, value_of(config), "running"))
        last = ("stopped", "finished", "paused", "running")[number % 4]
        search.tell(Observation(trial_id, config, 3, value_of(config) / 2, last))


@pytest.mark.parametrize("options", EVERY)
def test_proposals_are_valid_new_and_the_same_again(options: BaseModel) -> None:
    runs = [list(events(build_search(options, MIXED, 7, FIRST), range(25))) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0][0] == FIRST[0]
    assert all(MIXED.problems(config) == [] for config in runs[0])
    assert len({config_key(config) for config in runs[0]}) == 25


@pytest.mark.parametrize("options", [param for param in EVERY if param.id != "grid"])
def test_another_seed_is_another_search(options: BaseModel) -> None:
    one, two = (list(events(build_search(options, MIXED, seed), range(6))) for seed in (0, 1))
    assert all(a != b for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("options", EVERY)
@pytest.mark.parametrize("cut", [0, 1, 5, 14])
def test_a_saved_search_goes_on_as_if_nothing_had_happened(options: BaseModel, cut: int) -> None:
    search = build_search(options, MIXED, 3, FIRST)
    list(events(search, range(cut)))
    search.tell(Observation("foreign", MIXED.sample(np.random.default_rng(9)), 0, None, "pending"))
    fresh = build_search(options, MIXED, 3, FIRST)
    if cut:  # what the new object already knew must not shine through
        list(events(fresh, range(2)))
    fresh.load_state_dict(json.loads(json.dumps(search.state_dict())))
    assert fresh.state_dict() == search.state_dict()
    rest = range(100 + cut, 108 + cut)
    assert list(events(fresh, rest)) == list(events(search, rest))


@pytest.mark.parametrize("options", EVERY)
def test_a_replayed_record_is_as_good_as_a_state(options: BaseModel) -> None:
    search = build_search(options, MIXED, 3, FIRST)
    asked = list(events(search, range(12)))
    replayed = build_search(options, MIXED, 3, FIRST)
    for number, config in enumerate(asked):
        replayed.asked(f"{number:06}", config)
    for trial_id, config, status, values in search.state_dict()["trials"]:
        for step, value in values:
            replayed.tell(Observation(trial_id, config, step, value, status))
        replayed.tell(Observation(trial_id, config, 0, None, status))
    assert list(events(replayed, range(50, 54))) == list(events(search, range(50, 54)))


@pytest.mark.parametrize("options", EVERY)
def test_a_finite_space_is_exhausted_without_duplicates(options: BaseModel) -> None:
    everything = {config_key(config) for config in SMALL.grid(1)}
    assert len(everything) == 3 * (1 + 2) - 1
    search = build_search(options, SMALL, 0)
    seen = []
    while (config := search.ask(f"{len(seen)}")) is not None:
        search.tell(finished(f"{len(seen)}", config, value_of(config)))
        seen.append(config_key(config))
    assert len(seen) == len(everything)
    assert set(seen) == everything
    assert search.ask("again") is None
    assert "again" not in search.trials


@pytest.mark.parametrize("options", EVERY)
def test_what_somebody_else_tries_is_not_proposed(options: BaseModel) -> None:
    configs = list(SMALL.grid(1))
    search = build_search(options, SMALL, 0)
    for number, config in enumerate(configs[:-1]):
        search.tell(Observation(f"foreign {number}", config, 0, None, "pending"))
    assert search.ask("own") == configs[-1]
    assert search.ask("another") is None


@pytest.mark.parametrize("options", EVERY)
def test_a_search_keeps_its_configurations_to_itself(options: BaseModel) -> None:
    search = build_search(options, MIXED, 0, FIRST)
    for number in range(3):
        config = search.ask(f"{number}")
        assert config is not None
        before = json.dumps(search.state_dict())
        config["layers"].append("spoiled")
        search.state_dict()["trials"][number][1]["layers"].append("spoiled")
        assert json.dumps(search.state_dict()) == before
    assert FIRST[0]["layers"] == [128]


@pytest.mark.parametrize("options", EVERY)
def test_misuse_is_refused(options: BaseModel) -> None:
    search = build_search(options, SMALL, 0)
    config = search.ask("one")
    assert config is not None
    with pytest.raises(SearchError, match="asked for once"):
        search.ask("one")
    for value, status in [(float("nan"), "finished"), (float("inf"), "running"), (0.5, "failed"), (0.5, "odd")]:
        with pytest.raises(SearchError, match="trial one, step 1"):
            search.tell(Observation("one", config, 1, value, status))  # type: ignore[arg-type]
    other = build_search(options, SMALL, 1)
    with pytest.raises(SearchError, match="same seed, 1, got 0"):
        other.load_state_dict(search.state_dict())
    with pytest.raises(SpaceError, match=r"first\[1\]\.c: must be given"):
        build_search(options, SMALL, 0, [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}])


def test_a_state_of_another_search_is_refused() -> None:
    with pytest.raises(SearchError, match="same search"):
        build_search(RandomOptions(), SMALL, 0).load_state_dict(build_search(GridOptions(), SMALL, 0).state_dict())


@pytest.mark.parametrize(("name", "found"), SEARCHES.items())
def test_options_name_their_search(name: str, found: type[Any]) -> None:
    assert found.Options().type == name
    assert type(build_search(found.Options(), SMALL, 0)) is found
    schema = found.Options.model_json_schema()
    assert schema["additionalProperties"] is False
    assert all(field["description"] for field in schema["properties"].values())
    with pytest.raises(ValidationError):
        found.Options(no_such_option=1)
    with pytest.raises(ValidationError):
        found.Options().type = "other"


class CornerOptions(BaseModel):
    high: bool = True


class Corner(Search):
    Options = CornerOptions

    def _propose(self, rng: np.random.Generator, number: int) -> dict[str, Any] | None:
        assert isinstance(self.options, CornerOptions)
        config = self.space.from_unit([float(self.options.high)] * len(self.space.names))
        return config if self.is_new(config) else None


def test_a_search_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("some_plug_in")
    module.Corner = Corner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_plug_in", module)
    options = OutsideOptions.model_validate({"type": "some_plug_in:Corner", "high": False})
    search = build_search(options, SMALL, 0)
    assert search.ask("1") == {"a": 1, "b": "x"}
    assert search.ask("2") is None
    with pytest.raises(SearchError, match="must be importable"):
        build_search(OutsideOptions(type="some_plug_in:Edge"), SMALL, 0)
    with pytest.raises(SearchError, match=r"search\.high"):
        build_search(OutsideOptions.model_validate({"type": "some_plug_in:Corner", "high": "so"}), SMALL, 0)
    with pytest.raises(ValidationError):
        OutsideOptions(type="no colon")
