"""Requests from another shell to a running driver: small files in the experiment's folder."""

from __future__ import annotations

import json
import os
import time

from raytuner.errors import JournalError
from raytuner.journal import Folder, Lock, replay

__all__ = ["request_stop"]

WAIT_SECONDS = 10.0


def request_stop(folder: Folder, trial: str | None) -> str:
    """Ask the driver to stop the experiment, or one trial; returns what to tell the user once it has been taken up.

    Raises JournalError when no driver is at work, or the trial is not running.
    """
    if not Lock(folder).held_by_other():
        raise JournalError(f"{folder.path}: no driver is at work on this experiment; there is nothing to stop")
    if trial is not None:
        trial = trial.zfill(6)
        state = replay(folder, history=False).trials.get(trial)
        if state is None or state.ended:
            what = f"is {state.status}" if state is not None else "does not exist"
            raise JournalError(f"{folder.path}: only a running trial can be stopped, and {trial} {what}")
    folder.control.mkdir(exist_ok=True)
    name = f"{time.time_ns()}-{os.getpid()}"
    temporary, request = folder.path / f".{name}", folder.control / f"{name}.json"
    temporary.write_text(json.dumps({"stop": trial}))
    temporary.rename(request)
    limit = time.monotonic() + WAIT_SECONDS
    while request.exists():
        if time.monotonic() > limit:
            return "the driver has not taken the request up yet; it will when it next looks"
        time.sleep(0.05)
    return f"trial {trial} is being stopped" if trial else "the experiment is being stopped"
