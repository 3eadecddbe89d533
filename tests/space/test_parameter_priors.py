"""Priors: what a person may write, and what it does to a parameter's axis."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from raytuner.definition import Experiment, schema, to_plain, to_yaml
from raytuner.errors import DefinitionError
from raytuner.space import Choice, Float, Int, Parameter, Space
from raytuner.space.axes import Continuous, Lattice
from raytuner.space.priors import UNIFORM, Warp

ANY = TypeAdapter(Parameter)
CONFIDENCES = ("low", "medium", "high")
LR = {"type": "float", "low": 1e-5, "high": 1.0, "log": True}
STEPS = {"type": "float", "low": 0.0, "high": 0.9, "step": 0.1}
WIDTH = {"type": "int", "low": 32, "high": 512, "step": 32, "log": True}
OPTIMIZER = {"type": "choice", "values": ["sgd", "adam", None, [1, 2], True]}
BATCH = {"type": "choice", "values": [32, 64, 128], "ordered": True}


@st.composite
def continuous(draw: st.DrawFn) -> Float:
    low, share = draw(st.floats(1e-6, 1e6)), draw(st.floats(0, 1))
    plain = Float(low=low, high=low + draw(st.floats(1e-3, 1e6)), log=draw(st.booleans()))
    value = plain.axis.from_unit(share)
    return plain.model_validate({**plain.model_dump(), "prior": {"value": value, "confidence": draw(confidences())}})


@st.composite
def discrete(draw: st.DrawFn) -> Float | Int | Choice:
    kind = draw(st.sampled_from(["float", "int", "choice"]))
    low, step, count = (
        draw(st.integers(1, 1000)),
        draw(st.integers(1, 50)),
        draw(st.integers(1, 5) | st.integers(1, 600)),
    )
    high, log = low + step * count, draw(st.booleans())
    if kind == "choice":
        fields: dict[str, Any] = {"values": list(range(min(count, 20))), "ordered": log}
    else:
        unit = 1 if kind == "int" else 0.125
        fields = {"low": low * unit, "high": high * unit, "step": step * unit, "log": log}
    plain = ANY.validate_python({"type": kind, **fields})
    value = draw(st.sampled_from(list(plain.axis.grid(1))))
    found: Float | Int | Choice = ANY.validate_python(
        {"type": kind, **fields, "prior": {"value": value, "confidence": draw(confidences())}}
    )
    return found


def confidences() -> st.SearchStrategy[str]:
    return st.sampled_from(CONFIDENCES)


def shares(parameter: Float | Int | Choice) -> list[float]:
    """How likely each value is."""
    assert not isinstance(parameter.axis, Continuous)
    return np.diff([0.0, *parameter.axis.edges(), 1.0]).tolist()


@pytest.mark.parametrize(
    ("fields", "prior", "message"),
    [
        (LR, 3, "prior must be from 1e-05 to 1.0, got 3.0; use one from 1e-05 to 1.0"),
        (LR, 0, "prior must be from 1e-05 to 1.0, got 0.0"),
        (LR, {"value": -1}, "prior must be from 1e-05 to 1.0, got -1.0"),
        (LR, "3e-4", "valid number"),
        (LR, float("nan"), "finite number"),
        (LR, {"value": 0.1, "confidence": "huge"}, "'low', 'medium' or 'high'"),
        (LR, {"value": 0.1, "confidnce": "high"}, "Extra inputs"),
        (LR, {"confidence": "high"}, "Field required"),
        (STEPS, 0.25, "prior must be on a step of 0.1, got 0.25; use 0.2"),
        (WIDTH, 33, "prior must be on a step of 32, got 33; use 32"),
        (WIDTH, 1024, "prior must be from 32 to 512, got 1024"),
        (WIDTH, 64.0, "valid integer"),
        (WIDTH, True, "valid integer"),
        (OPTIMIZER, "adamw", "prior must be one of the choice's values, got 'adamw'; use one of 'sgd', 'adam'"),
        (OPTIMIZER, False, "prior must be one of the choice's values, got False"),
        (OPTIMIZER, 1, "prior must be one of the choice's values, got 1"),
        (BATCH, "64", "prior must be one of the choice's values, got '64'"),
    ],
)
def test_refuses_with_rule_and_remedy(fields: dict[str, Any], prior: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ANY.validate_python({**fields, "prior": prior})
    assert message in str(caught.value)


def test_wrong_bounds_come_before_the_prior_within_them() -> None:
    with pytest.raises(ValidationError, match="low < high must hold"):
        Float(low=1, high=0, prior=0.5)


@pytest.mark.parametrize(
    ("fields", "prior"),
    [(LR, 3e-4), (LR, 1), (STEPS, 0.1 * 3), (WIDTH, 64), (BATCH, 128)]
    + [(OPTIMIZER, value) for value in ("sgd", [1, 2], True, {"value": None})],
)
def test_a_value_alone_is_short_for_medium_confidence(fields: dict[str, Any], prior: Any) -> None:
    short = ANY.validate_python({**fields, "prior": prior})
    value = prior["value"] if isinstance(prior, dict) else prior
    assert short == ANY.validate_python({**fields, "prior": {"value": value, "confidence": "medium"}})
    assert ANY.validate_python(short.model_dump()) == short
    assert short != ANY.validate_python(fields)
    assert ANY.validate_python({**fields, "prior": None}) == ANY.validate_python(fields)


@given(continuous(), st.lists(st.floats(0, 1), min_size=2, max_size=10))
def test_a_continuous_value_finds_its_place_again(parameter: Float, places: list[float]) -> None:
    values = [parameter.axis.from_unit(u) for u in sorted(places)]
    assert values == sorted(values)
    assert [parameter.problem(value) for value in values] == [None] * len(values)
    assert (parameter.axis.from_unit(0), parameter.axis.from_unit(1)) == (parameter.low, parameter.high)
    again = [parameter.axis.from_unit(parameter.axis.to_unit(value)) for value in values]
    # As exact as without a prior, see test_parameters.
    assert again == pytest.approx(values, abs=1e-9 * (parameter.high - parameter.low) + 1e-12 * parameter.high)


@given(discrete(), st.floats(0, 1))
def test_every_value_has_a_cell_of_its_own_and_they_are_in_order(parameter: Float | Int | Choice, u: float) -> None:
    axis = parameter.axis
    assert not isinstance(axis, Continuous)
    values = list(axis.grid(1))
    places, edges = [axis.to_unit(value) for value in values], axis.edges()
    assert [axis.from_unit(place) for place in places] == values
    assert [axis.cell(place) for place in places] == list(range(len(values)))
    bounds = [0.0, *edges, 1.0]
    assert all(start < place < end for (start, end), place in zip(pairwise(bounds), places, strict=True))
    assert (axis.from_unit(0), axis.from_unit(1)) == (values[0], values[-1])
    index = axis.cell(u)
    assert axis.from_unit(u) == values[index]
    assert bounds[index] - 1e-9 <= u <= bounds[index + 1] + 1e-9


@given(st.floats(0, 1), confidences(), st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_a_warp_is_monotone_to_the_last_digit_and_goes_back(
    centre: float, confidence: Any, places: list[float]
) -> None:
    warp = Warp.normal(centre, confidence)
    near = [np.nextafter(place, 1) for place in places]
    for places_in_order in (sorted(places), sorted(near + places)):
        heights = [warp.forward(place) for place in places_in_order]
        assert heights == sorted(heights)
        back = [warp.backward(height) for height in heights]
        assert back == sorted(back)
        assert back == pytest.approx(places_in_order, abs=1e-14)
    assert [warp.forward(end) for end in (0, 1)] == [warp.backward(end) for end in (0, 1)] == [0, 1]


@given(st.integers(1, 255), st.data())
def test_values_of_even_cells_stay_in_their_middles(count: int, data: st.DataObject) -> None:
    prior = data.draw(st.integers(0, count))
    axis = Int(low=0, high=count, prior=prior).axis
    bounds = [0.0, *axis.edges(), 1.0]
    middles = [(start + end) / 2 for start, end in pairwise(bounds)]
    assert [axis.to_unit(value) for value in range(count + 1)] == pytest.approx(middles, abs=1e-14)


def test_draws_fall_near_the_prior_and_the_surer_the_more() -> None:
    rng = np.random.default_rng(0)
    found = []
    for prior in (None, *({"value": 3e-4, "confidence": confidence} for confidence in CONFIDENCES)):
        axis = Float(**LR, prior=prior).axis
        found.append(float(np.mean([1e-4 < axis.from_unit(rng.random()) < 1e-3 for _ in range(4000)])))
    # A decade of five: 0.2 without. Within +-0.1 of the range: half of a normal's share, and half of 0.2.
    expected = [0.2, *((0.2 + share) / 2 for share in (0.246, 0.354, 0.581))]
    assert found == pytest.approx(expected, abs=4 * (0.25 / 4000) ** 0.5)  # 4 standard deviations


def test_the_prior_of_a_choice_is_as_many_times_as_likely() -> None:
    for confidence, odds in zip(CONFIDENCES, (2, 4, 6), strict=True):
        adam = Choice(values=["sgd", "adam", "lion"], prior={"value": "adam", "confidence": confidence})
        assert shares(adam) == pytest.approx([1 / (odds + 2), odds / (odds + 2), 1 / (odds + 2)])
    ordered = shares(Choice(values=[8, 16, 32, 64], ordered=True, prior=64))
    assert ordered == sorted(ordered), "the nearer, the likelier"
    assert shares(Choice(values=["only"], prior="only")) == [1]


@given(discrete())
def test_a_wrong_prior_makes_no_value_much_rarer(parameter: Float | Int | Choice) -> None:
    plain = parameter.model_validate(parameter.model_dump() | {"prior": None})
    # Of two values without an order, 6 to 1 against one leaves it 1/7 instead of 1/2.
    least = 2 / 7 if isinstance(parameter, Choice) and not parameter.ordered else UNIFORM
    for now, before in zip(shares(parameter), shares(plain), strict=True):
        assert now >= least * before * 0.99


def test_without_a_prior_nothing_changes() -> None:
    assert Float(**LR).axis == Continuous(1e-5, 1.0, True)
    assert Int(**WIDTH).axis == Lattice.of(32, 512, 32, log=True)
    axis, u = Float(low=2, high=5).axis, 0.123456789
    assert axis.from_unit(u) == 2 + u * 3
    assert Choice(**OPTIMIZER).axis.to_unit([1, 2]) == 3.5 / 5
    assert Choice(**OPTIMIZER).axis.warp is None


def test_a_continuous_grid_is_closer_together_near_the_prior() -> None:
    points = list(Float(low=0, high=1, prior=0.5).axis.grid(5))
    gaps = [end - start for start, end in pairwise(points)]
    assert points[0] == 0
    assert points[-1] == 1
    assert max(gaps[1:3]) < min(gaps[0], gaps[3])
    assert list(Int(low=1, high=4, prior=2).axis.grid(5)) == [1, 2, 3, 4]


def test_a_space_with_priors_survives_pickling() -> None:
    space = Space({"lr": Float(**LR, prior=3e-4), "momentum": Float(low=0, high=1, prior=0.9, when="lr > 0.01")})
    again = pickle.loads(pickle.dumps(space))
    assert again == space
    assert again.from_unit([0.9, 0.3]) == space.from_unit([0.9, 0.3])
    assert space != Space({"lr": Float(**LR), "momentum": space.parameters["momentum"]})


EXPERIMENT: dict[str, Any] = {
    "name": "a",
    "train": "m:train",
    "objective": {"metric": "loss", "mode": "min"},
    "budget": {"trials": 1},
}


@pytest.mark.parametrize("short", [True, False])
def test_in_an_experiment(short: bool) -> None:
    priors = {"lr": 3e-4, "steps": 0.3, "width": 64, "optimizer": "adam", "batch": 64}
    written = {name: value if short else {"value": value, "confidence": "high"} for name, value in priors.items()}
    fields = {"lr": LR, "steps": STEPS, "width": WIDTH, "optimizer": OPTIMIZER, "batch": BATCH}
    data = EXPERIMENT | {"space": {name: {**one, "prior": written[name]} for name, one in fields.items()}}
    jsonschema.validate(data, schema())
    experiment = Experiment(**data)
    assert Experiment.from_yaml(to_yaml(experiment)) == experiment
    plain = json.loads(json.dumps(to_plain(experiment)))
    assert plain["space"]["width"]["prior"] == {"confidence": "medium" if short else "high", "value": 64}
    assert plain["defaults"] == {}
    assert "prior" not in str(to_plain(Experiment(**EXPERIMENT, space=fields)))


def test_bad_priors_are_refused_by_the_schema_or_with_place_and_remedy() -> None:
    validator = jsonschema.Draft202012Validator(schema())
    for fields, prior in [(LR, "x"), (WIDTH, 6.5), (BATCH, {"confidence": "high"}), (LR, {"value": 1, "sure": 1})]:
        data = EXPERIMENT | {"space": {"a": {**fields, "prior": prior}}}
        assert list(validator.iter_errors(data))
        with pytest.raises(DefinitionError) as caught:
            Experiment(**data)
        assert all(problem.where.startswith("space.a.prior") for problem in caught.value.problems)
    with pytest.raises(DefinitionError) as caught:
        Experiment(**EXPERIMENT, space={"a": {**STEPS, "prior": 0.25}})
    assert str(caught.value) == "space.a: prior must be on a step of 0.1, got 0.25; use 0.2"
    with pytest.raises(DefinitionError, match=r"space\.a\.prior: a number is needed, got '3e-4'"):
        Experiment(**EXPERIMENT, space={"a": {**LR, "prior": "3e-4"}})
