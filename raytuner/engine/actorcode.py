"""The user's code in the actor itself, for ``isolation: actor``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from raytuner.engine.serverclient import ServerSpec
from raytuner.training.entry import resolve

__all__ = ["load_in_actor"]


def load_in_actor(server: ServerSpec) -> Callable[[Any], Any]:
    """The training function of ``server``'s experiment, imported into this process."""
    os.environ.update(server.env)
    sys.path[:0] = [path for path in server.sys_path if path not in sys.path]
    function = resolve(server.train, server.root)
    return resolve(server.adapter, "/")(function) if server.adapter else function
