"""A trial that goes on from a checkpoint is the trial that was never interrupted."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trial_tools import Tape, attempt, make_spec, newest_first

from raytuner.training import Trial, load_checkpoint
from raytuner.training.state import collect, restore, rng_states, seed_everything, set_rng_states, snapshot

STEPS = 5


def with_torch(finals: dict[str, Any]) -> Callable[[Trial], None]:
    """Everything random at once: dropout, shuffling, and all four generators; and a scheduler below the report."""
    torch = pytest.importorskip("torch")

    def train(trial: Trial) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.7)
        shuffle = torch.Generator().manual_seed(trial.seed)
        for _ in trial.steps(model=model, optimizer=optimizer, decay=decay, shuffle=shuffle):
            x = torch.randn(16, 6)[torch.randperm(16, generator=shuffle)]
            y = x.sum(1, keepdim=True) * random.random() + float(np.random.normal())
            loss = torch.nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            trial.report(loss=loss)
            decay.step()
        finals["weights"] = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()
        finals["lr"] = decay.get_last_lr()[0]

    return train


def with_numpy(finals: dict[str, Any]) -> Callable[[Trial], None]:
    """Arrays and generators of the function's own, and plain values in ``trial.state``."""

    def train(trial: Trial) -> None:
        weights, history = np.zeros(4), []
        rng, old, plain = np.random.default_rng(1), np.random.RandomState(2), random.Random(3)
        counts = {"seen": 0}
        for step in trial.steps(
            weights=weights, rng=rng, old=old, plain=plain, history=history, counts=counts, total=0.0, label="start"
        ):
            weights += rng.normal(size=4) + old.normal(size=4) + plain.random() + random.random() + np.random.random()
            history.append(step)
            counts["seen"] += 10
            trial.state["total"] += float(weights.sum())
            trial.state["label"] = f"after {step}"
            trial.report(loss=trial.state["total"])
        finals.update(weights=weights.copy(), history=list(history), counts=dict(counts), label=trial.state["label"])

    return train


@pytest.mark.parametrize("kind", [with_torch, with_numpy])
@pytest.mark.parametrize("cut", range(1, STEPS))
def test_a_continued_run_equals_the_uninterrupted_one(tmp_path: Path, kind: Any, cut: int) -> None:
    whole: dict[str, Any] = {}
    _, uninterrupted = attempt(make_spec(tmp_path / "whole"), kind(whole))

    parts: dict[str, Any] = {}
    end, first = attempt(make_spec(tmp_path / "parts"), kind(parts), Tape(stop_at=cut))
    assert (end["status"], end["step"]) == ("stopped", cut)
    assert parts == {}
    seed_everything(999)  # a new process would not have these either
    start = newest_first(tmp_path / "parts")
    end, second = attempt(make_spec(tmp_path / "parts", attempt=2, checkpoints=start), kind(parts))
    assert end["status"] == "finished"
    assert second.of("started")[0]["step"] == cut
    assert {**first.values(), **second.values()} == uninterrupted.values()
    assert np.array_equal(parts.pop("weights"), whole.pop("weights"))
    assert parts == whole


def test_the_best_held_in_memory_is_of_its_own_step(tmp_path: Path) -> None:
    """Later steps change the same tensors in place; the copy must not follow, and goes on like the real one."""
    torch = pytest.importorskip("torch")
    seen: dict[int, Any] = {}

    def train(trial: Trial) -> None:
        model = torch.nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in trial.steps(model=model, optimizer=optimizer):
            model(torch.randn(4, 3)).pow(2).mean().backward()
            optimizer.step()
            seen[step] = (model.weight.detach().clone(), torch.get_rng_state())
            trial.report(loss=abs(step - 2))

    _, tape = attempt(make_spec(tmp_path), train)
    best = next(m for m in tape.of("checkpoint") if m["step"] == 2)
    assert best["reason"] == "best"
    assert tape.said.index(best) > tape.said.index(tape.of("report")[2]), "it was held: step 1 was written just before"
    state = load_checkpoint(best["path"])
    assert torch.equal(state["model"]["weight"], seen[2][0])
    assert torch.equal(state["__rng__"]["torch"], seen[2][1])


def test_generators_go_on_where_they_were() -> None:
    seed_everything(3)
    states = rng_states()
    drawn = [random.random(), np.random.random()]
    set_rng_states(states)
    assert drawn == [random.random(), np.random.random()]


def test_everything_goes_back_in_place() -> None:
    torch = pytest.importorskip("torch")

    def build() -> dict[str, Any]:
        return {
            "array": np.arange(4.0),
            "tensor": torch.arange(3.0),
            "parameter": torch.nn.Parameter(torch.ones(2)),
            "numbers": [1, 2],
            "names": {"a": 1},
            "rng": np.random.default_rng(0),
            "count": 3,
        }

    first = build()
    first["rng"].random()
    first["array"] += 1
    first["tensor"] += 1
    first["numbers"].append(3)
    first["names"]["b"] = 2
    first["count"] = 4
    saved = snapshot(collect(first))
    after = first["rng"].random()

    second = build()
    objects = dict(second)
    restore(objects, saved)
    for name in ("array", "tensor", "parameter", "numbers", "names", "rng"):
        assert objects[name] is second[name], name
    assert np.array_equal(second["array"], first["array"])
    assert torch.equal(second["tensor"], first["tensor"])
    assert second["numbers"] == [1, 2, 3]
    assert second["names"] == {"a": 1, "b": 2}
    assert second["rng"].random() == after
    assert objects["count"] == 4


def test_a_snapshot_shares_nothing() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.BatchNorm1d(2)
    state = {"model": model.state_dict(), "deep": [{"array": np.zeros(2)}, (np.zeros(1),)], "set": {1}}
    copy = snapshot(state)
    with torch.no_grad():
        model.weight += 1
    state["deep"][0]["array"] += 1
    state["deep"][1][0][0] = 1
    state["set"].add(2)
    assert torch.equal(copy["model"]["weight"], torch.ones(2))
    assert copy["deep"][0]["array"].sum() == copy["deep"][1][0].sum() == 0
    assert copy["set"] == {1}
    assert type(copy["model"]) is type(state["model"])
    assert copy["model"]._metadata == state["model"]._metadata, "which tells load_state_dict the layers' versions"


@pytest.mark.parametrize(
    ("name", "build", "message"),
    [
        ("model", lambda torch: torch.nn.Linear(3, 1), "does not fit.*size mismatch.*trial.config"),
        ("weights", lambda torch: np.zeros(4), r"'weights' does not fit.*its shape is \(1,\), not \(4,\)"),
        ("tensor", lambda torch: torch.zeros(2), r"'tensor' does not fit.*its shape is \(1,\), not \(2,\)"),
        ("optimizer", lambda torch: 0, r"holds no 'optimizer', only \['model', 'tensor', 'weights'\]"),
    ],
)
def test_what_does_not_fit_is_an_error(tmp_path: Path, name: str, build: Any, message: str) -> None:
    torch = pytest.importorskip("torch")

    def save(trial: Trial) -> None:
        for _ in trial.steps(model=torch.nn.Linear(2, 1), weights=np.ones(1), tensor=torch.ones(1)):
            trial.report(loss=1.0)

    attempt(make_spec(tmp_path, max_steps=1), save)

    def go_on(trial: Trial) -> None:
        for _ in trial.steps(**{name: build(torch)}):
            trial.report(loss=1.0)

    end, _ = attempt(make_spec(tmp_path, attempt=2, checkpoints=newest_first(tmp_path)), go_on)
    assert end["status"] == "failed"
    assert end["error"]["kind"] == "checkpoint"
    assert re.search(message, end["reason"], re.DOTALL), end["reason"]


def test_a_test_sees_the_checkpoint_it_is_given(tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        weights = np.zeros(2)
        for step in trial.steps(weights=weights, label=""):
            weights += 1
            trial.state["label"] = f"of {step}"
            trial.report(loss=abs(step - 3))

    attempt(make_spec(tmp_path), train)
    best = str(tmp_path / "checkpoints" / "000003-1")
    weights = np.zeros(2)

    def test(trial: Trial) -> None:
        trial.restore(weights=weights)
        assert trial.step == 3
        with pytest.raises(Exception, match="holds no 'model'"):
            trial.restore(model=1)
        trial.report(loss=0.0)

    attempt(make_spec(tmp_path / "test", checkpoints=(best,)), test)
    assert weights.tolist() == [3, 3]


def test_restoring_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    end, _ = attempt(make_spec(tmp_path), lambda trial: trial.restore(weights=np.zeros(2)))
    assert "000001 has no checkpoint to restore" in end["reason"]


# -- falling back ---------------------------------------------------------------------------------------------------


def keeps_three(trial: Trial) -> None:
    weights = np.zeros(2)
    for step in trial.steps(weights=weights):
        weights += 1
        assert weights[0] == step
        trial.report(loss=1.0 / step)


POLICY = {"every_steps": 1, "keep": 3, "every_time": None}


@pytest.mark.parametrize("damaged", [1, 2, 3])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, damaged: int) -> None:
    attempt(make_spec(tmp_path, policy=POLICY), keeps_three)
    checkpoints = newest_first(tmp_path)
    assert [Path(c).name for c in checkpoints] == ["000005-1", "000004-1", "000003-1"]
    for path in checkpoints[:damaged]:
        manifest = Path(path, "manifest.json")
        manifest.write_bytes(manifest.read_bytes().replace(b'"step": ', b'"step": 1', 1))
    spec = make_spec(tmp_path, attempt=2, checkpoints=checkpoints, policy=POLICY)
    end, tape = attempt(spec, keeps_three)
    assert end["status"] == "finished"
    assert tape.of("started")[0]["step"] == {1: 4, 2: 3, 3: 0}[damaged]
    for path in checkpoints[:damaged]:
        assert any(path in warning and "not used" in warning for warning in tape.warnings)
    assert ("starts from scratch" in tape.warnings[-1]) == (damaged == 3)
    assert max(tape.values(), default=5) == 5


def test_an_optimizer_keeps_the_settings_that_it_was_built_with() -> None:
    """... when the state is of another configuration; and its schedule goes on where that was."""
    torch = pytest.importorskip("torch")

    def built(lr: float, decay: float) -> dict[str, Any]:
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
        return {"model": model, "optimizer": optimizer, "schedule": schedule}

    def train(objects: dict[str, Any]) -> None:
        objects["model"](torch.ones(1, 2)).sum().backward()
        objects["optimizer"].step()
        objects["schedule"].step()

    source = built(lr=0.1, decay=0.3)
    for _ in range(3):
        train(source)
    saved = collect(source)
    target = built(lr=0.5, decay=0.0)
    restore(target, saved, as_built=True)
    (group,) = target["optimizer"].param_groups
    assert group["lr"] == pytest.approx(0.05)  # a tenth since step 2
    assert group["weight_decay"] == 0.0
    assert target["schedule"].get_last_lr() == [pytest.approx(0.05)]
    assert target["optimizer"].state_dict()["state"][0]["step"] == 3
    train(target)
    assert target["optimizer"].param_groups[0]["lr"] == pytest.approx(0.005)
    restore(target, saved)  # of the same configuration: all as it was
    assert target["optimizer"].param_groups[0]["lr"] == pytest.approx(0.01)
    assert target["optimizer"].param_groups[0]["weight_decay"] == 0.3


def test_an_optimizer_without_a_schedule_keeps_its_learning_rate() -> None:
    torch = pytest.importorskip("torch")
    weights = torch.nn.Parameter(torch.ones(2))
    source = torch.optim.SGD([weights], lr=0.1, momentum=0.9)
    target = torch.optim.SGD([weights], lr=0.7, momentum=0.5)
    restore({"optimizer": target}, collect({"optimizer": source}), as_built=True)
    assert (target.param_groups[0]["lr"], target.param_groups[0]["momentum"]) == (0.7, 0.5)
