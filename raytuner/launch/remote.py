"""From a laptop: hand an experiment to a cluster, and ask the cluster about it, through the jobs of its dashboard."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raytuner.definition import Cluster, Experiment, holds_password, load, without_password
from raytuner.engine.jobs import Job, JobServer
from raytuner.errors import LaunchError, PlanError
from raytuner.journal import READ_AT
from raytuner.launch.answer import ANSWER_MARK, Answer, read_answer
from raytuner.launch.doctor import versions_here
from raytuner.launch.pack import Package, pack
from raytuner.launch.requirements import requirements_of
from raytuner.plan import Machine, Plan, storage_problems
from raytuner.plan import compile as compile_plan
from raytuner.storage import is_address, join

__all__ = ["RemoteCluster", "cluster_address"]

LOOK_SECONDS = 0.1
STREAM_SECONDS = 600
"""How long one job shows a log that grows."""
BOUNDLESS = Machine(10**6, 10**6)
"""Whether trials fit is for the cluster to say."""
_NOISE = re.compile(
    rf"(?m)^(?:Running entrypoint for job .*|.*job_manager\.py:\d+ -- Runtime env is setting up\.|{ANSWER_MARK}.*)\n?"
)


def cluster_address(given: str | None, experiment: Experiment | None = None) -> str | None:
    """The cluster's address: the one that was given, else the definition's, else ``RAY_ADDRESS`` if it is one of HTTP.

    Raises LaunchError for what is no address of a dashboard.
    """
    here = os.environ.get("RAY_ADDRESS", "")
    inherited = here if here.startswith(("http://", "https://")) else None
    address = given or (experiment.cluster.address if experiment is not None else None) or inherited
    try:
        return Cluster(address=address).address
    except ValidationError as error:
        raise LaunchError(f"--address: {error.errors()[0]['msg']}") from None


class RemoteCluster:
    """A cluster, and the experiments that were handed to it."""

    def __init__(self, address: str) -> None:
        """Raises LaunchError when it cannot be reached."""
        self.address = address
        self._server = JobServer(address)

    # -- before an experiment -----------------------------------------------------------------------------------------

    def doctor(self, file: str | None, overrides: Sequence[str]) -> dict[str, Any]:
        """The report of the cluster itself, for an experiment or without one."""
        if file is None:
            return self._examine(None, [])
        with tempfile.TemporaryDirectory(prefix="raytuner-") as folder:
            plan, package = _packed(file, overrides, Path(folder))
            return self._examine((plan, package), overrides)

    def launch(
        self, file: str, overrides: Sequence[str], say: Callable[[str], None] = lambda text: None
    ) -> tuple[Job, Package, list[str]]:
        """Hand an experiment to the cluster; returns its job once nothing was found to speak against it, and warnings.

        say: told what is waited for.

        The job begins with the preflight, and goes on as the driver if that finds no error. Raises LaunchError with
        all that it finds, DefinitionError and PlanError.
        """
        self._same_ray()
        with tempfile.TemporaryDirectory(prefix="raytuner-") as folder:
            plan, package = _packed(file, overrides, Path(folder))
            name = plan.experiment.name
            place = _place(name, load(file, list(overrides)).storage)
            here = json.dumps(versions_here())
            command = ["python", "-m", "raytuner", "run", package.file, *_sets(overrides), "--preflight", here]
            job = self._drive(name, place, command, Path(folder), _environment(plan))
        installs = "installs cluster.requirements and " if plan.experiment.cluster.requirements else ""
        say(f"{package.files} files ({package.size / 1000:.0f} kB) are sent; the cluster {installs}looks at its nodes")
        try:
            answer = self._answer_of(job.id, whole=False)
        except BaseException:
            self._server.remove(job.id)
            raise
        if answer.code:
            self._server.remove(job.id)
            raise LaunchError(answer.err)
        return job, package, answer.err.splitlines()

    def _same_ray(self) -> None:
        ours, theirs = versions_here()["versions"]["ray"], self._server.ray_version
        if ours.split(".")[:2] != theirs.split(".")[:2]:
            raise LaunchError(
                f"{self.address}: the cluster has Ray {theirs}, and this machine {ours}; install the same on both"
            )

    def _examine(self, what: tuple[Plan, Package] | None, overrides: Sequence[str]) -> dict[str, Any]:
        command = ["doctor", "--json"]
        if what is None:
            answer = self.ask(command)
        else:
            plan, package = what
            answer = self.ask([*command, package.file, *_sets(overrides)], package.folder, _environment(plan))
        if answer.code:
            raise LaunchError(f"{self.address}: the cluster could not be looked at: {answer.err or answer.out}")
        report: dict[str, Any] = json.loads(answer.out)
        return report

    # -- an experiment ------------------------------------------------------------------------------------------------

    def find(self, name: str) -> Job | None:
        """The newest job of an experiment that was launched under this name."""
        return next((job for job in self.experiments() if job.metadata["raytuner.name"] == name), None)

    def experiments(self) -> list[Job]:
        """The jobs of experiments, the newest first."""
        return [job for job in self._server.jobs() if "raytuner.name" in job.metadata]

    def place(self, name: str) -> str:
        """Where an experiment lies, by its name; a folder of the cluster or an address is taken as it is."""
        if "/" in name:
            return name
        job = self.find(name)
        if job is None:
            known = sorted({job.metadata["raytuner.name"] for job in self.experiments()})
            there = f"it knows {', '.join(known[:10])}" if known else "it knows none"
            raise LaunchError(
                f"{self.address}: the cluster knows no experiment {name!r}; {there}. One that was launched before the "
                "cluster was started anew is named by its folder there, or its address"
            )
        return job.metadata["raytuner.storage"]

    def resume(self, name: str) -> Job:
        """Go on with an experiment, in a new job."""
        place, before = self.place(name), self.find(name)
        if before is not None and not before.ended:
            raise LaunchError(
                f"{name}: its driver is at work on {self.address} (job {before.id}); there is nothing to resume"
            )
        return self._drive_as_before(before, place, ["resume", place])

    def replay(self, name: str, *, trial: str | None, new_name: str | None, seed: int | None) -> Job:
        """Train a trial of an experiment again, in a new job; it lies beside the experiment."""
        place = self.place(name)
        where, _, old = place.rstrip("/").rpartition("/")
        new = new_name or f"{old}-replay"
        command = ["replay", place, "--name", new]
        command += ["--trial", trial] if trial is not None else []
        command += ["--seed", str(seed)] if seed is not None else []
        return self._drive_as_before(self.find(name), f"{where}/{new}", command)

    def _drive_as_before(self, before: Job | None, place: str, command: Sequence[str]) -> Job:
        """A driver's job for an experiment at a place, with what the nodes had installed for the one before."""
        environment = json.loads(before.metadata.get("raytuner.environment", "{}")) if before is not None else {}
        with tempfile.TemporaryDirectory(prefix="raytuner-") as folder:
            for path, text in environment.get("files", {}).items():
                Path(folder, path).parent.mkdir(parents=True, exist_ok=True)
                Path(folder, path).write_text(text)
            command = ["python", "-m", "raytuner", *command]
            return self._drive(place.rpartition("/")[2], place, command, Path(folder), environment)

    def driver_output(self, name: str) -> tuple[Job, str]:
        """The newest job of an experiment, and what its driver has printed."""
        job = self.find(name)
        if job is None:
            raise LaunchError(f"{self.address}: the cluster remembers no job of {name!r}")
        return job, _NOISE.sub("", self._server.output(job.id))

    def follow(self, job: Job) -> Iterator[str]:
        """What a driver prints until it ends, line by line. Raises LaunchError when its cluster is out of reach."""
        yield from (line for line in self._lines(job.id) if not _NOISE.match(line))

    def _lines(self, id: str) -> Iterator[str]:
        rest = ""
        for part in self._server.follow(id):
            *lines, rest = (rest + part).split("\n")
            yield from (f"{line}\n" for line in lines)
        if rest:
            yield rest

    def outcome(self, job: Job) -> Job:
        """The job once it has ended."""
        return self._server.wait(job.id)

    # -- commands -----------------------------------------------------------------------------------------------------

    def ask(
        self, arguments: Sequence[str], folder: Path | None = None, environment: Mapping[str, Any] | None = None
    ) -> Answer:
        """Have the head node carry a ``raytuner`` command out, and wait for what it says."""
        command = shlex.join(["python", "-m", "raytuner", "answer", *arguments])
        id = f"raytuner-{arguments[0]}-{secrets.token_hex(6)}"
        env = {"COLUMNS": str(shutil.get_terminal_size().columns), READ_AT: self.address}
        pip = (environment or {}).get("pip")
        self._server.submit(command, id=id, folder=folder, pip=pip, env=env)
        try:
            return self._answer_of(id, whole=True)
        except KeyboardInterrupt:
            self._server.stop(id)
            raise

    def _answer_of(self, id: str, *, whole: bool) -> Answer:
        """The answer that a job prints; whole: its end is waited for."""
        while True:
            job = self._server.job(id)
            if job.ended or not whole:
                output = self._server.output(id)
                _, _, rest = output.partition(ANSWER_MARK)
                if "\n" in rest:
                    break
                if job.ended:
                    raise LaunchError(self._no_answer(job, output))
            time.sleep(LOOK_SECONDS)
        return read_answer(rest)

    def stream(self, arguments: Sequence[str]) -> Iterator[str]:
        """Have the head node show a log as it grows; what it prints, until the log's trial ends or this is closed.

        The job of a laptop that is gone must not go on for ever: each ends after a while, and the next goes on.
        """
        shown: int | None = 0
        while shown is not None:
            id = f"raytuner-{arguments[0]}-{secrets.token_hex(6)}"
            command = ["python", "-u", "-m", "raytuner", *arguments, f"--after={shown}", f"--within={STREAM_SECONDS}"]
            self._server.submit(shlex.join(command), id=id)
            shown = None
            try:
                for line in self._lines(id):
                    if line.startswith(ANSWER_MARK):
                        shown = int(read_answer(line.removeprefix(ANSWER_MARK)).out)
                    elif not _NOISE.match(line):
                        yield line
            finally:
                with suppress(LaunchError):
                    self._server.stop(id)

    def _no_answer(self, job: Job, output: str) -> str:
        output = _NOISE.sub("", output).strip()
        if "No module named raytuner" in output or "invalid choice: 'answer'" in output:
            return (
                f"{self.address}: the head node's Python has no raytuner of this version; install it on all nodes, or "
                "name a file that holds it in cluster.requirements"
            )
        if "runtime_env setup failed" in job.message:
            _, mark, said = job.message.rpartition("of stdout:")
            said = "\n".join((said if mark else job.message).strip().splitlines()[-15:])
            return f"{self.address}: the nodes could not install what cluster.requirements asks for:\n{said}"
        tail = "\n".join(output.splitlines()[-15:])
        return f"{self.address}: the head node did not answer: {job.message}\n{tail}".rstrip()

    def _drive(
        self, name: str, place: str, command: Sequence[str], folder: Path, environment: Mapping[str, Any]
    ) -> Job:
        metadata = {
            "raytuner.name": name,
            "raytuner.storage": place,
            "raytuner.environment": json.dumps(environment),
        }
        id = self._server.submit(
            shlex.join(command),
            id=f"raytuner-{name}-{secrets.token_hex(4)}",
            folder=folder,
            pip=environment.get("pip"),
            env={READ_AT: self.address},
            metadata=metadata,
        )
        return Job(id, "PENDING", "", metadata, time.time())


def _packed(file: str, overrides: Sequence[str], folder: Path) -> tuple[Plan, Package]:
    experiment = load(file, list(overrides))
    storage = experiment.storage.removeprefix("file://")
    if not is_address(storage) and not storage.startswith("/"):
        raise PlanError(
            "storage: on a cluster it must be an absolute folder that all nodes share, or an address, "
            f"got {experiment.storage!r}; write /shared/results or s3://bucket/folder, such as with --set storage=..."
        )
    if is_address(storage) and (problems := storage_problems(storage)):
        raise PlanError("\n".join(map(str, problems)))
    if experiment.tracking is not None and experiment.tracking.mlflow:
        _check_tracking(experiment.tracking.mlflow)
    # The folder is the cluster's: nothing can be said of it here.
    here = experiment if is_address(storage) else experiment.model_copy(update={"storage": "results"})
    plan = compile_plan(here, file=Path(file), machine=BOUNDLESS)
    return plan, pack(plan, folder)


def _check_tracking(uri: str) -> None:
    if holds_password(uri):
        raise PlanError(
            "tracking.mlflow: on a cluster an address must not hold a password, as it is written down with the job and "
            f"the results, got {without_password(uri)}; set PGPASSWORD or MLFLOW_TRACKING_PASSWORD on the head node, "
            "or give it a ~/.pgpass"
        )


def _place(name: str, storage: str) -> str:
    storage = storage.removeprefix("file://")
    return join(storage, name) if is_address(storage) else str(Path(os.path.normpath(storage)) / name)


def _sets(overrides: Sequence[str]) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def _environment(plan: Plan) -> dict[str, Any]:
    """What the nodes install for the experiment: Ray's description of it, and the files that it names."""
    file = plan.experiment.cluster.requirements
    if file is None:
        return {}
    lines, named = requirements_of(plan.import_root, file)
    return {"pip": lines, "files": {path: (plan.import_root / path).read_text() for path in named}}
