"""Numbers, times and tables as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["count", "duration", "markdown_table", "number", "settings", "value_text"]


def number(value: float | None) -> str:
    """Five significant digits; a dash for what is not there."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if 1e5 <= abs(value) < 1e15 else f"{value:.5g}"


def value_text(value: Any) -> str:
    """A parameter's value: floats with five significant digits, all else as Python writes it."""
    return number(value) if isinstance(value, float) and math.isfinite(value) else str(value)


def settings(config: Mapping[str, Any]) -> str:
    """A configuration in one line: ``lr=0.0031 depth=2``."""
    return " ".join(f"{name}={value_text(value)}" for name, value in config.items())


def duration(seconds: float) -> str:
    """Such as ``0.4 s``, ``42 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def count(amount: int, noun: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{amount} {noun}{'' if amount == 1 else 's'}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> list[str]:
    """The lines of a table; the first ``left`` columns are aligned left, the others right."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    rule = ["---" if index < left else "---:" for index in range(len(head))]
    return [line(head), line(rule), *(line(row) for row in rows)]
