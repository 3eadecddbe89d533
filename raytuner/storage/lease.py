"""Who works on an experiment in a store: a claim that its holder renews, and that lapses when he does not.

A claim is an object of its own for each who makes one, ``lock/<random>.json``. Who wants to hold the lease writes his
claim and then lists all; if another's is alive he takes his own back. As a store lists what was written before, of two
who do so at the same time the later one sees both: so both may give way, and never do both hold it. Times are
the store's own (when each claim was written), so clocks need not agree.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from raytuner.errors import JournalError
from raytuner.storage.objects import ObjectStore

__all__ = ["Lease"]

LAPSE_SECONDS = 60.0
"""A claim that was not renewed for so long is nobody's."""
RENEW_SECONDS = 10.0
LOOK_SECONDS = 2.0
TIES = 5


def _now() -> float:
    """Seconds that go on while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()


def _machine() -> str:
    """This machine since it was last started."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


class Lease:
    """The right to work on the experiment in a store. ``folder``: the working folder, whose own lock is held."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self._store = store
        self._key = f"lock/{secrets.token_hex(8)}.json"
        self._about = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "machine": _machine(),
            "folder": str(folder),
        }
        self._renewed = 0.0

    @staticmethod
    def holder(store: ObjectStore, folder: Path) -> str | None:
        """Who works on it elsewhere, for a person; None when nobody does. By this machine's clock, within a minute.

        folder: the working folder here, whose own lock nobody holds.
        """
        for key, entry in store.below("lock").items():
            if time.time() - entry.written < LAPSE_SECONDS:
                data = store.read(key)
                about = json.loads(data) if data is not None else None
                if about is not None and (about["machine"], about["folder"]) != (_machine(), str(folder)):
                    return _name(about)
        return None

    def acquire(
        self, say: Callable[[str], None] = lambda text: None, keep_waiting: Callable[[], bool] = lambda: True
    ) -> None:
        """Take the lease; a holder who may be dead is waited for, until his claim lapses, and that is said.

        Raises JournalError that names the holder, once he has shown that he is alive, or there is no more waiting.
        """
        seen: dict[str, float] = {}
        for _ in range(TIES):
            others, wait = self._claim()
            if not others:
                return
            if not seen:
                who = self._who(next(iter(others)))
                say(f"{who} may still be at work on it: waiting up to {wait:.0f} s for a sign of life")
            limit = time.monotonic() + wait
            while others and time.monotonic() < limit:
                for key, written in others.items():
                    if seen.setdefault(key, written) != written:
                        self._refuse(key)
                if not keep_waiting():
                    self._refuse(next(iter(others)))
                time.sleep(LOOK_SECONDS)
                others = {key: written for key, written in self._others().items() if key in others}
            time.sleep(random.random())
        raise JournalError(f"{self._store.address}: others want to work on this experiment, too; try again")

    def _claim(self) -> tuple[dict[str, float], float]:
        """Write the claim. The living claims of others, for whom it is taken back, and the seconds until they have
        lapsed if they are not renewed; none: it is held.
        """
        began = _now()
        self._write()
        entries = self._store.below("lock")
        others = self._others()
        if not others:
            self._renewed = began
            return {}, 0.0
        self._store.remove([self._key])
        own = entries[self._key].written if self._key in entries else time.time()
        return others, max(others.values()) + LAPSE_SECONDS - own + 2.0

    def _others(self) -> dict[str, float]:
        """When each claim was written that may be alive; by the store's clock, where our own claim tells it."""
        entries = self._store.below("lock")
        own = entries.pop(self._key, None)
        living: dict[str, float] = {}
        for key, entry in entries.items():
            if own is not None and own.written - entry.written > LAPSE_SECONDS:
                self._store.remove([key])
                continue
            data = self._store.read(key)
            if data is None:
                continue
            about = json.loads(data)
            if about["machine"] == self._about["machine"] and about["folder"] == self._about["folder"]:
                self._store.remove([key])  # whoever it was held this folder's lock, which is ours now
                continue
            living[key] = entry.written
        return living

    def _refuse(self, key: str) -> None:
        raise JournalError(
            f"{self._store.address}: only one driver at a time may work on an experiment, and {self._who(key)} does; "
            "wait for it, or stop it with `raytuner stop`"
        )

    def _who(self, key: str) -> str:
        data = self._store.read(key)
        return _name(json.loads(data)) if data is not None else "another process"

    def _write(self) -> None:
        self._store.write(self._key, json.dumps(self._about).encode())

    def renew(self) -> bool:
        """Show that the holder is alive, where it is time to; False when the lease is somebody else's meanwhile."""
        now = _now()
        if now - self._renewed < RENEW_SECONDS:
            return True
        if now - self._renewed > LAPSE_SECONDS / 2 and self._others():
            return False
        self._write()
        self._renewed = now
        return True

    def release(self) -> None:
        """Give it back. Nothing happens where it cannot be: it lapses."""
        with suppress(Exception):
            self._store.remove([self._key])


def _name(about: dict[str, Any]) -> str:
    return f"process {about['process']} on {about['host']}"
