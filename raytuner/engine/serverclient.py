"""The slot's (and the driver's) side of the warm process server: start it once a node, talk to it."""

from __future__ import annotations

import fcntl
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raytuner.engine.guard import MARK
from raytuner.errors import TrialError
from raytuner.training.channel import receive_lines

__all__ = ["Process", "ServerClient", "ServerSpec", "ensure_server"]


@dataclass(frozen=True)
class ServerSpec:
    """What a node needs to start a server of an experiment; plain data."""

    key: str
    """Names the server: random, one a driver."""
    root: str
    train: str
    test: str | None = None
    adapter: str | None = None
    """A function of ours that turns the user's into a training function of ours, such as for Ray Tune functions."""
    sys_path: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    """Modules that every trial needs, whatever the user's module imports."""
    mps: bool = False
    """Whether trials share GPUs through CUDA's multi-process service, where the node has it."""
    devices: bool = False
    """Whether the node's GPUs are looked at now and then."""
    env: Mapping[str, str] = field(default_factory=dict)
    log: str = ""

    @property
    def socket(self) -> Path:
        folder = Path(tempfile.gettempdir()) / f"raytuner-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"{self.key}.sock"


def _connect(path: Path) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    return sock


def ensure_server(
    spec: ServerSpec, *, watch: list[int], linger: float, detached: bool = False
) -> subprocess.Popen[bytes] | None:
    """Start the node's server unless it listens already; returns its process if it was started here.

    ``watch``: processes whose end ends the server. ``linger``: seconds that it stays without slots. ``detached``: as
    nobody's child, since Ray kills those of an actor with it, and other slots need the server; then None is returned.
    Raises TrialError when it cannot be started.
    """
    path = spec.socket
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        probe = _connect(path)
        if probe is not None:
            probe.close()
            return None
        request = {
            "socket": str(path),
            "root": spec.root,
            "train": spec.train,
            "test": spec.test,
            "adapter": spec.adapter,
            "sys_path": list(spec.sys_path),
            "preload": list(spec.preload),
            "mps": spec.mps,
            "devices": spec.devices,
            "watch": watch,
            "linger": linger,
        }
        log = Path(spec.log)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "raytuner.engine.forkserver", json.dumps(request)]
        process = None
        with suppress(ProcessLookupError):  # it has ended at once
            env = {**os.environ, **spec.env}
            env.pop(MARK, None)  # it ends its trials, and what they started, before itself
            process, pidfd = (_start_detached if detached else _start)(command, env, log)
            try:
                while not select.select([pidfd], [], [], 0.01)[0]:
                    probe = _connect(path)
                    if probe is not None:
                        probe.close()
                        return process
            finally:
                os.close(pidfd)
        tail = log.read_text(errors="replace")[-2000:]
        raise TrialError(f"the process server could not start on {socket.gethostname()}:\n{tail}")


def _start(command: list[str], env: dict[str, str], log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start a server; its process, and a file descriptor that can be read once it has ended."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # the terminal's Ctrl-C is for the driver alone
        )
    return process, os.pidfd_open(process.pid)


def _start_detached(command: list[str], env: dict[str, str], log: Path) -> tuple[None, int]:
    """The same as nobody's child."""
    with log.open("ab") as output:
        said = subprocess.run(
            ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *command],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            start_new_session=True,
            check=True,
        )
    return None, os.pidfd_open(int(said.stdout))


@dataclass(eq=False)
class Process:
    """One attempt's process, as the slot sees it."""

    key: str
    sock: socket.socket
    pid: int = 0
    buffer: bytearray = field(default_factory=bytearray)

    def send(self, message: dict[str, Any]) -> None:
        """Answer the trial; a trial that is gone meanwhile needs no answer."""
        try:
            self.sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return


class ServerClient:
    """A slot's connection to its node's server, which is started when it is not there, and again if it dies."""

    def __init__(self, spec: ServerSpec, *, linger: float = 10.0) -> None:
        self._spec = spec
        self._linger = linger
        self._name = f"{os.getpid()}-{os.urandom(4).hex()}"
        self._control: socket.socket | None = None
        self._buffer = bytearray()
        self._selector = selectors.DefaultSelector()

    def start(self, key: str, spec: dict[str, Any], *, test: bool = False) -> Process:
        """Start the process of an attempt. It is on its way when this returns; ``wait`` tells what it says.

        Raises TrialError where the experiment's folder is not there, or no server can be started.
        """
        if not Path(self._spec.root).is_dir():  # before a server makes the folder above it, for its log
            raise TrialError(
                f"storage: the node {socket.gethostname()} does not see the experiment's folder, there is no "
                f"{self._spec.root}; name a folder that all nodes share, or an object store (s3://bucket/folder)"
            )
        for _ in range(3):
            try:
                self._open()
                sock = _connect(self._spec.socket)
                if sock is not None:
                    hello = {"hello": "trial", "slot": self._name, "key": key, "spec": spec, "test": test}
                    sock.sendall(json.dumps(hello).encode() + b"\n")
                    process = Process(key, sock)
                    self._selector.register(sock, selectors.EVENT_READ, process)
                    return process
            except OSError:
                pass
            self.close()
        raise TrialError(f"the process server on {socket.gethostname()} does not answer; see {self._spec.log}")

    def _open(self) -> None:
        if self._control is not None:
            return
        raylet = os.getppid()
        ensure_server(self._spec, watch=[], linger=self._linger, detached=True)
        control = _connect(self._spec.socket)
        if control is None:
            raise ConnectionRefusedError
        control.sendall(json.dumps({"hello": "slot", "slot": self._name, "raylet": raylet}).encode() + b"\n")
        self._control = control
        self._buffer = bytearray()
        self._selector.register(control, selectors.EVENT_READ, None)

    def wait(self, process: Process, timeout: float | None) -> list[dict[str, Any]]:
        """What the process and the server say within ``timeout`` seconds (None: no limit); returns with the first.

        A message ``{"m": "exit", "code": ...}`` is the server's: the process has ended. A server that dies takes its
        trials along, and what they had started is killed here: that is ``{"m": "exit", "code": None}``.
        """
        messages: list[dict[str, Any]] = []
        for key, _ in self._selector.select(timeout):
            if key.data is process:
                received = receive_lines(process.sock, process.buffer)
                if received is None:
                    self._selector.unregister(process.sock)
                else:
                    messages += received
        # The server's word comes after the process' own: an exit must not hide what was said before it.
        if self._control is None:
            return messages
        self._control.setblocking(False)
        said = receive_lines(self._control, self._buffer)
        self._control.setblocking(True)
        if said is None:
            self.close()
            if process.pid:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
            return [*messages, {"m": "exit", "key": process.key, "code": None}]
        for message in said:
            if message["m"] == "devices":
                messages.append(message)
                continue
            if message["key"] != process.key:
                continue
            if message["m"] == "pid":
                process.pid = message["pid"]
            else:
                messages += self._drain(process)
                messages.append(message)
        return messages

    def _drain(self, process: Process) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        process.sock.setblocking(False)
        while True:
            before = len(process.buffer)
            received = receive_lines(process.sock, process.buffer)
            if received is None or (not received and len(process.buffer) == before):
                return messages
            messages += received

    def wake_with(self, fd: int) -> None:
        """Let ``wait`` return when ``fd`` becomes readable."""
        self._selector.register(fd, selectors.EVENT_READ, "wake")

    def kill(self, process: Process) -> None:
        """Kill the process and all that it started. Its ``exit`` message follows."""
        if self._control is not None:
            try:
                self._control.sendall(json.dumps({"kill": process.key}).encode() + b"\n")
            except OSError:
                self.close()

    def forget(self, process: Process) -> None:
        """Close this side of an attempt that has ended."""
        with suppress(KeyError):
            self._selector.unregister(process.sock)
        process.sock.close()

    def close(self) -> None:
        """Leave the server; it kills what this slot still runs."""
        if self._control is not None:
            self._selector.unregister(self._control)
            self._control.close()
            self._control = None
