"""The commands that are carried out on a cluster: launch, doctor, and the others with ``--address``."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from raytuner.cli.printing import FAILED, INTERRUPTED, print_json
from raytuner.errors import LaunchError

__all__ = ["answer", "checked_plan", "doctor", "elsewhere", "forward", "launch"]

_ANSWERING = "RAYTUNER_ANSWERING"
"""Set where a command is carried out for another machine, and so here."""


def launch(options: argparse.Namespace) -> int:
    from raytuner.definition import load
    from raytuner.launch.remote import RemoteCluster, cluster_address

    overrides = [*options.set, *([f"name={options.name}"] if options.name else [])]
    address = cluster_address(options.address, load(options.file, overrides))
    if address is None:
        raise LaunchError(
            "launch needs the address of a cluster's dashboard: --address http://head:8265, cluster: in the "
            "definition, or RAY_ADDRESS"
        )
    cluster = RemoteCluster(address)
    job, package, warnings = cluster.launch(options.file, overrides, lambda text: print(text, file=sys.stderr))
    for note in (*package.notes, *warnings):
        print(note, file=sys.stderr)
    name = job.metadata["raytuner.name"]
    print(f"{name} is launched: job {job.id} on {address}")
    print(f"  results  {job.metadata['raytuner.storage']}")
    for command in ("status", "logs", "stop", "best"):
        print(f"  raytuner {command} {name} --address {address}")
    return _follow(cluster, job) if options.follow else 0


def _follow(cluster: Any, job: Any) -> int:
    """Print what a driver prints, until it ends; Ctrl-C leaves it to itself."""
    try:
        for line in cluster.follow(job):
            print(line, end="", flush=True)
        return 0 if cluster.outcome(job).status == "SUCCEEDED" else FAILED
    except KeyboardInterrupt:
        print(f"\nno longer following; {job.metadata['raytuner.name']} goes on (`raytuner stop` ends it)")
    except LaunchError as error:  # says nothing about the experiment
        print(f"{error}; `raytuner logs {job.metadata['raytuner.name']} --follow` shows more of it", file=sys.stderr)
    return INTERRUPTED


def doctor(options: argparse.Namespace) -> int:
    from raytuner.definition import load
    from raytuner.launch.doctor import describe, examine, judge, versions_here
    from raytuner.launch.remote import RemoteCluster, cluster_address

    if os.environ.get(_ANSWERING):
        print_json(examine(options.file, options.set, os.environ.get("RAY_ADDRESS"))[0])
        return 0
    address = cluster_address(options.address, load(options.file, options.set) if options.file else None)
    if address is not None:
        report = RemoteCluster(address).doctor(options.file, options.set)
    else:
        report, _ = examine(options.file, options.set, os.environ.get("RAY_ADDRESS"))
    findings = judge(report, versions_here())
    errors = sum(finding.level == "error" for finding in findings)
    if options.json:
        print_json({**report, "findings": [vars(finding) for finding in findings]})
    else:
        print("\n".join([*describe(report), *map(str, findings)]))
        print(f"{errors} errors, {len(findings) - errors} warnings" if findings else "nothing speaks against it")
    return FAILED if errors else 0


def elsewhere(options: argparse.Namespace) -> str | None:
    """The cluster that has to answer, where a command about an experiment is not for this machine."""
    if not hasattr(options, "address") or not hasattr(options, "dir") or os.environ.get(_ANSWERING):
        return None
    from raytuner.launch.remote import cluster_address

    if options.address is not None:
        return cluster_address(options.address)
    if options.dir is None:
        named = options.arguments[0] == "status"  # which lists all that the cluster knows
    else:  # a name that is no folder here is one on the cluster that the environment names
        named = "/" not in options.dir and not Path(options.dir).exists()
    return cluster_address(None) if named else None


def forward(options: argparse.Namespace, address: str) -> int:
    from raytuner.launch.answer import EXPORT, unpack
    from raytuner.launch.remote import RemoteCluster

    command, cluster = options.arguments[0], RemoteCluster(address)
    if options.dir is None:
        if command != "status":
            raise LaunchError(f"{address}: which experiment? `raytuner status --address {address}` lists them")
        return _list_launched(options, cluster)
    if command == "resume":
        job = cluster.resume(options.dir)
        print(f"{job.metadata['raytuner.name']} goes on: job {job.id} on {address}")
        return _follow(cluster, job) if options.follow else 0
    if command == "replay":
        job = cluster.replay(options.dir, trial=options.trial, new_name=options.name, seed=options.seed)
        print(f"{job.metadata['raytuner.name']} is launched: job {job.id} on {address}")
        return _follow(cluster, job) if options.follow else 0
    if command == "logs" and options.trial is None:
        job, output = cluster.driver_output(options.dir)
        if options.follow:
            return _follow(cluster, job)
        print(output, end="")
        return 0
    arguments = _without_address(options)
    place = cluster.place(options.dir)
    arguments[arguments.index(options.dir, 1)] = place
    if command == "logs" and options.follow:
        for line in cluster.stream(arguments):
            print(line, end="", flush=True)
        return 0
    export, there = getattr(options, "export", None), ""
    if export is not None:
        there = EXPORT + Path(export).suffix
        given = (export, f"--export={export}")
        arguments = [part.replace(export, there) if part in given else part for part in arguments]
    answer = cluster.ask(arguments)
    if export is not None and answer.export is not None:
        unpack(answer.export, Path(export))
    print(answer.out.replace(there, str(export)) if there else answer.out, end="")
    print(answer.err, end="", file=sys.stderr)
    return answer.code


def _without_address(options: argparse.Namespace) -> list[str]:
    arguments, kept = iter(options.arguments), []
    for part in arguments:
        if part == "--address":
            next(arguments)
        elif not part.startswith("--address="):
            kept.append(part)
    return kept


def _list_launched(options: argparse.Namespace, cluster: Any) -> int:
    newest: dict[str, Any] = {}
    for job in cluster.experiments():
        newest.setdefault(job.metadata["raytuner.name"], job)
    if options.json:
        rows = [
            {
                "name": name,
                "job": job.id,
                "status": job.status,
                "experiment": _status_of(job),
                "storage": job.metadata["raytuner.storage"],
            }
            for name, job in newest.items()
        ]
        print_json({"schema": "raytuner.launched/1", "experiments": rows})
        return 0
    for name, job in newest.items():
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started))
        print(f"{name:<30} {_status_of(job):<11} {begun}  {job.metadata['raytuner.storage']}")
    if not newest:
        print("no experiment was launched since the cluster was started")
    return 0


def _status_of(job: Any) -> str:
    """What has become of an experiment, by the job of its driver, which ends as its command line does."""
    if job.status == "FAILED" and job.exit_code == INTERRUPTED:
        return "interrupted"
    words = {"SUCCEEDED": "finished", "STOPPED": "interrupted"}
    return str(words.get(job.status, job.status.lower()))


def answer(options: argparse.Namespace) -> int:
    """Carry a command out, and print what it says as one line, with what it exports."""
    from raytuner.cli import main
    from raytuner.launch.answer import EXPORT, answer_line

    os.environ[_ANSWERING] = "1"
    out, err = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory(prefix="raytuner-") as folder:
        exported = [part for part in options.command if EXPORT in part]
        arguments = [part.replace(EXPORT, f"{folder}/{EXPORT}") for part in options.command]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(arguments)
            except SystemExit as end:  # of argparse
                code = int(end.code or 0)
        name = exported[0].partition("=")[2] or exported[0] if exported else None
        text = out.getvalue().replace(f"{folder}/", "")
        line = answer_line(code, text, err.getvalue(), Path(folder, name) if name is not None else None)
    print(f"\n{line}", flush=True)
    return 0


def checked_plan(options: argparse.Namespace) -> Any:
    """The plan, once the preflight has passed, whose outcome is told to the ``launch`` that waits for it."""
    from raytuner.launch.answer import answer_line
    from raytuner.launch.doctor import examine, judge

    report, plan = examine(options.file, options.set, os.environ.get("RAY_ADDRESS"))
    findings = judge(report, json.loads(options.preflight))
    errors = [f"{each.where}: {each.text}" for each in findings if each.level == "error"]
    told = "\n".join(errors or map(str, findings))
    print(f"\n{answer_line(int(bool(errors)), '', told)}", flush=True)
    if errors or plan is None:
        raise LaunchError("the preflight found errors, and nothing was started")
    return plan
