"""Experiments in an object store: a real S3 server (moto's) that is frozen, drivers that are killed, other machines."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import events_of, processes_of, raytuner, start_driver, wait_until

from raytuner.engine.requests import take_requests
from raytuner.errors import JournalError, StorageError
from raytuner.journal import (
    DriverStarted,
    Folder,
    JournalReader,
    JournalWriter,
    Reported,
    TrialStarted,
    replay,
)
from raytuner.storage import Lease, Mirror, ObjectStore, join, pull, split, work_folder
from raytuner.storage import lease as lease_module
from raytuner.training.checkpoint import load_checkpoint


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class S3:
    """A server with one bucket."""

    def __init__(self, log: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", self.url.rpartition(":")[2]]
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)
        wait_until(self._has_bucket, 60, "the S3 server answers")

    def _has_bucket(self) -> bool:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{self.url}/bucket", method="PUT"), timeout=5)
        except OSError:
            return False
        return True


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    server = S3(tmp_path_factory.mktemp("s3") / "server.log")
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture
def address(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address with nothing below it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    monkeypatch.setenv("RAYTUNER_CACHE", str(tmp_path / "cache"))
    return f"s3://bucket/{tmp_path.name}"


def move_to_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYTUNER_CACHE", str(tmp_path / "elsewhere"))


# -- the store, its parts ------------------------------------------------------------------------------------------


def test_addresses_are_joined_and_split_before_their_options() -> None:
    assert join("s3://bucket/a/?region=x", "b") == "s3://bucket/a/b?region=x"
    assert split("s3://bucket/a/b?region=x") == ("s3://bucket/a?region=x", "b")
    assert split(join("gs://bucket", "b")) == ("gs://bucket", "b")


def test_a_store_that_is_not_there_is_said_with_its_address(address: str) -> None:
    nowhere = ObjectStore("s3://no-such-bucket/x")
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/x: it could not be written to.*NO_SUCH_BUCKET"):
        nowhere.write("a", b"")
    assert nowhere.read("a") is None
    with pytest.raises(JournalError, match=rf"{address}/x: the address of an experiment is needed"):
        Folder.find(f"{address}/x")


def write_events(journal: Path, first: int, count: int, size: int = 0) -> JournalWriter:
    writer = JournalWriter(journal)
    for step in range(first, first + count):
        writer.append(Reported(trial="000001", attempt=1, step=step, metrics={"loss": 1.0, "x" * (size + 1): 0.0}))
    return writer


def steps_in(folder: Path) -> list[int]:
    return [event.step for event in JournalReader(folder / "journal").read() if isinstance(event, Reported)]


def test_the_journal_goes_there_in_pieces_and_comes_back(address: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    writer = write_events(here / "journal", 1, 30, size=30_000)  # in pieces of 256 kB
    mirror = Mirror(address, here)
    mirror.start()
    mirror.flush()
    assert len(mirror.store.below("journal/000001")) > 1
    for step in (31, 32, 33):
        writer.append(Reported(trial="000001", attempt=1, step=step, metrics={"loss": 1.0}))
        mirror.flush()
        assert pull(mirror.store, there)
        assert steps_in(there) == list(range(1, step + 1))
    assert mirror.close() == ""
    segment = "journal/000001.jsonl"
    assert (there / segment).read_bytes() == (here / segment).read_bytes()


def test_what_a_killed_driver_had_not_sent_stays_unless_another_has_gone_on_without(
    address: str, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    mirror = Mirror(address, here)
    writer = write_events(here / "journal", 1, 3)
    mirror.start()
    assert mirror.close() == ""
    writer.append(Reported(trial="000001", attempt=1, step=4, metrics={"loss": 1.0}))  # and killed before it is sent

    assert pull(mirror.store, here)
    assert steps_in(here) == [1, 2, 3, 4]
    other = Mirror(address, there)
    other.start()
    write_events(there / "journal", 10, 2)
    assert other.close() == ""
    assert pull(mirror.store, here)
    assert steps_in(here) == steps_in(there) == [1, 2, 3, 10, 11]
    assert '"step":4' in (here / "journal" / "000001.unsent").read_text().replace(" ", "")


def test_requests_of_before_are_here_when_it_has_started(address: str, tmp_path: Path) -> None:
    """So that a driver can tell them from those that are meant for it."""
    ObjectStore(address).write("control/1.json", b'{"stop": null}')
    write_events(tmp_path / "here" / "journal", 1, 3)
    mirror = Mirror(address, tmp_path / "here")
    mirror.start()
    assert take_requests(Folder(tmp_path / "here")) == [{"stop": None}]
    assert not mirror.store.below("control")
    assert mirror.close() == ""


# -- who works on it -----------------------------------------------------------------------------------------------


def test_of_many_who_want_it_at_once_one_gets_the_lease(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "LAPSE_SECONDS", 4.0)
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.5)
    monkeypatch.setattr(lease_module, "LOOK_SECONDS", 0.3)
    store = ObjectStore(address)
    got: list[Lease] = []
    refused: list[str] = []

    def want(number: int) -> None:
        lease = Lease(store, tmp_path / str(number))
        try:
            lease.acquire()
        except JournalError as error:
            refused.append(str(error))
            return
        got.append(lease)
        until = time.monotonic() + 8
        while time.monotonic() < until:
            assert lease.renew()
            time.sleep(0.2)

    threads = [threading.Thread(target=want, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert len(refused) == 3
    assert any("only one driver at a time" in text for text in refused)


def test_a_lease_that_is_not_renewed_lapses_and_its_holder_learns_of_it(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "LAPSE_SECONDS", 3.0)
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.5)
    monkeypatch.setattr(lease_module, "LOOK_SECONDS", 0.3)
    store = ObjectStore(address)
    asleep, other = Lease(store, tmp_path / "a"), Lease(store, tmp_path / "b")
    asleep.acquire()
    said: list[str] = []
    other.acquire(said.append)
    assert len(said) == 1
    assert "may still be at work" in said[0]
    assert not asleep.renew(), "it wakes up, and must not write any more"
    assert other.renew()
    other.release()
    again = Lease(store, tmp_path / "c")
    again.acquire()
    same_folder = Lease(store, tmp_path / "c")
    same_folder.acquire(said.append)
    assert len(said) == 1, "on one machine the folder's own lock tells at once that the holder is dead"


# -- whole experiments ---------------------------------------------------------------------------------------------

FIELDS: dict[str, Any] = {
    "train": "objectives:curve",
    "test": "objectives:curve_test",
    "objective": {"metric": "loss", "mode": "min", "max_steps": 9},
    "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}, "seconds": {"type": "choice", "values": [0.15]}},
    "scheduler": {"type": "asha", "form": "promote", "min_agreement": -1},
    "budget": {"trials": 9},
    "checkpoints": {"every_steps": 1},
}


SLOW = {"x": FIELDS["space"]["x"], "seconds": {"type": "choice", "values": [2.0]}}


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    return output


def steps_of(state: Any) -> dict[str, list[int]]:
    return {trial.id: sorted({step.step for step in trial.steps}) for trial in state.trials.values()}


def test_killed_on_one_machine_resumed_on_another_and_read_on_a_third(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = join(address, "own")
    space = {**FIELDS["space"], "seconds": {"type": "choice", "values": [0.4]}}
    process, _ = start_driver(tmp_path, **{**FIELDS, "storage": address, "space": space})
    here = Folder(work_folder(place))
    in_the_middle = wait_until(lambda: here.journal.exists() and between_rungs(here), 90, "a trial is on its way")
    process.kill()
    process.communicate()
    killed_at = time.time()

    move_to_another_machine(monkeypatch, tmp_path)
    (tmp_path / "cache").rename(tmp_path / "gone")
    store = ObjectStore(place)
    assert "only one driver at a time" in begin_to_wait_for_the_holder(place)
    store.remove(store.below("lock"))  # what a minute without a sign of life comes to
    raytuner("resume", place)
    there = Folder(work_folder(place))
    assert there.path != here.path
    state = replay(there)
    assert state.status == "finished"
    assert len(state.trials) == 9
    assert not [t for t in state.trials.values() if t.status == "failed"]
    assert all(steps == list(range(1, len(steps) + 1)) for steps in steps_of(state).values())
    trained = [(event.trial, event.step) for event in events_of(there, Reported)]
    assert len(trained) - len(set(trained)) <= 2, "the step that each of the two slots was at"
    resumed = [event for event in events_of(there, TrialStarted) if event.at > killed_at]
    assert all(event.checkpoint for event in resumed if event.trial in in_the_middle)
    assert in_the_middle & {event.trial for event in resumed}
    best = state.best
    assert best is not None
    assert state.tests[0].metrics == {"test_loss": best.value_step}, "its checkpoint came out of the store"

    monkeypatch.setenv("RAYTUNER_CACHE", str(tmp_path / "third"))
    assert raytuner("status", place, "--json")["folder"] == place
    found = raytuner("best", place, "--json", "--export", str(tmp_path / "model"))
    assert (found["trial"], found["checkpoint"].startswith(place)) == (best.id, True)
    assert load_checkpoint(tmp_path / "model")
    assert not processes_of(str(tmp_path))


def between_rungs(folder: Folder) -> set[str]:
    """The trials that are on their way from the second rung to the last, which takes seconds."""
    trials = replay(folder).trials.values()
    return {t.id for t in trials if t.status == "running" and 3 < max((s.step for s in t.steps), default=0) < 6}


def begin_to_wait_for_the_holder(place: str) -> str:
    """Resume while the claim of a killed driver has not lapsed, and give up; the last words."""
    process = subprocess.Popen(
        [sys.executable, "-m", "raytuner", "resume", place],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": "", "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert "may still be at work" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=15)
    assert process.returncode == 1
    return output


def test_a_store_that_is_away_for_a_while_costs_time_and_nothing_else(
    address: str, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = join(address, "own")
    process, _ = start_driver(tmp_path, **{**FIELDS, "storage": address})
    here = Folder(work_folder(place))
    wait_until(lambda: here.journal.exists() and replay(here).steps >= 6, 90, "it is in the middle")
    s3.process.send_signal(signal.SIGSTOP)
    time.sleep(8)
    s3.process.send_signal(signal.SIGCONT)
    finish(process)
    state = replay(here)
    assert len(state.trials) == 9
    assert not [t for t in state.trials.values() if t.status == "failed"]
    move_to_another_machine(monkeypatch, tmp_path)
    there = Folder.find(place)
    assert [e.at for e in JournalReader(there.journal).read()] == [e.at for e in JournalReader(here.journal).read()]
    kept = {c.path for t in state.trials.values() for c in t.checkpoints.values()}
    stored = {key.rpartition("/")[0] for key in ObjectStore(place).below("trials") if key.endswith("manifest.json")}
    assert stored == {Path(path).relative_to(here.path).as_posix() for path in kept}, "what is on record, and no more"


def test_asked_to_stop_from_another_machine(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = join(address, "own")
    process, _ = start_driver(tmp_path, **{**FIELDS, "storage": address, "space": SLOW})
    here = Folder(work_folder(place))
    wait_until(lambda: here.journal.exists() and replay(here).steps >= 2, 90, "it trains")
    move_to_another_machine(monkeypatch, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "raytuner", "stop", place], capture_output=True, text=True, timeout=60, check=False
    )
    assert "is being stopped" in done.stdout, done.stdout + done.stderr
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert replay(Folder.find(place)).status == "interrupted"
    assert f"raytuner resume {place}" in output
    assert [json.loads(ObjectStore(place).read("plan.json") or b"{}")["storage"]] == [place]
    assert not ObjectStore(place).below("lock"), "and the lease is free at once"
    assert events_of(here, DriverStarted)


def test_another_experiment_of_the_same_name_does_not_mix_with_what_was_here(address: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    for first in (1, 100):
        store = ObjectStore(address)
        store.clear()
        writer = write_events(tmp_path / str(first) / "journal", first, 3 if first == 1 else 5)
        writer.close()
        mirror = Mirror(address, tmp_path / str(first))
        mirror.start()
        assert mirror.close() == ""
        assert pull(store, here)
    assert steps_in(here) == [100, 101, 102, 103, 104]
    assert steps_in(tmp_path / "here~1") == [1, 2, 3]
