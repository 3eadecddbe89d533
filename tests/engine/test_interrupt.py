"""Signals that ask for the driver's end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from raytuner.engine.runner import Interrupt


def test_ray_does_not_take_sigterm_while_it_comes_up() -> None:
    left: list[int] = []
    with Interrupt() as interrupt:
        with interrupt.in_front():
            signal.signal(signal.SIGTERM, lambda number, frame: left.append(number))  # as Ray does
            os.kill(os.getpid(), signal.SIGTERM)
        assert (interrupt.reason, left) == ("SIGTERM", [])
        signal.signal(signal.SIGTERM, lambda number, frame: left.append(number))
        os.kill(os.getpid(), signal.SIGTERM)
        assert left == [signal.SIGTERM], "afterwards everything is as ever"


def test_who_called_the_driver_has_its_signals_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interrupt():
        assert signal.getsignal(signal.SIGINT) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_ray_itself_does_not() -> None:
    """Its own start, in a process of its own: what SIGTERM does afterwards is what it did before."""
    program = """
import signal
from raytuner.engine.runner import Interrupt, quiet_ray
interrupt = Interrupt().__enter__()
before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
quiet_ray()
import ray
with interrupt.in_front():
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
print((signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "True\n"
