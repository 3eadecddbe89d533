"""A fold that was written down is the fold of the journal, or it does not count."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from made_journals import experiment_events, make_folder, write_journal

from raytuner.journal import Folder, JournalReader, JournalWriter, snapshot
from raytuner.journal import state as state_module
from raytuner.journal.state import ExperimentState, Fold, replay


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """An experiment whose journal a look makes a snapshot of."""
    monkeypatch.setattr(snapshot, "EVENTS", 50)
    folder = make_folder(tmp_path)
    write_journal(folder, experiment_events(folder, 20, end=False))
    return folder


def whole(folder: Folder) -> ExperimentState:
    """The fold of all events, without a snapshot."""
    state = ExperimentState(history=False)
    reader = JournalReader(folder.journal)
    for event in reader.read():
        state.apply(event)
    state.torn = reader.torn + reader.unread()
    return state


def events_read(folder: Folder) -> int:
    return sum(1 for _ in Fold(folder).catch_up())


def test_a_second_look_reads_what_is_new_and_comes_to_the_same(folder: Folder) -> None:
    assert replay(folder, history=False) == whole(folder)
    assert events_read(folder) == 0
    assert replay(folder, history=False) == whole(folder)
    writer = JournalWriter(folder.journal)
    for event in experiment_events(folder, 2, seed=2, driver=2):
        writer.append(event)
    writer.close()
    assert events_read(folder) == writer.events
    assert replay(folder, history=False) == whole(folder)


def test_torn_tails_are_told_all_the_same(folder: Folder) -> None:
    path = folder.journal / "000001.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    JournalWriter(folder.journal).close()
    first = replay(folder, history=False).torn
    assert len(first) == 1
    assert events_read(folder) == 0
    assert replay(folder, history=False).torn == first


def test_a_short_journal_and_one_with_history_get_none(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    replay(folder, history=True)
    monkeypatch.setattr(snapshot, "EVENTS", 10**6)
    replay(folder, history=False)
    assert not (folder.cursors / "state.pickle").exists()


def test_of_another_journal_or_version_it_does_not_count(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    replay(folder, history=False)
    events = sum(1 for _ in JournalReader(folder.journal).read())
    path = folder.journal / "000001.jsonl"
    before = path.read_bytes()
    path.unlink()
    write_journal(folder, experiment_events(folder, 30, seed=5, end=False))
    assert events_read(folder) > 50
    path.write_bytes(before)
    monkeypatch.setattr(snapshot, "__version__", "99")
    assert events_read(folder) == events


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch attacked",)


@pytest.mark.parametrize("content", [b"", b"nonsense", pickle.dumps(Attack()), pickle.dumps((1, 2))])
def test_whatever_lies_there_it_does_no_harm(
    folder: Folder, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder.cursors.mkdir(exist_ok=True)
    (folder.cursors / "state.pickle").write_bytes(content)
    assert replay(folder, history=False) == whole(folder)
    assert not (tmp_path / "attacked").exists()


def test_a_folder_that_cannot_be_written_is_read_all_the_same(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert replay(folder, history=False) == whole(folder)
    assert state_module.load_snapshot(folder, ExperimentState(history=False)) is None


def test_a_snapshot_counts_only_where_it_was_made(folder: Folder) -> None:
    replay(folder, history=False)
    moved = Folder(folder.path.with_name("moved"))
    folder.path.rename(moved.path)
    assert replay(moved, history=False) == whole(moved)
