"""A trial in a process of its own: whatever it does, its slot learns how it ended, and the next one is untouched."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from host_tools import (
    SOON,
    begin,
    follow,
    gone,
    kill,
    later,
    make_host,
    run,
    server_of,
    serving,
    trial_spec,
    wait_until,
)

from raytuner.engine.batch import Batch
from raytuner.engine.control import Stop
from raytuner.engine.host import BATCH_SECONDS, ProcessHost, StopRequest
from raytuner.engine.serverclient import Process, ServerSpec


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerSpec]:
    with serving(tmp_path_factory.mktemp("code"), env={"CUDA_VISIBLE_DEVICES": "7"}, test="user:test") as spec:
        yield spec


@pytest.fixture
def stop() -> StopRequest:
    return StopRequest()


@pytest.fixture
def host(server: ServerSpec, stop: StopRequest) -> Iterator[ProcessHost]:
    made = ProcessHost(server, step_timeout=None, stop=stop)
    yield made
    made.close()


def test_a_node_that_does_not_see_the_storage_says_so(server: ServerSpec, stop: StopRequest, tmp_path: Path) -> None:
    root, log = tmp_path / "results/toy/code", tmp_path / "results/toy/server.log"
    made = ProcessHost(replace(server, key="elsewhere", root=str(root), log=str(log)), step_timeout=None, stop=stop)
    end = run(made, trial_spec(tmp_path, "steps")).end
    made.close()
    assert end["status"] == "failed"
    assert f"storage: the node {socket.gethostname()} does not see" in end["reason"]
    assert f"there is no {root}; name a folder that all nodes share" in end["reason"]
    assert not log.parent.exists()


# -- isolation ------------------------------------------------------------------------------------------------------


def test_a_good_trial_finishes(host: ProcessHost, tmp_path: Path) -> None:
    outcome = run(host, trial_spec(tmp_path, "steps"))
    assert outcome.end == {"status": "finished", "reason": "all 5 steps done", "step": 5, "error": None}
    assert outcome.steps == [1, 2, 3, 4, 5]
    assert outcome.of("checkpoint")[-1]["step"] == 5
    assert outcome.pid != os.getpid()


def test_its_process_is_on_record_when_the_servers_word_comes_late(
    host: ProcessHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a trial says comes over another line than what its server says, and either may be first."""
    wait = host._client.wait

    def late(process: Process, timeout: float | None) -> list[dict[str, Any]]:
        messages = wait(process, timeout)
        process.pid = 0
        return messages

    monkeypatch.setattr(host._client, "wait", late)
    outcome = run(host, trial_spec(tmp_path, "look"))
    assert outcome.pid == outcome.seen["pid"]


@pytest.mark.parametrize(
    ("way", "kind", "message"),
    [
        ({"way": "os._exit", "code": 3}, "exit", "the trial's process left with exit code 3 in step 1"),
        ({"way": "os._exit", "code": 0}, "exit", "the trial's process left with exit code 0 in step 1"),
        ({"way": "segfault"}, "signal", "the trial's process ended by SIGSEGV in step 1"),
        ({"way": "kill"}, "killed", "ended by SIGKILL in step 1; it was killed from outside"),
        ({"way": "sys.exit"}, "exit", "the training function called sys.exit(4)"),
        ({"way": "raise"}, "error", "ValueError: no such luck"),
        ({"way": "memory"}, "memory", "Unable to allocate 64.0 GiB"),
    ],
    ids=lambda value: value["way"] if isinstance(value, dict) else "",
)
def test_a_bad_trial_ends_alone(
    host: ProcessHost, tmp_path: Path, way: dict[str, Any], kind: str, message: str
) -> None:
    outcome = run(host, trial_spec(tmp_path, **way))
    assert outcome.end["status"] == "failed"
    assert outcome.end["step"] == 0
    assert outcome.error["kind"] == kind
    assert message in outcome.error["message"]
    assert message in outcome.end["reason"]
    after = run(host, trial_spec(tmp_path, "steps"))
    assert after.end["status"] == "finished"


def test_the_end_of_stderr_is_in_the_error(host: ProcessHost, tmp_path: Path) -> None:
    spec = trial_spec(tmp_path, "segfault")
    assert run(host, spec).error["traceback"] == "about to crash"
    again = run(host, replace(spec, attempt=2, config={"way": "os._exit", "code": 1}))
    assert again.error["traceback"] == "", "what an earlier attempt wrote is not this one's"


def test_the_traceback_is_the_users(host: ProcessHost, tmp_path: Path, server: ServerSpec) -> None:
    outcome = run(host, trial_spec(tmp_path, "raise"))
    lines = outcome.error["traceback"].splitlines()
    assert lines[1].startswith(f'  File "{server.root}/user.py"')
    assert lines[-1] == "ValueError: no such luck"
    assert (outcome.dir / "stderr.log").read_text().strip() == outcome.error["traceback"]


def test_output_goes_to_the_trials_own_files(host: ProcessHost, tmp_path: Path, server: ServerSpec) -> None:
    for text in ("first", "second"):
        outcome = run(host, trial_spec(tmp_path, "print", trial=text, text=text))
        assert (outcome.dir / "stdout.log").read_text() == f"to stdout {text}\nfrom a child\n"
        assert (outcome.dir / "stderr.log").read_text() == f"to stderr {text}\n"
    assert "to std" not in Path(server.log).read_text()


def test_a_trial_leaves_no_trace_in_the_next(host: ProcessHost, tmp_path: Path) -> None:
    first, second = (run(host, trial_spec(tmp_path, "dirty")) for _ in range(2))
    assert first.seen == second.seen
    assert first.seen[:2] == [False, None]


def test_a_folder_that_cannot_be_made_is_told(host: ProcessHost, tmp_path: Path) -> None:
    (tmp_path / "trials").write_text("a file is in the way")
    outcome = run(host, trial_spec(tmp_path, "steps"))
    assert outcome.end["status"] == "failed"
    assert "the trial's folder must be writable" in outcome.end["reason"]


# -- what a trial inherits ------------------------------------------------------------------------------------------


def test_prepare_runs_once_and_is_shared(host: ProcessHost, tmp_path: Path, server: ServerSpec) -> None:
    seen = [run(host, trial_spec(tmp_path, "look")).seen for _ in range(3)]
    pid = server_of(server).pid
    for log in ("prepared", "imported"):
        assert (Path(server.root) / log).read_text().split() == [str(pid)]
    assert {s["prepared"] for s in seen} == {s["parent"] for s in seen} == {pid}
    assert {s["sum"] for s in seen} == {499500}
    assert len({s["pid"] for s in seen}) == 3


@pytest.mark.parametrize(("gpus", "visible"), [((), ""), (("1",), "1"), (("0", "3"), "0,3")])
def test_devices_are_explicit(host: ProcessHost, tmp_path: Path, gpus: tuple[str, ...], visible: str) -> None:
    """... also where the server itself sees others."""
    seen = run(host, trial_spec(tmp_path, "look", gpus=gpus)).seen
    assert seen["cuda"] == visible
    assert seen["device"] == ("cuda" if gpus else "cpu")


def test_a_trial_has_nothing_of_the_servers_open(host: ProcessHost, tmp_path: Path) -> None:
    other, _ = make_host(host._client._spec)
    begin(other, trial_spec(tmp_path, "sleep"))
    seen = run(host, trial_spec(tmp_path, "look")).seen
    other.close()
    foreign = [name for name in seen["files"] if not name.startswith(("/dev/null", str(tmp_path)))]
    assert len(foreign) == 1, foreign
    assert foreign[0].startswith("socket:"), "its own line, and no other slot's"
    assert seen["threads"] == 1
    assert seen["stdin"] == ""


# -- stopping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.05, 0.6, 1.5])
def test_a_stop_reaches_a_trial_in_the_middle_of_a_step(
    host: ProcessHost, stop: StopRequest, tmp_path: Path, delay: float
) -> None:
    """Also when a batch ends between the request and the kill (0.6 s after the start)."""
    spec = trial_spec(tmp_path, "sleep", helper=True)
    asked = []
    later(delay, lambda: (asked.append(time.monotonic()), stop.set(Stop("the time is up"))))
    outcome = run(host, spec)
    assert time.monotonic() - asked[0] < SOON
    assert outcome.end == {"status": "stopped", "reason": "the time is up", "step": 0, "error": None}
    wait_until(lambda: gone(outcome.pid, outcome.helper), 0.5, "the trial and its helper are gone")


def test_a_stop_at_a_short_step_comes_with_its_checkpoint(host: ProcessHost, stop: StopRequest, tmp_path: Path) -> None:
    spec = trial_spec(tmp_path, "steps", seconds=0.1, max_steps=600, policy={"best": False, "every_time": None})
    later(1.0, stop.set, Stop("enough"))
    outcome = run(host, spec)
    assert (outcome.end["status"], outcome.end["reason"]) == ("stopped", "enough")
    assert outcome.end["step"] == outcome.steps[-1] > 3
    (checkpoint,) = outcome.of("checkpoint")
    assert (checkpoint["step"], checkpoint["reason"]) == (outcome.end["step"], "demand")


def test_a_stop_while_it_waits_for_a_decision_comes_with_its_checkpoint(
    host: ProcessHost, stop: StopRequest, tmp_path: Path
) -> None:
    spec = trial_spec(tmp_path, "sleep later", decides=(1,))
    host.begin(spec)
    assert host.collect().decide == 1
    stop.set(Stop("enough"))
    began = time.monotonic()
    batch = host.collect()
    assert batch.end is not None
    assert (batch.end["status"], batch.end["step"]) == ("stopped", 1)
    assert time.monotonic() - began < 0.5, "it ends by itself, without going on to the next step"


def test_a_stop_before_the_start_counts(host: ProcessHost, stop: StopRequest, tmp_path: Path) -> None:
    stop.set(Stop("already"))
    began = time.monotonic()
    assert run(host, trial_spec(tmp_path, "sleep")).end["status"] == "stopped"
    assert time.monotonic() - began < SOON
    assert run(host, trial_spec(tmp_path, "steps")).end["status"] == "finished", "and it counts once"


def test_a_new_attempt_ends_the_one_before(host: ProcessHost, tmp_path: Path) -> None:
    """The first defence against a stale writer; the attempt in every path is the second."""
    spec = trial_spec(tmp_path, "sleep", helper=True)
    first = begin(host, spec)
    second = run(host, replace(spec, attempt=2, config={"way": "steps"}))
    wait_until(lambda: gone(first.pid, first.helper), SOON, "the first is gone")
    assert second.end["status"] == "finished"
    assert {batch.attempt for batch in second.batches} == {2}
    assert all(m["path"].endswith("-2") for m in second.of("checkpoint"))


@pytest.mark.parametrize("way", [{"way": "steps"}, {"way": "raise"}, {"way": "os._exit", "code": 0}])
def test_what_a_trial_has_started_ends_with_it(host: ProcessHost, tmp_path: Path, way: dict[str, Any]) -> None:
    outcome = run(host, trial_spec(tmp_path, helper=True, **way))
    wait_until(lambda: gone(outcome.pid, outcome.helper), SOON, "nothing is left of it")


def test_a_step_may_take_so_long(server: ServerSpec, tmp_path: Path) -> None:
    host, _ = make_host(server, step_timeout=0.5)
    fine = run(host, trial_spec(tmp_path, "steps", seconds=0.2))
    assert fine.end["status"] == "finished", "each step has its own time"
    began = time.monotonic()
    outcome = run(host, trial_spec(tmp_path, "sleep later", helper=True))
    assert 0.5 <= time.monotonic() - began < 0.5 + SOON
    assert outcome.end["status"] == "failed"
    assert outcome.end["step"] == 1
    assert outcome.error["kind"] == "timeout"
    assert outcome.end["reason"] == "step 2 took longer than step_timeout=0.5s"
    wait_until(lambda: gone(outcome.pid, outcome.helper), SOON, "it is gone")
    host.close()


def test_the_wait_for_a_decision_is_no_step(server: ServerSpec, tmp_path: Path) -> None:
    host, _ = make_host(server, step_timeout=0.3)
    host.begin(trial_spec(tmp_path, "steps", decides=(2,)))
    assert host.collect().decide == 2
    time.sleep(0.6)
    batch = host.collect()
    assert batch.end is not None
    assert batch.end["status"] == "finished"
    host.close()


# -- batches --------------------------------------------------------------------------------------------------------


def test_steps_do_not_wait_for_the_slot(host: ProcessHost, tmp_path: Path) -> None:
    """While nobody collects, the trial goes on; then everything comes at once, and in order."""
    host.begin(trial_spec(tmp_path, "steps", max_steps=200))
    time.sleep(1.0)
    began = time.monotonic()
    batch = host.collect()
    assert time.monotonic() - began < 0.5
    assert batch.end is not None
    assert [m["step"] for m in batch.messages if m["m"] == "report"] == list(range(1, 201))


def test_a_batch_comes_every_second(host: ProcessHost, tmp_path: Path) -> None:
    """... but that the trial has started is told at once: its devices were idle until then."""
    host.begin(trial_spec(tmp_path, "steps", seconds=0.3, max_steps=600))
    began = time.monotonic()
    assert [m["m"] for m in host.collect().messages] == ["started"]
    assert time.monotonic() - began < 0.5
    for _ in range(2):
        began = time.monotonic()
        batch = host.collect()
        assert batch.end is None
        assert BATCH_SECONDS * 0.9 < time.monotonic() - began < BATCH_SECONDS + 0.4
        assert sum(m["m"] == "report" for m in batch.messages) >= 2


def test_a_batch_ends_at_a_deciding_step(host: ProcessHost, tmp_path: Path) -> None:
    outcome = run(host, trial_spec(tmp_path, "steps", decides=(1, 3)))
    assert outcome.decisions == [1, 3]
    assert [[m["step"] for m in b.messages if m["m"] == "report"] for b in outcome.batches] == [[1], [2, 3], [4, 5]]


def test_a_batch_is_one_string() -> None:
    batch = Batch("000001", 2, [{"m": "report", "metrics": {"loss": float("inf")}}], None, {"status": "failed"})
    assert Batch.loads(batch.dumps()) == batch


def test_many_slots_share_a_server(server: ServerSpec, tmp_path: Path) -> None:
    hosts = [make_host(server)[0] for _ in range(4)]
    outcomes = [begin(h, trial_spec(tmp_path, "steps", seconds=0.1, max_steps=10)) for h in hosts]
    assert len({o.pid for o in outcomes}) == 4
    hosts[0].close()  # one slot goes: only its own trial ends
    wait_until(lambda: gone(outcomes[0].pid), SOON, "its trial is gone")
    for host, outcome in list(zip(hosts, outcomes, strict=True))[1:]:
        assert follow(host, outcome).end["status"] == "finished"
        assert outcome.steps == list(range(1, 11))
        host.close()


def test_a_killed_trial_is_not_the_end_of_the_slot(host: ProcessHost, tmp_path: Path) -> None:
    outcome = begin(host, trial_spec(tmp_path, "sleep"))
    kill(outcome.pid)
    assert follow(host, outcome).error["kind"] == "killed"
    assert run(host, trial_spec(tmp_path, "steps")).end["status"] == "finished"


COUNTED = """
import __main__, os, signal
from pathlib import Path

COUNTER = Path(__file__).with_name("vmstat")
COUNTER.write_text("nr_free_pages 17\\noom_kill 0\\n")
__main__.KILL_COUNTERS[:] = [COUNTER]  # as the system would count what it kills


def train(trial):
    if trial.config["way"] == "too large":
        COUNTER.write_text("nr_free_pages 17\\noom_kill 1000000\\n")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_the_system_killed_for_its_size(tmp_path: Path) -> None:
    with serving(tmp_path / "code", source=COUNTED) as server:
        host, _ = make_host(server)
        other = run(host, trial_spec(tmp_path, "killed"))
        assert other.error["kind"] == "killed"
        outcome = run(host, trial_spec(tmp_path, "too large"))
        host.close()
    assert outcome.error["kind"] == "memory"
    assert outcome.end["reason"].startswith(
        "the system killed the trial's process in step 1, since there was no memory"
    )
