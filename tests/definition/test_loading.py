"""Reading files: many problems at once, overrides, the YAML dialect, and writing back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytuner.definition import Experiment, load, to_plain, to_yaml
from raytuner.definition.document import MAX_BYTES, read_yaml
from raytuner.errors import DefinitionError, Problem

TEXT = """\
name: digits
train: objectives:train
objective: {metric: loss, mode: min, max_steps: 27}
space:
  lr: {type: float, low: 1e-4, high: 1e-1, log: true}
  depth: {type: int, low: 1, high: 4}
  optimizer: [sgd, adam]
  momentum: {type: float, low: 0, high: 0.9, when: {optimizer: sgd}}
search: random
budget: {trials: 10, time: 1h30m}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "objectives.py").write_text("def train(trial): ...\n")
    path = tmp_path / "experiment.yaml"
    path.write_text(TEXT)
    return path


def refused(file: Path, text: str | bytes, overrides: tuple[str, ...] = ()) -> list[Problem]:
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DefinitionError) as caught:
        load(file, overrides)
    return list(caught.value.problems)


class TestSeveralProblems:
    def test_all_are_told_at_once_in_the_order_of_the_file(self, file: Path) -> None:
        problems = refused(
            file,
            """\
name: a/b
train: objectives:trian
objective: {metrc: loss, mode: upward}
space:
  lr: {type: float, low: 0, high: 1, log: true}
  depth: {type: int, low: 1, high: 4}
  width: {type: int, low: 4, high: 4.5}
constraints: ["depth > 9", "dept < 2", "width > 1"]
defaults: {depth: 7, lr: 3}
budget: {trials: 0}
budgets: {}
seed: -1
seed: 2
""",
        )
        assert [(problem.line, problem.where) for problem in problems] == [
            (1, "name"),
            (2, "train"),
            (3, "objective.mode"),
            (3, "objective.metrc"),
            (5, "space.lr"),
            (7, "space.width.high"),
            (8, "constraints[1]"),
            (8, "constraints[0]"),
            (9, "defaults.depth"),
            (10, "budget.trials"),
            (11, "budgets"),
            (12, "seed"),
            (13, "seed"),
        ]

    def test_a_misspelt_needed_key_is_one_problem(self, file: Path) -> None:
        problems = refused(file, TEXT.replace("metric:", "metrc:"))
        assert [problem.where for problem in problems] == ["objective.metrc"]

    def test_what_refers_to_a_broken_parameter_is_not_blamed(self, file: Path) -> None:
        text = TEXT.replace("[sgd, adam]", "3") + "constraints: [\"optimizer != 'sgd'\"]\n"
        problems = refused(file, text + "defaults: {lr: 0.001, depth: 9, optimizer: sgd, momentum: 0.5}\n")
        assert [problem.where for problem in problems] == ["space.optimizer", "defaults.depth"]

    def test_constraints_keep_their_numbers_when_one_is_left_out(self, file: Path) -> None:
        text = TEXT.replace("[sgd, adam]", "3") + "constraints: [\"optimizer == 'a'\", 'depth > 9', 'lr.x > 1']\n"
        assert [problem.where for problem in refused(file, text)] == [
            "space.optimizer",
            "constraints[2]",
            "constraints[1]",
        ]

    def test_the_message_is_one_line_a_problem(self, file: Path) -> None:
        file.write_text(TEXT + "seed: -1\nenv: {A: 1}\n")
        with pytest.raises(DefinitionError) as caught:
            load(file)
        assert str(caught.value).splitlines() == [
            f"{file}:11: seed: a number of at least 0 is needed, got -1; give 0 or more",
            f'{file}:12: env.A: a string is needed, got 1; quote it: "1"',
        ]


class TestFiles:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DefinitionError, match=r"nothing\.yaml: the file must exist"):
            load(tmp_path / "nothing.yaml")

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DefinitionError, match=r"readable.*directory"):
            load(tmp_path)

    @pytest.mark.parametrize(
        ("content", "words", "line"),
        [
            ("", "an empty file", 1),
            ("- a\n- b\n", "a mapping of keys is needed", 1),
            (b"name: a\ndescription: caf\xe9\n", "UTF-8 text, got byte 0xe9", 2),
            (b"name: a\ndescription: \x07\n", "control character", 2),
            (b"#" * (MAX_BYTES + 1), "must be small", 0),
            ("a: " + "[" * 5000, "nested deeper", 1),
        ],
    )
    def test_no_definition_at_all(self, file: Path, content: str | bytes, words: str, line: int) -> None:
        (problem,) = refused(file, content)
        assert words in str(problem)
        assert problem.line == line

    def test_a_byte_order_mark_is_no_problem(self, file: Path) -> None:
        file.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
        assert load(file).name == "digits"

    def test_aliases_are_bounded(self, file: Path) -> None:
        bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
        (problem,) = refused(file, bomb)
        assert "at most 50000 values" in str(problem)

    def test_aliases_repeat_values(self, file: Path) -> None:
        text = TEXT.replace("{type: int, low: 1, high: 4}", "&n {type: int, low: 1, high: 4}")
        file.write_text(text.replace("  optimizer", "  width: *n\n  optimizer"))
        experiment = load(file)
        assert experiment.space["width"] == experiment.space["depth"]


class TestScalars:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("1e-4", 1e-4),
            ("1.0e-4", 1e-4),
            ("1E5", 1e5),
            (".5", 0.5),
            ("-3.", -3.0),
            ("12:30", "12:30"),
            ("010", 10),
            ("0o10", 8),
            ("0x1F", 31),
            ("1_000", "1_000"),
            ("on", "on"),
            ("no", "no"),
            ("yes", "yes"),
            ("true", True),
            ("False", False),
            ("~", None),
            ("null", None),
            ("'1'", "1"),
            ('"true"', "true"),
            ("2024-01-01", "2024-01-01"),
            ("=", "="),
            ("e5", "e5"),
            ("-", [None]),
        ],
    )
    def test_are_those_of_yaml_1_2(self, text: str, value: object) -> None:
        data = read_yaml(text).data
        assert data == value
        assert type(data) is type(value)

    def test_choices_may_be_words_that_yaml_1_1_took_for_booleans(self, file: Path) -> None:
        file.write_text(TEXT.replace("[sgd, adam]", "[sgd, on, off, yes, no, y, n]"))
        space = load(file).space["optimizer"]
        assert getattr(space, "values", None) == ("sgd", "on", "off", "yes", "no", "y", "n")


class TestOverrides:
    def test_values_are_read_as_yaml(self, file: Path) -> None:
        overrides = [
            "budget.trials=3",
            "space.lr.low=1e-3",
            "space.optimizer=[sgd, lion]",
            "resources.gpu=0.5",
            "env.OMP_NUM_THREADS='1'",
            "description=a b = c",
            "search.type=sobol",
            "space.depth={type: int, low: 2, high: 3}",
            "tracking=none",
        ]
        experiment = load(file, overrides)
        assert experiment.budget.trials == 3
        assert to_plain(experiment)["space"]["lr"]["low"] == 1e-3
        assert to_plain(experiment)["space"]["optimizer"]["values"] == ["sgd", "lion"]
        assert experiment.resources.gpu == 0.5
        assert experiment.env == {"OMP_NUM_THREADS": "1"}
        assert experiment.description == "a b = c"
        assert to_plain(experiment)["search"] == {"type": "sobol"}
        assert to_plain(experiment)["space"]["depth"]["low"] == 2
        assert experiment.tracking is None

    def test_reach_into_lists_and_short_forms(self, file: Path) -> None:
        file.write_text(TEXT + "constraints: ['depth > 1', 'lr < 1']\ntracking: none\n")
        overrides = ["constraints[1]=depth < 4", "space.optimizer.ordered=true", "tracking.register=digits"]
        experiment = load(file, overrides)
        assert experiment.constraints == ["depth > 1", "depth < 4"]
        assert to_plain(experiment)["space"]["optimizer"]["ordered"] is True
        assert experiment.tracking is not None
        assert experiment.tracking.register == "digits"

    @pytest.mark.parametrize(
        ("override", "where", "words"),
        [
            ("budget.trials=0", "budget.trials", "at least 1"),
            ("budget.trails=3", "budget.trails", "did you mean 'trials'"),
            ("objective.metric=", "objective.metric", "a string"),
            ("space.lr.low=0", "space.lr", "log needs low > 0"),
            ("objective.max_steps=1", "scheduler", "asha needs objective.max_steps above"),
            ("space.depth.high=2", "defaults.depth", "must be from 1 to 2"),
            ("train=objectives:trian", "train", "did you mean 'train'"),
            ("search=hyperotp", "search.type", "did you mean 'hyperopt'"),
            ("budget", "", "key.path=value"),
            ("=3", "", "key.path=value"),
            ("budget..trials=3", "", "key.path=value"),
            ("name.x=3", "name", "there is no key 'x'"),
            ("budget[0]=3", "budget", "there is no entry [0]"),
            ("seed=[1", "", "valid YAML"),
            ("seed=!!int 3", "", "tags are not allowed"),
        ],
    )
    def test_a_wrong_one_is_named(self, file: Path, override: str, where: str, words: str) -> None:
        text = TEXT + "scheduler: asha\ndefaults: {lr: 1e-3, depth: 3, optimizer: adam}\n"
        (problem,) = refused(file, text, (override,))
        assert problem.file == f"--set {override}"
        assert problem.line == 0
        assert (problem.where, words in str(problem)) == (where, True), str(problem)
        assert problem.remedy

    def test_problems_of_the_file_keep_their_lines(self, file: Path) -> None:
        problems = refused(file, TEXT + "seed: x\n", ("budget.trials=0",))
        assert [(problem.file, problem.line) for problem in problems] == [(str(file), 11), ("--set budget.trials=0", 0)]


class TestWriting:
    def test_what_is_written_loads_back_equal(self, file: Path) -> None:
        file.write_text(
            TEXT.replace("[sgd, adam]", "[sgd, 'on', '1e-4', null, true, 1, 0.5, [1, 2], '12:30', '0o7', '', ' x', é]")
            + "env: {A: '1', B: 'true'}\ncheckpoints: {every_time: null, disk: 2GiB}\ntracking: none\n"
            + "defaults: {lr: 1e-3, depth: 2, optimizer: '1e-4'}\ndescription: \"two\\nlines\"\n"
            + "scheduler: {type: 'package.halving:Halving', depth: 3}\n"
        )
        text = file.read_text()
        experiment = Experiment.from_yaml(text)
        again = Experiment.from_yaml(to_yaml(experiment))
        assert again == experiment
        assert to_yaml(again) == to_yaml(experiment)
        assert again.tracking is None
        assert again.checkpoints.every_time is None

    def test_plain_data_is_json_and_builds_an_equal_experiment(self, file: Path) -> None:
        experiment = load(file)
        assert Experiment(**json.loads(json.dumps(to_plain(experiment)))) == experiment

    def test_text_has_its_problems_with_lines(self) -> None:
        with pytest.raises(DefinitionError) as caught:
            Experiment.from_yaml(TEXT + "seed: -1\n")
        (problem,) = caught.value.problems
        assert (problem.file, problem.line, problem.where) == ("<text>", 11, "seed")


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 99), st.floats(), st.sampled_from(["", "x", "adam", "asha", "depth > 1"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "type", "when"]), inner)
)
GOOD = read_yaml(TEXT).data


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_is_changed_it_loads_or_is_refused_in_words(data: st.DataObject) -> None:
    document: dict[str, Any] = json.loads(json.dumps(GOOD))
    here: Any = document
    while True:
        key = data.draw(st.sampled_from([*here, "space", "new"]))
        if not isinstance(here.get(key), dict) or data.draw(st.booleans()):
            break
        here = here[key]
    here[key] = data.draw(VALUES)
    problems: tuple[Problem, ...] = ()
    try:
        experiment = Experiment(**document)
        assert Experiment.from_yaml(to_yaml(experiment)) == experiment
    except DefinitionError as error:
        problems = error.problems
    for problem in problems:
        assert problem.rule
        assert "pydantic" not in str(problem)


def test_loading_and_planning_stay_light(file: Path) -> None:
    heavy = ["ray", "torch", "mlflow", "hyperopt", "pandas", "sklearn", "scipy"]
    code = f"""
import sys, time
from pathlib import Path
from raytuner.definition import load
from raytuner.plan import compile
plan = compile(load({str(file)!r}), Path({str(file)!r}))
plan.describe(), plan.to_dict()
print(time.process_time(), [name for name in {heavy} if name in sys.modules], "objectives" in sys.modules)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, _, rest = output.strip().partition(" ")
    assert rest == "[] False"
    assert float(seconds) < 1.0
