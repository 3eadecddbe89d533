"""A Ray cluster seen from outside: its dashboard's jobs, over HTTP, with Ray's token."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from raytuner.engine.runner import quiet_ray
from raytuner.engine.token import cluster_token, token_source
from raytuner.errors import LaunchError

__all__ = ["Job", "JobServer"]

CONNECT_SECONDS = 10.0
LOOK_SECONDS = 0.1
AGENT_SECONDS = 60.0
"""How long a cluster that comes up may take until it can start jobs."""
RECONNECT_SECONDS = 60.0
"""How long a lost connection is tried for."""
AGAIN_SECONDS = 1.0
SILENT_SECONDS = 60.0
"""After how long without a word a connection is made anew."""
CLOSE_SECONDS = 2.0
"""How long to wait for the end of a connection that is left."""
NO_AGENT = "No available agent to submit job"
TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    message: str
    metadata: Mapping[str, str]
    started: float
    """Seconds since the epoch."""
    exit_code: int | None = None
    """Of the command, once it has ended by itself."""

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class JobServer:
    """The jobs of the cluster whose dashboard is at an address such as ``http://head:8265``.

    The token of a cluster that asks for one is taken from ``RAY_AUTH_TOKEN``, the file at ``RAY_AUTH_TOKEN_PATH`` or
    ``~/.ray/auth_token``. Raises LaunchError where nothing answers, where what answers is no cluster, or refuses.
    """

    def __init__(self, address: str) -> None:
        quiet_ray()
        self.address = address
        self._headers = _authorization()
        self.ray_version = self._ask_version()
        """The version of Ray that the cluster runs."""
        try:
            from ray.job_submission import JobSubmissionClient

            for name in TALKATIVE:
                logging.getLogger(name).setLevel(logging.ERROR)  # they have set theirs when imported
            self._client = JobSubmissionClient(address, headers=dict(self._headers))
        except (ImportError, RuntimeError, ValueError, ConnectionError) as error:
            raise self._failure(error) from error

    def _ask_version(self) -> str:
        import requests

        try:
            answer = requests.get(
                f"{self.address}/api/version", headers=self._headers, timeout=CONNECT_SECONDS, allow_redirects=False
            )
        except requests.exceptions.RequestException as error:
            raise LaunchError(
                f"{self.address}: the dashboard of a Ray cluster is needed, and nothing answers there "
                f"({self._cause(error)}); check the address, whether the cluster is up, and whether this machine may "
                "reach it (ssh -L or kubectl port-forward, where it is private)"
            ) from error
        if answer.status_code == 401:
            raise LaunchError(
                f"{self.address}: the cluster asks for a token, and none was given; put it in RAY_AUTH_TOKEN, or in a "
                "file at ~/.ray/auth_token or RAY_AUTH_TOKEN_PATH"
            )
        if answer.status_code == 403:
            raise LaunchError(
                f"{self.address}: the cluster refuses the token from {token_source()}; ask whoever runs the "
                "cluster for the one that its nodes have"
            )
        try:
            return str(answer.json()["ray_version"])
        except (ValueError, KeyError, TypeError) as error:
            raise LaunchError(
                f"{self.address}: what answers is not the dashboard of a Ray cluster (HTTP {answer.status_code} for "
                "/api/version); its port is 8265 where nobody chose another"
            ) from error

    def submit(
        self,
        command: str,
        *,
        id: str | None = None,
        folder: Path | None = None,
        pip: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Start a shell command on the head node, in a copy of ``folder``; returns the job's id at once."""
        environment: dict[str, Any] = {"env_vars": dict(env or {})}
        if folder is not None:
            environment["working_dir"] = str(folder)
        if pip is not None:
            environment["pip"] = list(pip)
        limit = time.monotonic() + AGENT_SECONDS
        while True:
            with self._told():
                try:
                    return str(
                        self._client.submit_job(
                            entrypoint=command, submission_id=id, runtime_env=environment, metadata=dict(metadata or {})
                        )
                    )
                except RuntimeError as error:
                    if NO_AGENT not in str(error) or time.monotonic() > limit:
                        raise
            time.sleep(1.0)

    def jobs(self) -> list[Job]:
        """The jobs that the cluster remembers, the newest first."""
        with self._told():
            found = [_job(each) for each in self._client.list_jobs() if each.submission_id]
        return sorted(found, key=lambda job: -job.started)

    def job(self, id: str) -> Job:
        with self._told():
            return _job(self._client.get_job_info(id))

    def wait(self, id: str) -> Job:
        """Wait until a job has ended."""
        while not (job := self.job(id)).ended:
            time.sleep(LOOK_SECONDS)
        return job

    def output(self, id: str) -> str:
        """What a job has printed until now."""
        with self._told():
            return str(self._client.get_job_logs(id))

    def follow(self, id: str) -> Iterator[str]:
        """What a job prints, part by part, until it ends. A connection that is lost is made again.

        Raises LaunchError when that does not succeed for a while; the job goes on all the same.
        """
        shown, reached = 0, time.monotonic()
        while True:
            seen = 0  # every connection tells all from the beginning
            try:
                for part in self._tail(id):
                    seen, reached = seen + len(part), time.monotonic()
                    if seen > shown:
                        yield part[shown - seen :]
                        shown = seen
                if self.job(id).ended:
                    return
            except _dropped() as error:
                if time.monotonic() - reached > RECONNECT_SECONDS:
                    raise LaunchError(
                        f"{self.address}: the connection was lost, and is not there again after "
                        f"{RECONNECT_SECONDS:g} s ({self._cause(error)}); job {id} goes on without it"
                    ) from error
            else:
                reached = time.monotonic()
            time.sleep(LOOK_SECONDS if seen else AGAIN_SECONDS)

    def _tail(self, id: str) -> Iterator[str]:
        """What a job has printed and prints, over one connection, as long as that tells something."""
        told: SimpleQueue[str | Exception | None] = SimpleQueue()
        loop = asyncio.new_event_loop()

        async def listen() -> None:
            parts = self._client.tail_job_logs(id)
            with contextlib.suppress(TimeoutError):
                # A laptop that slept holds a connection of which it will never hear again.
                while (text := await asyncio.wait_for(anext(parts, None), SILENT_SECONDS)) is not None:
                    told.put(text)

        listening = loop.create_task(listen())

        def run() -> None:
            try:
                loop.run_until_complete(listening)
                told.put(None)
            except asyncio.CancelledError:
                pass
            except Exception as error:
                told.put(error)
            finally:
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.close()

        # On a thread of its own: Ctrl-C, raised in the middle of some library's step, would be lost, or leave the loop
        # waiting for ever.
        thread = threading.Thread(target=run, name="follow", daemon=True)
        thread.start()
        try:
            while (said := _next(told)) is not None:
                if isinstance(said, Exception):
                    raise said
                yield said
        finally:
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(listening.cancel)
            thread.join(CLOSE_SECONDS)

    def stop(self, id: str) -> None:
        """End a job's processes: SIGTERM, and SIGKILL a few seconds later."""
        with self._told():
            self._client.stop_job(id)

    def remove(self, id: str) -> None:
        """End a job, and forget it; what goes wrong with that is left to the cluster."""
        with contextlib.suppress(LaunchError):
            self.stop(id)
            self.wait(id)
            with self._told():
                self._client.delete_job(id)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (TimeoutError, OSError, RuntimeError, ValueError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> LaunchError:
        if isinstance(error, ImportError) or "ray[default]" in str(error):
            return LaunchError('clusters need more of Ray than is installed here; pip install "raytuner[cluster]"')
        return LaunchError(f"{self.address}: the cluster did not do what was asked of it: {self._cause(error)}")

    def _cause(self, error: BaseException) -> str:
        """Why it went wrong: HTTP libraries may quote a header, and thus the token."""
        cause = _cause(error)
        for value in self._headers.values():
            cause = cause.replace(value, "***").replace(value.removeprefix("Bearer "), "***")
        return cause


def _next(told: SimpleQueue[str | Exception | None]) -> str | Exception | None:
    """What is told next; Ctrl-C is seen meanwhile, whichever thread the system hands it to."""
    while True:
        with contextlib.suppress(Empty):
            return told.get(timeout=LOOK_SECONDS)


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id,
        status=str(details.status.value),
        message=details.message or "",
        metadata=details.metadata or {},
        started=(details.start_time or 0) / 1000,
        exit_code=details.driver_exit_code,
    )


def _dropped() -> tuple[type[Exception], ...]:
    """What says that a connection is lost, or cannot be made."""
    import aiohttp

    return RuntimeError, OSError, aiohttp.ClientError, LaunchError


def _authorization() -> dict[str, str]:
    token = cluster_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _cause(error: BaseException) -> str:
    """The innermost reason, on one line: HTTP libraries wrap it several times."""
    text = str(error)
    for mark in ("Failed to establish a new connection: ", "Failed to resolve ", "Caused by "):
        if mark in text:
            text = text.rpartition(mark)[2] if mark != "Failed to resolve " else f"no host {text.rpartition(mark)[2]}"
            break
    text = re.sub(r"\[Errno -?\d+\] ", "", text)
    return " ".join(text.split()).rstrip(")'\"") or type(error).__name__
