"""What all slots of an experiment share, as one string in their config."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from raytuner.engine.control import ControlAddress
from raytuner.engine.serverclient import ServerSpec

__all__ = ["SlotJob"]


@dataclass(frozen=True)
class SlotJob:
    """What all slots of an experiment share; plain data."""

    server: ServerSpec
    control: ControlAddress
    isolation: str = "process"
    step_timeout: float | None = None

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> SlotJob:
        data = json.loads(text)
        server = data.pop("server")
        server["sys_path"] = tuple(server["sys_path"])
        return cls(server=ServerSpec(**server), control=ControlAddress(**data.pop("control")), **data)
