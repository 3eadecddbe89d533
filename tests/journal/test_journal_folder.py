"""The folder of an experiment, and its lock."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raytuner.errors import JournalError
from raytuner.journal import (
    CheckpointRemoved,
    CheckpointWritten,
    Folder,
    JournalReader,
    JournalWriter,
    Lock,
    TrialStarted,
    write_whole,
)

HOLDER = """
import sys, time
from pathlib import Path
from raytuner.journal import Folder, Lock
lock = Lock(Folder(Path(sys.argv[1]))).acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_lock_refuses_a_second_process_by_name(tmp_path: Path, holder: subprocess.Popen) -> None:
    folder = Folder(tmp_path)
    assert Lock(folder).held_by_other()
    with pytest.raises(JournalError, match=rf"only one driver.*process {holder.pid} on .*`raytuner stop"):
        Lock(folder).acquire()


def test_a_killed_holder_frees_the_lock(tmp_path: Path, holder: subprocess.Popen) -> None:
    folder = Folder(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert not Lock(folder).held_by_other()
    with Lock(folder) as lock:
        assert f"process {os.getpid()} on" in folder.lock.read_text()
        assert not lock.held_by_other()
    assert not Lock(folder).held_by_other()


def test_looking_takes_nothing(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert not Lock(folder).held_by_other()
    assert not folder.lock.exists()
    with Lock(folder):
        assert Lock(folder).held_by_other()
        assert Lock(folder).held_by_other()
        with pytest.raises(JournalError):
            Lock(folder).acquire()


def test_find(tmp_path: Path) -> None:
    (tmp_path / "results" / "digits" / "journal").mkdir(parents=True)
    assert Folder.find(tmp_path / "results" / "digits").path == tmp_path / "results" / "digits"
    with pytest.raises(JournalError, match=r"no journal/ is in it; did you mean .*results/digits\?"):
        Folder.find(tmp_path / "results")
    with pytest.raises(JournalError, match="no such folder"):
        Folder.find(tmp_path / "nowhere")


def test_paths_of_the_record_are_read_as_they_are_called_here(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    path = "trials/000001/checkpoints/000003-1"
    writer = JournalWriter(old / "journal")
    writer.append(CheckpointWritten(trial="000001", attempt=1, step=3, path=str(old / path)))
    writer.append(TrialStarted(trial="000001", attempt=2, checkpoint=str(old / path)))
    writer.append(TrialStarted(trial="000001", attempt=3))
    writer.append(CheckpointRemoved(trial="000001", path=str(old / path)))
    writer.close()
    old.rename(new)
    written, started, afresh, removed = JournalReader(new / "journal").read()
    assert written.path == started.checkpoint == removed.path == str(new / path)
    assert afresh.checkpoint is None


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "experiment.yaml"
    write_whole(file, "before")

    def full(self: Path, *arguments: object, **options: object) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(JournalError, match=r"experiment.yaml: the file must be writable: No space left on device"):
        write_whole(file, "after")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
