"""A checkpoint stands whole or not at all, and a damaged one is refused by name."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raytuner.errors import CheckpointError, DiskFullError
from raytuner.training import load_checkpoint
from raytuner.training.checkpoint import read_manifest, remove_checkpoint, verify_checkpoint, write_checkpoint

META = {"trial": "000001", "attempt": 1, "step": 3, "reports": [{"step": 3, "metrics": {"loss": 0.5}}]}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "000003-1"


def write(target: Path, state: dict[str, Any] | None, files: Path | None = None) -> int:
    return write_checkpoint(target, state, meta=META, files=files)


def some_files(folder: Path) -> Path:
    (folder / "mine" / "deep").mkdir(parents=True)
    (folder / "mine" / "model.bin").write_bytes(b"weights")
    (folder / "mine" / "deep" / "vocabulary.txt").write_text("a\nb\n")
    return folder / "mine"


def test_what_was_written_is_read(target: Path, tmp_path: Path) -> None:
    state = {"array": np.arange(5.0), "name": "naïve", "none": None, "nested": {"list": [1, 2.5, (3,)]}}
    size = write(target, state, some_files(tmp_path))
    loaded = load_checkpoint(target)
    assert np.array_equal(loaded.pop("array"), state.pop("array"))
    assert loaded == state
    assert (target / "files" / "deep" / "vocabulary.txt").read_text() == "a\nb\n"
    assert size == sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    manifest = read_manifest(target)
    assert {key: manifest[key] for key in META} == META


def test_files_alone_are_a_checkpoint_too(target: Path, tmp_path: Path) -> None:
    write(target, None, some_files(tmp_path))
    assert load_checkpoint(target) == {}
    assert (target / "files" / "model.bin").read_bytes() == b"weights"


def test_tensors_come_back(target: Path) -> None:
    torch = pytest.importorskip("torch")
    weights = torch.randn(3, 2, dtype=torch.float64)
    write(target, {"weights": weights})
    assert torch.equal(load_checkpoint(target)["weights"], weights)


def test_any_flipped_byte_is_refused_by_name(target: Path, tmp_path: Path) -> None:
    write(target, {"weights": np.arange(3)}, some_files(tmp_path))
    rng = random.Random(0)
    for path in sorted(p for p in target.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
            with pytest.raises(CheckpointError) as refused:
                verify_checkpoint(target)
            assert str(target) in str(refused.value)
            assert path.name in str(refused.value)
        path.write_bytes(whole)
    verify_checkpoint(target)


@pytest.mark.parametrize("damage", ["truncated", "longer", "empty", "missing"])
def test_other_damage_is_refused_by_name(target: Path, tmp_path: Path, damage: str) -> None:
    write(target, {"weights": np.arange(3)}, some_files(tmp_path))
    for path in sorted(p for p in target.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        match damage:
            case "truncated":
                path.write_bytes(whole[:-1])
            case "longer":
                path.write_bytes(whole + b" ")
            case "empty":
                path.write_bytes(b"")
            case "missing":
                path.unlink()
        with pytest.raises(CheckpointError, match=f"{target}.*{path.name}.*it is not used"):
            load_checkpoint(target)
        path.write_bytes(whole)


def test_no_folder_is_refused(target: Path) -> None:
    with pytest.raises(CheckpointError, match=str(target)):
        load_checkpoint(target)


WRITER = """
    import sys, time
    from pathlib import Path
    from raytuner.training import checkpoint

    place, stop = sys.argv[2], lambda: (print("writing", flush=True), time.sleep(60))

    class Half:
        def __reduce__(self):
            if place == "state":
                stop()
            return (list, ())

    digest, rename = checkpoint._digest, Path.rename

    def slow_digest(path):
        if place == "sums":
            stop()
        return digest(path)

    def slow_rename(self, target):
        if place == "rename":
            stop()
        result = rename(self, target)
        if place == "after":
            stop()
        return result

    checkpoint._digest, Path.rename = slow_digest, slow_rename
    state = {"weights": list(range(1000)), "half": Half()}
    checkpoint.write_checkpoint(Path(sys.argv[1]), state, meta={"step": 3})
"""


@pytest.mark.parametrize("place", ["state", "sums", "rename", "after"])
def test_a_kill_as_it_writes_leaves_no_half_checkpoint(target: Path, place: str) -> None:
    """Killed in the middle of the state, before its checksum, before the rename, and after it."""
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(target), place]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    stands = place == "after"
    assert target.exists() == stands
    assert [p.name for p in target.parent.glob("[0-9]*")] == (["000003-1"] if stands else [])
    if stands:
        assert load_checkpoint(target)["weights"] == list(range(1000))


def test_the_newer_one_of_a_step_counts(target: Path) -> None:
    write(target, {"turn": 1})
    write(target, {"turn": 2})
    assert load_checkpoint(target)["turn"] == 2
    assert [p.name for p in target.parent.iterdir()] == [target.name]


class Sour:
    def __reduce__(self) -> Any:
        raise ValueError("not me")


@pytest.mark.parametrize("bad", [lambda: 0, Sour(), (n for n in ())], ids=["lambda", "own error", "generator"])
def test_what_cannot_be_saved_leaves_nothing(target: Path, bad: Any) -> None:
    with pytest.raises(CheckpointError, match=r"could not be written.*trial\.steps"):
        write(target, {"bad": bad})
    assert list(target.parent.iterdir()) == []


def test_a_disk_that_is_full_leaves_nothing(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskFullError, match="could not be written, since the disk is full"):
        write(target, {"weights": [1]})
    assert list(target.parent.iterdir()) == []


def test_a_removed_checkpoint_is_gone(target: Path) -> None:
    write(target, {"turn": 1})
    remove_checkpoint(target)
    remove_checkpoint(target)  # a second time is no error
    assert list(target.parent.iterdir()) == []
