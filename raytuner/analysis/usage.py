"""What became of the devices' time, and what they are doing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raytuner.journal import ExperimentState

__all__ = ["usage", "usage_lines"]

SHOWN = 8
"""Devices that are listed one by one."""
GIB = 2**30


def usage(state: ExperimentState) -> dict[str, Any] | None:
    """Device-seconds (``total``, ``busy``, and ``idle`` by reason), ``gpu_hours``, the ``devices`` and
    ``trials_an_hour``; None before anything was recorded.
    """
    found = state.usage
    if found is None or found.total <= 0:
        return None
    parts = {
        "gpu_hours": state.gpu_hours,
        "unit": found.unit,
        "total": found.total,
        "busy": found.busy,
        "idle": found.idle,
    }
    return {**parts, "devices": found.devices, "trials_an_hour": state.trials_an_hour}


def usage_lines(found: Mapping[str, Any] | None) -> list[str]:
    """A line on the time, ``93% of the GPUs' time used, idle 42 s for start-up; 340 trials an hour``, and one on the
    devices that were seen.
    """
    if found is None:
        return []
    idle = sorted(found["idle"].items(), key=lambda item: -item[1])
    named = [f"{seconds:,.0f} s for {reason}" for reason, seconds in idle if seconds >= 0.5]
    line = f"{found['busy'] / found['total']:.0%} of the {found['unit']}s' time used"
    line += f", idle {', '.join(named)}" if named else ""
    hours = f"; {found['gpu_hours']:,.2f} GPU-hours" if found["gpu_hours"] else ""
    lines = [f"{line}; {found['trials_an_hour']:,.0f} trials an hour{hours}"]
    several = len({device["node"] for device in found["devices"]}) > 1
    devices = [
        f"{device['node'] + '/' if several else ''}{device['gpu']}: {device['use']:.0%}, "
        f"{device['memory'] / GIB:.0f}/{device['total'] / GIB:.0f} GiB"
        for device in found["devices"][:SHOWN]
    ]
    if devices:
        more = len(found["devices"]) - len(devices)
        lines.append("GPU " + "  ".join(devices) + (f"  and {more} more" if more else ""))
    return lines
