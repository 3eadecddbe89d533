"""What Ray Tune's loop does while a search thinks: it neither sleeps, nor ends, nor drops its actors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from host_tools import wait_until

from raytuner.journal import Decided, Folder, JournalReader, TrialAsked, TrialEnded, TrialStarted, replay

SLOW = '''
"""A search that takes its time, and trials that take little."""

import time

from pydantic import BaseModel

from raytuner.search import Search


class Slow(Search):
    class Options(BaseModel):
        type: str
        seconds: float = 0.5
        hangs_at: int | None = None
        fails_at: int | None = None

    def _propose(self, rng, number):
        if number == self.options.fails_at:
            raise ValueError("no idea")
        time.sleep(600 if number == self.options.hangs_at else self.options.seconds)
        return self._draw(rng)


def train(trial):
    for step in trial.steps():
        time.sleep(0.1)
        trial.report(loss=trial.config["x"] + 1 / step)
'''


def start(tmp_path: Path, *, slots: int, search: dict[str, Any], **fields: Any) -> tuple[subprocess.Popen[str], Folder]:
    """``raytuner run``, with a Ray of its own, of so many slots."""
    definition = {
        "name": "slow",
        "train": "slow:train",
        "objective": {"metric": "loss", "mode": "min", "max_steps": 9},
        "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
        "search": {"type": "slow:Slow", **search},
        "tracking": "none",
        "storage": str(tmp_path / "results"),
        "resources": {"cpu": 0.1, "concurrent_trials": slots},
        "isolation": "actor",  # so that a trial's process is its actor
        **fields,
    }
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(definition))
    command = [sys.executable, "-m", "raytuner", "run", str(tmp_path / "experiment.yaml")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    return process, Folder(tmp_path / "results" / "slow")


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """The output, once it has ended as it should."""
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code, output
    return output


def events_of(folder: Folder, *kinds: type) -> list[Any]:
    return [event for event in JournalReader(folder.journal).read() if isinstance(event, kinds)]


def test_one_slot_waits_as_long_as_the_search_thinks(tmp_path: Path) -> None:
    """... and not the second that Ray Tune sleeps with nothing to do; Ctrl-C ends that wait."""
    search = {"seconds": 0.3, "hangs_at": 6}
    process, folder = start(tmp_path, slots=1, search=search, budget={"trials": 9})
    try:
        wait_until(
            lambda: folder.journal.exists() and len(events_of(folder, TrialEnded)) == 6, 90, "six trials have ended"
        )
        process.send_signal(signal.SIGINT)
    finally:
        output = finish(process, code=130)
    assert "raytuner resume" in output
    assert replay(folder).status == "interrupted"
    events = events_of(folder, TrialAsked, TrialEnded)
    assert [type(event) for event in events] == [TrialAsked, TrialEnded] * 6
    waits = [asked.at - ended.at for ended, asked in zip(events[1::2], events[2::2], strict=False)]
    assert len(waits) == 5
    assert 0.25 < min(waits) < 0.9, "the best of five, since the machine has other things to do too"


def test_slots_are_kept_and_decided_on_while_the_search_thinks(tmp_path: Path) -> None:
    process, folder = start(
        tmp_path, slots=3, search={"seconds": 0.5}, scheduler={"type": "asha", "form": "stop"}, budget={"trials": 18}
    )
    finish(process)
    state = replay(folder)
    assert state.status == "finished"
    assert {trial.status for trial in state.trials.values()} <= {"finished", "stopped"}
    # The third need not get any: two may have all that the search comes up with.
    assert len({event.pid for event in events_of(folder, TrialStarted)}) <= 3, "no actor was started anew"
    asked = events_of(folder, TrialAsked)
    told = 0
    late = []
    for event in events_of(folder, TrialAsked, Decided, TrialEnded):
        if isinstance(event, TrialEnded) or (isinstance(event, Decided) and event.action == "continue"):
            told += 1
        if isinstance(event, TrialAsked):
            late.append(told - event.known)
    assert len(asked) == 18
    assert sum(late) >= 5, "decisions were taken between question and answer"


def test_a_search_that_fails_ends_the_experiment(tmp_path: Path) -> None:
    process, folder = start(tmp_path, slots=2, search={"seconds": 0.0, "fails_at": 3}, budget={"trials": 9})
    output = finish(process, code=1)
    assert "no idea" in output
    assert replay(folder).status == "failed"
    assert len(events_of(folder, TrialAsked)) == 3
