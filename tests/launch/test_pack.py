"""What goes to a cluster, and what never does."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from raytuner.definition import PACKAGE_MARK, load
from raytuner.errors import LaunchError
from raytuner.launch.pack import Package, pack
from raytuner.launch.requirements import requirements_of
from raytuner.plan import compile as compile_plan


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def git(root: Path, *arguments: str) -> None:
    command = ["git", "-C", str(root), "-c", "user.email=a@example.com", "-c", "user.name=a", *arguments]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    write(root, train_DOT_py="def train(trial): pass\n", lib__data_DOT_txt="7", _DOT_gitignore="big.bin\n")
    git_free = {"name": "toy", "train": "train.py:train", "objective": {"metric": "loss", "mode": "min"}}
    definition = {**git_free, "space": {"x": [1, 2]}, "budget": {"trials": 2}}
    (root / "experiments").mkdir()
    (root / "experiments/toy.yaml").write_text(yaml.safe_dump(definition))
    (root / "big.bin").write_bytes(b"0" * 1000)
    (root / "pyproject.toml").write_text("")
    return root


def packed(root: Path, *overrides: str) -> tuple[Package, dict[str, str]]:
    """The package, and its files with their texts."""
    file = root / "experiments/toy.yaml"
    plan = compile_plan(load(file, list(overrides)), file=file)
    target = root.parent / f"package-{len(list(root.parent.iterdir()))}"
    target.mkdir()
    package = pack(plan, target)
    files = [path for path in sorted(target.rglob("*")) if path.is_file()]
    return package, {path.relative_to(target).as_posix(): path.read_text() for path in files}


USUAL = ["experiments/toy.yaml", "lib/data.txt", "pyproject.toml", "train.py"]


@pytest.mark.parametrize("in_git", [True, False])
def test_what_git_tracks_goes_or_would_not_ignore(project: Path, in_git: bool) -> None:
    write(project, venv__pyvenv_DOT_cfg="", venv__lib_DOT_py="", results__toy__plan_DOT_json="{}")
    if in_git:
        git(project, "init", "-q")
        git(project, "add", "train.py", "lib", "experiments", "pyproject.toml", ".gitignore")
        git(project, "commit", "-qm", "all")
    package, files = packed(project)
    assert sorted(files) == sorted([*USUAL, PACKAGE_MARK])
    assert package.file == "experiments/toy.yaml"
    assert package.files == len(USUAL)
    assert package.size == sum(len(files[name].encode()) for name in USUAL)
    state = json.loads(files[PACKAGE_MARK])["git"]
    assert (len(state["commit"]) == 40 and state["dirty"] is True) if in_git else state == {}
    assert any("venv/lib.py" in note for note in package.notes) == in_git


def test_a_package_is_the_same_for_the_same_files(project: Path) -> None:
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "all")
    assert packed(project)[1] == packed(project)[1]


def test_the_working_tree_goes_not_the_commit(project: Path) -> None:
    git(project, "init", "-q")
    git(project, "add", ".")
    (project / "train.py").write_text("def train(trial): return 1.0\n")
    (project / "lib/data.txt").unlink()
    _, files = packed(project)
    assert files["train.py"] == "def train(trial): return 1.0\n"
    assert "lib/data.txt" not in files


def test_what_the_definition_names_goes_though_git_does_not_know_it(project: Path) -> None:
    git(project, "init", "-q")
    git(project, "add", "pyproject.toml")
    write(
        project,
        requirements_DOT_txt="-r more.txt\n-c pins.txt\n",
        more_DOT_txt="einops # nice\n",
        pins_DOT_txt="a==1\n",
    )
    write(project, extra__a_DOT_json="1", extra__deep__b_DOT_json="2", other_DOT_py="")
    package, files = packed(project, "cluster.requirements=requirements.txt", "cluster.include=[extra, big.bin]")
    named = {"train.py", "experiments/toy.yaml", "requirements.txt", "more.txt", "pins.txt", "big.bin"}
    assert set(files) == named | {"extra/a.json", "extra/deep/b.json", "pyproject.toml", PACKAGE_MARK}
    assert any("other.py" in note and "git add" in note for note in package.notes)
    lines, files_of_constraints = requirements_of(project, "requirements.txt")
    assert lines == ["einops", "-c ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/pins.txt"]
    assert files_of_constraints == ["pins.txt"]


SECRETS = [
    *(".env", ".env.local", "deploy/id_rsa", "certs/server.key", ".aws/config", "my-service-account-7.json"),
    *(".envrc", ".envrc.local", "prod.env", "hf_token", "token.txt", "api.token", "client_secret.json", "secret.yaml"),
    *("password.txt", ".vault_pass", "vault-pass.txt", "gcp-key.json", "kaggle.json", "wandb_api_key.txt", ".boto"),
    *(".dockerconfigjson", ".s3cfg", "terraform.tfstate", ".huggingface/token", "MyKey.PEM", ".streamlit/secrets.toml"),
    *(
        "secrets/ray_token",
        "secrets/s3_credentials",
        "secrets/s3_config.json",
        "deploy/db-password",
        "my-cluster-token",
    ),
]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_never_goes_even_if_git_tracks_it(project: Path, secret: str) -> None:
    (project / secret).parent.mkdir(exist_ok=True)
    (project / secret).write_text("hush")
    git(project, "init", "-q")
    git(project, "add", "-f", ".")
    package, files = packed(project)
    assert "hush" not in files.values()
    assert any(secret in note and "secret" in note for note in package.notes)
    with pytest.raises(LaunchError, match=r"would leave this machine.*in their environment"):
        packed(project, f"cluster.include=[{secret}]")


CODE = ["tokenizer.py", "tokens.py", "secret_sharing.py", "lib/secrets/keys.py", "password.py", "tokenizer.json"]
DATA = ["data/tokens.txt", "special_tokens_map.json", "token_counts.json", "environment.yml", "keys.txt", "env.yaml"]


@pytest.mark.parametrize("name", [*CODE, *DATA, "tokenizer_config.json", "lib/monkey.json", "data/secretary.txt"])
def test_what_only_sounds_like_a_secret_goes(project: Path, name: str) -> None:
    (project / name).parent.mkdir(parents=True, exist_ok=True)
    (project / name).write_text("")
    assert name in packed(project)[1]


TOKEN = "0123456789abcdef" * 2


def test_the_clusters_token_never_goes_whatever_it_is_called(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    (project / "lib/plain.txt").write_text(TOKEN)
    (project / "cfg").mkdir()
    (project / "token").write_text("another")
    os.symlink(project / "lib/plain.txt", project / "cfg/one")
    os.symlink(project / "token", project / "cfg/two")
    (project / "notes.txt").write_text(f"export RAY_AUTH_TOKEN={TOKEN}\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(project / "lib/plain.txt"))
    package, files = packed(project)
    assert sorted(files) == sorted([*USUAL, PACKAGE_MARK])
    assert any("cfg/one, cfg/two, lib/plain.txt, notes.txt" in note for note in package.notes)
    for part in ("lib/plain.txt", "cfg", "cfg/two", "notes.txt"):
        with pytest.raises(LaunchError, match=r"would leave this machine") as caught:
            packed(project, f"cluster.include=[{part}]")
        assert TOKEN not in str(caught.value)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "train.py:train")
    with pytest.raises(LaunchError, match=r"toy\.yaml: .* holds the cluster's token"):
        packed(project)


def test_what_git_refuses_to_tell_is_not_guessed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(project, "init", "-q")
    git(project, "add", ".")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own way to test this
    with pytest.raises(LaunchError, match=r"it says: fatal: detected dubious ownership(?s:.*)safe\.directory"):
        packed(project)


def test_an_imported_file_that_would_stay_is_an_error(project: Path) -> None:
    write(project, train_DOT_py="from lib import extra\n\n\ndef train(trial): pass\n")
    (project / "lib/__init__.py").write_text("")
    write(project, lib__extra_DOT_py="import lib.deeper\n", lib__deeper_DOT_py="")
    git(project, "init", "-q")
    git(project, "add", "train.py", "lib/__init__.py", "pyproject.toml")
    with pytest.raises(LaunchError, match=r"lib/deeper\.py \(by lib/extra\.py:1\), lib/extra\.py \(by train\.py:1\)"):
        packed(project)
    git(project, "add", "lib")
    assert "lib/deeper.py" in packed(project, "cluster.include=[lib]")[1]


def test_requirements_are_read_as_pip_reads_them(project: Path) -> None:
    write(project, r_DOT_txt="-rd.txt\n--requirement=e.txt\neinops\n", d_DOT_txt="-r r.txt\ntimm\n-cpins.txt\n")
    write(project, e_DOT_txt="--constraint=more.txt\n-r\\\n  d.txt\n", pins_DOT_txt="-c deep.txt\na==1\n")
    write(project, more_DOT_txt="b==1\n", deep_DOT_txt="c==1\n")
    git(project, "init", "-q")
    git(project, "add", "pyproject.toml")
    lines, constraints = requirements_of(project, "r.txt")
    pins = "-c ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
    assert lines == ["timm", f"{pins}/pins.txt", f"{pins}/more.txt", "einops"]
    assert constraints == ["pins.txt", "deep.txt", "more.txt"]
    files = packed(project, "cluster.requirements=r.txt")[1]
    assert {"r.txt", "d.txt", "e.txt", "pins.txt", "more.txt", "deep.txt"} <= files.keys()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--extra-index-url https://user:hush@host/simple", r"r\.txt:2: .* must not hold credentials.*\$\{TOKEN\}"),
        ("pkg @ git+https://hush@github.com/a/b", r"r\.txt:2: .* must not hold credentials"),
        ("-r ../other.txt", r"r\.txt:2: '\.\./other\.txt' lies outside of"),
        ("-c nothing.txt", r"r\.txt:2: there is no file 'nothing\.txt'"),
    ],
)
def test_requirements_that_cannot_go(project: Path, line: str, message: str) -> None:
    write(project, r_DOT_txt=f"einops\n{line}\n")
    with pytest.raises(LaunchError, match=message) as caught:
        packed(project, "cluster.requirements=r.txt")
    assert "hush" not in str(caught.value)


def test_requirements_may_name_a_secret_of_the_nodes(project: Path) -> None:
    lines = ["git+https://${TOKEN}@github.com/a/b", "git+ssh://git@github.com/a/b", "-c https://host/pins.txt"]
    write(project, r_DOT_txt="\n".join(lines))
    assert requirements_of(project, "r.txt") == (lines, [])


def test_a_private_key_is_known_by_what_it_holds(project: Path) -> None:
    write(project, lib__notes_DOT_txt="-----BEGIN OPENSSH PRIVATE KEY-----\nhush\n", _DOT_env_DOT_example="A=\n")
    _, files = packed(project)
    assert "lib/notes.txt" not in files
    assert ".env.example" in files


def test_links_out_of_the_project_stay(project: Path) -> None:
    (project.parent / "elsewhere.txt").write_text("hush")
    os.symlink(project.parent / "elsewhere.txt", project / "lib/link.txt")
    os.symlink(project / "lib/data.txt", project / "lib/inner.txt")
    package, files = packed(project)
    assert "lib/link.txt" not in files
    assert files["lib/inner.txt"] == "7"
    assert any("lib/link.txt" in note for note in package.notes)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.limit=100B", r"may have 100 B, and has .*; the largest are .*cluster\.limit"),
        ("cluster.include=[nothing/*]", r"cluster\.include: there is no file 'nothing/\*' in "),
        ("cluster.requirements=nothing.txt", r"cluster\.requirements: there is no file 'nothing\.txt' in "),
    ],
)
def test_what_cannot_go_is_said(project: Path, override: str, message: str) -> None:
    write(project, lib__data_DOT_txt="7" * 200)
    with pytest.raises(LaunchError, match=message):
        packed(project, override)


def test_names_with_odd_characters(project: Path) -> None:
    odd: dict[str, Any] = {"lib/a b.txt": "1", "lib/ü\n.txt": "2", "lib/-x": "3"}
    for name, text in odd.items():
        (project / name).write_text(text)
    git(project, "init", "-q")
    git(project, "add", ".")
    _, files = packed(project)
    assert odd.items() <= files.items()
