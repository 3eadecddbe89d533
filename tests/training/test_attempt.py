"""How an attempt ends, and what is said about it."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from trial_tools import Tape, attempt, make_spec

from raytuner.errors import CheckpointError
from raytuner.training import Trial
from raytuner.training.attempt import run_attempt, run_test
from raytuner.training.channel import ChannelClosed
from raytuner.training.entry import load_module, resolve


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("too wide"), "error", "ValueError: too wide"),
        (ValueError(), "error", "ValueError: (no message)"),
        (MemoryError("8 EB"), "memory", "MemoryError: 8 EB"),
        (CheckpointError("gone"), "checkpoint", "CheckpointError: gone"),
        (SystemExit(3), "exit", "the training function called sys.exit(3)"),
        (SystemExit(), "exit", "the training function called sys.exit(None)"),
        (Speechless(), "error", "Speechless: (its message cannot be shown)"),
        (BaseException("odd"), "error", "BaseException: odd"),
        (ValueError("x" * 10_000), "error", "ValueError: " + "x" * 1988),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_a_function_raises_is_its_end(tmp_path: Path, error: BaseException, kind: str, message: str) -> None:
    def train(trial: Trial) -> None:
        trial.report(loss=1.0)
        raise error

    end, tape = attempt(make_spec(tmp_path), train)
    assert (end["status"], end["step"], end["reason"]) == ("failed", 1, message)
    assert (end["error"]["kind"], end["error"]["message"]) == (kind, message)
    assert list(tape.values()) == [1]


def test_cuda_out_of_memory_is_told_as_such(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    def train(trial: Trial) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    assert attempt(make_spec(tmp_path), train)[0]["error"]["kind"] == "gpu_memory"


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_so_is_what_the_libraries_below_say(tmp_path: Path, said: str) -> None:
    pytest.importorskip("torch")

    def train(trial: Trial) -> None:
        raise RuntimeError(said)

    assert attempt(make_spec(tmp_path), train)[0]["error"]["kind"] == "gpu_memory"


@pytest.mark.parametrize("explicit", [True, False])
def test_so_is_one_that_the_code_has_wrapped(tmp_path: Path, explicit: bool) -> None:
    torch = pytest.importorskip("torch")

    def train(trial: Trial) -> None:
        try:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        except RuntimeError as error:
            if explicit:
                raise ValueError("step 1 failed") from error
            raise ValueError("step 1 failed")  # noqa: B904 - as users do

    end = attempt(make_spec(tmp_path), train)[0]
    assert (end["error"]["kind"], end["reason"]) == ("gpu_memory", "ValueError: step 1 failed")


def test_what_only_mentions_memory_is_no_want_of_it(tmp_path: Path) -> None:
    pytest.importorskip("torch")

    def train(trial: Trial) -> None:
        raise RuntimeError("the memory of the buffer is not contiguous")

    assert attempt(make_spec(tmp_path), train)[0]["error"]["kind"] == "error"


def helper_of_the_user() -> None:
    raise ValueError("deep")


def test_a_traceback_begins_in_the_users_code(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        for _ in trial.steps():
            helper_of_the_user()

    text = attempt(make_spec(tmp_path), train)[0]["error"]["traceback"]
    assert text.splitlines()[0] == "Traceback (most recent call last):"
    assert text.splitlines()[1].startswith(f'  File "{__file__}"')
    assert text.endswith("ValueError: deep")
    assert "raytuner/training" not in text


def test_an_error_of_ours_still_shows_where_it_was_called(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        trial.report(acc=1.0)

    text = attempt(make_spec(tmp_path), train)[0]["error"]["traceback"]
    assert f'File "{__file__}"' in text.splitlines()[1]


def test_a_very_deep_traceback_is_shown_by_its_end(tmp_path: Path) -> None:
    def down(n: int) -> None:
        if n:
            down(n - 1)
            print(n)
        raise ValueError("bottom")

    text = attempt(make_spec(tmp_path), lambda trial: down(200))[0]["error"]["traceback"]
    assert len(text.splitlines()) <= 30
    assert text.endswith("ValueError: bottom")


def test_state_that_breaks_at_the_end_fails_the_trial(tmp_path: Path) -> None:
    """... with its reason, instead of vanishing."""

    class Breaks:
        def state_dict(self) -> Any:
            raise ValueError("no state today")

        def load_state_dict(self, state: Any) -> None: ...

    def train(trial: Trial) -> None:
        for _ in trial.steps(breaks=Breaks()):
            trial.report(loss=1.0)
            break

    end, _ = attempt(make_spec(tmp_path), train)
    assert (end["status"], end["reason"]) == ("failed", "ValueError: no state today")


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ChannelClosed])
def test_ctrl_c_and_a_closed_channel_pass_through(tmp_path: Path, raised: type[BaseException]) -> None:
    def train(trial: Trial) -> None:
        raise raised

    with pytest.raises(raised):
        run_attempt(make_spec(tmp_path), Tape(), train)
    with pytest.raises(raised):
        run_test(make_spec(tmp_path), Tape(), train)


def test_prepared_data_reaches_the_trial(tmp_path: Path) -> None:
    data = object()
    seen = []
    run_attempt(make_spec(tmp_path), Tape(), lambda trial: seen.append(trial.prepared), data)
    assert seen == [data]


# -- the test function ----------------------------------------------------------------------------------------------


def test_a_test_returns_its_metrics(tmp_path: Path) -> None:
    result = run_test(make_spec(tmp_path), Tape(), lambda trial: {"test_accuracy": 1, "nan": float("nan")})
    assert result["metrics"]["test_accuracy"] == 1.0
    assert result["error"] is None


@pytest.mark.parametrize(
    ("result", "message"),
    [(0.5, "must return its metrics as a dict, got float"), (None, "got NoneType"), ({"a": "x"}, "must be a number")],
)
def test_a_test_that_returns_anything_else_fails(tmp_path: Path, result: Any, message: str) -> None:
    told = run_test(make_spec(tmp_path), Tape(), lambda trial: result)
    assert told["metrics"] == {}
    assert told["error"]["kind"] == "report"
    assert message in told["error"]["message"]


# -- from a reference to the function -------------------------------------------------------------------------------


def test_scripts_of_one_name_are_different_modules(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.py").write_text(f"def train(trial):\n    return {name!r}\n")
    assert [resolve(f"{name}/train.py:train", tmp_path)(None) for name in ("first", "second", "first")] == [
        "first",
        "second",
        "first",
    ]
    assert load_module("first/train.py:train", tmp_path) is load_module("first/train.py:other", tmp_path)


def test_nested_names_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("made_up_module")
    module.Model = types.SimpleNamespace(train=len, size=3)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_up_module", module)
    assert resolve("made_up_module:Model.train", "/") is len
    with pytest.raises(Exception, match="the module has no 'fit'; name a function at its top level"):
        resolve("made_up_module:Model.fit", "/")
    with pytest.raises(Exception, match="a function or a class is needed, got int"):
        resolve("made_up_module:Model.size", "/")


def test_a_script_that_fails_to_import_can_be_mended(tmp_path: Path) -> None:
    script = tmp_path / "broken_then_mended.py"
    script.write_text("raise ValueError('half way')\n")
    with pytest.raises(ValueError, match="half way"):
        resolve("broken_then_mended.py:train", tmp_path)
    script.write_text("def train(trial): return 'a longer text, so that no cache is taken for it'\n")
    assert resolve("broken_then_mended.py:train", tmp_path)
