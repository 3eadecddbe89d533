"""The code that an experiment was started with is the code that it goes on with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raytuner.engine.snapshot import changed_since, search_path, take_snapshot

FILES = {
    "train.py": "import helpers.data\n",
    "helpers/__init__.py": "",
    "helpers/data.py": "SIZE = 1\n",
    "helpers/words.txt": "a b c",
    "data/images/one.png": "png",
    "config.yaml": "x: 1\n",
    "src/package/__init__.py": "WHERE = __file__\n",
    "notes with space/naïve.py": "",
}
CODE = sorted(name for name in FILES if name.endswith(".py"))


def plain(root: Path) -> None:
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *identity, "-C", str(root), *arguments], check=True, capture_output=True)


def in_git(root: Path) -> None:
    plain(root)
    git(root, "init")
    git(root, "add", "-A")
    git(root, "commit", "-m", "first")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


@pytest.fixture
def target(root: Path) -> Path:
    return root / "results" / "test" / "code"


Make = Callable[[Path], None]
both = pytest.mark.parametrize("make", [plain, in_git])


def take(root: Path, target: Path) -> dict[str, str]:
    return take_snapshot(root, target, without=[target.parent.parent, target.parent])


@both
def test_code_is_copied_and_data_is_linked(root: Path, target: Path, make: Make) -> None:
    make(root)
    assert sorted(take(root, target)) == CODE
    for name, text in FILES.items():
        assert (target / name).read_text() == text
    for name in CODE:
        assert not (target / name).is_symlink()
        (root / name).write_text("changed")
        assert (target / name).read_text() == FILES[name]
    (root / "helpers" / "words.txt").write_text("d")
    assert (target / "helpers" / "words.txt").read_text() == "d"
    assert (target / "data").is_symlink(), "a folder without code is one link"
    assert not (target / "results").exists(), "results are not a part of themselves"
    assert not list(target.glob(".git*"))


@both
def test_what_changed_since_is_told(root: Path, target: Path, make: Make) -> None:
    make(root)
    take(root, target)
    assert changed_since(target) == []
    (root / "helpers" / "words.txt").write_text("data is not code")
    (root / "results" / "test" / "code" / "train.py").touch()
    assert changed_since(target) == []
    (root / "train.py").write_text("import helpers.data  # more\n")
    (root / "helpers" / "data.py").unlink()
    (root / "new.py").write_text("")
    assert changed_since(target) == ["helpers/data.py", "new.py", "train.py"]


def test_a_snapshot_that_cannot_be_compared_is_no_change(tmp_path: Path) -> None:
    assert changed_since(tmp_path) == []


@both
def test_caches_environments_and_hidden_folders_are_left_out(root: Path, target: Path, make: Make) -> None:
    make(root)
    for name in ("__pycache__/x.py", ".hidden/x.py", "venv/lib/x.py", "node_modules/x.py"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("")
    (root / "venv" / "pyvenv.cfg").write_text("home = /usr\n")
    (root / ".gitignore").write_text("__pycache__\n.hidden\nvenv\nnode_modules\n")
    assert sorted(take(root, target)) == CODE
    assert changed_since(target) == []


def test_what_git_ignores_is_linked(root: Path, target: Path) -> None:
    """Such as the _version.py that a build writes: a package is not whole without it."""
    plain(root)
    (root / "helpers" / "_version.py").write_text("version = '1'\n")
    (root / ".gitignore").write_text("_version.py\n")
    git(root, "init")
    sums = take(root, target)
    assert "helpers/_version.py" not in sums
    assert "helpers/data.py" in sums, "what is not committed yet is code too"
    assert (target / "helpers" / "_version.py").read_text() == "version = '1'\n"


def test_a_root_within_a_repository(root: Path, tmp_path: Path) -> None:
    in_git(root)
    sums = take_snapshot(root / "helpers", tmp_path / "code")
    assert sorted(sums) == ["__init__.py", "data.py"]


def test_a_root_that_git_ignores_is_still_whole(root: Path, target: Path) -> None:
    plain(root)
    (root / ".gitignore").write_text("*\n")
    git(root, "init")
    take(root, target)
    for name, text in FILES.items():
        assert (target / name).read_text() == text


@both
@pytest.mark.parametrize("storage", ["results", "out/runs", "."])
def test_results_are_no_code(root: Path, make: Make, storage: str) -> None:
    """Wherever they go: a second experiment would copy the first one's copy, and every resume would see changes."""
    make(root)
    folder = root / storage
    for name in ("first", "second"):
        sums = take_snapshot(root, folder / name / "code", without=[folder, folder / name])
        if storage != ".":
            assert sorted(sums) == CODE
            assert changed_since(folder / name / "code") == []
        else:
            assert set(CODE) <= set(sums), "the storage may be the root itself"


def test_an_environment_that_git_does_not_ignore_is_no_code(root: Path, target: Path) -> None:
    in_git(root)
    (root / "env" / "lib" / "python3" / "site-packages" / "numpy").mkdir(parents=True)
    (root / "env" / "lib" / "python3" / "site-packages" / "numpy" / "core.py").write_text("")
    assert sorted(take(root, target)) == CODE


@pytest.mark.parametrize("deleted", ["train.py", "helpers/data.py"])
def test_a_file_that_git_knows_and_that_is_gone(root: Path, target: Path, deleted: str) -> None:
    in_git(root)
    (root / deleted).unlink()
    assert deleted not in take(root, target)


def test_broken_links_keep_nothing_out(root: Path, target: Path) -> None:
    plain(root)
    (root / "aaa").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    take(root, target)
    assert (target / "config.yaml").exists()
    take(root, target)
    assert (target / "config.yaml").exists()


def test_it_can_be_taken_again(root: Path, target: Path) -> None:
    plain(root)
    take(root, target)
    (root / "train.py").write_text("again")
    take(root, target)
    assert (target / "train.py").read_text() == "again"
    assert (root / "config.yaml").read_text() == FILES["config.yaml"]


def test_imports_find_the_snapshot_first(root: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_git(root)
    take(root, target)
    monkeypatch.setattr(sys, "path", [str(root / "src"), str(root / "data"), str(root), "/elsewhere", ""])
    monkeypatch.chdir("/")
    path = search_path(root, target)
    assert path == [str(target), str(target / "src"), str(root)]
    (root / "src" / "package" / "__init__.py").write_text("WHERE = 'the working tree'\n")
    code = f"import sys; sys.path[:0] = {path!r}; import package, helpers.data; print(package.WHERE)"
    where = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert where == str(target / "src" / "package" / "__init__.py")


def test_an_experiment_that_moved_within_the_project_is_no_change(root: Path, target: Path) -> None:
    plain(root)
    take_snapshot(root, target, without=[target.parent.parent, target.parent])
    moved = root / "kept" / "test"
    moved.parent.mkdir()
    target.parent.rename(moved)
    assert changed_since(moved / "code") == []
    (root / "train.py").write_text("another")
    assert changed_since(moved / "code") == ["train.py"]
