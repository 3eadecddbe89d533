"""Optuna's samplers and CMA-ES: what they are told, what they keep, and what is refused."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import cmaes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from raytuner.errors import SearchError
from raytuner.search import (
    CmaEsOptions,
    CmaEsSearch,
    Observation,
    OptunaOptions,
    OptunaSearch,
    RandomOptions,
    Search,
    Status,
    build_search,
)
from raytuner.search.optuna_record import Coordinate
from raytuner.space import Choice, Config, Float, Int, Space
from raytuner.testing import MIXED, Story, spaces

TREE = Space(
    {
        "kind": Choice(values=["a", "b", "c"]),
        "x": Float(low=0, high=1),
        "lr": Float(low=1e-5, high=1, log=True),
        "n": Int(low=1, high=8, when={"kind": "b"}),
    }
)
BOX = Space({f"x{index}": Float(low=0, high=1) for index in range(4)})
SAMPLERS = OptunaOptions.model_json_schema()["properties"]["sampler"]["enum"]


def tree(config: Config) -> float:
    """At best 0, at kind b, n 3, x 0.3, lr 1e-2."""
    return (
        (config["x"] - 0.3) ** 2
        + (np.log10(config["lr"]) + 2) ** 2 / 16
        + (abs(config["n"] - 3) / 8 if config["kind"] == "b" else 0.5)
    )


def valley(config: Config) -> float:
    """At best 0, at the ends of a long, narrow valley across the axes."""
    x = np.array(list(config.values())) - [0.2, 0.3, 0.6, 0.7]
    return float(np.sum(x**2) + 10 * (x[0] + x[1]) ** 2 + 10 * (x[2] - x[3]) ** 2)


def drive(search: Search, trials: int, function: Callable[[Config], float]) -> list[float]:
    values = []
    for number in range(trials):
        config = search.ask(f"{number:06}")
        assert config is not None
        values.append(function(config))
        search.tell(Observation(f"{number:06}", config, 1, values[-1], "finished"))
    return values


def build(space: Space, sampler: str, seed: int = 0, **options: Any) -> OptunaSearch:
    search = build_search(OptunaOptions(sampler=sampler, options=options), space, seed)  # type: ignore[arg-type]
    assert isinstance(search, OptunaSearch)
    return search


@pytest.mark.parametrize(
    ("options", "space", "function"),
    [
        (OptunaOptions(), TREE, tree),
        (OptunaOptions(options={"multivariate": True, "group": True}), TREE, tree),
        (CmaEsOptions(), BOX, valley),
        (OptunaOptions(sampler="NSGAIISampler", options={"population_size": 10}), BOX, valley),
    ],
    ids=["tpe", "multivariate", "cmaes", "nsga"],
)
def test_learns(options: BaseModel, space: Space, function: Callable[[Config], float]) -> None:
    best = {}
    for one in (options, RandomOptions()):
        best[type(one)] = median(min(drive(build_search(one, space, seed), 80, function)) for seed in range(5))
    assert best[type(options)] < 0.6 * best[RandomOptions]


def test_a_gaussian_process_learns() -> None:
    space = Space({name: BOX.parameters[name] for name in ("x0", "x1")})

    def bowl(config: Config) -> float:
        return float((config["x0"] - 0.2) ** 2 + (config["x1"] - 0.7) ** 2)

    assert min(drive(build(space, "GPSampler", n_startup_trials=6), 16, bowl)) < 0.003


def tell(search: Search, name: str, values: dict[int, float], status: Status) -> None:
    config = search.trials[name].config
    for step, value in values.items():
        search.tell(Observation(name, config, step, value, "running"))
    search.tell(Observation(name, config, max(values, default=0), values[max(values)] if values else None, status))


@pytest.mark.parametrize(
    ("sampler", "cut_short"),
    [("TPESampler", ("PRUNED", None, {1: 3.0, 3: 2.0})), ("GPSampler", ("COMPLETE", 2.0, {}))],
)
def test_what_a_sampler_is_told(sampler: str, cut_short: tuple[str, float | None, dict[int, float]]) -> None:
    search = build(TREE, sampler)
    for number in range(7):
        search.ask(f"{number}")
    tell(search, "1", {1: 3.0, 3: 2.0}, "running")
    tell(search, "2", {1: 3.0, 3: 2.0}, "paused")
    tell(search, "3", {1: 3.0, 3: 2.0}, "stopped")
    tell(search, "4", {1: 3.0, 3: 2.0}, "finished")
    search.tell(Observation("5", search.trials["5"].config, 1, None, "failed"))
    search.tell(Observation("6", search.trials["6"].config, 1, 1e300, "finished"))
    search.tell(Observation("elsewhere", {"another": "space"}, 1, 1.0, "finished"))
    search.ask("next")
    search._catch_up()
    told = [(trial.state.name, trial.value, trial.intermediate_values) for trial in search._record.trials]
    nothing: dict[int, float] = {}
    assert told == [
        ("RUNNING", None, nothing),
        ("RUNNING", None, nothing),
        cut_short,
        cut_short,
        ("COMPLETE", 2.0, nothing),
        ("FAIL", None, nothing),
        ("COMPLETE", 1e100, nothing),
        ("FAIL", None, nothing),
        ("RUNNING", None, nothing),
    ]
    for trial, known in zip(search._record.trials[:7], search.trials.values(), strict=False):
        assert trial.params.keys() == known.config.keys()


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(spaces(), st.integers(0, 2**32))
def test_a_configuration_survives_the_way_to_optuna_and_back(space: Space, seed: int) -> None:
    class Same:
        """Suggests what it was told."""

        def __getattr__(self, name: str) -> Callable[..., Any]:
            return lambda *_, **__: number

    for name, value in space.sample(np.random.default_rng(seed)).items():
        coordinate = Coordinate(space.parameters[name])
        number = coordinate.number(value)
        assert coordinate.distribution._contains(coordinate.distribution.to_internal_repr(number))
        assert coordinate.suggest(Same(), name) == value  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_proposes_in_a_space_with_everything(sampler: str) -> None:
    story = Story(build(MIXED, sampler))
    for number in range(14):
        story.asks(1)
        if number > 1:
            story.play([("finish", 0, float(number % 5))])
    assert len(story.configs) == 14  # valid and new ones: the story checks it


def test_a_crowded_space_is_filled_without_the_sampler() -> None:
    space = Space({"a": Int(low=1, high=4), "b": Choice(values=["x", "y", "z"])})
    story = Story(build(space, "TPESampler", n_startup_trials=3))
    while story.ask():
        story.play([("finish", 0, 1.0)])
    assert len(story.configs) == 12


@pytest.mark.parametrize(
    ("options", "space"),
    [
        (CmaEsOptions(population=5), BOX),
        (OptunaOptions(sampler="NSGAIISampler", options={"population_size": 5}), MIXED),
        (OptunaOptions(), MIXED),
    ],
    ids=["cmaes", "nsga", "tpe"],
)
def test_late_news_change_the_same_as_if_all_were_told_at_once(options: BaseModel, space: Space) -> None:
    search = build_search(options, space, 3)
    rng = np.random.default_rng(0)
    under_way: list[tuple[str, Config]] = []
    for number in range(60):
        name = f"{number:06}"
        config = search.ask(name)
        assert config is not None
        under_way.append((name, config))
        if len(under_way) > 8:
            name, config = under_way.pop(int(rng.integers(8)))
            status: Status = "failed" if number % 6 == 0 else "stopped" if number % 2 else "finished"
            value = None if status == "failed" else float(sum(v for v in config.values() if isinstance(v, float)))
            search.tell(Observation(name, config, 1, value, status))
    at_once = build_search(options, space, 3)
    at_once.load_state_dict(search.state_dict())
    for number in range(60, 64):
        assert at_once.ask(f"{number}") == search.ask(f"{number}")


def test_cma_es_is_told_generation_by_generation() -> None:
    """The reference is the package ``cmaes`` itself, told the same trials."""
    search = build_search(CmaEsOptions(population=6), BOX, 0)
    assert isinstance(search, CmaEsSearch)
    drive(search, 26, valley)
    search.ask("next")
    reference = cmaes.CMA(mean=np.full(4, 0.5), sigma=1 / 6, bounds=np.tile([0.0, 1.0], (4, 1)), population_size=6)
    done = [(BOX.to_unit(trial.config), valley(trial.config)) for trial in search.trials.values() if trial.values]
    for start in range(1, 25, 6):  # the first trial is drawn before there is anything to learn from
        reference.tell(done[start : start + 6])
    search._catch_up()
    stored = [
        "".join(value for key, value in trial.system_attrs.items() if key.startswith("cma:optimizer"))
        for trial in search._record.trials
    ]
    learned = pickle.loads(bytes.fromhex([text for text in stored if text][-1]))
    assert learned.generation == reference.generation == 4
    np.testing.assert_allclose(learned._mean, reference._mean, rtol=1e-9)
    np.testing.assert_allclose(learned._C, reference._C, rtol=1e-9)


def test_wrong_options_are_refused_before_anything_runs() -> None:
    with pytest.raises(SearchError, match=r"search\.options: must be options of TPESampler .*gama"):
        build(TREE, "TPESampler", gama=3)
    with pytest.raises(SearchError, match=r"search\.options: must be options of CmaEsSampler"):
        build(BOX, "CmaEsSampler", popsize=10, use_separable_cma=True, lr_adapt=True)
    with pytest.raises(SearchError, match="'seed' cannot be given, since it follows from the experiment's seed"):
        build_search(OptunaOptions(options={"seed": 3}), TREE, 0)
    with pytest.raises(SearchError, match="'with_margin' cannot be given"):
        build(BOX, "CmaEsSampler", with_margin=True)
    with pytest.raises(ValidationError, match="TPESampler"):
        OptunaOptions(sampler="TPE")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("TPESampler", {"n_ei_candidates": 0}),
        ("TPESampler", {"n_startup_trials": "x"}),
        ("TPESampler", {"prior_weight": -1}),
        ("GPSampler", {"n_startup_trials": "x"}),
        ("CmaEsSampler", {"popsize": 1}),
        ("CmaEsSampler", {"popsize": 7.5}),
        ("CmaEsSampler", {"sigma0": "x"}),
        ("NSGAIISampler", {"population_size": 60.5}),
    ],
)
def test_options_that_only_a_proposal_shows_to_be_wrong_are_refused_as_well(sampler: str, options: Any) -> None:
    with pytest.raises(SearchError, match=rf"search\.options: must be options of {sampler} .*see optuna\.samplers"):
        build(BOX, sampler, **options)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("TPESampler", {"n_startup_trials": 1000, "multivariate": True}),
        ("CmaEsSampler", {"popsize": 200, "use_separable_cma": True, "consider_pruned_trials": True}),
        ("NSGAIISampler", {"population_size": 300, "crossover_prob": 0.5}),
        ("QMCSampler", {"qmc_type": "halton"}),
        ("GPSampler", {"deterministic_objective": True}),
    ],
)
def test_options_that_are_right_leave_the_search_as_it_was(sampler: str, options: Any) -> None:
    search = build(BOX, sampler, **options)
    assert not search.trials
    assert not search._record.trials
    assert search.ask("1") is not None


@pytest.mark.parametrize("option", ["gamma", "weights", "constraints_func", "x0", "source_trials", "crossover"])
def test_what_no_file_can_hold_is_refused_without_optuna(option: str) -> None:
    (reason,) = OptunaSearch.supports(BOX, OptunaOptions(options={option: 0.25}))
    assert f"the option {option!r} cannot be given, since it is" in reason


def test_cma_es_says_what_it_cannot_express() -> None:
    space = Space({"a": Choice(values=["x", "y"]), "b": Float(low=0, high=1, when={"a": "x"})})
    assert CmaEsSearch.supports(space) == [
        "cmaes has no place for values without an order (a)",
        "cmaes has no place for parameters that exist at times (b)",
    ]
    constant = Space({"a": Choice(values=["x"]), "b": Float(low=0, high=1)})
    assert CmaEsSearch.supports(constant) == ["cmaes needs two parameters or more"]
    assert CmaEsSearch.supports(BOX) == []


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    remedy = 'must be installed; pip install "raytuner[optuna]"'
    assert OptunaSearch.supports(BOX) == [f"optuna {remedy}"]
    assert OptunaSearch.supports(BOX, OptunaOptions(sampler="CmaEsSampler")) == [f"optuna and cmaes {remedy}"]
    assert CmaEsSearch.supports(BOX) == [f"optuna and cmaes {remedy}"]


def test_what_is_supported_is_known_without_importing_optuna() -> None:
    script = (
        "import sys; from raytuner.search import *; from raytuner.space import Float, Space;"
        "space = Space({'a': Float(low=0, high=1), 'b': Float(low=0, high=1)});"
        "assert not OptunaSearch.supports(space) and not CmaEsSearch.supports(space);"
        "assert 'optuna' not in sys.modules and 'cmaes' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
