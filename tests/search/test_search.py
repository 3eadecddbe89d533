"""What every search promises."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from threadpoolctl import threadpool_info, threadpool_limits

from raytuner.errors import SearchError
from raytuner.search import (
    SEARCHES,
    AutoOptions,
    AutoSearch,
    BayesianOptions,
    BayesianSearch,
    CmaEsOptions,
    CmaEsSearch,
    GeneticOptions,
    GeneticSearch,
    GridOptions,
    GridSearch,
    HyperOptOptions,
    HyperOptSearch,
    Observation,
    OptunaOptions,
    OptunaSearch,
    OutsideOptions,
    RandomOptions,
    RandomSearch,
    Search,
    SobolOptions,
    SobolSearch,
    build_search,
)
from raytuner.search.base import Trial
from raytuner.space import Choice, Float, Int, Space
from raytuner.testing import SMALL, SearchContract, spaces

NUMBERS = Space(
    {
        "lr": Float(low=1e-4, high=0.1, log=True),
        "momentum": Float(low=0, high=0.99),
        "width": Int(low=32, high=512, step=32, log=True),
        "batch": Choice(values=[32, 64, 128], ordered=True),
    },
    ["width * momentum <= 256"],
)
FEW = Space({"a": Int(low=1, high=3), "b": Choice(values=["x", "y", "z"], ordered=True)}, ["a < 3 or b == 'y'"])


class TestGrid(SearchContract):
    search = GridSearch
    options = GridOptions(points=3)
    seeded = False
    ends = True


class TestRandom(SearchContract):
    search = RandomSearch
    options = RandomOptions()


class TestAuto(SearchContract):
    search = AutoSearch
    options = AutoOptions()
    examples = 5


class TestBayesian(SearchContract):
    search = BayesianSearch
    options = BayesianOptions(startup=4)


class TestSobol(SearchContract):
    search = SobolSearch
    options = SobolOptions()


class TestGenetic(SearchContract):
    search = GeneticSearch
    options = GeneticOptions(startup=4)


class TestHyperOpt(SearchContract):
    search = HyperOptSearch
    options = HyperOptOptions(startup=4)


class TestOptunaTPE(SearchContract):
    search = OptunaSearch
    options = OptunaOptions(options={"n_startup_trials": 4})


class TestOptunaGP(SearchContract):
    search = OptunaSearch
    options = OptunaOptions(sampler="GPSampler", options={"n_startup_trials": 5})
    space = NUMBERS
    small = FEW
    spaces = st.just(NUMBERS)
    examples = 1
    trials = 8
    seconds = 30.0


class TestOptunaNSGA(SearchContract):
    search = OptunaSearch
    options = OptunaOptions(sampler="NSGAIISampler", options={"population_size": 4})


class TestOptunaQMC(SearchContract):
    search = OptunaSearch
    options = OptunaOptions(sampler="QMCSampler")
    examples = 3


class TestCmaEs(SearchContract):
    search = CmaEsSearch
    options = CmaEsOptions(population=5)
    space = NUMBERS
    small = FEW
    spaces = spaces(unordered=False, conditions=False, least=2)


def test_every_search_is_held_to_the_contract() -> None:
    held = {one.search for one in SearchContract.__subclasses__() if hasattr(one, "search")}
    assert held >= set(SEARCHES.values())


@pytest.mark.parametrize(("name", "found"), SEARCHES.items())
def test_options_name_their_search(name: str, found: type[Any]) -> None:
    assert found.Options().type == name
    assert type(build_search(found.Options(), FEW, 0)) is found
    schema = found.Options.model_json_schema()
    assert schema["additionalProperties"] is False
    assert all(field["description"] for field in schema["properties"].values())
    with pytest.raises(ValidationError):
        found.Options(no_such_option=1)
    with pytest.raises(ValidationError):
        found.Options().type = "other"


def test_a_state_that_is_not_whole_is_refused_and_changes_nothing() -> None:
    search = build_search(RandomOptions(), SMALL, 0)
    search.ask("1")
    state = search.state_dict()
    for broken in ({"trials": [["1", {}]]}, {"trials": None}, {"asked": None}):
        with pytest.raises(SearchError, match="a state must be whole"):
            search.load_state_dict(state | broken)
    with pytest.raises(SearchError, match="a state must be whole, got KeyError: 'trials'"):
        search.load_state_dict({name: state[name] for name in ("search", "seed", "asked")})
    assert search.state_dict() == state


def test_a_negative_step_is_refused_and_a_known_trial_keeps_its_configuration() -> None:
    search = build_search(RandomOptions(), SMALL, 0)
    config = search.ask("1")
    assert config is not None
    with pytest.raises(SearchError, match=r"trial 1, step -1: steps count from 1"):
        search.tell(Observation("1", config, -1, 0.5, "running"))
    search.tell(Observation("1", {}, 1, 0.5, "running"))
    search.tell(Observation("1", config, 0, None, "finished"))
    assert search.trials["1"] == Trial(config, "finished", {1: 0.5})


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
    duck = {name: getattr(Corner, name) for name in dir(Corner) if not name.startswith("_")}
    vars(module).update(Duck=type("Duck", (), duck), Idle=type("Idle", (Search,), {"Options": CornerOptions}))
    with pytest.raises(SearchError, match=r"must derive from raytuner\.search\.Search, .* class Duck\(Search\)"):
        build_search(OutsideOptions(type="some_plug_in:Duck"), SMALL, 0)
    with pytest.raises(SearchError, match="must have _propose"):
        build_search(OutsideOptions(type="some_plug_in:Idle"), SMALL, 0)
    with pytest.raises(SearchError, match="must be importable"):
        build_search(OutsideOptions(type="some_plug_in:Edge"), SMALL, 0)
    with pytest.raises(SearchError, match=r"search\.high"):
        build_search(OutsideOptions.model_validate({"type": "some_plug_in:Corner", "high": "so"}), SMALL, 0)
    with pytest.raises(ValidationError):
        OutsideOptions(type="no colon")


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("bayesian", "raytuner.search.bayesian.FidelityProcess"),
        ("genetic", "raytuner.search.genetic.RankSurrogate"),
        ("hyperopt", "hyperopt.tpe.suggest"),
    ],
)
def test_a_model_is_computed_by_one_thread_and_leaves_the_rest_of_the_process_its_own(
    name: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(*_: object, **__: object) -> None:
        seen.append(blas_threads())
        raise RuntimeError("seen enough")

    monkeypatch.setattr(model, look)
    search = build_search(SEARCHES[name].Options(), NUMBERS, 0)
    with threadpool_limits(2, user_api="blas"):
        with pytest.raises(RuntimeError, match="seen enough"):  # noqa: PT012 - whichever proposal is the first with a model
            for number in range(40):
                config = search.ask(str(number))
                assert config is not None
                search.tell(Observation(str(number), config, 1, float(number), "finished"))
        assert blas_threads() == {2}
    assert seen == [{1}]
