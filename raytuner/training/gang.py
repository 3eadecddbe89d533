"""The processes that train one trial together, as one of them sees the others.

Rank 0 leads: it alone talks to the controller and writes checkpoints. At the head of each step the others follow it:
they give it their part of a checkpoint when it writes one, and go on or stop when it does.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from raytuner.errors import ReportError

if TYPE_CHECKING:
    from raytuner.training.channel import Channel
    from raytuner.training.trial import TrialSpec

__all__ = ["Alone", "Gang", "join", "join_alone"]

JOIN_TIME = timedelta(minutes=10)
"""How long to wait for the other ranks to begin: their nodes may still be importing."""
WAIT_TIME = timedelta(days=30)
"""How long a rank waits for another at the head of a step: as long as it takes. Who dies, ends the gang otherwise."""
ALIKE = "every rank must go through the same steps and calls"
SIOCGIFADDR = 0x8915
OPS: dict[str, Callable[[list[float]], float]] = {
    "mean": lambda values: sum(values) / len(values),
    "sum": sum,
    "min": min,
    "max": max,
}


class Alone:
    """A trial of one process."""

    rank = 0
    size = 1
    returned: int | None = None
    """The step after which this rank's function has returned; None while it trains."""

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks in their order; empty on others than rank 0."""
        return [value]

    def collect(self, value: Any) -> list[Any]:
        """The values of all ranks in their order, on every rank."""
        return [value]

    def reduce(self, metrics: Mapping[str, float], op: str) -> dict[str, float]:
        """Each metric over all ranks. Raises ReportError for an unknown ``op``, and for ranks that have other names."""
        if op not in OPS:
            raise ReportError(f"trial.reduce(): op must be one of {', '.join(OPS)}, got {op!r}")
        parts: list[Mapping[str, float]] = self.collect(dict(metrics))
        for rank, part in enumerate(parts):
            if set(part) != set(parts[0]):
                raise ReportError(
                    f"trial.reduce(): every rank must give the same metrics, got {sorted(parts[0])} from rank 0 and "
                    f"{sorted(part)} from rank {rank}"
                )
        return {name: OPS[op]([float(part[name]) for part in parts]) for name in metrics}


class Gang(Alone):
    """A trial of several processes, joined in torch's default process group.

    What the trial itself has to agree on goes over a group of its own, on the CPUs, and so never mixes with the
    user's collectives. Its calls are collective: every rank must make the same ones in the same order.
    """

    def __init__(self, rank: int, size: int) -> None:
        import torch.distributed as dist

        self.rank, self.size = rank, size
        self._dist = dist
        self._group = dist.new_group(backend="gloo", timeout=WAIT_TIME)

    def share(self, value: Any) -> Any:
        return self._exchange("share", value if self.rank == 0 else None)[0]

    def gather(self, value: Any) -> list[Any]:
        parts = self._exchange("gather", value)
        return parts if self.rank == 0 else []

    def collect(self, value: Any) -> list[Any]:
        return self._exchange("collect", value)

    def _exchange(self, call: str, value: Any) -> list[Any]:
        """The values of all ranks. One collective for all calls: ranks that have come apart, which would wait for each
        other for ever, learn of it.
        """
        parts: list[Any] = [None] * self.size
        self._dist.all_gather_object(parts, (call, self.returned, value), group=self._group)
        calls, returned, values = zip(*parts, strict=True)
        left = [rank for rank, step in enumerate(returned) if step is not None]
        if 0 < len(left) < self.size:
            others = ", ".join(f"rank {rank}" for rank in range(self.size) if rank not in left)
            raise ReportError(f"rank {left[0]} returned after step {returned[left[0]]}, {others} went on; {ALIKE}")
        if len(set(calls)) > 1:
            odd = next(rank for rank, other in enumerate(calls) if other != calls[0])
            raise ReportError(f"rank {odd} is not where rank 0 is: one of them calls trial.reduce(); {ALIKE}")
        return list(values)


def join(spec: TrialSpec, channel: Channel) -> Alone:
    """Join the other ranks of the trial, if it has any: sets up torch's default process group, NCCL where each rank
    has GPUs of its own and gloo elsewhere, and the variables that other libraries look for (``RANK``, ``MASTER_PORT``).

    Rank 0 says over its channel at which port it waits; the others are started with it.
    """
    if spec.world_size == 1:
        return Alone()
    import torch
    import torch.distributed as dist

    interface = interface_of(spec.address)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    host, _, port = spec.meet.rpartition(":")
    leads = spec.rank == 0
    store = dist.TCPStore(  # type: ignore[attr-defined]  # it is not in its __all__
        spec.address if leads else host,
        0 if leads else int(port),
        spec.world_size,
        is_master=leads,
        timeout=JOIN_TIME,
        wait_for_workers=False,
    )
    if leads:
        channel.send({"m": "meet", "at": f"{spec.address}:{store.port}"})
    os.environ.update(
        {
            "MASTER_ADDR": spec.address if leads else host,
            "MASTER_PORT": str(store.port),
            "RANK": str(spec.rank),
            "WORLD_SIZE": str(spec.world_size),
            "LOCAL_RANK": "0",  # each process sees its own devices only
        }
    )
    own_gpus = bool(spec.gpus) and torch.cuda.is_available() and spec.gpu >= 1
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if own_gpus else "gloo",  # NCCL refuses two ranks on one device
        store=store,
        rank=spec.rank,
        world_size=spec.world_size,
    )
    return Gang(spec.rank, spec.world_size)


def join_alone() -> None:
    """Set torch's default process group up for this process alone, for code that takes there to be one."""
    import torch.distributed as dist

    os.environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]  # it is not in its __all__
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)


def interface_of(address: str) -> str | None:
    """The network interface that has this IPv4 address, if one has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(sock, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
