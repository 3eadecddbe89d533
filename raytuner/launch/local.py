"""Run an experiment with its driver in this process, on this machine's Ray or on a cluster that it can reach."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console

from raytuner.definition import Experiment, to_yaml
from raytuner.definition import load as load_definition
from raytuner.engine.conductor import Conductor
from raytuner.engine.runner import Engine, Interrupt, connect
from raytuner.engine.shelf import StoreShelf
from raytuner.engine.snapshot import changed_since, take_snapshot
from raytuner.errors import JournalError, LaunchError, PlanError, RaytunerError
from raytuner.journal import (
    DriverEnded,
    DriverStarted,
    ExperimentState,
    Extended,
    Folder,
    JournalReader,
    JournalWriter,
    Lock,
    replay,
)
from raytuner.launch.pack import git_state
from raytuner.launch.progress import Progress
from raytuner.launch.summary import print_summary
from raytuner.plan import Machine, Plan
from raytuner.plan import compile as compile_plan
from raytuner.storage import Mirror, ObjectStore, is_address, pull, split, work_folder
from raytuner.tracking import Tracker, start_tracker

if TYPE_CHECKING:
    from raytuner.analysis import Results
    from raytuner.launch.extension import Extension

__all__ = ["drive", "extend", "machine", "plan_of", "resume", "run", "send_record", "storage_and_name"]

TRACKING_SECONDS = 120.0
"""How long the driver waits at its end for MLflow to catch up."""
UNANSWERED_SECONDS = 8.0
"""The same, when it does not answer."""
OURS = ("raytuner", "raytuner/__main__.py")
PACKAGES = ("raytuner", "ray", "torch", "hyperopt", "mlflow", "numpy")


def run(
    experiment: Experiment | str | os.PathLike[str], *, overrides: tuple[str, ...] = (), quiet: bool = False
) -> Results:
    """Run an experiment (or the definition at a path) to its end, and return its results.

    Call it under ``if __name__ == "__main__":`` when ``train`` is in the same file: trials import that file.
    Raises DefinitionError, PlanError, JournalError (the name is taken) or LaunchError before anything is started.
    """
    if os.environ.get("RAYTUNER_INSIDE"):
        raise LaunchError(
            "raytuner.run() was called while a trial imports your script; "
            'put the call under `if __name__ == "__main__":`'
        )
    if isinstance(experiment, Experiment):
        plan = compile_plan(experiment, machine=machine())
    else:
        definition = load_definition(experiment, list(overrides))
        plan = compile_plan(definition, file=Path(experiment), machine=machine())
    state = drive(plan, quiet=quiet)
    from raytuner.analysis import load as load_results  # pandas, which a trial need not wait for

    if state.status == "failed":
        raise LaunchError(f"{plan.storage}: the experiment failed: {state.reason}")
    return load_results(plan.storage)


def resume(folder: str | os.PathLike[str], *, quiet: bool = False) -> Results:
    """Go on with an experiment that was interrupted, from its journal and its checkpoints; return its results."""
    from raytuner.analysis import load as load_results

    found = Folder.find(folder)
    drive(plan_of(found), resuming=True, quiet=quiet)
    return load_results(found.where)


def plan_of(folder: Folder) -> Plan:
    """The plan of an experiment that was started earlier, as it was defined then."""
    try:
        record = json.loads(folder.plan.read_text())
        file, root = record["file"], Path(record["import_root"])
    except (OSError, ValueError, KeyError) as error:
        raise JournalError(
            f"{folder.plan}: the plan of the experiment is needed and cannot be read: {error}"
        ) from error
    # The folder may have been moved or renamed since.
    here = storage_and_name(folder)
    extended = [event for event in JournalReader(folder.journal).read() if isinstance(event, Extended)]
    experiment = (
        Experiment(**extended[-1].definition) if extended else Experiment.from_yaml(folder.definition.read_text())
    ).model_copy(update=here)
    code = folder.code if folder.code.is_dir() else root
    plan = compile_plan(experiment, file=Path(file) if file else None, import_root=code, machine=machine())
    return replace(plan, import_root=root)


def storage_and_name(folder: Folder) -> dict[str, str]:
    """The fields of the definition that say where the experiment lies now."""
    if folder.remote is None:
        return {"storage": str(folder.path.parent), "name": folder.path.name}
    return dict(zip(("storage", "name"), split(folder.remote), strict=True))


def _folder_of(plan: Plan) -> Folder:
    return Folder(work_folder(plan.storage) if is_address(plan.storage) else Path(plan.storage))


def send_record(folder: Folder) -> str:
    """Send what a driver that was cut off has left on this machine alone; what to tell the user."""
    assert folder.remote is not None
    if Lock(folder).held_by_other():
        return f"{folder.where}: its driver is at work, and sends the record itself"
    with Lock(folder):
        mirror = Mirror(folder.remote, folder.path)
        mirror.start()
        return mirror.close() or f"{folder.where}: the record is there"


def extend(
    folder: str | os.PathLike[str],
    definition: str | os.PathLike[str] | None = None,
    *,
    quiet: bool = False,
    **more: Any,
) -> Results:
    """Give an experiment that has ended, or was interrupted, more to do, and go on with it; return its results.

    definition: another definition; its own, if left out. more: as ``raytuner extend`` takes it: ``overrides``,
    ``trials``, ``time``, ``fill``, ``retry_failed``, ``enqueue``. Raises DefinitionError and PlanError for what cannot
    be done, before anything is started.
    """
    from raytuner.analysis import load as load_results
    from raytuner.launch.extension import plan_extension

    found = Folder.find(folder)
    extension = plan_extension(found, definition, **more)
    drive(extension.plan, resuming=True, extension=extension, quiet=quiet)
    return load_results(found.where)


def drive(
    plan: Plan,
    *,
    resuming: bool = False,
    extension: Extension | None = None,
    quiet: bool = False,
    file: IO[str] | None = None,
) -> ExperimentState:
    """Run a plan until it ends, and return the final state. Everything is on record when this returns."""
    folder = _folder_of(plan)
    console = Console(file=open(os.devnull, "w") if quiet else file or sys.stdout, highlight=False)  # noqa: SIM115 - the console's for as long as the run
    if not resuming:
        _create(plan, folder, console)
    else:
        before = replay(folder, history=False)
        if before.status == "finished" and extension is None:
            console.print(f"{before.name} has finished ({before.reason}): there is nothing to resume")
            print_summary(console, before, folder, tracking_uri=plan.tracking_uri)
            return before
    interrupt = Interrupt()
    interrupt.install()
    with Lock(folder), _mirrored(plan, folder, console, interrupt) as mirror:
        events = list(JournalReader(folder.journal).read()) if resuming else []
        with contextlib.closing(JournalWriter(folder.journal)) as journal:
            state = ExperimentState(history=False)
            shelf = StoreShelf(folder, mirror) if mirror is not None else None
            conductor = Conductor(plan, folder, journal, state, shelf)
            if extension is None:
                conductor.replay(events)
                conductor.record(_driver_started(plan, journal.segment))
                conductor.warnings += _changed(folder) if resuming else []
            else:
                _replace(plan, folder)
                new = (_driver_started(plan, journal.segment), extension.event)
                conductor.replay([*events, *map(journal.append, new)])
                for note in extension.notes:
                    console.print(f"  {note}", highlight=False, soft_wrap=True)
            conductor.take_over()
            for config in extension.enqueue if extension is not None else ():
                conductor.enqueue(config)
            engine = Engine(plan, folder, conductor, interrupt, mirror)
            journal.on_full = lambda path: conductor.wait_for_room() and interrupt.reason is None
            _go(plan, folder, engine, conductor, console)
            journal.sync()
    return state


@contextlib.contextmanager
def _mirrored(plan: Plan, folder: Folder, console: Console, interrupt: Interrupt) -> Iterator[Mirror | None]:
    """Keep the object store alike, where the experiment lies in one; first of all, be the only one who does."""
    if not is_address(plan.storage):
        yield None
        return
    elsewhere = plan.tracking_uri is not None and not plan.tracking_uri.startswith("sqlite")
    say = partial(console.print, highlight=False, soft_wrap=True)
    asked = None  # at the end, the Ctrl-C that ended it is past
    mirror = Mirror(
        plan.storage, folder.path, cursors=elsewhere, say=say, keep_waiting=lambda: interrupt.reason == asked
    )
    mirror.start()
    try:
        mirror.flush()  # the nodes need the code
        yield mirror
    finally:
        asked = interrupt.reason
        problem = mirror.close()
        if problem:
            say(f"{problem}; go on with `{folder.command('resume')}`, which sends it first")


def _go(plan: Plan, folder: Folder, engine: Engine, conductor: Conductor, console: Console) -> None:
    tracker: Tracker | None = None
    progress: Progress | None = None
    ended = DriverEnded(status="failed", reason="the driver ended by an error of its own")
    try:
        engine.warm_up()
        if plan.tracking_uri is not None:
            tracker = start_tracker(folder, plan.tracking_uri)

        def more() -> tuple[str, list[str]]:
            problems = {
                "MLflow": tracker.problem() if tracker is not None else "",
                "storage": engine.mirror.problem if engine.mirror is not None else "",
            }
            return "; ".join(f"{what}: {problem}" for what, problem in problems.items() if problem), conductor.warnings

        progress = Progress(plan, folder, file=console.file, more=more)
        progress.start()
        engine.run()
        status, reason = conductor.stop_status, conductor.stopping or "the budget is used up"
        if conductor.state.best is None and status == "finished" and conductor.state.trials:
            status, reason = "failed", "no trial reported a result"
        ended = DriverEnded(status=status, reason=reason)
    except RaytunerError as error:
        ended = DriverEnded(status="failed", reason=str(error))
        raise
    finally:
        with contextlib.suppress(JournalError):  # a full disk, which was told
            conductor.record(ended)
        if progress is not None:
            progress.stop()
        engine.shut_down()
        from raytuner.analysis import write_report

        write_report(folder)  # before the tracker ends: it is an artifact
        problem = _finish_tracking(tracker, console, engine.interrupt)
    print_summary(console, conductor.state, folder, tracking_uri=plan.tracking_uri, tracking_problem=problem)


def _finish_tracking(tracker: Tracker | None, console: Console, interrupt: Interrupt) -> str:
    """Wait for MLflow to have everything; less long for a store that does not answer, and no longer than Ctrl-C."""
    if tracker is None:
        return ""
    began, asked = time.monotonic(), interrupt.reason
    with console.status("writing the last results to MLflow"):
        while not tracker.wait(0.2):
            waited = time.monotonic() - began
            patience = UNANSWERED_SECONDS if tracker.problem() else TRACKING_SECONDS
            if waited > patience or interrupt.reason != asked or not tracker.running:
                break
        else:
            return ""
    problem = tracker.problem() or "the tracker was not done yet"
    tracker.kill()
    return problem


def machine() -> Machine | None:
    """The cluster's, if ``RAY_ADDRESS`` names one or this process is connected; None for this machine."""
    return connect(os.environ.get("RAY_ADDRESS"))


def _create(plan: Plan, folder: Folder, console: Console) -> None:
    store = ObjectStore(plan.storage) if is_address(plan.storage) else None
    if store is not None and not Lock(folder).held_here():
        pull(store, folder.path)
    if folder.path.exists() and any(folder.path.iterdir()):
        if not _is_empty(folder):
            raise PlanError(
                f"{plan.storage}: the name of an experiment must be new, and this one is taken; give another with "
                f"--name, go on with `raytuner resume {shlex.quote(plan.storage)}` (with the code as it was then), "
                "or delete the folder"
            )
        aside = next(p for n in range(1, 10**6) if not (p := folder.path.with_name(f"{folder.path.name}~{n}")).exists())
        folder.path.rename(aside)
        if store is not None:
            store.clear()
        console.print(f"an earlier attempt under this name never got to a step; it lies in {aside}", soft_wrap=True)
    folder.journal.mkdir(parents=True, exist_ok=True)
    folder.control.mkdir(exist_ok=True)
    folder.definition.write_text(to_yaml(plan.experiment))
    folder.plan.write_text(json.dumps(plan.to_dict(), indent=2))
    take_snapshot(plan.import_root, folder.code, without=[folder.path.parent, folder.path])


def _replace(plan: Plan, folder: Folder) -> None:
    """Put another plan, and the code as it is now, in the place of what the experiment had until here."""
    folder.definition.write_text(to_yaml(plan.experiment))
    folder.plan.write_text(json.dumps(plan.to_dict(), indent=2))
    if folder.code.is_dir() and changed_since(folder.code):
        aside = next(p for n in range(1, 10**6) if not (p := folder.path / f"code.{n}").exists())
        folder.code.rename(aside)
        take_snapshot(plan.import_root, folder.code, without=[folder.path.parent, folder.path])


def _is_empty(folder: Folder) -> bool:
    """Whether it is an experiment's folder, nobody works on it, and no trial of it ever reported a step."""
    if not folder.journal.is_dir() or Lock(folder).held_by_other():
        return False
    return replay(folder, history=False).steps == 0


def _changed(folder: Folder) -> list[str]:
    changed = changed_since(folder.code)
    if not changed:
        return []
    names = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
    return [f"the code has changed since the experiment started ({names}); it goes on with the code of then"]


def _driver_started(plan: Plan, segment: int) -> DriverStarted:
    experiment = plan.experiment
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    objective = experiment.objective
    return DriverStarted(
        name=experiment.name,
        driver=segment,
        objective={
            "metric": objective.metric,
            "mode": objective.mode,
            "max_steps": objective.max_steps,
            "select": objective.select,
        },
        budget={
            "trials": experiment.budget.trials or plan.population,
            "time": experiment.budget.time,
            "gpu_hours": experiment.budget.gpu_hours,
        },
        pid=os.getpid(),
        host=socket.gethostname(),
        command=shlex.join(["raytuner" if sys.argv[0].endswith(OURS) else sys.argv[0], *sys.argv[1:]]),
        versions=versions,
        git=git_state(plan.import_root),
        seed=experiment.seed,
        slots=plan.slots,
    )
