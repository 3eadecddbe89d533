"""Which checkpoints are written, and which of them stand."""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trial_tools import Tape, attempt, make_spec, newest_first, standing

from raytuner.training import Trial, checkpoint, keeper, load_checkpoint
from raytuner.training.checkpoint import read_manifest

NEVER = 1e9


def reporting(values: Sequence[float], seconds: float = 0.0) -> Callable[[Trial], None]:
    def train(trial: Trial) -> None:
        weights = np.zeros(1)
        for step in trial.steps(weights=weights):
            weights[:] = step
            time.sleep(seconds)
            trial.report(loss=values[step - 1])

    return train


def written(tape: Tape) -> list[tuple[int, str]]:
    return [(m["step"], m["reason"]) for m in tape.of("checkpoint")]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every best is written without holding it back."""
    monkeypatch.setattr(keeper, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(keeper, "QUIET_SHARE", 0.0)


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first, a best is held in memory for ever."""
    monkeypatch.setattr(keeper, "QUIET_SECONDS", NEVER)


# -- what is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "mode", "keep", "best", "stand"),
    [
        ([3, 1, 2, 4, 5, 6], "min", 1, True, [2, 6]),
        ([3, 1, 2, 4, 5, 6], "max", 1, True, [6]),
        ([3, 1, 2, 4, 5, 6], "min", 3, True, [2, 4, 5, 6]),
        ([3, 1, 2, 4, 5, 6], "min", 3, False, [4, 5, 6]),
        ([1, 1, 1, 1, 1, 1], "min", 1, True, [1, 6]),
        ([6, 5, 4, 3, 2, 1], "min", 2, True, [5, 6]),
        ([-1, -5, -4, -3, -2, 0], "min", 1, True, [2, 6]),
    ],
)
def test_the_best_and_the_last_stand(
    tmp_path: Path, at_once: None, values: list[float], mode: str, keep: int, best: bool, stand: list[int]
) -> None:
    policy = {"best": best, "keep": keep, "every_steps": 1, "every_time": None}
    _, tape = attempt(make_spec(tmp_path, max_steps=6, mode=mode, policy=policy), reporting(values))
    assert standing(tmp_path) == [f"{step:06d}-1" for step in stand]
    for step in stand:
        assert load_checkpoint(tmp_path / "checkpoints" / f"{step:06d}-1")["weights"] == [step]
    told = {m["path"] for m in tape.of("checkpoint")} - {m["path"] for m in tape.of("removed")}
    assert sorted(Path(path).name for path in told) == standing(tmp_path), "who listens knows what stands"


def test_the_last_value_can_be_what_counts(tmp_path: Path, at_once: None) -> None:
    spec = make_spec(tmp_path, select="last", policy={"every_time": None})
    _, tape = attempt(spec, reporting([1, 2, 3, 4, 5]))
    assert standing(tmp_path) == ["000005-1"]
    assert [step for step, _ in written(tape)] == [1, 2, 3, 4, 5]


def test_later_attempts_keep_the_same(tmp_path: Path, at_once: None) -> None:
    """What an earlier attempt wrote is deleted by the same rule, not kept for ever."""
    values = [5, 2, 3, 4, 1, 6, 7, 8, 9]
    stand = [
        (3, ["000002-1", "000003-1"]),
        (4, ["000002-1", "000004-2"]),
        (7, ["000005-3", "000007-3"]),
        (9, ["000005-3", "000009-4"]),
    ]
    done = 0
    for number, (last, names) in enumerate(stand, 1):
        best = min(((value, step) for step, value in enumerate(values[:done], 1)), default=None)
        spec = make_spec(tmp_path, attempt=number, max_steps=9, checkpoints=newest_first(tmp_path), best=best)
        attempt(spec, reporting(values), Tape(stop_at=last))
        assert standing(tmp_path) == names
        done = last


def test_manifests_carry_every_report_so_far(tmp_path: Path, at_once: None) -> None:
    attempt(make_spec(tmp_path), reporting([5, 4, 3, 2, 1]), Tape(stop_at=2))
    attempt(make_spec(tmp_path, attempt=2, checkpoints=newest_first(tmp_path)), reporting([5, 4, 3, 2, 1]))
    manifest = read_manifest(tmp_path / "checkpoints" / "000005-2")
    assert {r["step"]: r["metrics"]["loss"] for r in manifest["reports"]} == {1: 5, 2: 4, 3: 3, 4: 2, 5: 1}
    assert (manifest["trial"], manifest["attempt"], manifest["step"]) == ("000001", 2, 5)
    seconds = [r["seconds"] for r in manifest["reports"]]
    assert seconds == sorted(seconds), "the training time goes on where it was"


# -- when it is written ---------------------------------------------------------------------------------------------


def test_every_few_steps(tmp_path: Path) -> None:
    policy = {"best": False, "every_steps": 2, "every_time": None, "keep": 9}
    _, tape = attempt(make_spec(tmp_path, max_steps=7, policy=policy), reporting([1] * 7))
    assert written(tape) == [(2, "every"), (4, "every"), (6, "every"), (7, "last")]


def test_every_few_seconds(tmp_path: Path) -> None:
    policy = {"best": False, "every_time": 0.05, "keep": 9}
    _, tape = attempt(make_spec(tmp_path, max_steps=9, policy=policy), reporting([1] * 9, seconds=0.02))
    assert written(tape)[-1] == (9, "last")
    steps = [step for step, reason in written(tape) if reason == "every"]
    assert steps
    assert all(later - earlier >= 2 for earlier, later in itertools.pairwise(steps))


def test_fast_improvements_do_not_go_to_the_disk(tmp_path: Path, held_back: None) -> None:
    _, tape = attempt(make_spec(tmp_path, max_steps=50), reporting([-step for step in range(50)]))
    assert written(tape) == [(1, "best"), (50, "last")]


def test_what_is_held_is_written_before_a_decision(tmp_path: Path, held_back: None) -> None:
    """A stop is a kill: the best so far must stand when the question is asked."""
    spec = make_spec(tmp_path, max_steps=9, decides=(4,))
    _, tape = attempt(spec, reporting([9, 8, 1, 5, 5, 5, 5, 5, 5]), Tape(answers=[{"op": "stop", "reason": "no"}]))
    before = tape.said[: tape.kinds.index("decide")]
    assert [m["step"] for m in before if m["m"] == "checkpoint"] == [1, 3]
    assert load_checkpoint(tmp_path / "checkpoints" / "000003-1")["weights"] == [3]


def test_what_is_held_is_written_before_the_time_is_up(tmp_path: Path, held_back: None) -> None:
    spec = make_spec(tmp_path, max_steps=99, deadline=time.time() + 0.5)
    _, tape = attempt(spec, reporting([9, 8, 1, *[5] * 96], seconds=0.1), Tape(stop_at=6))
    demanded = [step for step, reason in written(tape) if reason == "demand"]
    assert demanded
    assert (3, "best") in written(tape)
    assert demanded[0] < 6, "the step that the end of time would cut short is not waited for"


@pytest.mark.parametrize("way", ["to the end", "break", "stop"])
def test_what_is_held_is_written_at_the_end(tmp_path: Path, held_back: None, way: str) -> None:
    def train(trial: Trial) -> None:
        weights = np.zeros(1)
        for step in trial.steps(weights=weights):
            weights[:] = step
            trial.report(loss=abs(step - 2))
            if way == "break" and step == 4:
                break

    attempt(make_spec(tmp_path), train, Tape(stop_at=4 if way == "stop" else None))
    assert standing(tmp_path) == ["000002-1", {"to the end": "000005-1"}.get(way, "000004-1")]
    assert load_checkpoint(tmp_path / "checkpoints" / "000002-1")["weights"] == [2]


def test_what_is_held_survives_a_step_that_is_left_in_its_middle(tmp_path: Path, held_back: None) -> None:
    """Training that was never reported belongs to no checkpoint."""

    def train(trial: Trial) -> None:
        weights = np.zeros(1)
        for step in trial.steps(weights=weights):
            weights[:] = step
            if step == 4:
                break
            trial.report(loss=-step)

    end, _ = attempt(make_spec(tmp_path), train)
    assert end["step"] == 3
    assert standing(tmp_path) == ["000003-1"]
    assert load_checkpoint(tmp_path / "checkpoints" / "000003-1")["weights"] == [3]


def test_the_last_checkpoint_is_of_the_last_step(tmp_path: Path) -> None:
    """... not of what the function did to its model afterwards."""

    def train(trial: Trial) -> None:
        weights = np.zeros(1)
        for step in trial.steps(weights=weights):
            weights[:] = step
            trial.report(loss=1.0)
        weights[:] = 100

    attempt(make_spec(tmp_path), train)
    assert load_checkpoint(tmp_path / "checkpoints" / "000005-1")["weights"] == [5]


def test_a_pausing_scheduler_gets_its_checkpoint_first(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, decides=(2,), pauses=True, policy={"best": False, "every_time": None})
    _, tape = attempt(spec, reporting([1] * 5))
    assert written(tape) == [(2, "pause"), (5, "last")]
    assert tape.said.index(tape.of("checkpoint")[0]) < tape.kinds.index("decide")


def test_a_trial_without_state_writes_nothing(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        for _ in trial.steps():
            trial.report(loss=1.0)

    end, tape = attempt(make_spec(tmp_path, policy={"every_steps": 1}), train)
    assert end["status"] == "finished"
    assert tape.of("checkpoint") == []


# -- the user's own files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["save, report", "report, save"])
def test_files_become_the_checkpoint_of_their_step(tmp_path: Path, order: str) -> None:
    """In either order: with the step's own report, and with the state at the end of its body."""

    def train(trial: Trial) -> None:
        weights = np.zeros(1)
        if trial.step:
            assert trial.checkpoint is not None
            assert (trial.checkpoint / "deep" / "model.txt").read_text() == f"step {trial.step}"
        for step in trial.steps(weights=weights):
            if order == "report, save":
                trial.report(loss=-step)
            with trial.checkpoint_dir() as folder:
                assert list(folder.iterdir()) == []
                (folder / "deep").mkdir()
                (folder / "deep" / "model.txt").write_text(f"step {step}")
            if order == "save, report":
                trial.report(loss=-step)
            weights[:] = step

    policy = {"best": False, "every_time": None, "keep": 9}
    end, tape = attempt(make_spec(tmp_path, policy=policy), train, Tape(stop_at=3))
    assert end["status"] == "stopped"
    assert written(tape) == [(1, "user"), (2, "user"), (3, "user")]
    end, tape = attempt(make_spec(tmp_path, attempt=2, policy=policy, checkpoints=newest_first(tmp_path)), train)
    assert end["status"] == "finished", end
    assert written(tape) == [(4, "user"), (5, "user")]
    for path in map(Path, newest_first(tmp_path)):
        step = int(path.name[:6])
        assert (path / "files" / "deep" / "model.txt").read_text() == f"step {step}"
        assert load_checkpoint(path)["weights"] == [step]
        assert read_manifest(path)["reports"][-1]["step"] == step
    assert list(tmp_path.glob(".files*")) == []


def test_files_without_steps(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        start = int((trial.checkpoint / "at").read_text()) if trial.checkpoint else 0
        assert start == trial.step
        for at in range(start + 1, 6):
            trial.report(loss=-at)
            with trial.checkpoint_dir() as folder:
                (folder / "at").write_text(str(at))

    end, tape = attempt(make_spec(tmp_path, max_steps=None), train, Tape(stop_at=3))
    assert (end["status"], end["step"]) == ("stopped", 3)
    end, tape = attempt(make_spec(tmp_path, max_steps=None, attempt=2, checkpoints=newest_first(tmp_path)), train)
    assert (end["status"], end["step"]) == ("finished", 5)
    assert sorted(tape.values()) == [3, 4, 5]


def test_an_error_while_saving_makes_no_checkpoint(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        for _ in trial.steps():
            with trial.checkpoint_dir() as folder:
                (folder / "half").write_text("x")
                raise KeyError("model")

    end, tape = attempt(make_spec(tmp_path), train)
    assert end["status"] == "failed"
    assert tape.of("checkpoint") == []
    assert standing(tmp_path) == []


# -- when it cannot be written --------------------------------------------------------------------------------------


def test_a_precaution_that_fails_is_a_warning(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        for _ in trial.steps(bad=lambda: 0):
            trial.report(loss=1.0)

    end, tape = attempt(make_spec(tmp_path), train)
    assert end["status"] == "finished"
    assert "could not be written" in tape.warnings[0]


def test_a_checkpoint_that_is_needed_must_be_written(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        for _ in trial.steps(bad=lambda: 0):
            trial.report(loss=1.0)

    end, _ = attempt(make_spec(tmp_path, decides=(1,), pauses=True), train)
    assert end["error"]["kind"] == "checkpoint"


class FullDisk:
    """Lets the first writes through, then a number of them fail for want of room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, first: int, fail: int) -> None:
        self._real = checkpoint._digest
        self._first, self._last = first, first + fail
        self.writes = 0
        monkeypatch.setattr(checkpoint, "_digest", self._digest)
        monkeypatch.setattr(keeper, "ROOM_SECONDS", 0.01)

    def _digest(self, path: Path) -> str:
        self.writes += 1
        if self._first < self.writes <= self._last:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._real(path)


def test_training_goes_on_without_a_precaution_for_which_there_is_no_room(
    tmp_path: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """... which is told once, not in every step."""
    FullDisk(monkeypatch, first=1, fail=2)
    end, tape = attempt(make_spec(tmp_path), reporting([5, 4, 3, 2, 9]))
    assert end["status"] == "finished"
    (warning,) = tape.warnings
    assert warning.endswith("since the disk is full; training goes on without it")
    assert written(tape) == [(1, "best"), (4, "best"), (5, "last")]
    assert not tape.of("waiting")
    assert standing(tmp_path) == ["000004-1", "000005-1"]


def test_a_checkpoint_that_is_needed_waits_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk(monkeypatch, first=0, fail=3)
    spec = make_spec(tmp_path, decides=(2,), pauses=True, policy={"best": False, "every_time": None})
    _, tape = attempt(spec, reporting([1, 1, 1, 1, 1]))
    assert written(tape)[0] == (2, "pause")
    assert disk.writes >= 4
    assert len(tape.of("waiting")) == 3
    (warning,) = tape.warnings
    assert warning.endswith("since the disk is full; the trial waits until there is room")
    kinds = tape.kinds
    assert kinds.index("checkpoint") < kinds.index("decide")


def test_the_best_waits_for_room_at_the_end(tmp_path: Path, held_back: None, monkeypatch: pytest.MonkeyPatch) -> None:
    FullDisk(monkeypatch, first=2, fail=3)  # the first best and the last step fit, the best held in memory does not
    _, tape = attempt(make_spec(tmp_path), reporting([5, 1, 2, 3, 4]))
    assert (2, "best") in written(tape)
    assert "000002-1" in standing(tmp_path)


def test_files_wait_for_room_unharmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FullDisk(monkeypatch, first=0, fail=3)

    def train(trial: Trial) -> None:
        with trial.checkpoint_dir() as folder:
            (folder / "model.bin").write_bytes(b"weights")
        trial.report(loss=1.0)

    end, tape = attempt(make_spec(tmp_path, max_steps=None), train)
    assert end["status"] == "finished", end
    assert len(tape.of("waiting")) == 3
    assert (tmp_path / "checkpoints" / standing(tmp_path)[0] / "files" / "model.bin").read_bytes() == b"weights"


def test_what_a_killed_attempt_left_half_written_is_cleared(tmp_path: Path) -> None:
    half = tmp_path / "checkpoints" / ".000002-1.4711"
    half.mkdir(parents=True)
    (half / "state.pkl").write_bytes(b"half")
    (tmp_path / ".files-1").mkdir()
    attempt(make_spec(tmp_path, attempt=2), reporting([1] * 5))
    assert standing(tmp_path) == ["000001-2", "000005-2"]
    assert not half.exists()
    assert not (tmp_path / ".files-1").exists()


def test_attempts_never_share_a_path(tmp_path: Path) -> None:
    """A stale process of an older attempt cannot overwrite what a newer one writes."""
    paths: list[set[Any]] = []
    for number in (1, 2):
        _, tape = attempt(make_spec(tmp_path, attempt=number), reporting([1] * 5))
        paths.append({m["path"] for m in tape.of("checkpoint")})
    assert paths[0]
    assert not paths[0] & paths[1]
