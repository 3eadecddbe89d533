"""Results in Python: the frames, the best trial, its checkpoint."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from made_journals import driver_started, experiment_events, make_experiment, make_folder, write_journal

import raytuner
from raytuner import journal
from raytuner.analysis import Results, best, best_lines, export, load
from raytuner.errors import CheckpointError, JournalError
from raytuner.journal import CheckpointWritten, Folder, Reported, TrialAsked, TrialEnded, TrialStarted
from raytuner.training.checkpoint import load_checkpoint, write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return make_experiment(tmp_path_factory.mktemp("analysis"), 30)


@pytest.fixture(scope="module")
def results(folder: Folder) -> Results:
    return load(folder.path)


def saved(tmp_path: Path, state: dict | None, **files: str) -> Folder:
    """An experiment of one trial, with a real checkpoint at its best step."""
    folder = make_folder(tmp_path)
    path = folder.checkpoint("000001", 2, 1)
    extra = None
    if files:
        extra = tmp_path / "files"
        extra.mkdir()
        for name, text in files.items():
            extra.joinpath(name).write_text(text)
    write_checkpoint(path, state, meta={"trial": "000001", "attempt": 1, "step": 2, "reports": []}, files=extra)
    write_journal(folder, [
        driver_started(),
        TrialAsked(trial="000001", config={"lr": 0.1}, at=1.0),
        TrialStarted(trial="000001", attempt=1, at=1.0),
        *(Reported(trial="000001", attempt=1, step=k, metrics={"val_accuracy": value}, time=1.0, at=1.0)
          for k, value in enumerate([0.4, 0.6, 0.5], start=1)),
        CheckpointWritten(trial="000001", attempt=1, step=2, path=str(path), at=1.0),
        TrialEnded(trial="000001", attempt=1, status="finished", step=3, at=2.0),
    ])  # fmt: skip
    return folder


def test_a_row_a_trial(results: Results) -> None:
    frame = results.trials
    assert list(frame.columns[:8]) == ["id", "status", "source", "value", "value_step", "steps", "seconds", "reason"]
    assert set(frame.columns[8:]) == {
        f"config.{name}" for name in ("lr", "depth", "width", "optimizer", "batch", "momentum")
    }
    assert (len(frame), frame.id[0], frame.source[0]) == (30, "000001", "defaults")
    adam = frame["config.optimizer"] == "adam"
    assert frame["config.momentum"].isna().equals(adam)
    assert frame.value.max() == results.best.value


def test_a_row_a_step(results: Results) -> None:
    frame = results.steps
    assert len(frame) == results.state.steps == results.trials.steps.sum()
    assert {"trial", "step", "attempt", "time", "seconds", "val_accuracy", "loss"} == set(frame.columns)
    best = frame.groupby("trial").val_accuracy.max()
    assert best.to_list() == results.trials.value.to_list()


def test_the_incumbent_improves(results: Results) -> None:
    frame = results.incumbent
    assert list(frame.columns) == ["time", "steps", "trial", "value"]
    assert frame.value.is_monotonic_increasing
    assert frame.value.iloc[-1] == results.best.value
    assert frame.time.min() > 0


def test_the_summary_counts(results: Results) -> None:
    summary, frame = results.summary, results.trials
    assert sum(summary["trials"].values()) == 30
    assert summary["steps_trained"] == frame.steps.sum()
    assert summary["steps_full"] == 30 * 27
    assert summary["steps_saved"] == (27 - frame[frame.status == "stopped"].steps).sum()
    assert results.status == "finished"
    assert results.test == {"test_accuracy": 0.961}


def test_the_public_way_in(folder: Folder) -> None:
    assert isinstance(raytuner.load(str(folder.path)), raytuner.Results)
    with pytest.raises(JournalError, match="no such folder"):
        raytuner.load(folder.path / "nowhere")


def test_nothing_yet(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    folder.journal.mkdir()
    results = load(folder.path)
    assert (results.status, results.best, results.test) == ("pending", None, None)
    for frame in (results.trials, results.steps, results.incumbent):
        assert isinstance(frame, pd.DataFrame)
        assert len(frame) == 0
    assert list(results.trials.columns[:2]) == ["id", "status"]
    for ask in (best, best_lines, lambda folder: export(folder, tmp_path / "x.pt")):
        with pytest.raises(JournalError, match=r"none of 0 has reported.*raytuner status"):
            ask(folder)


def test_the_best_checkpoint_loads(tmp_path: Path) -> None:
    folder = saved(tmp_path, {"model": {"w": [1.0, 2.0]}, "epoch": 2})
    found = load(folder.path).best
    assert (found.id, found.step, found.value, found.config) == ("000001", 2, 0.6, {"lr": 0.1})
    assert found.load_checkpoint()["model"] == {"w": [1.0, 2.0]}


def test_a_checkpoint_that_was_not_kept(results: Results, tmp_path: Path) -> None:
    folder = saved(tmp_path, {"model": {}})
    write_journal(folder, [Reported(trial="000001", attempt=1, step=9, metrics={"val_accuracy": 0.9}, at=3.0)])
    found = load(folder.path).best
    assert found.checkpoint is None
    with pytest.raises(CheckpointError, match=r"best step 9 was kept.*checkpoints: \{best: true\}"):
        found.load_checkpoint()
    with pytest.raises(CheckpointError, match="best step 9"):
        export(folder, tmp_path / "model.pt")
    assert best(folder)["checkpoint"] is None
    assert any("not kept" in line for line in best_lines(folder))


def test_a_folder_that_was_moved_keeps_its_checkpoints(tmp_path: Path) -> None:
    folder = saved(tmp_path, {"model": {"w": 1}})
    moved = folder.path.rename(tmp_path / "moved")
    assert load(moved).best.load_checkpoint()["model"] == {"w": 1}


def test_export_to_a_file(tmp_path: Path) -> None:
    import torch

    folder = saved(tmp_path, {"model": {"w": torch.ones(2)}, "optimizer": {"lr": 1}})
    target = export(folder, tmp_path / "new" / "model.pt")
    assert target == tmp_path / "new" / "model.pt"
    assert torch.load(target)["w"].tolist() == [1.0, 1.0]
    assert [path.name for path in target.parent.iterdir()] == ["model.pt"]
    export(folder, target)  # over an earlier one


def test_export_of_all_where_nothing_is_called_model(tmp_path: Path) -> None:
    import torch

    folder = saved(tmp_path, {"net": {"w": 1}, "step": 2})
    assert torch.load(export(folder, tmp_path / "model.pt")) == {"net": {"w": 1}, "step": 2}


def test_export_to_a_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path, None, weights="abc")
    target = export(folder, tmp_path / "model")
    assert (target / "files" / "weights").read_text() == "abc"
    assert load_checkpoint(target) == {}
    with pytest.raises(CheckpointError, match="must be new"):
        export(folder, target)
    with pytest.raises(CheckpointError, match=r"holds only files.*without a suffix"):
        export(folder, tmp_path / "model.pt")


def test_a_damaged_checkpoint_is_not_exported(tmp_path: Path) -> None:
    folder = saved(tmp_path, None, weights="abc")
    (folder.checkpoint("000001", 2, 1) / "files" / "weights").write_text("abd")
    with pytest.raises(CheckpointError, match="damaged"):
        export(folder, tmp_path / "model")


def test_a_failed_test_has_no_metrics(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    events = experiment_events(folder, 3, end=False)
    found = max((e for e in events if isinstance(e, Reported)), key=lambda e: e.metrics["val_accuracy"])
    error = {"kind": "OSError", "message": "no data"}
    write_journal(folder, [*events, journal.Tested(trial=found.trial, step=found.step, error=error, at=1e10)])
    assert load(folder.path).test is None
    assert best(folder)["test"] is None


def test_what_is_imported_when() -> None:
    program = (
        "import sys, raytuner.analysis as a\n"
        "print([m for m in ('ray', 'torch', 'mlflow', 'pandas', 'pydantic') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
