"""What the tests of servers and hosts share: a user's module that behaves as told, and ways to look at processes."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import threading
import time
from ast import literal_eval
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from raytuner.engine import host as host_module
from raytuner.engine.batch import Batch
from raytuner.engine.host import Host, ProcessHost, StopRequest
from raytuner.engine.serverclient import ServerSpec, ensure_server
from raytuner.training import TrialSpec

SOON = 1.2
"""What is to happen within a second, on a machine that has other things to do too."""

USER = '''
"""What users do, good and bad, by ``trial.config["way"]``."""

import ctypes, os, resource, signal, subprocess, sys, time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
with (HERE / "imported").open("a") as log:
    log.write(f"{os.getpid()}\\n")
STATE = {"touched": False}


def prepare():
    with (HERE / "prepared").open("a") as log:
        log.write(f"{os.getpid()}\\n")
    return {"pid": os.getpid(), "data": np.arange(1000)}


def helper(how):
    """A process that outlives its trial if it can; ``daemon``: in a session of its own, and nobody's child."""
    code = "import time; time.sleep(600)"
    if how == "daemon":
        start = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {code!r}], stdout=2).pid)"
        command = [sys.executable, "-c", start]
        return int(subprocess.run(command, start_new_session=True, stdout=subprocess.PIPE).stdout.split()[0])
    return subprocess.Popen([sys.executable, "-c", code]).pid


def train(trial):
    config = trial.config
    way = config["way"]
    if "helper" in config:
        (trial.dir / "helper").write_text(str(helper(config["helper"])))
    if way == "steps":
        weights = np.zeros(1)
        for step in trial.steps(weights=weights):
            time.sleep(config.get("seconds", 0.0))
            weights[:] = step
            trial.report(loss=1.0 / step)
    elif way == "sleep":
        for _ in trial.steps():
            time.sleep(600)
    elif way == "sleep later":
        for step in trial.steps():
            time.sleep(600 if step == 2 else 0)
            trial.report(loss=1.0)
    elif way == "os._exit":
        os._exit(config["code"])
    elif way == "segfault":
        print("about to crash", file=sys.stderr)
        ctypes.string_at(0)
    elif way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif way == "sys.exit":
        sys.exit(4)
    elif way == "raise":
        raise ValueError("no such luck")
    elif way == "memory":
        resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
        np.ones(2**33)
    elif way == "print":
        print("to stdout", config["text"])
        print("to stderr", config["text"], file=sys.stderr)
        os.system("echo from a child")
        return 1.0
    elif way == "dirty":
        seen = [STATE["touched"], os.environ.get("TOUCHED"), os.getcwd()]
        STATE["touched"], os.environ["TOUCHED"] = True, "yes"
        os.chdir("/")
        np.random.seed(0)
        trial.log_text("seen.txt", repr(seen))
        return 1.0
    elif way == "look":
        threads = len(os.listdir("/proc/self/task"))
        seen = {
            "cuda": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "prepared": trial.prepared["pid"],
            "sum": int(trial.prepared["data"].sum()),
            "pid": os.getpid(),
            "parent": os.getppid(),
            "threads": threads,
            "files": [os.readlink(f"/proc/self/fd/{n}") for n in range(256) if os.path.lexists(f"/proc/self/fd/{n}")],
            "stdin": sys.stdin.read(),
            "device": trial.device,
        }
        trial.log_text("seen.txt", repr(seen))
        return 1.0


def test(trial):
    weights = np.zeros(1)
    trial.restore(weights=weights)
    return {"test_loss": float(weights[0])}
'''


@contextmanager
def serving(folder: Path, source: str = USER, **fields: Any) -> Iterator[ServerSpec]:
    """A server of a module ``user`` in ``folder``; it and all that it has started are ended on leaving."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "user.py").write_text(source)
    spec = server_spec(folder, **fields)
    try:
        server = ensure_server(spec, watch=[os.getpid()], linger=60.0)
        yield spec
        assert server is not None
        server.terminate()
        server.wait(5)
    finally:
        clear(spec)


def server_spec(folder: Path, **fields: Any) -> ServerSpec:
    defaults: dict[str, Any] = {
        "key": f"test-{secrets.token_hex(6)}",
        "root": str(folder),
        "train": "user:train",
        "test": None,
        "sys_path": (str(folder),),
        "log": str(folder / "server.log"),
    }
    return ServerSpec(**{**defaults, **fields})


def clear(spec: ServerSpec) -> None:
    """Leave nothing of a server behind."""
    for process in processes_of(spec):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    for end in (".sock", ".lock"):
        spec.socket.with_suffix(end).unlink(missing_ok=True)


def processes_of(spec: ServerSpec) -> list[psutil.Process]:
    """The living server of ``spec``, and what was forked from it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and any(spec.key in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def server_of(spec: ServerSpec) -> psutil.Process:
    """The server itself."""
    parents: dict[psutil.Process, int] = {}
    for process in processes_of(spec):
        with suppress(psutil.NoSuchProcess):  # a trial may end meanwhile
            parents[process] = process.ppid()
    pids = {process.pid for process in parents}
    (server,) = [process for process, parent in parents.items() if parent not in pids]
    return server


def gone(*pids: int) -> bool:
    def lives(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return not any(map(lives, pids))


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if result := condition():
            return result
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds} s: {what}")


_numbers = iter(range(1, 10**6))


def trial_spec(folder: Path, way: str, *, trial: str = "", attempt: int = 1, **changes: Any) -> TrialSpec:
    """A trial that behaves in a ``way``; other keys are fields of the spec, or go into its config."""
    trial = trial or f"{next(_numbers):06d}"
    fields = {name: changes.pop(name) for name in list(changes) if name in TrialSpec.__dataclass_fields__}
    defaults: dict[str, Any] = {
        "trial": trial,
        "attempt": attempt,
        "config": {"way": way, **changes},
        "seed": 7,
        "dir": str(folder / "trials" / trial),
        "metric": "loss",
        "max_steps": 5,
    }
    return TrialSpec(**{**defaults, **fields})


class Outcome:
    """All batches of an attempt together."""

    def __init__(self, spec: TrialSpec) -> None:
        self.spec = spec
        self.dir = Path(spec.dir)
        self.batches: list[Batch] = []

    @property
    def end(self) -> dict[str, Any]:
        end = self.batches[-1].end
        assert end is not None
        return end

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.end["error"]
        return error

    @property
    def decisions(self) -> list[int]:
        return [batch.decide for batch in self.batches if batch.decide is not None]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [m for batch in self.batches for m in batch.messages if m["m"] == kind]

    @property
    def steps(self) -> list[int]:
        return [m["step"] for m in self.of("report")]

    @property
    def pid(self) -> int:
        pid: int = self.of("started")[0]["pid"]
        return pid

    @property
    def seen(self) -> Any:
        return literal_eval(Path(self.of("logged")[0]["path"]).read_text())

    @property
    def helper(self) -> int:
        return int((self.dir / "helper").read_text())


def follow(host: Host, outcome: Outcome) -> Outcome:
    """Collect to the end."""
    while not outcome.batches or outcome.batches[-1].end is None:
        outcome.batches.append(host.collect())
    return outcome


def run(host: Host, spec: TrialSpec) -> Outcome:
    host.begin(spec)
    return follow(host, Outcome(spec))


def begin(host: Host, spec: TrialSpec) -> Outcome:
    """Begin, and return when it has started, without following it further."""
    outcome = Outcome(spec)
    host.begin(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_module, "BATCH_SECONDS", 0.05)
        outcome.batches.append(host.collect())
    assert outcome.of("started")
    if "helper" in spec.config:
        wait_until(lambda: (outcome.dir / "helper").exists() and outcome.helper, 5, "the helper runs")
    return outcome


def make_host(server: ServerSpec, step_timeout: float | None = None) -> tuple[ProcessHost, StopRequest]:
    stop = StopRequest()
    return ProcessHost(server, step_timeout=step_timeout, stop=stop), stop


def later(seconds: float, action: Callable[..., Any], *arguments: Any) -> threading.Timer:
    timer = threading.Timer(seconds, action, arguments)
    timer.start()
    return timer


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def children_of(process: subprocess.Popen[Any]) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
