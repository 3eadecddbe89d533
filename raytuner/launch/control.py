"""Requests from another shell to a running driver: small files in the experiment's folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from raytuner.errors import JournalError
from raytuner.journal import Folder, Lock, replay
from raytuner.storage import ObjectStore

__all__ = ["request_stop", "request_trial"]

WAIT_SECONDS = 10.0
LOOK_SECONDS, LOOK_REMOTE_SECONDS = 0.05, 0.5
NOT_YET = "the driver has not taken the request up yet; it will when it next looks"
TOO_LATE = "the driver was ending already, and has not taken it up; what goes on with the experiment next tries it"


def request_stop(folder: Folder, trial: str | None) -> str:
    """Ask the driver to stop the experiment, or one trial; returns what to tell the user once it has been taken up.

    Raises JournalError when no driver is at work, or the trial is not running.
    """
    if not Lock(folder).held_by_other():
        raise JournalError(f"{folder.where}: no driver is at work on this experiment; there is nothing to stop")
    if trial is not None:
        trial = trial.zfill(6)
        state = replay(folder, history=False).trials.get(trial)
        if state is None or state.ended:
            what = f"is {state.status}" if state is not None else "does not exist"
            raise JournalError(f"{folder.where}: only a trial that has not ended can be stopped, and {trial} {what}")
    if _request(folder, {"stop": trial}):
        return f"trial {trial} is being stopped" if trial else "the experiment is being stopped"
    return f"{folder.where}: the experiment has ended by itself" if _is_over(folder) else NOT_YET


def request_trial(folder: Folder, config: Mapping[str, Any]) -> str:
    """Ask the driver to try a configuration, which must lie in the space; returns what to tell the user."""
    if _request(folder, {"enqueue": config}):
        return "it is tried next"
    return TOO_LATE if _is_over(folder) else NOT_YET


def _is_over(folder: Folder) -> bool:
    """Whether the driver has come to its end, or is gone."""
    return replay(folder, history=False).status != "running" or not Lock(folder).held_by_other()


def _request(folder: Folder, request: dict[str, Any]) -> bool:
    """Put a request down, and wait until the driver has taken it up; False if it has not after a while."""
    name = f"{time.time_ns()}-{os.getpid()}"
    remote = None if Lock(folder).held_here() else folder.remote
    if remote is not None:
        store, key = ObjectStore(remote), f"control/{name}.json"
        store.write(key, json.dumps(request).encode())
        return _wait_until(lambda: store.read(key) is None, LOOK_REMOTE_SECONDS)
    folder.control.mkdir(exist_ok=True)
    temporary, file = folder.path / f".{name}", folder.control / f"{name}.json"
    temporary.write_text(json.dumps(request))
    temporary.rename(file)
    return _wait_until(lambda: not file.exists(), LOOK_SECONDS)


def _wait_until(done: Callable[[], bool], pause: float) -> bool:
    limit = time.monotonic() + WAIT_SECONDS
    while not done():
        if time.monotonic() > limit:
            return False
        time.sleep(pause)
    return True
