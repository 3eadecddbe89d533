"""Searches on spaces with priors: proposals stay valid and new, and begin near what is believed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from raytuner.cli import main
from raytuner.search import (
    SEARCHES,
    CmaEsOptions,
    GridOptions,
    HyperOptOptions,
    HyperOptSearch,
    Observation,
    OptunaOptions,
    Search,
    build_search,
)
from raytuner.search.encoding import Encoder
from raytuner.search.variation import Variation
from raytuner.space import Choice, Config, Float, Int, Space, config_key
from raytuner.testing import Story

NUMBERS = Space(
    {
        "lr": Float(low=1e-5, high=1, log=True, prior={"value": 3e-4, "confidence": "high"}),
        "dropout": Float(low=0, high=0.5, step=0.1, prior=0.1),
        "depth": Int(low=1, high=8, prior={"value": 7, "confidence": "high"}),
        "width": Int(low=32, high=512, step=32, log=True, prior={"value": 64, "confidence": "low"}),
        "batch": Choice(values=[32, 64, 128, 256], ordered=True, prior=256),
    },
    ["dropout < 0.3 or depth > 1"],
)
MIXED = Space(
    {
        **NUMBERS.parameters,
        "optimizer": Choice(values=["sgd", "adam", "lion"], prior={"value": "sgd", "confidence": "high"}),
        "momentum": Float(low=0, high=0.99, when={"optimizer": "sgd"}, prior=0.9),
        "constant": Choice(values=[None], prior={"value": None}),
    },
    NUMBERS.constraints,
)
FEW = {"a": Int(low=1, high=3, prior=3), "b": Choice(values=["x", "y", "z"], ordered=True, prior="x")}
ALL: dict[str, BaseModel] = {
    **{name: found.Options() for name, found in SEARCHES.items()},
    "grid": GridOptions(points=2),
    "cmaes": CmaEsOptions(population=5),
    "hyperopt": HyperOptOptions(startup=4),
    "optuna": OptunaOptions(options={"n_startup_trials": 4}),
    "nsga": OptunaOptions(sampler="NSGAIISampler", options={"population_size": 4}),
    "qmc": OptunaOptions(sampler="QMCSampler"),
}
searches = pytest.mark.parametrize("name", ALL)


def make(name: str, space: Space | None = None, seed: int = 0) -> Search:
    return build_search(ALL[name], space or _space(name), seed)


def _space(name: str) -> Space:
    return NUMBERS if name == "cmaes" else MIXED


def without_priors(space: Space) -> Space:
    plain = {name: one.model_validate(one.model_dump() | {"prior": None}) for name, one in space.parameters.items()}
    return Space(plain, space.constraints)


def nearness(config: Config) -> list[bool]:
    """Whether each of a configuration's numbers is near its prior."""
    return [abs(math.log10(config["lr"] / 3e-4)) < 0.7, abs(config["depth"] - 7) <= 1, config["batch"] == 256]


def loss(config: Config) -> float:
    """At best far from the priors."""
    return abs(math.log10(config["lr"])) + abs(config["depth"] - 2) + (config.get("optimizer") != "lion")


@searches
def test_proposals_are_valid_and_new_and_go_on_the_same_when_loaded(name: str) -> None:
    story = Story(make(name))
    for number in range(16):
        config = story.ask()
        assert config is not None
        if number >= 2:
            story.play([("report", 0, 9.0), ("fail" if number % 5 == 0 else "finish", 0, loss(config))])
    loaded = make(name)
    loaded.load_state_dict(json.loads(json.dumps(story.search.state_dict())))
    assert Story(loaded, "more ").asks(4) == Story(story.search, "more ").asks(4)


@searches
def test_a_finite_space_with_priors_is_exhausted(name: str) -> None:
    parameters = FEW if name == "cmaes" else FEW | {"c": Choice(values=[1, 2, 3], prior=1, when={"b": "y"})}
    space = Space(parameters)
    story = Story(make(name, space))
    while (config := story.ask()) is not None:
        story.search.tell(Observation(f"{len(story.configs) - 1:06}", config, 1, float(config["a"]), "finished"))
    assert {config_key(config) for config in story.configs} == {config_key(config) for config in space.grid(1)}


@pytest.mark.parametrize("name", [name for name in ALL if name != "grid"])
def test_more_proposals_are_near_the_prior_at_the_start(name: str) -> None:
    spaces = (_space(name), without_priors(_space(name)))
    with_priors, without = (
        np.mean([nearness(config) for seed in range(3) for config in Story(make(name, space, seed)).asks(40)], axis=0)
        for space in spaces
    )
    # By the priors 0.50, 0.66, 0.41, and 0.28, 0.375, 0.25 without; the standard error of 120 draws is 0.045.
    assert (with_priors > without).all()
    assert with_priors.mean() > without.mean() + 0.1


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("grid", "cmaes")])
def test_an_unordered_choice_begins_with_its_favourite(name: str) -> None:
    configs = [config for seed in range(3) for config in Story(make(name, seed=seed)).asks(40)]
    assert 0.6 < np.mean([config["optimizer"] == "sgd" for config in configs]) < 0.9  # 6 of 8


@pytest.mark.parametrize("name", ["auto", "bayesian", "cmaes", "genetic", "optuna"])
def test_results_overrule_a_wrong_prior(name: str) -> None:
    search = make(name)
    found = []
    for number in range(60):
        config = search.ask(str(number))
        assert config is not None
        search.tell(Observation(str(number), config, 1, loss(config), "finished"))
        found.append(loss(config))
    assert np.mean(found[-15:]) < 0.75 * np.mean(found[:15])


def test_hyperopt_knows_the_categories_of_a_choice_with_a_prior() -> None:
    space = Space(
        {
            "kind": Choice(values=["a", "b", "c", "d"], prior={"value": "a", "confidence": "high"}),
            "x": Float(low=0, high=1),
        }
    )
    for best in "abcd":
        search = HyperOptSearch(space, seed=1, options=HyperOptOptions(startup=8))
        for number in range(24):
            config = {"kind": "abcd"[number % 4], "x": number / 24}
            search.tell(Observation(f"{number}", config, 1, float(config["kind"] != best), "finished"))
        asked = [search.ask(f"more {number}") for number in range(12)]
        assert np.mean([config is not None and config["kind"] == best for config in asked]) > 0.5


@pytest.mark.parametrize("space", [NUMBERS, MIXED], ids=["numbers", "mixed"])
def test_rows_are_settled_where_their_configurations_stand(space: Space) -> None:
    encoder = Encoder(space)
    rows = np.random.default_rng(0).random((300, len(space.names)))
    configs = [space.from_unit(row) for row in rows]
    assert encoder.settled(rows.copy()) == pytest.approx(encoder.rows(configs), abs=1e-12)


def test_mutation_reaches_every_other_value() -> None:
    variation, rng = Variation(MIXED), np.random.default_rng(0)
    config = {"lr": 1e-3, "dropout": 0.1, "depth": 7, "width": 64, "batch": 256, "momentum": 0.5, "constant": None}
    genes = MIXED.to_unit(config | {"optimizer": "sgd"})
    for name, others in [("optimizer", {"adam", "lion"}), ("depth", {1, 2, 3, 4, 5, 6, 8}), ("batch", {32, 64, 128})]:
        chosen = np.array([one == name for one in MIXED.names])
        found = [MIXED.from_unit(variation.mutate(genes, chosen, 0.5, rng))[name] for _ in range(500)]
        assert set(found) == others


def test_a_plan_of_a_file_with_priors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "objectives.py").write_text("def train(trial): ...\n")
    file = tmp_path / "experiment.yaml"
    file.write_text(
        "name: priors\n"
        "train: objectives:train\n"
        "objective: {metric: loss, mode: min}\n"
        "space:\n"
        "  lr: {type: float, low: 1e-5, high: 1, log: true, prior: 3e-4}\n"
        "  depth: {type: int, low: 1, high: 8, prior: {value: 3, confidence: high}}\n"
        "  optimizer: {type: choice, values: [sgd, adam], prior: adam}\n"
        "budget: {trials: 10}\n"
    )
    assert main(["plan", str(file), "--json"]) == 0
    space = json.loads(capsys.readouterr().out)["experiment"]["space"]
    assert {name: one["prior"] for name, one in space.items()} == {
        "lr": {"confidence": "medium", "value": 3e-4},
        "depth": {"confidence": "high", "value": 3},
        "optimizer": {"confidence": "medium", "value": "adam"},
    }
    assert main(["plan", str(file)]) == 0
    assert "3 parameters" in capsys.readouterr().out
    assert main(["plan", str(file), "--set", "space.optimizer.prior=adamw", "--set", "space.depth.prior=9"]) == 2
    said = capsys.readouterr().err
    assert "prior must be one of the choice's values, got 'adamw'; use one of 'sgd', 'adam'" in said
    assert "prior must be from 1 to 8, got 9; use one from 1 to 8" in said
