"""Bad experiment files: each is refused with its line, its key path, the rule and a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from raytuner.definition import load
from raytuner.errors import DefinitionError, Problem

GOOD = {
    "name": "name: digits",
    "train": "train: objectives:train",
    "objective": "objective: {metric: val_accuracy, mode: max, max_steps: 27}",
    "space": """\
space:
  lr: {type: float, low: 1e-4, high: 1e-1, log: true}
  depth: {type: int, low: 1, high: 4}
  optimizer: [sgd, adam]
  momentum: {type: float, low: 0, high: 0.9, when: {optimizer: sgd}}""",
    "constraints": 'constraints: ["depth * lr <= 0.3"]',
    "defaults": "defaults: {lr: 1e-3, depth: 2, optimizer: adam}",
    "scheduler": "scheduler: asha",
    "budget": "budget: {trials: 10}",
}
CODE = """\
import a_module_that_is_not_there
from helpers import imported
CONSTANT = 3
def train(trial): ...
def test(trial): ...
def two(trial, data): ...
def nothing(): ...
async def later(trial): ...
class Plain: ...
class Halton(Base): ...
"""


class Bad(NamedTuple):
    edit: str
    """Top-level keys that replace those of the good file; ``# <-`` marks the line at which the problem must be."""
    where: str
    words: str
    """Words that the message must hold, separated by |."""


SPACE = GOOD["space"] + "\n"

CASES: dict[str, Bad] = {
    # --- YAML
    "tab": Bad("description: |\n  x\n\tname: y  # <-", "", "valid YAML|spaces, not tabs"),
    "unclosed_bracket": Bad("constraints: [a\nseed: 1  # <-", "", "valid YAML"),
    "colon_in_text": Bad("description: one: two  # <-", "", "valid YAML|quote"),
    "duplicate_key": Bad("seed: 1\nseed: 2  # <-", "seed", "written once|first on line|remove one"),
    "duplicate_nested": Bad(SPACE + "  lr: [1, 2]  # <-", "space.lr", "written once"),
    "python_tag": Bad('seed: !!python/object/apply:os.system ["true"]  # <-', "seed", "tags are not allowed|!!python"),
    "own_tag": Bad("description: !env HOME  # <-", "description", "tags are not allowed|!env"),
    "undefined_alias": Bad("description: *nothing  # <-", "", "valid YAML|alias"),
    "alias_in_itself": Bad("constraints: &a\n  - *a", "constraints[0]", "alias|write the value out"),
    "merge_key": Bad("resources:\n  <<: {cpu: 2}  # <-", "resources", "merge keys|write the keys out"),
    "no_space": Bad("scheduler: {type:asha}  # <-", "scheduler", "a space is needed after a colon|write type: asha"),
    "number_as_key": Bad("tags: {2024: year}  # <-", "tags", 'a key must be a string|"2024"'),
    "two_documents": Bad("seed: 1\n---\nseed: 2", "", "more than one document"),
    "too_deep": Bad("description: " + "[" * 60 + "]" * 60, "", "nested deeper"),
    # --- keys and kinds of value
    "misspelt_key": Bad("schedular: asha  # <-", "schedular", "unknown key|did you mean 'scheduler'"),
    "key_of_a_section": Bad("max_steps: 5  # <-", "max_steps", "unknown key|did you mean 'objective.max_steps'"),
    "misspelt_nested": Bad("budget: {trails: 3}  # <-", "budget.trails", "unknown key|did you mean 'trials'"),
    "unknown_key_without_a_like": Bad("budget: {x: 3}  # <-", "budget.x", "unknown key|known keys: trials, time"),
    "section_is_text": Bad("objective: val_accuracy  # <-", "objective", "a mapping|needed|'val_accuracy'"),
    "section_is_empty": Bad("resources:  # <-", "resources", "a mapping|null|remove the key"),
    "tracking_is_empty": Bad("tracking:  # <-", "tracking", "tracking: none"),
    "constraints_is_text": Bad("constraints: lr < 1  # <-", "constraints", "a list|in brackets"),
    "constraint_is_number": Bad("constraints:\n  - lr < 1\n  - 7  # <-", "constraints[1]", "a string"),
    "missing_metric": Bad("objective: {mode: max}  # <-", "objective.metric", "this key is needed|add 'metric'"),
    # --- name, code, texts
    "name_with_slash": Bad("name: a/b  # <-", "name", "letters, digits|'a/b'|rename"),
    "name_is_number": Bad("name: 12  # <-", "name", 'a string|got 12|"12"'),
    "name_too_long": Bad(f"name: {'a' * 101}  # <-", "name", "at most 100 characters|shorten"),
    "name_is_hidden": Bad("name: .digits  # <-", "name", "starts with a letter or digit"),
    "train_without_colon": Bad("train: objectives.train  # <-", "train", "module:function|'objectives:train'"),
    "train_is_number": Bad("train: 3  # <-", "train", "a string"),
    "module_not_there": Bad("train: objektives:train  # <-", "train", "module objektives|did you mean 'objectives'"),
    "submodule_not_there": Bad("train: package.nothing:train  # <-", "train", "module package.nothing|no 'nothing'"),
    "module_is_no_package": Bad("train: objectives.digits:train  # <-", "train", "a module, not a package"),
    "module_is_a_folder": Bad("train: folder:train  # <-", "train", "without __init__.py"),
    "function_not_there": Bad("train: objectives:trian  # <-", "train", "must define 'trian'|did you mean 'train'"),
    "file_not_there": Bad("train: nothing.py:train  # <-", "train", "the file must exist|import root"),
    "file_of_another_folder": Bad("train: ../x.py:train  # <-", "train", "the file must exist"),
    "module_does_not_parse": Bad("train: broken:train  # <-", "train", "valid Python|broken.py:2"),
    "function_takes_two": Bad("train: objectives:two  # <-", "train", "one argument|def two(trial, data)"),
    "function_takes_none": Bad("train: objectives:nothing  # <-", "train", "one argument"),
    "function_is_async": Bad("train: objectives:later  # <-", "train", "plain function"),
    "class_is_no_trainable": Bad("train: objectives:Plain  # <-", "train", "Ray Trainable"),
    "test_not_there": Bad("test: objectives:tets  # <-", "test", "must define 'tets'|did you mean 'test'"),
    "test_is_a_class": Bad("test: objectives:Halton  # <-", "test", "a function is needed"),
    "env_is_number": Bad("env: {OMP_NUM_THREADS: 1}  # <-", "env.OMP_NUM_THREADS", 'a string|"1"'),
    "env_name": Bad("env: {A-B: x}  # <-", "env.A-B", "environment variable's name"),
    "tag_is_number": Bad("tags: {year: 2024}  # <-", "tags.year", "a string"),
    "tag_is_reserved": Bad("tags: {mlflow.user: me}  # <-", "tags.mlflow.user", "reserved"),
    "isolation_unknown": Bad("isolation: proces  # <-", "isolation", "one of process, actor|did you mean 'process'"),
    # --- objective
    "metric_empty": Bad('objective: {metric: "", mode: max, max_steps: 9}  # <-', "objective.metric", "not be empty"),
    "metric_with_spaces": Bad(
        'objective: {metric: " loss", mode: min, max_steps: 9}  # <-',
        "objective.metric",
        "no spaces at its ends|'loss'",
    ),
    "metric_too_long": Bad(
        f"objective: {{metric: {'m' * 251}, mode: min, max_steps: 9}}  # <-", "objective.metric", "at most 250|251"
    ),
    "metric_bad_characters": Bad(
        'objective: {metric: "acc@1, top", mode: max, max_steps: 9}  # <-',
        "objective.metric",
        "as MLflow demands|'@'|','",
    ),
    "metric_is_a_path": Bad(
        "objective: {metric: val//loss, mode: min, max_steps: 9}  # <-", "objective.metric", "plain path|'val/loss'"
    ),
    "mode_unknown": Bad(
        "objective: {metric: a, mode: maximize, max_steps: 9}  # <-",
        "objective.mode",
        "one of min, max|'maximize'|did you mean 'max'",
    ),
    "max_steps_zero": Bad(
        "objective: {metric: a, mode: max, max_steps: 0}  # <-", "objective.max_steps", "at least 1|got 0"
    ),
    "max_steps_fraction": Bad(
        "objective: {metric: a, mode: max, max_steps: 2.5}  # <-", "objective.max_steps", "a whole number|got 2.5"
    ),
    # --- parameters
    "space_empty": Bad("space: {}  # <-\nconstraints: []\ndefaults: {}", "space", "at least one parameter"),
    "type_unknown": Bad(SPACE + "  x: {type: flaot, low: 0, high: 1}  # <-", "space.x.type", "did you mean 'float'"),
    "type_missing": Bad(SPACE + "  x: {low: 0, high: 1}  # <-", "space.x.type", "this key is needed"),
    "parameter_is_number": Bad(SPACE + "  x: 3  # <-", "space.x", "a mapping|got 3"),
    "prior_key": Bad(
        SPACE + "  x: {type: int, low: 0, high: 3, prior: {value: 1, confidnce: high}}  # <-",
        "space.x.prior.confidnce",
        "unknown key|did you mean 'confidence'",
    ),
    "prior_outside": Bad(
        SPACE + "  x: {type: int, low: 0, high: 3, prior: 7}  # <-", "space.x", "prior must be from 0 to 3|got 7"
    ),
    "parameter_key_unknown": Bad(
        SPACE + "  x: {type: int, lo: 0, high: 3}  # <-", "space.x.lo", "unknown key|did you mean 'low'"
    ),
    "bounds_swapped": Bad(SPACE + "  x: {type: float, low: 1, high: 0}  # <-", "space.x", "low < high|swap the bounds"),
    "log_of_zero": Bad(SPACE + "  x: {type: float, low: 0, high: 1, log: true}  # <-", "space.x", "log needs low > 0"),
    "log_of_negative": Bad(
        SPACE + "  x: {type: int, low: -2, high: 1, log: true}  # <-", "space.x", "log needs low > 0"
    ),
    "step_too_large": Bad(SPACE + "  x: {type: int, low: 0, high: 4, step: 9}  # <-", "space.x", "step must fit"),
    "step_zero": Bad(SPACE + "  x: {type: float, low: 0, high: 4, step: 0}  # <-", "space.x.step", "above 0"),
    "high_off_step": Bad(
        SPACE + "  x: {type: int, low: 1, high: 10, step: 2}  # <-", "space.x", "whole number of steps"
    ),
    "low_is_text": Bad(SPACE + '  x: {type: float, low: "1", high: 2}  # <-', "space.x.low", "a number|without quotes"),
    "low_is_boolean": Bad(SPACE + "  x: {type: int, low: true, high: 2}  # <-", "space.x.low", "a whole number|true"),
    "int_bound_fraction": Bad(SPACE + "  x: {type: int, low: 0.5, high: 2}  # <-", "space.x.low", "a whole number|0.5"),
    "bound_infinite": Bad(SPACE + "  x: {type: float, low: 0, high: .inf}  # <-", "space.x.high", "finite"),
    "bound_nan": Bad(SPACE + "  x: {type: float, low: .nan, high: 1}  # <-", "space.x.low", "finite"),
    "log_is_text": Bad(
        SPACE + "  x: {type: float, low: 1, high: 2, log: yes}  # <-", "space.x.log", "true or false|'yes'"
    ),
    "choice_empty": Bad(SPACE + "  x: []  # <-", "space.x", "at least 1"),
    "choice_twice": Bad(SPACE + "  x: [a, b, a]  # <-", "space.x", "values must differ|'a' twice"),
    "choice_of_mappings": Bad(
        SPACE + "  x: {type: choice, values: [{a: 1}]}  # <-", "space.x.values", "a choice's value"
    ),
    "choice_values_number": Bad(SPACE + "  x: {type: choice, values: 3}  # <-", "space.x.values", "a list"),
    "parameter_name": Bad(SPACE + "  learning-rate: [1, 2]  # <-", "space.learning-rate", "rename it"),
    "parameter_is_keyword": Bad(SPACE + "  lambda: [1, 2]  # <-", "space.lambda", "no Python keyword"),
    # --- conditions
    "condition_dangling": Bad(
        SPACE + "  x: {type: int, low: 1, high: 2, when: {lrr: 1}}  # <-", "space.x.when", "did you mean 'lr'"
    ),
    "condition_cyclic": Bad(
        SPACE + "  a: {type: choice, values: [1, 2], when: b == 1}\n  b: {type: choice, values: [1, 2], when: a == 1}",
        "space.a.when",
        "circle|a -> b -> a",
    ),
    "condition_on_itself": Bad(
        SPACE + "  a: {type: choice, values: [1, 2], when: {a: 1}}  # <-", "space.a.when", "circle"
    ),
    "condition_impossible": Bad(
        SPACE + "  x: {type: int, low: 1, high: 2, when: {optimizer: sdg}}  # <-",
        "space.x.when.optimizer",
        "a value that the parent can have|did you mean 'sgd'",
    ),
    "condition_out_of_bounds": Bad(
        SPACE + "  x: {type: int, low: 1, high: 2, when: {depth: 9}}  # <-",
        "space.x.when.depth",
        "a value that the parent can have|got 9",
    ),
    "condition_calls": Bad(
        SPACE + "  x: {type: int, low: 1, high: 2, when: \"open('f') == 1\"}  # <-", "space.x.when", "not allowed"
    ),
    # --- constraints
    "constraint_unknown_name": Bad('constraints: ["depht <= 3"]  # <-', "constraints[0]", "did you mean 'depth'"),
    "constraint_attribute": Bad('constraints: ["depth.real > 1"]  # <-', "constraints[0]", "not allowed"),
    "constraint_no_expression": Bad('constraints: ["depth <="]  # <-', "constraints[0]", "not an expression"),
    "constraint_mixes_types": Bad('constraints: ["optimizer < 3"]  # <-', "constraints[0]", "cannot be ordered"),
    "constraint_is_no_question": Bad('constraints: ["depth + 1"]  # <-', "constraints[0]", "true or false"),
    "constraint_impossible_int": Bad(
        'constraints: ["depth * depth == 5"]  # <-\ndefaults: {}', "constraints[0]", "none"
    ),
    "constraint_impossible_float": Bad('constraints: ["lr > 1"]  # <-\ndefaults: {}', "constraints[0]", "none does"),
    "constraints_impossible_together": Bad(
        'constraints: ["depth > 2", "depth < 3"]  # <-\ndefaults: {}', "constraints", "all of them"
    ),
    # --- defaults
    "default_out_of_bounds": Bad(
        "defaults: {lr: 5, depth: 2, optimizer: adam}  # <-", "defaults.lr", "from 0.0001 to 0.1"
    ),
    "default_unknown": Bad(
        "defaults: {lr: 0.001, depth: 2, optimizer: adam, widht: 1}  # <-", "defaults.widht", "parameter of the space"
    ),
    "default_missing": Bad("defaults: {lr: 0.001, optimizer: adam}  # <-", "defaults.depth", "must be given|add depth"),
    "default_inactive": Bad(
        "defaults: {lr: 0.001, depth: 2, optimizer: adam, momentum: 0.5}  # <-", "defaults.momentum", "exists only when"
    ),
    "default_wrong_type": Bad(
        "defaults: {lr: 0.01, depth: two, optimizer: adam}  # <-", "defaults.depth", "whole number"
    ),
    "default_no_choice": Bad(
        "defaults: {lr: 0.01, depth: 2, optimizer: rms}  # <-", "defaults.optimizer", "'sgd', 'adam'"
    ),
    "default_breaks_constraint": Bad(
        "defaults: {lr: 0.1, depth: 4, optimizer: adam}  # <-", "defaults", "depth * lr <= 0.3 must hold"
    ),
    # --- search and scheduler
    "search_unknown": Bad("search: hyperotp  # <-", "search.type", "did you mean 'hyperopt'"),
    "search_option_unknown": Bad("search: {type: random, startup: 3}  # <-", "search.startup", "unknown key"),
    "search_option_misspelt": Bad(
        "search: {type: hyperopt, start_up: 3}  # <-", "search.start_up", "did you mean 'startup'"
    ),
    "search_option_bounds": Bad("search: {type: hyperopt, startup: 0}  # <-", "search.startup", "at least 1|got 0"),
    "search_type_far_off": Bad("search: xyzzy  # <-", "search.type", "hyperopt, optuna, random, sobol, module:Class"),
    "search_type_is_a_file": Bad("search: objectives.py:Halton  # <-", "search.type", "the type must be known"),
    "search_option_text": Bad('search: {type: hyperopt, startup: "5"}  # <-', "search.startup", "a whole number"),
    "search_is_list": Bad("search: [grid]  # <-", "search", "a mapping"),
    "search_without_type": Bad("search: {points: 3}  # <-", "search.type", "this key is needed"),
    "search_class_not_there": Bad("search: objectives:Holton  # <-", "search.type", "did you mean 'Halton'"),
    "search_is_a_function": Bad("search: objectives:train  # <-", "search.type", "must be a class"),
    "grid_too_large": Bad(
        "search: grid  # <-\nspace:\n  n: {type: int, low: 1, high: 5000000}\nconstraints: []\ndefaults: {}",
        "search",
        "at most 1,000,000",
    ),
    "scheduler_unknown": Bad("scheduler: {type: ahsa}  # <-", "scheduler.type", "did you mean 'asha'"),
    "scheduler_option_bounds": Bad(
        "scheduler: {type: asha, reduction_factor: 1}  # <-", "scheduler.reduction_factor", "at least 2"
    ),
    "asha_without_steps": Bad("objective: {metric: a, mode: max}\nscheduler: asha  # <-", "scheduler", "max_steps"),
    "asha_grace_too_long": Bad("scheduler: {type: asha, grace_steps: 30}  # <-", "scheduler", "grace_steps=30"),
    # --- budget, resources, checkpoints
    "gpu_hours_of_nothing": Bad("budget: {gpu_hours: 4}  # <-", "budget.gpu_hours", "set resources.gpu"),
    "gpu_hours_none": Bad("budget: {gpu_hours: 0}  # <-\nresources: {gpu: 1}", "budget.gpu_hours", "a number above 0"),
    "budget_missing": Bad("budget: {}  # <-", "budget", "trials, time or gpu_hours"),
    "budget_zero": Bad("budget: {trials: 0}  # <-", "budget.trials", "at least 1|got 0"),
    "budget_negative": Bad("budget: {trials: -5}  # <-", "budget.trials", "at least 1|got -5"),
    "budget_text": Bad("budget: {trials: many}  # <-", "budget.trials", "a whole number|'many'"),
    "duration_unit": Bad("budget: {time: 30 minutes}  # <-", "budget.time", "a duration|30m"),
    "duration_zero": Bad("budget: {time: 0s}  # <-", "budget.time", "above 0"),
    "duration_negative": Bad("budget: {time: -3}  # <-", "budget.time", "above 0|got -3"),
    "duration_order": Bad("step_timeout: 30m1h  # <-", "step_timeout", "a duration"),
    "cpu_zero": Bad("resources: {cpu: 0}  # <-", "resources.cpu", "above 0"),
    "gpu_and_a_half": Bad("resources: {gpu: 1.5}  # <-", "resources.gpu", "must be whole|use 1 or 2"),
    "gpu_negative": Bad("resources: {gpu: -1}  # <-", "resources.gpu", "at least 0"),
    "concurrent_zero": Bad("resources: {concurrent_trials: 0}  # <-", "resources.concurrent_trials", "at least 1"),
    "size_unit": Bad("checkpoints: {disk: 10 gigs}  # <-", "checkpoints.disk", "a size|10GB"),
    "keep_none": Bad("checkpoints: {keep: 0}  # <-", "checkpoints.keep", "at least 1"),
    "best_is_text": Bad("checkpoints: {best: no}  # <-", "checkpoints.best", "true or false"),
    "test_without_best": Bad(
        "test: objectives:test\ncheckpoints: {best: false}  # <-", "checkpoints.best", "test runs on the best"
    ),
    # --- storage, tracking, seed
    "storage_empty": Bad('storage: ""  # <-', "storage", "must be a folder"),
    "tracking_folder": Bad("tracking: {mlflow: mlruns}  # <-", "tracking.mlflow", "database or a server|sqlite:///"),
    "tracking_scheme": Bad("tracking: {mlflow: 'ftp://host'}  # <-", "tracking.mlflow", "must begin with one of"),
    "tracking_in_memory": Bad("tracking: {mlflow: 'sqlite://'}  # <-", "tracking.mlflow", "SQLite needs a file"),
    "tracking_text": Bad("tracking: off  # <-", "tracking", "a mapping or none|'off'"),
    "seed_negative": Bad("seed: -1  # <-", "seed", "at least 0|got -1"),
    "seed_fraction": Bad("seed: 1.0  # <-", "seed", "a whole number"),
    "seed_too_long": Bad(f"seed: {'9' * 5000}  # <-", "seed", "4300 digits"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "objectives.py").write_text(CODE)
    (tmp_path / "broken.py").write_text("x = 1\ndef train(:\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    return tmp_path


def text_of(edit: str) -> str:
    """The good file with the edit's top-level keys in the place of its own."""
    replaced = {line.partition(":")[0] for line in edit.splitlines() if not line.startswith((" ", "\t", "-"))}
    kept = [block for key, block in GOOD.items() if key not in replaced]
    return "\n".join([*kept, edit]) + "\n"


def problems_of(folder: Path, text: str, overrides: tuple[str, ...] = ()) -> tuple[Problem, ...]:
    file = folder / "experiment.yaml"
    file.write_text(text)
    with pytest.raises(DefinitionError) as caught:
        load(file, overrides)
    return caught.value.problems


def test_the_good_file_is_good(folder: Path) -> None:
    file = folder / "experiment.yaml"
    file.write_text(text_of("seed: 3"))
    assert load(file).seed == 3


@pytest.mark.parametrize("bad", CASES.values(), ids=CASES.keys())
def test_is_refused_with_its_place_and_a_remedy(folder: Path, bad: Bad) -> None:
    text = text_of(bad.edit)
    found = problems_of(folder, text)
    assert len(found) == 1, [str(problem) for problem in found]
    problem = found[0]
    message = str(problem)
    assert problem.where == bad.where, message
    assert problem.file == str(folder / "experiment.yaml")
    marked = [number for number, line in enumerate(text.splitlines(), start=1) if line.endswith("# <-")]
    if marked:
        assert [problem.line] == marked, message
    for words in bad.words.split("|"):
        assert words in message, message
    assert problem.rule, message
    assert problem.remedy, message
    for foreign in ("pydantic", "Input should", "Traceback", "type=", "<class"):
        assert foreign not in message, message
    assert "\n" not in message
