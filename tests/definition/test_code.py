"""Code is found by reading, never by importing, and refused only when it certainly is not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from raytuner.definition import CodeInfo, find_code, import_root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def look(root: Path, source: str, name: str = "train", where: str = "train") -> CodeInfo:
    # What runs at import would stop the test.
    (root / "objectives.py").write_text("import this_is_not_installed\nraise SystemExit\n" + source)
    return find_code(f"objectives:{name}", root, where)


class TestNames:
    @pytest.mark.parametrize(
        "source",
        [
            "def train(trial): ...",
            "@decorate\ndef train(*, a, b): ...",
            "train = make()",
            "train: object = make()",
            "other, (train, *rest) = make()",
            "from somewhere import train",
            "from somewhere import fit as train",
            "import somewhere.deep as train",
            "import train.deep",
            "if fast:\n    def train(trial): ...\nelse:\n    train = None",
            "try:\n    from somewhere import train\nexcept ImportError:\n    def train(trial): ...",
            "with open('x') as train: ...",
            "for train in functions: ...",
            "while (train := make()): ...",
            "match make():\n    case [train]: ...",
            "match make():\n    case {'a': 1, **train}: ...",
            "def set_up():\n    global train\n    train = 3",
            "[train := item for item in items]",
            "from somewhere import *",
            "def __getattr__(name): ...",
            "globals()['tr' + 'ain'] = 3",
            "exec('train = 3')",
            "import sys\nsetattr(sys.modules[__name__], 'train', 3)",
        ],
    )
    def test_that_are_or_may_be_bound_are_not_refused(self, root: Path, source: str) -> None:
        assert look(root, source).problems == ()

    @pytest.mark.parametrize(
        "source",
        [
            "def trains(trial): ...",
            "def outer():\n    def train(trial): ...",
            "class A:\n    def train(self): ...",
            "train: object",
            "print(train)",
            "numbers = [train for train in range(3)]",
            "call(lambda train: train)",
            "module.train = 3",
            "values['train'] = 3",
            "try: ...\nexcept Exception as train: ...",
            "def f(train=3): ...",
        ],
    )
    def test_that_certainly_are_not_bound_are_refused(self, root: Path, source: str) -> None:
        (problem,) = look(root, source).problems
        assert "must define 'train'" in str(problem)

    def test_that_may_be_bound_dynamically_are_warned_of(self, root: Path) -> None:
        info = look(root, "from somewhere import *")
        assert info.kind == "unknown"
        assert "dynamically" in info.warnings[0]

    def test_in_a_class_are_found(self, root: Path) -> None:
        source = "class Task:\n    @staticmethod\n    def train(trial): ...\n"
        assert look(root, source, "Task.train").problems == ()
        (problem,) = look(root, source, "Task.trian").problems
        assert "class Task must define 'trian'" in str(problem)
        assert "did you mean 'train'" in problem.remedy


class TestKinds:
    @pytest.mark.parametrize(
        ("source", "kind"),
        [
            ("def train(trial): ...", "trial"),
            ("def train(t, verbose=False): ...", "trial"),
            ("def train(config): ...", "ray_function"),
            ("def train(config, data=None): ...", "ray_function"),
            ("@wraps\ndef train(config): ...", "ray_function"),
            ("def train(*args): ...", "trial"),
            ("class train(Trainable): ...", "ray_class"),
            ("def fit(config): ...\ntrain = fit", "ray_function"),
            ("train = partial(fit, 3)", "unknown"),
            ("from helpers import train", "ray_function"),
            ("from helpers import fit as train", "trial"),
            ("from package import train", "ray_function"),
            ("if x:\n    def train(trial): ...\nelse:\n    def train(config): ...", "unknown"),
            ("train = train", "unknown"),
        ],
    )
    def test_are_told_by_the_first_parameter(self, root: Path, source: str, kind: str) -> None:
        (root / "helpers.py").write_text("def train(config): ...\ndef fit(trial): ...\n")
        (root / "package").mkdir()
        (root / "package" / "__init__.py").write_text("from .inner import run as train\n")
        (root / "package" / "inner.py").write_text("from ..helpers import train as run\n")
        info = look(root, source)
        assert (info.kind, info.problems) == (kind, ())

    def test_what_an_import_lacks_is_a_warning(self, root: Path) -> None:
        (root / "helpers.py").write_text("def fit(config): ...\n")
        info = look(root, "from helpers import train")
        assert info.problems == ()
        assert "must define 'train'" in info.warnings[0]
        assert look(root, "from nowhere_at_all import train").warnings != ()

    def test_the_line_is_known(self, root: Path) -> None:
        assert look(root, "x = 1\ndef train(trial): ...").line == 4

    def test_a_component_is_a_class_without_conditions(self, root: Path) -> None:
        assert look(root, "class Halton: ...", "Halton", "search.type").problems == ()
        assert look(root, "def Halton(): ...", "Halton", "search.type").problems != ()


class TestModules:
    def test_packages_namespaces_and_submodules(self, root: Path) -> None:
        (root / "plain" / "deep").mkdir(parents=True)
        (root / "plain" / "deep" / "objectives.py").write_text("def train(trial): ...\n")
        (root / "package").mkdir()
        (root / "package" / "__init__.py").write_text("raise SystemExit\ndef train(trial): ...\n")
        (root / "package" / "sub.py").write_text("def train(trial): ...\n")
        for target in ("plain.deep.objectives:train", "package:train", "package.sub:train"):
            assert find_code(target, root).problems == (), target
        assert "package" not in sys.modules

    def test_the_import_root_comes_first(self, root: Path) -> None:
        (root / "json.py").write_text("def train(trial): ...\n")
        info = find_code("json:train", root)
        assert info.file == root / "json.py"

    def test_installed_and_built_in_modules(self, root: Path) -> None:
        assert find_code("json.decoder:JSONDecoder", root, "search.type").file is not None
        assert find_code("math:sqrt", root).warnings != ()
        assert find_code("sys:exit", root).problems == ()

    def test_modules_that_a_package_makes_are_not_refused(self, root: Path) -> None:
        (root / "six").mkdir()
        (root / "six" / "__init__.py").write_text("import sys\nsys.modules['six.moves'] = object()\n")
        info = find_code("six.moves:train", root)
        assert info.problems == ()
        assert info.warnings != ()

    def test_files_are_looked_for_below_the_root(self, root: Path) -> None:
        (root / "experiments").mkdir()
        (root / "experiments" / "objective.py").write_text("def train(config): ...\n")
        assert find_code("experiments/objective.py:train", root).kind == "ray_function"
        assert find_code(f"{root}/experiments/objective.py:train", root).kind == "ray_function"
        info = find_code("objective.py:train", root, folder=root / "experiments")
        assert "write 'experiments/objective.py'" in info.problems[0].remedy

    @pytest.mark.parametrize("target", ["train", "a:b:c", "a b:c", ":train", "a:", "a.:b", "1a:b", "a:b.", ""])
    def test_other_texts_are_refused(self, root: Path, target: str) -> None:
        assert "module:name" in str(find_code(target, root).problems[0])

    def test_odd_files_are_no_crash(self, root: Path) -> None:
        (root / "nul.py").write_bytes(b"def train(t): ...\n\0")
        (root / "latin.py").write_bytes(b"# \xe9\ndef train(t): ...\n")
        (root / "declared.py").write_bytes(b"# coding: latin-1\n# \xe9\ndef train(t): ...\n")
        (root / "nested.py").write_text("x = " + "(" * 5000 + ")" * 5000)
        (root / "deep.py").write_text("x = " + "-" * 100_000 + "1")
        (root / "long.py").write_text("x = " + "a + " * 100_000 + "1")
        for name in ("nul", "latin", "nested"):
            assert "valid Python" in str(find_code(f"{name}:train", root).problems[0]), name
        assert find_code("declared:train", root).kind == "trial"
        assert "too deeply" in find_code("deep:train", root).warnings[0]
        assert "too deeply" in find_code("long:train", root).warnings[0]


def test_the_import_root_is_the_nearest_marked_folder(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert import_root(inner / "x.yaml") == tmp_path
    (tmp_path / "a" / "pyproject.toml").touch()
    assert import_root(inner / "x.yaml") == tmp_path / "a"
