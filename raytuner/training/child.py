"""The process of one attempt: its files, its devices, its signals; then the attempt itself."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from raytuner.training.attempt import describe_error, run_attempt, run_test
from raytuner.training.channel import ChannelClosed, SocketChannel
from raytuner.training.devices import limit_memory
from raytuner.training.trial import TrialSpec

__all__ = ["adopt_orphans", "child_main", "die_with_parent"]

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(parent: int) -> None:
    """Have the system kill this process when its parent ends, or exit now if it has ended already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Have the system make this process the parent of what its descendants leave behind, whatever session it is in."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def child_main(
    sock: socket.socket,
    parent: int,
    request: dict[str, Any],
    target: Callable[[], Callable[..., Any]],
    prepared: Any,
    close: Iterable[int] = (),
) -> None:
    """Run the attempt that ``request`` describes and leave the process; never returns.

    ``target`` gives the function to call, or raises what importing the user's module raised.
    """
    code = 1
    try:
        die_with_parent(parent)
        os.setpgid(0, 0)  # so that whatever the trial starts can be killed with it
        adopt_orphans()  # so that as long as it lives the server's orphans are those of trials that don't
        for fd in close:
            with suppress(OSError):
                os.close(fd)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for name in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(name, signal.SIG_DFL)
        channel = SocketChannel(sock, request["rest"].encode())
        end = _attempt(channel, request, target, prepared)
        ended = time.time()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        channel.send({"m": "end", "at": ended, **end})
        code = 0 if end["error"] is None else 1
    except ChannelClosed:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        # Not sys.exit: what the server had registered to run at its exit is not the trial's to run.
        os._exit(code)


def _attempt(
    channel: SocketChannel, request: dict[str, Any], target: Callable[[], Callable[..., Any]], prepared: Any
) -> dict[str, Any]:
    spec = TrialSpec.from_dict(request["spec"])
    try:
        _redirect(spec.logs)
    except OSError as error:
        return _failed(error, f"{spec.logs}: the trial's folder must be writable: {error}")
    _devices(spec)
    try:
        function = target()
    except BaseException as error:
        end = _failed(error, "importing the training module failed")
        end["reason"] += f": {end['error']['message']}"
        end["error"]["kind"] = "import"
    else:
        end = (run_test if request.get("test") else run_attempt)(spec, channel, function, prepared)
    if end["error"] is not None:
        with suppress(OSError):  # what failed may be the writing of logs
            print(end["error"]["traceback"] or end["error"]["message"], file=sys.stderr)  # noqa: T201 - its own log
    return end


def _failed(error: BaseException, reason: str) -> dict[str, Any]:
    return {"status": "failed", "reason": reason, "step": 0, "metrics": {}, "error": describe_error(error)}


def _redirect(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for fd, name in ((1, "stdout.log"), (2, "stderr.log")):
        file = os.open(folder / name, flags, 0o644)
        os.dup2(file, fd)
        os.close(file)
    with suppress(OSError):
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
    # A fork inherits what the server's streams buffered; the trial writes line by line, so that a log can be followed.
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 - as above


def _devices(spec: TrialSpec) -> None:
    # An empty string hides every device: a trial that asked for none must not take one.
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(spec.gpus)
    if spec.gpus:
        limit_memory(spec.gpu)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(max(1, int(spec.cpus)))
