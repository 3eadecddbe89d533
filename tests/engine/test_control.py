"""The line from the driver to its slots."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import AuthenticationError

import pytest
from host_tools import SOON, wait_until

from raytuner.engine.control import ControlLine, ControlServer, Stop


class Slot:
    def __init__(self, server: ControlServer) -> None:
        self.heard: list[tuple[str | None, str]] = []
        self.lost = 0
        self.line = ControlLine(server.address, lambda trial, reason: self.heard.append((trial, reason)), self.on_lost)

    def on_lost(self) -> None:
        self.lost += 1


@pytest.fixture
def server() -> Iterator[ControlServer]:
    before = set(threading.enumerate())
    made = ControlServer("127.0.0.1")
    yield made
    made.close()
    wait_until(lambda: set(threading.enumerate()) <= before, 2, "no thread is left")


def test_a_request_reaches_every_slot(server: ControlServer) -> None:
    slots = [Slot(server) for _ in range(3)]
    wait_until(lambda: len(server._lines) == 3, 5, "all are connected")
    server.stop("000002-1", "by hand", by=12.5)
    server.stop(None, "the time is up")
    for slot in slots:
        wait_until(lambda slot=slot: len(slot.heard) == 2, 1, "it hears")
        assert slot.heard == [("000002-1", Stop("by hand", by=12.5)), (None, Stop("the time is up"))]
        assert slot.line.asked(("000002", "000002-1")) == Stop("by hand", by=12.5)
        assert slot.line.asked(("000002", "000002-2")) is None
        assert slot.line.asked(("000001", None)) == Stop("the time is up")


def test_a_slot_that_comes_later_hears_of_it_too(server: ControlServer) -> None:
    server.stop("000002", "by hand")
    server.stop(None, "the time is up")
    slot = Slot(server)
    wait_until(lambda: len(slot.heard) == 2, 1, "it hears")
    assert set(slot.heard) == {("000002", Stop("by hand")), (None, Stop("the time is up"))}


def test_the_drivers_end_is_noticed(server: ControlServer) -> None:
    slot, left = Slot(server), Slot(server)
    left.line.close()
    wait_until(lambda: server._lines, 5, "it is connected")
    began = time.monotonic()
    server.close()
    wait_until(lambda: slot.lost == 1, 1, "it knows")
    assert time.monotonic() - began < SOON
    assert left.lost == 0, "who has left by itself has lost nothing"


def test_slots_that_are_gone_are_no_trouble(server: ControlServer) -> None:
    """... neither when something is asked of all, nor for those that come later."""
    for _ in range(3):
        Slot(server).line.close()
    for round_ in range(3):
        server.stop(f"{round_}", "by hand")
        server.stop(None, "all")
    slot = Slot(server)
    wait_until(lambda: len(slot.heard) == 4, 1, "it hears")


def test_only_with_the_secret(server: ControlServer) -> None:
    good = server.address
    with pytest.raises((AuthenticationError, EOFError, OSError)):
        ControlLine(replace(good, secret="0" * 32), lambda *_: None, lambda: None)
    Slot(server)
    assert good.secret not in repr(server)


def test_a_silent_caller_keeps_nobody_out(server: ControlServer) -> None:
    with socket.create_connection((server.address.host, server.address.port)):
        slot = Slot(server)
        server.stop("000001", "by hand")
        wait_until(lambda: slot.heard, SOON, "it hears")
