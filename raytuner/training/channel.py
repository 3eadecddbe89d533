"""How a trial talks to whoever runs it: one JSON object a line over a socket."""

from __future__ import annotations

import json
import select
import socket
from typing import Any, Protocol

__all__ = ["Channel", "ChannelClosed", "SocketChannel", "receive_lines"]


class ChannelClosed(BaseException):
    """The other end is gone: nobody wants the trial any more. Not an Exception: user code must not catch it."""


class Channel(Protocol):
    """The trial's end of the conversation."""

    def send(self, message: dict[str, Any]) -> None:
        """Tell something; never waits for an answer."""

    def poll(self) -> dict[str, Any] | None:
        """A request that has arrived, or None; never waits."""

    def wait(self) -> dict[str, Any]:
        """The next request; waits for it."""


def receive_lines(sock: socket.socket, buffer: bytearray) -> list[dict[str, Any]] | None:
    """The messages that one ``recv`` completes (``buffer`` keeps the rest); None when the other end has closed."""
    try:
        data = sock.recv(65536)
    except BlockingIOError:
        return []
    except (ConnectionResetError, BrokenPipeError):
        return None
    return _take_lines(buffer, data) if data else None


def _take_lines(buffer: bytearray, data: bytes) -> list[dict[str, Any]]:
    buffer += data
    *lines, rest = bytes(buffer).split(b"\n")
    buffer[:] = rest
    return [json.loads(line) for line in lines if line]


class SocketChannel:
    """A channel over a connected stream socket. Raises ChannelClosed when the other end is gone."""

    def __init__(self, sock: socket.socket, received: bytes = b"") -> None:
        """received: what was read from the socket already."""
        self._socket = sock
        self._buffer = bytearray()
        self._queue = _take_lines(self._buffer, received)

    def send(self, message: dict[str, Any]) -> None:
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            raise ChannelClosed from None

    def poll(self) -> dict[str, Any] | None:
        if not self._queue and select.select([self._socket], [], [], 0)[0]:
            self._fill()
        return self._queue.pop(0) if self._queue else None

    def wait(self) -> dict[str, Any]:
        while not self._queue:
            self._fill()
        return self._queue.pop(0)

    def _fill(self) -> None:
        messages = receive_lines(self._socket, self._buffer)
        if messages is None:
            raise ChannelClosed
        self._queue += messages
