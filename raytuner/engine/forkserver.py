"""The node's warm process server: it has imported the user's code, and forks one process an attempt.

One server serves all slots of an experiment on a node. It listens on a Unix socket before it imports anything, so
that slots can queue up while it warms. A slot holds one connection as long as it lives (its end kills the slot's
trials), and opens another for each attempt, which the forked process inherits and talks over. The server ends with
the processes that it watches (raylet, driver), or when no slot was connected for a while.

A process that has initialised CUDA must not be forked: if the user's import did, a fresh interpreter is started for
each attempt instead, and the server says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from raytuner.engine.mps import start_mps
from raytuner.engine.readings import DeviceReader
from raytuner.training.channel import receive_lines
from raytuner.training.child import adopt_orphans, child_main, die_with_parent
from raytuner.training.entry import load_module, resolve

__all__ = ["Server", "main"]

PR_SET_NAME = 15
ORPHAN_SECONDS = 2.0
"""How long to wait for what is killed to be gone, which takes the system an instant."""
KILL_COUNTERS = [Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control")]
KILL_COUNTERS.append(Path("/proc/vmstat"))


@dataclass
class _Child:
    key: str
    pid: int
    pidfd: int
    slot: _Slot


@dataclass(eq=False)
class _Slot:
    """A slot's lasting connection."""

    sock: socket.socket
    raylet: int
    buffer: bytearray = field(default_factory=bytearray)
    children: dict[str, _Child] = field(default_factory=dict)

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self.sock.sendall(json.dumps(message).encode() + b"\n")


class Server:
    """``spec``: socket, root, train, test, adapter, sys_path, watch (pids), linger (seconds)."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._selector = selectors.DefaultSelector()
        self._slots: dict[str, _Slot] = {}
        self._trials: set[int] = set()  # their processes that were not waited for yet
        self._prepared: Any = None
        self._failed: BaseException | None = None
        self._fork = True
        self._mps: subprocess.Popen[bytes] | None = None
        self._kills = memory_kills()
        self._devices = DeviceReader() if spec["devices"] else None
        self._idle_since = time.monotonic()
        self._raylets: dict[int, int] = {}  # by their number in the system, their pidfd
        self._watched = [os.pidfd_open(pid) for pid in spec["watch"]]
        path = Path(spec["socket"])
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(128)

    # -- warming ------------------------------------------------------------------------------------------------

    def warm(self) -> None:
        """Import the user's module, run its ``prepare()``, and touch what a first training step would touch."""
        if self._spec["mps"]:
            self._mps_folder = Path(self._spec["socket"]).with_suffix(".mps")
            self._mps = start_mps(self._mps_folder)
            if self._mps is None:
                _say("resources.mps: this node has no nvidia-cuda-mps-control; trials that share a GPU take turns")
        stop = threading.Event()
        watcher = threading.Thread(target=self._watch_while_warming, args=(stop,), daemon=True)
        watcher.start()
        try:
            module = load_module(self._spec["train"], self._spec["root"])
            for name in self._spec["preload"]:
                importlib.import_module(name)
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(1)  # a thread pool does not survive a fork
            prepare = getattr(module, "prepare", None)
            if callable(prepare):
                self._prepared = prepare()
            if self._spec.get("test"):
                load_module(self._spec["test"], self._spec["root"])
            torch = sys.modules.get("torch")
            if torch is not None and torch.cuda.is_initialized():
                self._fork = False
                _say(
                    "importing the training module initialised CUDA, which a fork must not inherit: "
                    "every trial starts a fresh interpreter instead, and imports everything again"
                )
            else:
                _warm_torch()
        except BaseException as error:
            traceback.print_exc()
            self._failed = error
        finally:
            stop.set()
            watcher.join()  # no second thread may exist when forking
        gc.collect()
        gc.freeze()  # what is here lives on; the children's collector must not touch (and so copy) its pages

    def _watch_while_warming(self, stop: threading.Event) -> None:
        while not stop.is_set():
            if select.select(self._watched, [], [], 0.1)[0]:
                os._exit(0)

    # -- serving ------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Serve until a watched process ends, or nobody is connected for ``linger`` seconds."""
        # The children's groups must end too. Not by an exception in the handler, which may come where it is ignored.
        ended, end = os.pipe()
        self._pipe = (ended, end)
        signal.signal(signal.SIGTERM, lambda *_: os.write(end, b"x"))
        self._selector.register(ended, selectors.EVENT_READ, self._stop)
        self._idle_since = time.monotonic()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        for fd in self._watched:
            self._selector.register(fd, selectors.EVENT_READ, self._stop)
        try:
            while True:
                for key, _ in self._selector.select(timeout=0.5):
                    key.data()
                if self._slots:
                    self._idle_since = time.monotonic()
                    self._read_devices()
                elif time.monotonic() - self._idle_since > self._spec["linger"]:
                    return
        except SystemExit:
            return
        finally:
            for slot in list(self._slots.values()):
                for child in slot.children.values():
                    _kill(child.pid)
            self._trials.clear()
            self._kill_orphans()
            Path(self._spec["socket"]).unlink(missing_ok=True)
            if self._devices is not None:
                self._devices.close()
            if self._mps is not None:
                self._mps.terminate()
                self._mps.wait()
                shutil.rmtree(self._mps_folder, ignore_errors=True)

    def _read_devices(self) -> None:
        """Tell one of the slots how the node's GPUs are used, when that is known anew."""
        found = self._devices.poll() if self._devices is not None else None
        busy = next((slot for slot in self._slots.values() if slot.children), None)
        if found and busy is not None:
            busy.send({"m": "devices", "devices": found})

    def _watch_raylet(self, pid: int) -> None:
        """Notice the end of a slot's raylet. Usually there is one; in tests, a machine may be several nodes."""
        if pid not in self._raylets:
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                return  # the slot ends too
            self._raylets[pid] = fd
            self._selector.register(fd, selectors.EVENT_READ, lambda: self._raylet_gone(pid))

    def _raylet_gone(self, pid: int) -> None:
        fd = self._raylets.pop(pid)
        self._selector.unregister(fd)
        os.close(fd)
        if not self._raylets:
            self._stop()
        for name, slot in list(self._slots.items()):
            if slot.raylet == pid:
                self._drop(name, slot)

    def _stop(self) -> NoReturn:
        raise SystemExit

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        match _greeting(sock):
            case {"hello": "slot", "slot": str(name), "raylet": int(raylet), "rest": str(rest)}:
                slot = _Slot(sock, raylet, bytearray(rest.encode()))
                self._watch_raylet(raylet)
                self._slots[name] = slot
                self._selector.register(sock, selectors.EVENT_READ, lambda: self._slot_readable(name, slot))
            case {"hello": "trial", "slot": _, "key": _, "spec": _} as hello:
                self._start(hello, sock)
            case _:  # a look whether somebody listens, or a stranger
                sock.close()

    def _slot_readable(self, name: str, slot: _Slot) -> None:
        if self._slots.get(name) is not slot:
            return  # dropped a moment ago
        messages = receive_lines(slot.sock, slot.buffer)
        if messages is None:
            self._drop(name, slot)
            return
        for message in messages:
            doomed = slot.children.get(message["kill"])
            if doomed is not None:
                _kill(doomed.pid)

    def _drop(self, name: str, slot: _Slot) -> None:
        """A slot is gone: so is what it ran."""
        self._selector.unregister(slot.sock)
        slot.sock.close()
        del self._slots[name]
        for child in slot.children.values():
            _kill(child.pid)

    def _start(self, hello: dict[str, Any], sock: socket.socket) -> None:
        slot = self._slots.get(hello["slot"])
        if slot is None:
            sock.close()
            return
        pid = self._fork_child(hello, sock) if self._fork else self._spawn_child(hello, sock)
        sock.close()
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # the child does it too; whoever is first
        child = _Child(hello["key"], pid, os.pidfd_open(pid), slot)
        slot.children[child.key] = child
        self._trials.add(pid)
        self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._reap(child))
        slot.send({"m": "pid", "key": child.key, "pid": pid})

    def _fork_child(self, hello: dict[str, Any], sock: socket.socket) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        child_main(sock, parent, hello, self._target(hello), self._prepared, close=self._open_fds())
        os._exit(1)

    def _open_fds(self) -> list[int]:
        fds = [self._listener.fileno(), self._poll_fd(), *self._pipe, *self._watched, *self._raylets.values()]
        for slot in self._slots.values():
            fds += [slot.sock.fileno(), *(child.pidfd for child in slot.children.values())]
        return fds

    def _poll_fd(self) -> int:
        assert isinstance(self._selector, selectors.EpollSelector)
        return self._selector.fileno()

    def _target(self, hello: dict[str, Any]) -> Callable[[], Callable[..., Any]]:
        failed = self._failed
        reference = self._spec["test"] if hello.get("test") else self._spec["train"]

        def target() -> Callable[..., Any]:
            if failed is not None:
                raise failed
            function = resolve(reference, self._spec["root"])
            adapter = None if hello.get("test") else self._spec.get("adapter")
            return resolve(adapter, "/")(function) if adapter else function

        return target

    def _spawn_child(self, hello: dict[str, Any], sock: socket.socket) -> int:
        request = {"hello": hello, "spec": self._spec, "fd": sock.fileno(), "parent": os.getpid()}
        process = subprocess.Popen(
            [sys.executable, "-c", "from raytuner.engine.forkserver import spawned; spawned()", json.dumps(request)],
            pass_fds=[sock.fileno()],
            process_group=0,
            # The import that initialises CUDA must see this trial's devices only.
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(hello["spec"]["gpus"])},
        )
        process.returncode = 0  # reaped by _reap, not by Popen
        return process.pid

    def _reap(self, child: _Child) -> None:
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        _kill(child.pid)  # what the trial started and left behind; before the wait, while the number is still its own
        _, status, usage = os.wait4(child.pid, 0)
        self._trials.discard(child.pid)
        child.slot.children.pop(child.key, None)
        code = os.waitstatus_to_exitcode(status)
        self._kill_orphans()
        memory = {"code": code, "max_rss": usage.ru_maxrss * 1024, "no_memory": self._for_want_of_memory(code)}
        child.slot.send({"m": "exit", "key": child.key, **memory})

    def _kill_orphans(self) -> None:
        """Kill what trials left behind that have ended; in sessions of their own, too."""
        others = [self._mps.pid] if self._mps is not None else []
        if self._devices is not None and self._devices.pid is not None:
            others.append(self._devices.pid)
        limit = time.monotonic() + ORPHAN_SECONDS
        while time.monotonic() < limit:
            orphans = _children() - self._trials.union(others)
            if not orphans:
                return
            for pid in orphans:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.002)  # those they had started are ours next

    def _for_want_of_memory(self, code: int) -> bool:
        """Whether a process that ended so was killed by the system, because there was no memory left."""
        before, self._kills = self._kills, memory_kills()
        return code == -signal.SIGKILL and self._kills > before


def _children() -> set[int]:
    """The processes whose parent this one is."""
    with contextlib.suppress(OSError):  # not every kernel has it
        return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
    found = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # ended meanwhile
                after_name = Path(entry.path, "stat").read_text().rpartition(")")[2]
                if int(after_name.split()[1]) == os.getpid():
                    found.add(int(entry.name))
    return found


def memory_kills() -> int:
    """A number that grows when the system kills processes for want of memory, here or in this control group."""
    total = 0
    for file in KILL_COUNTERS:
        with contextlib.suppress(OSError, ValueError, KeyError):
            total += int(dict(line.split() for line in file.read_text().splitlines())["oom_kill"])
    return total


def _greeting(sock: socket.socket) -> Any:
    """The line that a peer sends with its connection, and under ``rest`` what came with it; None if that is no such."""
    sock.settimeout(5.0)  # a peer that stalls here is not one of ours
    data = bytearray()
    try:
        while b"\n" not in data:
            part = sock.recv(65536)
            if not part:
                return None
            data += part
        sock.settimeout(None)
        line, _, rest = bytes(data).partition(b"\n")
        return {**json.loads(line), "rest": rest.decode()}  # a trial may be asked to stop before it starts
    except (OSError, ValueError, TypeError):
        return None


def _kill(pid: int) -> None:
    """Kill the process group of a child that was not waited for yet."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _say(text: str) -> None:
    print(f"raytuner: {text}", file=sys.stderr, flush=True)  # noqa: T201 - the server's own log


def _warm_torch() -> None:
    """Train, save and load something: what is imported late or set up on first use (torch's optimizers import a
    compiler, 2 s) is then there in every trial.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return
    # With devices about, a backward pass starts a thread for each, and a step asks CUDA: neither survives a fork.
    whole_steps = not torch.cuda.is_available()
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))
    x, y = torch.zeros(4, 8), torch.zeros(4, dtype=torch.long)
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        optimizer = kind(model.parameters(), lr=0.0)  # which is what imports the compiler
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        if whole_steps:
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        model.eval()(x).argmax(1)
    saved = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    saved.seek(0)
    torch.load(saved, map_location="cpu", weights_only=False)


def _set_up(spec: dict[str, Any]) -> None:
    sys.path[:0] = [p for p in spec["sys_path"] if p not in sys.path[: len(spec["sys_path"])]]
    ctypes.CDLL(None).prctl(PR_SET_NAME, b"raytuner-server", 0, 0, 0)


def spawned() -> None:
    """The entry of a fresh interpreter that runs one attempt (where forking is not possible)."""
    request = json.loads(sys.argv[1])
    die_with_parent(request["parent"])
    spec = request["spec"]
    _set_up(spec)
    server = Server.__new__(Server)
    server._spec, server._failed, server._prepared = spec, None, None
    try:
        prepare = getattr(load_module(spec["train"], spec["root"]), "prepare", None)
        server._prepared = prepare() if callable(prepare) else None
    except BaseException as error:
        server._failed = error
    sock = socket.socket(fileno=request["fd"])
    hello = request["hello"]
    child_main(sock, request["parent"], hello, server._target(hello), server._prepared)


def main() -> None:
    """``python -m raytuner.engine.forkserver SPEC`` with the spec as JSON."""
    spec = json.loads(sys.argv[1])
    _set_up(spec)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what Ctrl-C means
    adopt_orphans()
    server = Server(spec)
    server.warm()
    server.serve()


if __name__ == "__main__":
    main()
