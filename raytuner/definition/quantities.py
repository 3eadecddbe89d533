"""Durations and sizes as a person writes them: ``1h30m``, ``10GB``."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from raytuner.space import broken_rule

__all__ = ["Duration", "Size", "format_duration", "format_size", "parse_duration", "parse_size"]

_DURATION_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_SIZE_UNITS = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_NUMBER = r"\d+(?:\.\d+)?"
_DURATION = re.compile(rf"(?:({_NUMBER})d)?(?:({_NUMBER})h)?(?:({_NUMBER})m)?(?:({_NUMBER})s)?")
_SIZE = re.compile(rf"({_NUMBER}) ?({'|'.join(_SIZE_UNITS)})")

_DURATION_RULE = "a duration above 0 is needed"
_DURATION_REMEDY = "write it as 45s, 30m, 1h30m or 2d, or as a number of seconds"
_SIZE_RULE = "a size above 0 is needed"
_SIZE_REMEDY = "write it as 500MB, 10GB or 2GiB, or as a whole number of bytes"


def parse_duration(value: object) -> float:
    """Seconds (above 0, finite) from ``"1h30m"`` or a number of seconds.

    Days, hours, minutes and seconds come in this order, each at most once. Raises a pydantic error otherwise.
    """
    seconds = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match and any(match.groups()):
            pairs = zip(match.groups(), _DURATION_UNITS.values(), strict=True)
            seconds = sum(float(number) * unit for number, unit in pairs if number)
    if not (math.isfinite(seconds) and seconds > 0):
        raise broken_rule(_DURATION_RULE, remedy=_DURATION_REMEDY)
    return seconds


def format_duration(seconds: float) -> str:
    """``5400`` as ``1h30m``; parts of a second are kept below one minute only."""
    if seconds < 60:
        return f"{seconds:.3g}s"
    rest, parts = round(seconds), []
    for unit, length in _DURATION_UNITS.items():
        count, rest = divmod(rest, int(length))
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def parse_size(value: object) -> int:
    """Bytes (above 0) from ``"10GB"``, ``"2GiB"`` or a whole number of bytes. Raises a pydantic error otherwise."""
    size = 0
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        size = int(float(match[1]) * _SIZE_UNITS[match[2]])
    if size <= 0:
        raise broken_rule(_SIZE_RULE, remedy=_SIZE_REMEDY)
    return size


def format_size(size: float) -> str:
    """``12300000`` as ``12.3 MB``."""
    for unit, length in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= length:
            return f"{size / length:.3g} {unit}"
    return f"{size:.0f} B"


def _input_schema(pattern: str, examples: list[Any]) -> Any:
    """The JSON Schema of the text form; the number form is added by the annotation."""
    return Annotated[str, Field(pattern=pattern, examples=examples)]


_DurationText = _input_schema(
    rf"^(?=.)({_NUMBER}d)?({_NUMBER}h)?({_NUMBER}m)?({_NUMBER}s)?$".replace("?:", ""), ["30m", "1h30m", "45s", "2d"]
)
_SizeText = _input_schema(rf"^{_SIZE.pattern}$".replace("?:", ""), ["10GB", "500MB", "2GiB"])

Duration = Annotated[
    float,
    BeforeValidator(parse_duration, json_schema_input_type=Annotated[float, Field(gt=0)] | _DurationText),
]
"""Seconds as a float; written as ``30m``, ``1h30m``, ``45s``, ``2d`` or a number of seconds."""

Size = Annotated[
    int,
    BeforeValidator(parse_size, json_schema_input_type=Annotated[int, Field(gt=0)] | _SizeText),
]
"""Bytes as an int; written as ``10GB``, ``500MB``, ``2GiB`` or a whole number of bytes."""
