"""A line from the driver to every slot, beside Ray: Ray Tune cannot reach an actor that is busy training.

Over it the driver asks for the end of trials; its own end is seen as the end of the line.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from typing import Any

__all__ = ["ControlAddress", "ControlLine", "ControlServer", "Stop"]


@dataclass(frozen=True)
class Stop:
    """A request to end."""

    reason: str
    by: float | None = None
    """When it must have ended at the latest (seconds since the epoch); None for soon."""


@dataclass(frozen=True)
class ControlAddress:
    """Where the driver listens, and the secret that opens the line; plain data."""

    host: str
    port: int
    secret: str


class ControlServer:
    """The driver's end."""

    def __init__(self, host: str) -> None:
        self._listener = Listener((host, 0), backlog=128)
        address = self._listener.address
        assert isinstance(address, tuple)
        self.address = ControlAddress(host, int(address[1]), secrets.token_hex(16))
        self._lines: list[Connection[Any, Any]] = []
        self._standing: dict[str, Stop] = {}
        self._everything: Stop | None = None
        self._closed = False
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                line = self._listener.accept()
            except OSError:
                time.sleep(0.1)  # too many open files, say: it may pass
                continue
            # One that connects and then says nothing must not keep the others waiting.
            threading.Thread(target=self._admit, args=(line,), name="control-admit", daemon=True).start()

    def _admit(self, line: Connection[Any, Any]) -> None:
        try:
            secret = self.address.secret.encode()
            deliver_challenge(line, secret)
            answer_challenge(line, secret)
        except Exception:  # a caller without the secret is no caller
            line.close()
            return
        with self._lock:
            if self._closed:
                line.close()
                return
            self._lines.append(line)
            if self._everything is not None:
                self._tell(line, None, self._everything)
            for trial, stop in self._standing.items():
                self._tell(line, trial, stop)

    def stop(self, trial: str | None, reason: str, by: float | None = None) -> None:
        """Ask for the end of a trial, of one attempt (``000017-2``), or (with None) of all, now and from now on.

        by: when it must have ended at the latest (seconds since the epoch); soon, by default.
        """
        stop = Stop(reason, by)
        with self._lock:
            if trial is None:
                self._everything = stop
            else:
                self._standing[trial] = stop
            for line in list(self._lines):
                self._tell(line, trial, stop)

    def _tell(self, line: Connection[Any, Any], trial: str | None, stop: Stop) -> None:
        try:
            line.send_bytes(json.dumps({"stop": trial, **asdict(stop)}).encode())
        except OSError:  # the slot is gone; Ray tells the bridge
            with suppress(ValueError):
                self._lines.remove(line)

    def close(self) -> None:
        self._closed = True
        with suppress(OSError):
            socket.create_connection((self.address.host, self.address.port), timeout=1.0).close()  # wakes the thread
        self._listener.close()
        with self._lock:
            for line in self._lines:
                line.close()
            self._lines.clear()


class ControlLine:
    """A slot's end: remembers what was asked, and calls back."""

    def __init__(
        self, address: ControlAddress, on_stop: Callable[[str | None, Stop], None], on_lost: Callable[[], None]
    ) -> None:
        self._connection = Client((address.host, address.port), authkey=address.secret.encode())
        self._on_stop = on_stop
        self._on_lost = on_lost
        self._asked: dict[str | None, Stop] = {}
        self._closed = False
        threading.Thread(target=self._listen, name="control", daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                message = json.loads(self._connection.recv_bytes())
            except (EOFError, OSError):
                self._connection.close()
                if not self._closed:
                    self._on_lost()
                return
            stop = self._asked[message["stop"]] = Stop(message["reason"], message["by"])
            self._on_stop(message["stop"], stop)

    def asked(self, trials: Sequence[str | None]) -> Stop | None:
        """How one of these is to end, if it was asked for already."""
        return next((self._asked[t] for t in trials if t in self._asked), None)

    def close(self) -> None:
        self._closed = True
        with suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)  # which ends the thread's wait, as closing alone does not
