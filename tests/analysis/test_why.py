"""The story of a trial, told from the journal."""

from contextlib import closing
from pathlib import Path

import pytest
from made_journals import driver_started, make_folder, write_journal

from raytuner.analysis import report, why, why_lines
from raytuner.errors import JournalError
from raytuner.journal import (
    Decided,
    DriverEnded,
    Exploited,
    Extended,
    Folder,
    JournalWriter,
    Reported,
    Retried,
    TrialAsked,
    TrialEnded,
    TrialStarted,
)

ONE, TWO = "000001", "000002"
START = driver_started().at


def reports(trial: str, attempt: int, values: list[float], first: int = 1) -> list[Reported]:
    return [
        Reported(trial=trial, attempt=attempt, step=step, metrics={"val_accuracy": value}, at=START + step)
        for step, value in enumerate(values, start=first)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = make_folder(tmp_path)
    error = {"kind": "error", "message": "ValueError: lr", "traceback": "Traceback\n  train.py, line 3\nValueError: lr"}
    write_journal(folder, [
        driver_started(),
        TrialAsked(trial=ONE, config={"lr": 0.1}, source="defaults", at=START + 1),
        TrialStarted(trial=ONE, attempt=1, node="alpha", gpus=["3"], at=START + 2),
        TrialAsked(trial=TWO, config={"lr": 0.2}, known=7, why="a child of 000001, with another lr", at=START + 2),
        TrialStarted(trial=TWO, attempt=1, at=START + 3),
        *reports(TWO, 1, [0.2, 0.3]),
        Retried(trial=TWO, attempt=1, step=2, reason="the slot was lost", at=START + 4),
        TrialStarted(trial=TWO, attempt=2, step=1, checkpoint="/c", at=START + 5),
        *reports(TWO, 2, [0.3, 0.4], first=2),
        Decided(trial=TWO, step=3, action="pause", reason="rung 3: 2nd of 2", value=0.4, at=START + 6),
        TrialEnded(trial=TWO, attempt=2, status="paused", step=3, reason="rung 3: 2nd of 2", at=START + 6),
        *reports(ONE, 1, [0.5]),
        driver_started(driver=2, at=START + 100),
        TrialStarted(trial=ONE, attempt=3, at=START + 101),
        Decided(trial=TWO, step=3, action="resume", reason="step 3: among the worst", at=START + 102),
        Exploited(trial=TWO, step=3, source=ONE, source_step=1, source_phase=0, config={"lr": 0.11}, at=START + 103),
        TrialStarted(trial=TWO, attempt=3, step=1, checkpoint="/d", at=START + 104),
        TrialEnded(trial=TWO, attempt=3, status="failed", step=3, reason="ValueError: lr", error=error, at=START + 105),
        DriverEnded(status="finished", at=START + 106),
    ])  # fmt: skip
    return folder


def test_a_whole_story(folder: Folder) -> None:
    assert why_lines(folder, "2") == [
        "trial 000002: failed at step 3: ValueError: lr",
        "  val_accuracy 0.4 at step 3, number 2 of 2 trials",
        "  lr=0.2",
        "       2.0 s  proposed by the search (hyperopt), which had been told 7 results: a child of 000001, "
        "with another lr",
        "       3.0 s  attempt 1 began from scratch",
        "       4.0 s  attempt 1 was cut off, to start again: the slot was lost",
        "       5.0 s  attempt 2 began from the checkpoint of step 1",
        "       6.0 s  step 3 with val_accuracy 0.4: paused, since rung 3: 2nd of 2",
        "  1 min 42 s  step 3: goes on, since among the worst",
        "  1 min 43 s  took over trial 000001's state after step 1, with lr=0.11",
        "  1 min 44 s  attempt 3 began from the checkpoint of step 1",
        "  1 min 45 s  attempt 3 ended, failed: ValueError: lr",
        "    Traceback",
        "      train.py, line 3",
        "    ValueError: lr",
    ]


def test_what_others_did_to_it(folder: Folder) -> None:
    texts = [event["text"] for event in why(folder, ONE)["events"]]
    assert texts == [
        "proposed as the defaults, the baseline that the others are compared with",
        "attempt 1 began from scratch on alpha, GPU 3",
        "driver 2 took over: the one before was gone without a word",
        "attempt 3 began from scratch",
        "its state after step 1 was taken over by trial 000002",
    ]


def test_an_unknown_trial(folder: Folder) -> None:
    with pytest.raises(JournalError, match=r"must be one of this experiment, got 000009; there are 2, the last is"):
        why(folder, "9")


def test_an_extension_says_why_a_trial_goes_on(folder: Folder) -> None:
    changes = ["budget.time: 60 → 120"]
    event = Extended(definition={}, changes=changes, reopened=[TWO], retried=[ONE], configs={TWO: {"lr": 0.2, "b": 1}})
    with closing(JournalWriter(folder.journal)) as journal:
        journal.append(event)
    assert [event["text"] for event in why(folder, TWO)["events"]][-2:] == [
        "the experiment was extended: its configuration is lr=0.2 b=1 now",
        "the experiment was extended (budget.time: 60 → 120): it may go on",
    ]
    last = why(folder, ONE)["events"][-1]["text"]
    assert last == "the experiment was extended: it starts again, as failed trials were asked to"
    assert "It was extended: budget.time: 60 → 120" in report(folder)
