"""Signals that ask for the driver's end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from raytuner.engine.runner import Interrupt


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_ray_does_not_take_sigterm_while_it_comes_up() -> None:
    interrupt = Interrupt()
    interrupt.install()
    left: list[int] = []
    with interrupt.in_front():
        signal.signal(signal.SIGTERM, lambda number, frame: left.append(number))  # as Ray does
        os.kill(os.getpid(), signal.SIGTERM)
    assert (interrupt.reason, left) == ("SIGTERM", [])
    signal.signal(signal.SIGTERM, lambda number, frame: left.append(number))
    os.kill(os.getpid(), signal.SIGTERM)
    assert left == [signal.SIGTERM], "afterwards everything is as ever"


def test_ray_itself_does_not() -> None:
    """Its own start, in a process of its own: what SIGTERM does afterwards is what it did before."""
    program = """
import signal
from raytuner.engine.runner import Interrupt, quiet_ray
interrupt = Interrupt()
interrupt.install()
before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
quiet_ray()
import ray
with interrupt.in_front():
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
print((signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "True\n"
