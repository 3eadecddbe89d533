"""The JSON Schema says what a file may hold, as far as a schema can."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest

from raytuner.definition import Experiment, schema
from raytuner.definition.document import read_yaml
from raytuner.errors import DefinitionError

FULL = """\
name: digits-mlp
train: experiments.objectives.digits:train
test: experiments.objectives.digits:test
objective: {metric: val_accuracy, mode: max, max_steps: 27}
space:
  lr:        {type: float, low: 1.0e-4, high: 1.0e-1, log: true}
  depth:     {type: int, low: 1, high: 4}
  width:     {type: int, low: 32, high: 512, log: true, step: 32}
  optimizer: {type: choice, values: [sgd, adam]}
  momentum:  {type: float, low: 0.0, high: 0.99, when: {optimizer: sgd}}
  batch:     {type: choice, values: [32, 64, 128], ordered: true}
constraints: ["width * depth <= 1024"]
defaults:  {lr: 1.0e-3, depth: 2, width: 128, optimizer: adam, batch: 64}
search:    {type: hyperopt}
scheduler: {type: asha, grace_steps: 1, reduction_factor: 3}
budget:    {trials: 50, time: 30m}
resources: {cpu: 1, gpu: 0}
storage:   results/
tracking:  {mlflow: "sqlite:///results/mlflow.db"}
seed: 0
"""
SHORT = """\
name: a
train: path/file.py:train
objective: {metric: loss, mode: min}
space:
  a: [1, 2, [3, 4], null]
  b: {type: int, low: 1, high: 3, when: "a == 1"}
search: grid
scheduler: none
budget: {time: 90}
checkpoints: {disk: 10GB, every_time: 1h30m}
tracking: none
"""


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    found = schema()
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_names_its_draft() -> None:
    assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("text", [FULL, SHORT], ids=["full", "short"])
def test_good_files_are_valid_by_both(validator: jsonschema.Draft202012Validator, text: str) -> None:
    assert list(validator.iter_errors(read_yaml(text).data)) == []
    assert Experiment.from_yaml(text)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("budgets", {}),
        ("name", 3),
        ("name", "a/b"),
        ("train", "objectives.train"),
        ("objective.mode", "maximize"),
        ("objective.max_steps", 0),
        ("objective.step", 1),
        ("space.lr.type", "flaot"),
        ("space.lr.low", "1e-4"),
        ("space.lr.lo", 1),
        ("space.depth.low", 0.5),
        ("space.batch", []),
        ("search", "hyperotp"),
        ("search.startup", 0),
        ("search.stratup", 3),
        ("scheduler.form", "halt"),
        ("scheduler", {"grace_steps": 1}),
        ("budget.trials", 0),
        ("budget.time", "30 minutes"),
        ("resources.cpu", 0),
        ("resources.gpu", -1),
        ("checkpoints", {"disk": "10 gigs"}),
        ("tracking", "off"),
        ("env", {"A": 1}),
        ("seed", -1),
        ("constraints", "a < b"),
    ],
)
def test_bad_files_are_valid_by_neither(validator: jsonschema.Draft202012Validator, path: str, value: object) -> None:
    data: Any = copy.deepcopy(read_yaml(FULL).data)
    *sections, key = path.split(".")
    here = data
    for section in sections:
        here = here[section]
    here[key] = value
    assert list(validator.iter_errors(data))
    with pytest.raises(DefinitionError):
        Experiment(**data)


def test_says_what_each_key_means() -> None:
    found = schema()
    lacking = [
        f"{owner}.{name}"
        for owner, part in {"": found, **found["$defs"]}.items()
        for name, field in part["properties"].items()
        if "description" not in field and "$ref" not in field
    ]
    assert lacking == []
    assert found["$defs"]["AshaOptions"]["properties"]["grace_steps"]["description"].startswith("Steps that every")


def test_offers_the_components_that_there_are() -> None:
    found = schema()
    text = str(found["properties"]["search"])
    for name in ("grid", "hyperopt", "random", "OutsideOptions"):
        assert name in text
