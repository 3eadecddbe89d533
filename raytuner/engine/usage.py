"""What becomes of the devices' time: trained on, or idle, and why."""

from __future__ import annotations

import time
from typing import Any

from raytuner.engine.needs import Books
from raytuner.journal import Usage

__all__ = ["REASONS", "Occupancy"]

RECORD_SECONDS = 10.0
"""How often the account is written down."""
REASONS = ("start-up", "search", "rung", "resources", "disk", "ending")
"""What idle devices wait for: a trial that comes up; the search, which thinks; other trials, at a rung; room for a
larger trial; room on the disk; nothing, as nothing is left to start."""


class Occupancy:
    """Adds up device-seconds from the first trial's start on, of one driver's time."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._busy = self._total = self._busy_recorded = 0.0
        self._idle: dict[str, float] = dict.fromkeys(REASONS, 0.0)
        self._last: float | None = None
        self._recorded = 0.0
        self.devices: dict[str, list[dict[str, Any]]] = {}
        """What each node said last of its GPUs: ``gpu``, ``use`` (0 to 1), ``memory`` and ``total`` (bytes)."""

    def account(self, reason: str, now: float | None = None) -> None:
        """Take in the time since the last call. reason: why nothing starts on what is free."""
        now = time.monotonic() if now is None else now
        if self._last is None:
            self._last = self._recorded = now
        seconds, self._last = now - self._last, now
        books = self._books
        total = books.capacity
        busy, starting = min(books.busy, total), min(books.starting, max(0.0, total - books.busy))
        self._total += seconds * total
        self._busy += seconds * busy
        self._idle["start-up"] += seconds * starting
        self._idle[reason] += seconds * max(0.0, total - busy - starting)

    @property
    def unrecorded(self) -> float:
        """Device-seconds in which trials had the devices, since the account was last written down."""
        return self._busy - self._busy_recorded

    def due(self, *, last: bool = False) -> Usage | None:
        """What is to be recorded now, if something is."""
        if self._last is None or (not last and self._last - self._recorded < RECORD_SECONDS):
            return None
        self._recorded, self._busy_recorded = self._last, self._busy
        idle = {reason: round(seconds, 3) for reason, seconds in self._idle.items() if seconds > 0}
        devices = [{"node": node, **device} for node, found in sorted(self.devices.items()) for device in found]
        return Usage(
            unit=self._books.unit, total=round(self._total, 3), busy=round(self._busy, 3), idle=idle, devices=devices
        )
