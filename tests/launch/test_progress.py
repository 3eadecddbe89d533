"""The live view: what it says of failures."""

from __future__ import annotations

import io
from pathlib import Path

from raytuner.definition import Experiment
from raytuner.journal import Folder, JournalWriter, TrialAsked, TrialEnded
from raytuner.launch.progress import Progress
from raytuner.plan import compile as compile_plan


def test_errors_that_differ_in_their_details_are_shown_once(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text("def train(trial): ...\n")
    plan = compile_plan(
        Experiment(
            name="test",
            train="user:train",
            objective={"metric": "loss", "mode": "min"},
            space={"x": {"type": "float", "low": 0.0, "high": 1.0}},
            budget={"trials": 9},
            storage=str(tmp_path / "results"),
        ),
        import_root=tmp_path,
    )
    folder = Folder(Path(plan.storage))
    journal = JournalWriter(folder.journal)
    output = io.StringIO()
    progress = Progress(plan, folder, file=output)
    progress.start()
    for number, message in enumerate(["KeyError: 1", "KeyError: 2", "ValueError: 1", "KeyError: 3"], start=1):
        trial = f"{number:06d}"
        error = {"kind": "error", "message": message, "traceback": ""}
        journal.append(TrialAsked(trial=trial, config={}))
        journal.append(TrialEnded(trial=trial, attempt=1, status="failed", step=0, reason=message, error=error))
    journal.close()
    progress.stop()
    shown = [line for line in output.getvalue().splitlines() if "failed" in line]
    assert shown == ["trial 000001 failed KeyError: 1", "trial 000003 failed ValueError: 1"]
