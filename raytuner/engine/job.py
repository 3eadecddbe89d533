"""What travels to the slots: plain and small, and without an import of Ray Tune at the other end."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from raytuner.engine.control import ControlAddress
from raytuner.engine.serverclient import ServerSpec

__all__ = ["NoStorage", "SlotConfig", "SlotJob"]


@dataclass(frozen=True)
class SlotJob:
    """What all slots of an experiment share; plain data."""

    server: ServerSpec
    control: ControlAddress
    isolation: str = "process"
    step_timeout: float | None = None
    storage: str | None = None
    """The experiment's address in an object store; None where its folder is one that all nodes share."""
    folder: str = ""
    """The experiment's folder on every node."""

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> SlotJob:
        data = json.loads(text)
        server = data.pop("server")
        server.update({name: tuple(server[name]) for name in ("sys_path", "preload")})
        return cls(server=ServerSpec(**server), control=ControlAddress(**data.pop("control")), **data)


class SlotConfig(dict[str, Any]):
    """A slot's config: ``job`` and ``attempt``, both strings. What Ray Tune adds is dropped: a slot has no use for it,
    and would import all of Ray Tune to read it, a second and 150 MB a slot.
    """

    def __setitem__(self, key: str, value: Any) -> None:
        if key in ("job", "attempt"):
            super().__setitem__(key, value)


class NoStorage:
    """Stands in for Ray Tune's storage of a trial: nothing of ours is kept there."""

    trial_dir_name = experiment_dir_name = "slot"
    trial_driver_staging_path = trial_fs_path = experiment_driver_staging_path = experiment_fs_path = "/nonexistent"
