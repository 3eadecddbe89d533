"""The GPU of a trial's process: how much of its memory the process may take, and how much it took."""

from __future__ import annotations

import sys

__all__ = ["CONTEXT_BYTES", "limit_memory", "peak_memory"]

CONTEXT_BYTES = 600_000_000
"""What CUDA itself takes of a device for each process: its context and the kernels that are loaded."""


def limit_memory(share: float) -> None:
    """Have torch fail with an out-of-memory error when this process takes more than ``share`` of its device, CUDA's
    own part counted in. Without torch or a device, nothing.
    """
    if not 0 < share < 1:
        return
    try:
        import torch  # also where the trial would only do so later: then nobody would set its limit
    except ImportError:
        return
    if not torch.cuda.is_available():
        return
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(max(0.01, share - CONTEXT_BYTES / total), 0)


def peak_memory() -> tuple[int, int] | None:
    """The most bytes that torch has held of the device, and the device's; None when it uses none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.max_memory_reserved(0)), int(torch.cuda.get_device_properties(0).total_memory)
