"""The command line. Each command imports what it needs: ``validate`` and ``plan`` answer at once."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raytuner import __version__
from raytuner.cli.cluster import answer, checked_plan, doctor, elsewhere, forward, launch
from raytuner.cli.printing import FAILED, INTERRUPTED, USAGE, print_json
from raytuner.errors import DefinitionError, JournalError, PlanError, RaytunerError, SearchError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0, 1 failed, 2 definition or usage, 130 interrupted)."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "call"):
        parser.print_help()
        return USAGE
    options.arguments = list(arguments if arguments is not None else sys.argv[1:])
    call: Callable[[argparse.Namespace], int] = options.call
    try:
        address = elsewhere(options)
        return forward(options, address) if address is not None else call(options)
    except (DefinitionError, PlanError) as error:
        _complain(options, error)
        return USAGE
    except RaytunerError as error:
        _complain(options, error)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _complain(options: argparse.Namespace, error: RaytunerError) -> None:
    if getattr(options, "json", False):
        problems = [vars(p) for p in error.problems] if isinstance(error, DefinitionError) else []
        print_json({"schema": "raytuner.error/1", "error": str(error), "problems": problems})
        return
    lines = [str(problem) for problem in error.problems] if isinstance(error, DefinitionError) else [str(error)]
    for line in lines:
        print(line, file=sys.stderr)
    if len(lines) > 1:
        print(f"{len(lines)} problems", file=sys.stderr)


# -- a definition ----------------------------------------------------------------------------------------------------


def _plan(options: argparse.Namespace, machine: Any = None) -> Any:
    from raytuner.definition import load
    from raytuner.plan import compile

    overrides = list(options.set)
    if getattr(options, "name", None):
        overrides.append(f"name={options.name}")
    definition = load(options.file, overrides)
    return compile(definition, file=Path(options.file), machine=machine() if machine is not None else None)


def _validate(options: argparse.Namespace) -> int:
    plan = _plan(options)
    if options.json:
        print_json({"schema": "raytuner.validate/1", "valid": True, "name": plan.experiment.name})
        return 0
    for warning in plan.warnings:
        print(f"warning: {warning}")
    print(f"{options.file}: valid")
    return 0


def _show_plan(options: argparse.Namespace) -> int:
    plan = _plan(options)
    if options.json:
        print_json(plan.to_dict())
    else:
        print("\n".join(plan.describe()))
    return 0


def _simulate(options: argparse.Namespace) -> int:
    from rich.console import Console

    from raytuner.simulation import check_picture, simulate

    if options.plot:
        check_picture(options.plot)
    try:
        with Console(stderr=True).status("") as status:  # which shows nothing but on a terminal
            result = simulate(
                options.file,
                options.table,
                workers=options.workers,
                seeds=options.seeds,
                stragglers=options.stragglers,
                failures=options.failures,
                overrides=tuple(options.set),
                watch=lambda number: status.update(f"run {number} of {options.seeds}"),
            )
    except SearchError as error:  # nothing has failed that was under way: this cannot be done as asked
        raise PlanError(str(error)) from error
    if options.json:
        print_json(result.to_dict())
    else:
        print("\n".join(result.describe()))
    if options.plot:
        result.plot(options.plot)
    return 0


def _schema(options: argparse.Namespace) -> int:
    from raytuner.definition import schema

    text = json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
    if options.output:
        Path(options.output).write_text(text)
    else:
        print(text, end="")
    return 0


def _try(options: argparse.Namespace) -> int:
    from raytuner.launch.foreground import try_defaults

    return 0 if try_defaults(_plan(options), steps=options.steps) else FAILED


def _run(options: argparse.Namespace) -> int:
    from raytuner.journal import Folder
    from raytuner.launch import drive, machine, plan_of

    plan = checked_plan(options) if options.preflight else _plan(options, machine)
    before = None
    if options.resume:
        with contextlib.suppress(JournalError):  # there is none
            before = Folder.find(plan.storage)
    return _outcome(drive(plan) if before is None else drive(plan_of(before), resuming=True))


def _replay(options: argparse.Namespace) -> int:
    from raytuner.launch import drive, plan_again

    return _outcome(drive(plan_again(_folder(options), trial=options.trial, name=options.name, seed=options.seed)))


def _outcome(state: Any) -> int:
    return {"finished": 0, "interrupted": INTERRUPTED}.get(state.status, FAILED)


# -- a folder of results ---------------------------------------------------------------------------------------------


def _folder(options: argparse.Namespace) -> Any:
    """The folder that was named; without one, the newest in ``results/``."""
    from raytuner.journal import Folder

    if options.dir is not None:
        return Folder.find(options.dir)
    found = sorted(Path("results").glob("*/journal"), key=lambda path: path.stat().st_mtime)
    if not found:
        return Folder.find("results")
    return Folder.find(found[-1].parent)


def _resume(options: argparse.Namespace) -> int:
    from raytuner.launch import drive, plan_of

    return _outcome(drive(plan_of(_folder(options)), resuming=True))


def _extend(options: argparse.Namespace) -> int:
    from raytuner.journal import Lock
    from raytuner.launch import drive
    from raytuner.launch.extension import enqueue_live, plan_extension

    folder = _folder(options)
    only_enqueue = not (options.file or options.set or options.trials or options.time or options.retry_failed)
    if options.enqueue and only_enqueue and Lock(folder).held_by_other():
        for path, answer in zip(options.enqueue, enqueue_live(folder, options.enqueue), strict=True):
            print(f"{path}: {answer}")
        return 0
    extension = plan_extension(
        folder,
        options.file,
        overrides=options.set,
        trials=options.trials,
        time=options.time,
        fill=options.fill,
        retry_failed=options.retry_failed,
        enqueue=options.enqueue,
    )
    return _outcome(drive(extension.plan, resuming=True, extension=extension))


def _status(options: argparse.Namespace) -> int:
    from raytuner.analysis import status, status_lines

    folder = _folder(options)
    if options.json:
        print_json(status(folder))
    else:
        print("\n".join(status_lines(folder)))
    return 0


def _best(options: argparse.Namespace) -> int:
    from raytuner.analysis import best, best_lines, export

    folder = _folder(options)
    if options.export:
        target = export(folder, Path(options.export))
        if not options.json:
            print(f"exported to {target}")
            return 0
    if options.json:
        print_json(best(folder))
    else:
        print("\n".join(best_lines(folder)))
    return 0


def _report(options: argparse.Namespace) -> int:
    from raytuner.analysis import write_report

    folder = _folder(options)
    print(write_report(folder).read_text())
    print(f"(also in {folder.report})", file=sys.stderr)
    return 0


def _logs(options: argparse.Namespace) -> int:
    if options.trial is None:
        raise JournalError("logs: which trial? Name it, such as 17; without one, the logs are a cluster's driver's")
    folder = _folder(options)
    path = folder.trial(options.trial.zfill(6)) / (f"rank-{options.rank}" if options.rank else "")
    path /= "stderr.log" if options.stderr else "stdout.log"
    folder.fetch_log(path)
    if not path.exists():
        raise JournalError(f"{path}: trial {options.trial} has written no such log; `raytuner status` lists the trials")
    if options.follow:
        _follow_log(folder, path, options)
    else:
        print(_read_from(path, options.after).decode(errors="replace"), end="")
    return 0


def _follow_log(folder: Any, path: Path, options: argparse.Namespace) -> None:
    """Print a log as it grows, until its trial has ended, or for so long, which is told to whoever goes on."""
    from raytuner.analysis import under_way
    from raytuner.journal import Folder
    from raytuner.launch.answer import answer_line

    shown, goes_on, limit = options.after, True, time.monotonic() + options.within
    look = 0.0
    while True:
        text = _read_from(path, shown)
        if options.within < math.inf and goes_on:
            text = text[: text.rfind(b"\n") + 1]  # so that the answer has a line of its own
        shown += len(text)
        print(text.decode(errors="replace"), end="", flush=True)
        if text:
            continue
        if not goes_on:
            return
        if time.monotonic() > limit:
            print(answer_line(0, str(shown), ""), flush=True)
            return
        time.sleep(2.0 if folder.remote else 0.2)
        if time.monotonic() > look:
            goes_on = under_way(Folder.find(folder.where), options.trial.zfill(6))
            look = time.monotonic() + 2.0
        folder.fetch_log(path)


def _read_from(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read()


def _why(options: argparse.Namespace) -> int:
    from raytuner.analysis import why, why_lines

    folder = _folder(options)
    if options.json:
        print_json(why(folder, options.trial))
    else:
        print("\n".join(why_lines(folder, options.trial)))
    return 0


def _stop(options: argparse.Namespace) -> int:
    from raytuner.launch.control import request_stop

    print(request_stop(_folder(options), options.trial))
    return 0


def _sync(options: argparse.Namespace) -> int:
    from raytuner.definition import without_password
    from raytuner.launch import plan_of, send_record
    from raytuner.tracking import sync

    folder = _folder(options)
    if folder.remote is not None:
        print(send_record(folder))
    uri = plan_of(folder).tracking_uri
    if uri is None:
        print("tracking is off for this experiment")
        return 0
    print(f"{sync(folder, uri)} events written to {without_password(uri)}")
    return 0


def _ui(options: argparse.Namespace) -> int:
    from raytuner.launch import plan_of
    from raytuner.tracking import ui_address, ui_command

    folder = _folder(options)
    uri = plan_of(folder).tracking_uri
    if uri is None:
        print("tracking is off for this experiment: there is nothing to show", file=sys.stderr)
        return FAILED
    print(f"MLflow at {ui_address(folder, port=options.port, host=options.host)} (Ctrl-C ends it)", flush=True)
    return subprocess.call(ui_command(uri, port=options.port, host=options.host))


# -- the words -------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="raytuner", description="Hyper-parameter tuning on Ray.")
    parser.add_argument("--version", action="version", version=f"raytuner {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, call: Callable[[argparse.Namespace], int], text: str, *, json_too: bool = False) -> Any:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(call=call)
        if json_too:
            command.add_argument("--json", action="store_true", help="print one JSON object, and nothing else")
        return command

    def of_file(command: Any) -> Any:
        command.add_argument("file", help="the experiment's definition (YAML)")
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override a field; may be repeated"
        )
        return command

    def of_cluster(command: Any) -> Any:
        text = "the cluster that it was launched on, by its dashboard: http://head:8265"
        command.add_argument("--address", help=text)
        return command

    def of_folder(command: Any) -> Any:
        text = "the experiment's folder, its address, or its name on a cluster; the newest in results/ by default"
        command.add_argument("dir", nargs="?", help=text)
        return command

    of_file(add("validate", _validate, "Check a definition, with every problem in it.", json_too=True))
    of_file(add("plan", _show_plan, "Show what a run would do and cost.", json_too=True))
    text = "Play the search and the scheduler through on a table of real trainings."
    command = of_file(add("simulate", _simulate, text, json_too=True))
    command.add_argument(
        "--table", required=True, metavar="NAME|PATH", help="made/curves, made/branches, or FOLDER/NAME (see docs)"
    )
    command.add_argument("--workers", type=int, help="default: resources.concurrent_trials, or 8")
    command.add_argument("--seeds", type=int, default=10, help="how many runs, with the seeds from the file's on")
    command.add_argument("--stragglers", type=float, default=0.0, help="spread of the workers' speeds, such as 0.2")
    command.add_argument("--failures", type=float, default=0.0, help="chance that a full training loses its worker")
    command.add_argument("--plot", metavar="FILE", help="draw the regret (.png, .svg, .pdf)")
    command = of_file(add("try", _try, "Train the defaults for a few steps, here, where a debugger works."))
    command.add_argument("--steps", type=int, default=3, help="how many steps (default 3)")
    command = of_file(add("run", _run, "Run an experiment."))
    command.add_argument("--name", help="another name, when the definition's is taken")
    text = "go on with it as it was defined then, where there is one of this name; for what starts commands again"
    command.add_argument("--resume", action="store_true", help=text)
    command.add_argument("--preflight", help=argparse.SUPPRESS)  # by launch: look first, and tell
    text = "Check the definition and the cluster, and hand the experiment over; its driver runs on the head node."
    command = of_file(add("launch", launch, text))
    command.add_argument("--address", help="the cluster's dashboard: http://head:8265")
    command.add_argument("--name", help="another name, when the definition's is taken")
    command.add_argument("--follow", action="store_true", help="show what the driver prints, until it ends")
    text = "Check what trials need on every node: versions, GPUs, disks, clocks; with a definition, all that it needs."
    command = add("doctor", doctor, text, json_too=True)
    command.add_argument("file", nargs="?", help="an experiment's definition (YAML)")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override a field; may be repeated"
    )
    command.add_argument("--address", help="the cluster's dashboard, http://head:8265; this machine by default")
    command = commands.add_parser("answer")  # for the jobs of launch and its like: no word for people
    command.set_defaults(call=answer)
    command.add_argument("command", nargs=argparse.REMAINDER)
    command = of_cluster(of_folder(add("resume", _resume, "Go on with an interrupted experiment.")))
    command.add_argument("--follow", action="store_true", help="of a cluster: show what the driver prints")
    text = "Give an experiment more to do: trials, time, steps, another space, search or scheduler."
    command = add("extend", _extend, text)
    command.add_argument("dir", help="the experiment's folder, or its address")
    command.add_argument("file", nargs="?", help="another definition (YAML); the experiment's own by default")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override a field; may be repeated"
    )
    command.add_argument("--trials", metavar="N|+N", help="the budget's trials from now on, or so many more")
    command.add_argument("--time", metavar="T|+T", help="the budget's time from now on, or so much more, such as +2h")
    command.add_argument("--retry-failed", action="store_true", help="start failed trials again")
    text = "try this configuration (YAML) next, beside the budget's trials; also while the experiment runs"
    command.add_argument("--enqueue", action="append", default=[], metavar="FILE", help=text)
    text = "what the trials so far were trained with, of a parameter that is new"
    command.add_argument("--fill", action="append", default=[], metavar="NAME=VALUE", help=text)
    text = "Train the best trial again from scratch, by its whole schedule."
    command = of_cluster(of_folder(add("replay", _replay, text)))
    command.add_argument("--follow", action="store_true", help="of a cluster: show what the driver prints")
    command.add_argument("--trial", metavar="ID", help="this trial instead of the best")
    command.add_argument("--name", help="the new experiment's name; the old one's with -replay by default")
    command.add_argument("--seed", type=int, help="another seed than the experiment's")
    of_cluster(of_folder(add("status", _status, "Show how far an experiment is.", json_too=True)))
    text = "Show why a trial was proposed, went on, stopped, was copied or failed."
    command = add("why", _why, text, json_too=True)
    command.add_argument("dir", help="the experiment's folder, or its address")
    command.add_argument("trial", help="the trial's id, such as 000017 or 17")
    of_cluster(command)
    command = of_cluster(add("logs", _logs, "Show what a trial printed."))
    command.add_argument("dir", help="the experiment's folder, its address, or its name on a cluster")
    command.add_argument("trial", nargs="?", help="the trial's id, such as 17; of a cluster's driver, if left out")
    command.add_argument("--rank", type=int, default=0, help="of a distributed trial: this process, from 0 on")
    command.add_argument("--stderr", action="store_true", help="its error output instead")
    command.add_argument("--follow", action="store_true", help="go on as it grows, until the trial has ended")
    command.add_argument("--after", type=int, default=0, help=argparse.SUPPRESS)  # bytes that were shown already
    command.add_argument("--within", type=float, default=math.inf, help=argparse.SUPPRESS)  # seconds
    command = of_cluster(of_folder(add("stop", _stop, "Stop a running experiment, or one trial of it.")))
    command.add_argument("--trial", metavar="ID", help="this trial only")
    of_cluster(of_folder(add("report", _report, "Write and show the report.")))
    command = of_cluster(of_folder(add("best", _best, "Show the best trial.", json_too=True)))
    command.add_argument("--export", metavar="PATH", help="write its model to PATH (a .pt file, or a folder)")
    command = of_folder(add("ui", _ui, "Open the MLflow UI on the experiment's runs."))
    command.add_argument("--port", type=int, default=5000)
    command.add_argument("--host", default="127.0.0.1")
    of_cluster(of_folder(add("sync", _sync, "Write to MLflow what it has not got yet.")))
    command = add("schema", _schema, "Print the definition's JSON Schema, for editors.")
    command.add_argument("--output", metavar="FILE", help="write it to a file")
    return parser
