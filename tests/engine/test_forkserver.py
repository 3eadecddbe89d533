"""The node's process server: it warms once, forks or spawns, and leaves nothing behind however things end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from host_tools import (
    SOON,
    USER,
    begin,
    clear,
    follow,
    gone,
    kill,
    make_host,
    processes_of,
    run,
    server_of,
    server_spec,
    serving,
    trial_spec,
    wait_until,
)

from raytuner.engine import forkserver
from raytuner.engine.control import Stop
from raytuner.engine.host import ProcessHost
from raytuner.engine.serverclient import ServerClient, ServerSpec, ensure_server
from raytuner.errors import TrialError


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerSpec]:
    with serving(tmp_path / "code", test="user:test") as spec:
        yield spec


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[ServerSpec]:
    """The spec of a server that the first slot will start."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "user.py").write_text(USER)
    spec = server_spec(tmp_path / "code")
    yield spec
    clear(spec)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Some process to watch."""
    made = subprocess.Popen(["sleep", "600"])
    yield made
    made.kill()
    made.wait()


# -- it begins ------------------------------------------------------------------------------------------------------


def test_the_first_slot_starts_it_and_the_others_find_it(cold: ServerSpec, tmp_path: Path) -> None:
    hosts = [make_host(cold)[0] for _ in range(3)]
    for host in hosts:
        assert run(host, trial_spec(tmp_path, "look")).seen["parent"] == server_of(cold).pid
    for host in hosts:
        host.close()


def test_it_is_no_child_of_the_slot_that_starts_it(cold: ServerSpec, tmp_path: Path) -> None:
    """Ray kills the children of an actor that it ends, and the other slots need the server."""
    host, _ = make_host(cold)
    assert run(host, trial_spec(tmp_path, "steps")).end["status"] == "finished"
    server = server_of(cold)
    assert os.getpid() not in [parent.pid for parent in server.parents()]
    host.close()


def test_a_slow_import_does_not_outlast_its_patience(tmp_path: Path) -> None:
    """A server that waits for slots for 0.3 s counts from when it can serve them, and a step from when it began."""
    (tmp_path / "user.py").write_text("import time\ntime.sleep(1.5)\ndef train(trial):\n    return 1.0\n")
    spec = server_spec(tmp_path)
    try:
        host = ProcessHost(spec, step_timeout=0.5, stop=make_host(spec)[1])
        host._client._linger = 0.3
        outcome = run(host, trial_spec(tmp_path, ""))
        assert outcome.end["status"] == "finished", outcome.end
        assert "Traceback" not in Path(spec.log).read_text()
        host.close()
        wait_until(lambda: not processes_of(spec), 0.3 + SOON, "without slots, it goes")
        assert not spec.socket.exists()
    finally:
        clear(spec)


def test_it_says_why_it_could_not_start(tmp_path: Path) -> None:
    spec = replace(server_spec(tmp_path), key="x" * 200)  # longer than the name of a socket may be
    try:
        with pytest.raises((TrialError, OSError), match="too long"):
            ensure_server(spec, watch=[os.getpid()], linger=1.0)
    finally:
        clear(spec)


def test_an_attempt_without_a_server_is_lost(tmp_path: Path) -> None:
    """... which is an end as any other, not an exception in the slot."""
    spec = replace(server_spec(tmp_path), key="x" * 200)
    try:
        host, _ = make_host(spec)
        outcome = run(host, trial_spec(tmp_path, "steps"))
        assert outcome.end["status"] == "failed"
        assert outcome.error["kind"] == "lost"
        assert "process server" in outcome.end["reason"]
        host.close()
    finally:
        clear(spec)


def test_no_stranger_disturbs_it(server: ServerSpec, tmp_path: Path) -> None:
    host, _ = make_host(server)
    for greeting in (b"", b"GET / HTTP/1.1\n", b"{}\n", b'{"hello": "slot"}\n', b"\xff\xfe\n", b"[1]\n"):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(server.socket))
            stranger.sendall(greeting)
    assert run(host, trial_spec(tmp_path, "steps")).end["status"] == "finished"
    host.close()


def test_only_its_owner_may_connect(server: ServerSpec) -> None:
    assert server.socket.stat().st_mode & 0o077 == 0
    assert server.socket.parent.stat().st_mode & 0o077 == 0


# -- what it warms ----------------------------------------------------------------------------------------------------

TRAINING = """
import sys
import torch


def train(trial):
    before = set(sys.modules)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(4, 2))
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        optimizer = kind(model.parameters(), lr=0.1)
    for step in trial.steps(model=model, optimizer=optimizer):
        loss = torch.nn.functional.cross_entropy(model(torch.randn(8, 4)), torch.randint(2, (8,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trial.report(loss=loss, first=torch.initial_seed())
    trial.log_text("seen.txt", repr({"late": sorted(set(sys.modules) - before), "threads": torch.get_num_threads()}))
"""


def test_a_first_step_imports_nothing(tmp_path: Path) -> None:
    """Torch imports seconds' worth of modules with the first optimizer and the first checkpoint."""
    pytest.importorskip("torch")
    with serving(tmp_path / "code", TRAINING) as spec:
        host, _ = make_host(spec)
        outcomes = [run(host, trial_spec(tmp_path, "", seed=seed, cpus=2.0)) for seed in (1, 2, 1)]
        host.close()
    for outcome in outcomes:
        assert outcome.end["status"] == "finished", outcome.end
        assert outcome.seen == {"late": [], "threads": 2}
        assert outcome.of("checkpoint")
    losses = [[m["metrics"] for m in outcome.of("report")] for outcome in outcomes]
    assert losses[0] == losses[2]
    assert losses[0] != losses[1]
    assert [metrics[0]["first"] for metrics in losses] == [1, 2, 1]


def test_with_devices_about_nothing_is_touched_that_a_fork_would_break(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    def touched(*_: Any, **__: Any) -> None:
        raise AssertionError("this asks CUDA, or starts a thread")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "backward", touched)
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        monkeypatch.setattr(kind, "step", touched)
    forkserver._warm_torch()


# -- what cannot be imported ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import numpy\n\ndef train(trial):\n    pass\n\nraise ValueError('at import')\n", "ValueError: at import"),
        ("import not_installed_anywhere\n", "ModuleNotFoundError: No module named 'not_installed_anywhere'"),
        ("def train(:\n", "SyntaxError"),
        ("def fit(trial):\n    pass\n", "the module has no 'train'"),
        ("def train(trial): ...\ndef prepare():\n    raise OSError('no data')\n", "OSError: no data"),
        ("import sys\nsys.exit('not today')\n", "not today"),
    ],
    ids=["raises", "missing", "syntax", "no function", "prepare", "exits"],
)
def test_what_cannot_be_imported_is_told_with_the_users_traceback(tmp_path: Path, source: str, message: str) -> None:
    with serving(tmp_path / "code", source) as spec:
        host, _ = make_host(spec)
        outcome = run(host, trial_spec(tmp_path, ""))
        host.close()
    assert outcome.end["status"] == "failed"
    assert outcome.error["kind"] == "import"
    assert "the training module" in outcome.end["reason"]
    assert message in outcome.end["reason"]
    if "raise" in source:
        lines = outcome.error["traceback"].splitlines()
        assert lines[1].startswith(f'  File "{tmp_path}/code/user.py", line ')
        assert lines[-1] == message
        assert "raytuner/engine" not in outcome.error["traceback"]
    if "SyntaxError" in message:
        assert f'File "{tmp_path}/code/user.py", line 1' in outcome.error["traceback"]


def test_a_script_is_a_module_too(tmp_path: Path) -> None:
    (tmp_path / "code" / "deep").mkdir(parents=True)
    (tmp_path / "code" / "deep" / "my-script.py").write_text(USER)
    with serving(tmp_path / "code", train="deep/my-script.py:train", test="deep/my-script.py:test") as spec:
        host, _ = make_host(spec)
        assert run(host, trial_spec(tmp_path, "steps")).end["status"] == "finished"
        host.close()


# -- the test function ----------------------------------------------------------------------------------------------


def test_the_test_function_runs_on_a_checkpoint(server: ServerSpec, tmp_path: Path) -> None:
    host, _ = make_host(server)
    outcome = run(host, trial_spec(tmp_path, "steps"))
    host.close()
    spec = trial_spec(tmp_path, "", checkpoints=(outcome.of("checkpoint")[-1]["path"],))
    client = ServerClient(server)
    process = client.start("test", asdict(spec), test=True)
    messages: list[dict[str, Any]] = []
    while not messages or messages[-1]["m"] != "exit":
        messages += client.wait(process, 10.0)
    client.close()
    assert messages[0]["metrics"] == {"test_loss": 5.0}
    assert messages[-1]["code"] == 0


# -- it ends --------------------------------------------------------------------------------------------------------


def test_a_killed_server_takes_its_trials_along(cold: ServerSpec, tmp_path: Path) -> None:
    """... the slot sees a lost attempt, and its next one gets a new server."""
    host, _ = make_host(cold)
    outcome = begin(host, trial_spec(tmp_path, "sleep", helper=True))
    first = server_of(cold)
    first.kill()
    wait_until(lambda: gone(outcome.pid), SOON, "the trial is gone")
    began = time.monotonic()
    follow(host, outcome)
    assert time.monotonic() - began < SOON
    assert outcome.error["kind"] == "lost"
    assert "process server ended" in outcome.end["reason"]
    wait_until(lambda: gone(outcome.helper), SOON, "what the trial had started is gone")
    again = run(host, trial_spec(tmp_path, "steps"))
    assert again.end["status"] == "finished"
    assert server_of(cold).pid != first.pid
    host.close()


def test_a_server_that_was_killed_between_trials_is_replaced(cold: ServerSpec, tmp_path: Path) -> None:
    host, _ = make_host(cold)
    run(host, trial_spec(tmp_path, "steps"))
    first = server_of(cold)
    first.kill()
    first.wait(5)
    assert run(host, trial_spec(tmp_path, "steps")).end["status"] == "finished"
    host.close()


@pytest.mark.parametrize("helper", [True, "daemon"])
def test_a_server_that_is_told_to_end_ends_everything(server: ServerSpec, tmp_path: Path, helper: object) -> None:
    host, _ = make_host(server)
    outcome = begin(host, trial_spec(tmp_path, "sleep", helper=helper))
    server_of(server).terminate()
    wait_until(lambda: gone(outcome.pid, outcome.helper) and not processes_of(server), SOON, "all are gone")
    host.close()


AT_FORK = """
import os, signal
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))
"""


def test_it_ends_though_it_was_told_where_exceptions_are_ignored(tmp_path: Path) -> None:
    """Python ignores what is raised in a hook at a fork; logging has such hooks."""
    with serving(tmp_path / "code", source=AT_FORK + USER) as spec:
        host, _ = make_host(spec)
        host.begin(trial_spec(tmp_path, "sleep"))
        wait_until(lambda: not processes_of(spec), SOON, "the server is gone")
        host.close()


@pytest.mark.parametrize("way", ["steps", "os._exit", "segfault", "sleep"])
def test_what_a_trial_left_in_a_session_of_its_own_ends_with_it(server: ServerSpec, tmp_path: Path, way: str) -> None:
    host, _ = make_host(server)
    other, _ = make_host(server)
    living = begin(other, trial_spec(tmp_path / "other", "sleep", helper="daemon"))
    spec = trial_spec(tmp_path, way, helper="daemon", code=3)
    host.begin(spec)
    helper = Path(spec.dir) / "helper"
    wait_until(lambda: helper.exists() and helper.read_text() != "", SOON, "it has a helper")
    if way == "sleep":
        host.end()
    else:
        while host.collect().end is None:
            pass
    wait_until(lambda: gone(int(helper.read_text())), SOON, "its helper is gone")
    assert not gone(living.helper), "the helpers of others are not touched"
    other.end()
    wait_until(lambda: gone(living.helper), SOON, "the other's is gone with it")
    host.close()
    other.close()


SLOT = """
    import json, sys, time
    from raytuner.engine.host import ProcessHost, StopRequest
    from raytuner.engine.serverclient import ServerSpec
    from raytuner.training import TrialSpec

    server, spec = json.loads(sys.argv[1])
    host = ProcessHost(ServerSpec(**server), step_timeout=None, stop=StopRequest())
    host.begin(TrialSpec.from_dict(spec))
    batch = host.collect()
    print(batch.messages[0]["pid"], flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_slot_takes_its_trial_along(server: ServerSpec, tmp_path: Path, how: int) -> None:
    spec = trial_spec(tmp_path, "sleep", helper=True)
    command = [sys.executable, "-c", textwrap.dedent(SLOT), json.dumps([asdict(server), asdict(spec)])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as slot:
        assert slot.stdout is not None
        trial = int(slot.stdout.readline())
        helper = int((Path(spec.dir) / "helper").read_text())
        slot.send_signal(how)
        wait_until(lambda: gone(trial, helper), SOON, "its trial is gone")
    host, _ = make_host(server)
    assert run(host, trial_spec(tmp_path, "steps")).end["status"] == "finished", "the server serves the others"
    host.close()


def test_it_ends_with_a_process_that_it_watches(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    (tmp_path / "user.py").write_text(USER)
    spec = server_spec(tmp_path)
    try:
        server = ensure_server(spec, watch=[os.getpid(), process.pid], linger=60.0)
        assert server is not None
        host, _ = make_host(spec)
        outcome = begin(host, trial_spec(tmp_path, "sleep", helper=True))
        kill(process.pid)
        process.wait()
        wait_until(lambda: gone(outcome.pid, outcome.helper), SOON, "the trial is gone")
        assert server.wait(SOON) == 0
        assert not spec.socket.exists()
        host.close()
    finally:
        clear(spec)


def test_it_ends_with_a_process_that_it_watches_while_it_imports(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    (tmp_path / "user.py").write_text("print('importing', flush=True)\nimport time\ntime.sleep(600)\n")
    spec = server_spec(tmp_path)
    try:
        server = ensure_server(spec, watch=[process.pid], linger=60.0)
        assert server is not None
        wait_until(lambda: "importing" in Path(spec.log).read_text(), 10, "it imports")
        process.kill()
        process.wait()
        server.wait(SOON)
    finally:
        clear(spec)


def test_it_ends_with_the_last_raylet(server: ServerSpec, tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    """A machine may be several nodes, in tests; the slots of each end with it, and the others' do not."""
    with subprocess.Popen(["sleep", "600"]) as other, socket.socket(socket.AF_UNIX) as slot:
        slot.connect(str(server.socket))
        slot.sendall(b'{"hello": "slot", "slot": "one", "raylet": %d}\n' % process.pid)
        host, _ = make_host(server)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "getppid", lambda: other.pid)  # whose child a slot is
            outcome = begin(host, trial_spec(tmp_path, "sleep"))
        process.kill()
        process.wait()
        slot.settimeout(5)
        assert slot.recv(100) == b"", "the slot of the node that died is let go"
        assert not gone(outcome.pid)
        other.kill()
        wait_until(lambda: gone(outcome.pid) and not processes_of(server), SOON, "the server is gone")
        host.close()


def test_a_stop_does_not_wait_for_a_slow_import(tmp_path: Path) -> None:
    source = "print('importing', flush=True)\nimport time\ntime.sleep(600)\n"
    (tmp_path / "user.py").write_text(source)
    spec = server_spec(tmp_path)
    try:
        host, stop = make_host(spec)
        host.begin(trial_spec(tmp_path, "", gpus=("0",)))
        stop.set(Stop("enough"))
        began = time.monotonic()
        batch = host.collect()
        assert batch.end is not None
        assert batch.end["status"] == "stopped"
        assert time.monotonic() - began < SOON
        host.close()
    finally:
        clear(spec)


# -- where forking is not possible ----------------------------------------------------------------------------------

TORCH = '''
"""As much of torch as a trial touches, with CUDA in use."""
import os

class Tensor: ...
class Generator: ...

class default_generator:
    manual_seed = staticmethod(lambda seed: None)

class cuda:
    OutOfMemoryError = MemoryError
    is_initialized = is_available = staticmethod(lambda: True)
    max_memory_reserved = staticmethod(lambda device: 3 * 10**9)
    get_device_properties = staticmethod(lambda device: type("Properties", (), {"total_memory": 24 * 10**9}))
    limits = {}

    @classmethod
    def set_per_process_memory_fraction(cls, fraction, device):
        cls.limits[device] = fraction

VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")
set_num_threads = manual_seed = lambda number: None
'''


@pytest.fixture
def spawning(tmp_path: Path) -> Iterator[ServerSpec]:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "torch.py").write_text(TORCH)
    source = USER.replace("import numpy as np\n", "import numpy as np\nimport torch\n").replace(
        '"threads": threads,', '"threads": threads, "at import": torch.VISIBLE, "limits": torch.cuda.limits,'
    )
    with serving(tmp_path / "code", source, test="user:test") as spec:
        yield spec


def test_where_cuda_is_in_use_trials_are_fresh_processes(spawning: ServerSpec, tmp_path: Path) -> None:
    host, _ = make_host(spawning)
    outcomes = [run(host, trial_spec(tmp_path, "look", gpus=("3",))) for _ in range(2)]
    server = server_of(spawning).pid
    for outcome in outcomes:
        assert outcome.end["status"] == "finished", outcome.end
        assert outcome.seen["at import"] == outcome.seen["cuda"] == "3", "before CUDA can look"
        assert outcome.seen["parent"] == server
        assert outcome.seen["prepared"] == outcome.seen["pid"], "it has prepared everything by itself"
        assert outcome.of("memory") == [{"m": "memory", "step": 1, "gpu_memory": 3 * 10**9, "gpu_total": 24 * 10**9}]
    log = Path(spawning.log).read_text()
    assert "initialised CUDA" in log
    assert log.count("initialised CUDA") == 1
    failed = run(host, trial_spec(tmp_path, "os._exit", code=3))
    assert failed.error["message"] == "the trial's process left with exit code 3 in step 1"
    host.close()


def test_a_share_of_a_gpu_is_a_share_of_its_memory(spawning: ServerSpec, tmp_path: Path) -> None:
    host, _ = make_host(spawning)
    limits = [
        run(host, trial_spec(tmp_path, "look", gpus=("3",), gpu=gpu)).seen["limits"] for gpu in (0.25, 1.0, 0.0001)
    ]
    assert limits == [{0: pytest.approx(0.25 - 0.6 / 24)}, {}, {0: 0.01}], "CUDA's own part counts too"


def test_the_multi_process_service_runs_as_long_as_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = tmp_path / "bin" / "nvidia-cuda-mps-control"
    service.parent.mkdir()
    service.write_text(
        '#!/bin/sh\necho "$1 $$ $CUDA_MPS_PIPE_DIRECTORY" > "$CUDA_MPS_LOG_DIRECTORY/said"\nexec sleep 600'
    )
    service.chmod(0o755)
    monkeypatch.setenv("PATH", f"{service.parent}:{os.environ['PATH']}")
    with serving(tmp_path / "code", mps=True) as spec:
        host, _ = make_host(spec)
        assert run(host, trial_spec(tmp_path, "steps")).end["status"] == "finished"
        folder = spec.socket.with_suffix(".mps")
        option, pid, pipes = wait_until(lambda: (folder / "log" / "said").read_text().split(), 5, "it has started")
        assert (option, pipes) == ("-f", str(folder / "pipe"))
        assert not gone(int(pid))
        server_of(spec).kill()
        wait_until(lambda: gone(int(pid)), SOON, "it ends with a server that is killed, too")
        host.close()
        shutil.rmtree(folder)


def test_a_node_without_the_service_says_so(tmp_path: Path) -> None:
    with serving(tmp_path / "code", mps=True) as spec:
        host, _ = make_host(spec)
        assert run(host, trial_spec(tmp_path, "steps")).end["status"] == "finished"
        assert "this node has no nvidia-cuda-mps-control" in Path(spec.log).read_text()
        host.close()


def test_a_fresh_process_ends_as_a_forked_one(spawning: ServerSpec, tmp_path: Path) -> None:
    host, stop = make_host(spawning)
    outcome = begin(host, trial_spec(tmp_path, "sleep", helper=True))
    stop.set(Stop("enough"))
    began = time.monotonic()
    assert follow(host, outcome).end["status"] == "stopped"
    wait_until(lambda: gone(outcome.pid, outcome.helper), SOON, "it is gone")
    assert time.monotonic() - began < SOON
    outcome = begin(host, trial_spec(tmp_path, "sleep", helper=True))
    server_of(spawning).kill()
    wait_until(lambda: gone(outcome.pid), SOON, "it ends with its server")
    assert follow(host, outcome).error["kind"] == "lost"
    wait_until(lambda: gone(outcome.helper), SOON, "and what it had started with it")
    host.close()


def test_a_fresh_process_that_still_imports_can_be_killed(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "torch.py").write_text(TORCH)
    source = "import os, time, torch\nif os.environ.get('CUDA_VISIBLE_DEVICES') == '5':\n    time.sleep(600)\n"
    with serving(tmp_path / "code", source) as spec:
        host, stop = make_host(spec)
        host.begin(trial_spec(tmp_path, "", gpus=("5",)))
        spawned = wait_until(lambda: len(processes_of(spec)) > 1 and processes_of(spec), 10, "it imports")
        stop.set(Stop("enough"))
        batch = host.collect()
        assert batch.end is not None
        assert batch.end["status"] == "stopped"
        server = server_of(spec).pid
        wait_until(lambda: gone(*(p.pid for p in spawned if p.pid != server)), SOON, "it is gone")
        host.close()


def test_what_a_fresh_process_cannot_import_is_told(spawning: ServerSpec, tmp_path: Path) -> None:
    (Path(spawning.root) / "user.py").write_text("raise ValueError('changed meanwhile')\n")
    host, _ = make_host(spawning)
    outcome = run(host, trial_spec(tmp_path, "look"))
    assert outcome.error["kind"] == "import"
    assert "changed meanwhile" in outcome.end["reason"]
    host.close()
