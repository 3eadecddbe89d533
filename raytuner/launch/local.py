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
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from raytuner.definition import Experiment, import_from
from raytuner.definition import load as load_definition
from raytuner.disk import has_room
from raytuner.engine.conductor import Conductor
from raytuner.engine.requests import is_configuration, is_stop, take_requests
from raytuner.engine.runner import Engine, Interrupt, connect, own_machine
from raytuner.engine.shelf import StoreShelf
from raytuner.engine.snapshot import changed_since, search_path
from raytuner.errors import JournalError, LaunchError, PlanError, RaytunerError, SearchError
from raytuner.journal import (
    DriverEnded,
    DriverStarted,
    Event,
    ExperimentState,
    Extended,
    Folder,
    JournalReader,
    JournalWriter,
    Lock,
    replay,
)
from raytuner.launch.files import create, make_folder, refuse_taken, settle, stage
from raytuner.launch.pack import git_state
from raytuner.launch.progress import Progress
from raytuner.launch.summary import print_summary
from raytuner.plan import Machine, Plan, no_room, smallest
from raytuner.plan import compile as compile_plan
from raytuner.storage import Mirror, is_address, split, work_folder
from raytuner.tracking import Tracker, start_tracker

if TYPE_CHECKING:
    from raytuner.analysis import Results
    from raytuner.launch.extension import Extension

__all__ = ["drive", "extend", "machine", "plan_of", "resume", "run", "send_record", "storage_and_name"]

TRACKING_SECONDS = 120.0
"""How long the driver waits at its end for MLflow to catch up."""
UNANSWERED_SECONDS = 8.0
"""The same, when it does not answer."""
LOOK_SECONDS = 0.5
"""How often to look whether a full disk has room again."""
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
    experiment = Experiment(**extended[-1].definition) if extended else _definition(folder)
    experiment = experiment.model_copy(update=here)
    code = folder.code if folder.code.is_dir() else root
    plan = compile_plan(experiment, file=Path(file) if file else None, import_root=code, machine=machine())
    return replace(plan, import_root=root)


def _definition(folder: Folder) -> Experiment:
    try:
        text = folder.definition.read_text()
    except (OSError, ValueError) as error:
        raise JournalError(
            f"{folder.definition}: the definition of the experiment is needed and cannot be read: {error}"
        ) from error
    return Experiment.from_yaml(text, str(folder.definition))


def storage_and_name(folder: Folder) -> dict[str, str]:
    """The fields of the definition that say where the experiment lies now."""
    if folder.remote is None:
        return {"storage": str(folder.path.parent), "name": folder.path.name}
    return dict(zip(("storage", "name"), split(folder.remote), strict=True))


def _find_components(plan: Plan, folder: Folder | None) -> None:
    """See that a search or a scheduler of the user's can be imported: as it was then, where there is a folder."""
    if plan.experiment.has_plug_in:
        import_from(*(map(Path, search_path(plan.import_root, folder.code)) if folder else [plan.import_root]))


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
    _must_suit(plan)
    folder = _folder_of(plan)
    console = Console(file=open(os.devnull, "w") if quiet else file or sys.stdout, highlight=False)  # noqa: SIM115 - the console's for as long as the run
    _find_components(plan, folder if resuming and extension is None else None)
    if not resuming:
        try:  # what is wrong with them is told before there is a folder
            plan.build_search()
            plan.build_scheduler()
        except SearchError as error:
            raise PlanError(str(error)) from error
        refuse_taken(plan, folder)
        make_folder(folder)
    else:
        before = replay(folder, history=False)
        if before.status == "finished" and extension is None:
            console.print(f"{before.name} has finished ({before.reason}): there is nothing to resume")
            again = plan.experiment.replay
            print_summary(console, before, folder, tracking_uri=plan.tracking_uri, replay=again)
            return before
    with Interrupt() as interrupt, Lock(folder):
        if not resuming:
            create(plan, folder, partial(console.print, soft_wrap=True))
        elif settle(folder) and extension is None:
            plan = plan_of(folder)
        take_requests(folder, is_stop)  # left by the driver before, for which they were meant
        with _mirrored(plan, folder, console, interrupt) as mirror:
            return _drive(plan, folder, console, interrupt, mirror, extension)


def _drive(
    plan: Plan,
    folder: Folder,
    console: Console,
    interrupt: Interrupt,
    mirror: Mirror | None,
    extension: Extension | None,
) -> ExperimentState:
    """Take up what is on record, and go on from there. The folder, and the store, are this driver's alone."""
    reader = JournalReader(folder.journal)
    events = list(reader.read())
    torn = reader.unread()
    wait = _waiting_for_room(console, interrupt)
    with contextlib.closing(JournalWriter(folder.journal, on_full=wait)) as journal:
        state = ExperimentState(history=False)
        shelf = StoreShelf(folder, mirror) if mirror is not None else None
        conductor = Conductor(plan, folder, journal, state, shelf)
        conductor.torn = bool(reader.torn or torn)
        conductor.warnings += torn
        if extension is None:
            conductor.replay(events)
            conductor.record(_driver_started(plan, journal.segment))
            conductor.warnings += _changed(folder) if events else []
        else:
            conductor.replay([*events, *_put_on_record(extension, folder, journal, wait)])
            for note in extension.notes:
                console.print(f"  {note}", highlight=False, soft_wrap=True)
        conductor.take_over()
        left = [request["enqueue"] for request in take_requests(folder, is_configuration)]
        for config in (*left, *(extension.enqueue if extension is not None else ())):
            conductor.try_asked(config)
        engine = Engine(plan, folder, conductor, interrupt, mirror)
        journal.on_full = lambda path: conductor.wait_for_room() and interrupt.reason is None
        _go(plan, folder, engine, conductor, console)
        journal.sync()
    return state


def _put_on_record(
    extension: Extension, folder: Folder, journal: JournalWriter, wait: Callable[[Path], bool]
) -> list[Event]:
    """Have an extension hold from here on, wherever this is cut off: its files take their places after its event."""
    while True:
        try:
            stage(extension.plan, folder, journal.segment)
            break
        except (OSError, JournalError) as error:
            if has_room(folder.path) or not wait(folder.path):
                raise LaunchError(f"{folder.path}: the experiment's folder must be writable: {error}") from error
            time.sleep(LOOK_SECONDS)
    new = [journal.append(event) for event in (_driver_started(extension.plan, journal.segment), extension.event)]
    journal.sync()
    settle(folder)
    return new


def _waiting_for_room(console: Console, interrupt: Interrupt) -> Callable[[Path], bool]:
    """What to ask while the disk is full: whether to wait on. It is told, once."""
    told: list[Path] = []

    def wait(path: Path) -> bool:
        if not told:
            console.print(f"{path}: the disk is full: it waits for room", highlight=False, soft_wrap=True)
        told.append(path)
        return interrupt.reason is None

    return wait


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
    take_requests(folder, is_stop)  # as in ``drive``, of those that the store held
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
        if not isinstance(error, JournalError) or engine.interrupt.reason is None:
            ended = DriverEnded(status="failed", reason=str(error))
            raise
        ended = DriverEnded(status="interrupted", reason=f"{engine.interrupt.reason}, and {error}")
    finally:
        try:
            conductor.record(ended)
        except JournalError:  # a full disk: whoever reads the journal sees that the driver is gone
            conductor.state.apply(ended)
        if progress is not None:
            progress.stop()
        engine.shut_down()
        from raytuner.analysis import write_report

        try:
            write_report(folder)  # before the tracker ends: it is an artifact
        except JournalError as error:  # the disk is full
            console.print(f"[yellow]warning[/yellow] {escape(str(error))}", soft_wrap=True)
        problem = _finish_tracking(tracker, console, engine.interrupt)
    print_summary(
        console,
        conductor.state,
        folder,
        tracking_uri=plan.tracking_uri,
        tracking_problem=problem,
        replay=plan.experiment.replay,
    )


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


def _must_suit(plan: Plan) -> None:
    """Raises PlanError where a Ray of this machine's own will not have the accelerator or the labels."""
    resources = plan.experiment.resources
    if plan.machine.nodes or not (resources.accelerator or resources.labels):
        return
    problems = no_room(smallest(plan.needs), resources, own_machine(plan.machine))
    if problems:
        raise PlanError("\n".join(map(str, problems)))


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
        spares=plan.build_scheduler().spares,
    )
