"""The preflight: what every node has and can reach, and what of it an experiment cannot live with."""

from __future__ import annotations

import platform
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from raytuner.definition import Imports, find_imports, format_size, load, without_password
from raytuner.engine.nodes import NodeAnswer, ask_every_node, autoscaler
from raytuner.engine.runner import connect
from raytuner.errors import JournalError, RaytunerError, StorageError
from raytuner.journal import Folder, replay
from raytuner.launch.probe import PROBE_MARK, look
from raytuner.plan import MPS, Machine, Plan, this_machine
from raytuner.plan import compile as compile_plan
from raytuner.storage import ObjectStore, is_address

__all__ = ["Finding", "describe", "examine", "judge", "versions_here"]

SKEW_SECONDS = (5.0, 60.0)
"""From how much on a clock's difference is told of, and from how much on it does harm."""
ROOM = (5 * 10**9, 10**8)
"""Free bytes below which a disk is told of, and below which nothing can be started."""

LOCAL = (
    *("apfs", "aufs", "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuse.fuse-overlayfs", "fuseblk"),
    *("jfs", "ntfs", "ntfs3", "overlay", "ramfs", "reiserfs", "rootfs", "squashfs", "tmpfs", "vfat", "xfs", "zfs"),
)
"""File systems of one machine. What is not among them (NFS, Lustre, FUSE over a bucket, ...) may be shared."""
FOR_TRIALS = ("torch", "numpy")
"""Packages without which a node's trials are other trials than another's."""


@dataclass(frozen=True)
class Finding:
    """One thing that keeps an experiment from running, or may."""

    level: Literal["error", "warning"]
    where: str
    text: str
    """What is wrong, and what to do about it."""

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.text}"


# -- where the driver would be ---------------------------------------------------------------------------------------


def examine(file: str | None, overrides: Sequence[str], address: str | None) -> tuple[dict[str, Any], Plan | None]:
    """What the nodes have, and what an experiment would meet there (``raytuner.doctor/1``, plain data), and its plan.

    file: a definition; without one only the nodes are looked at. address: of the Ray to look at; None for this
    machine alone, without Ray.
    """
    report: dict[str, Any] = {
        "schema": "raytuner.doctor/1",
        **versions_here(),
        "problems": [],
        "storage": None,
        "tracking": None,
        "grows": False,
        "gpu": False,
    }
    machine = this_machine()
    if address is not None:
        machine = connect(address) or machine
        report["grows"] = autoscaler() is not None
    plan = _plan(file, overrides, machine, report["problems"]) if file is not None else None
    imports = Imports()
    storage = tracking = None
    if plan is not None:
        code = [info.file for info in plan.code.values() if info.file is not None]
        imports = find_imports(code, plan.import_root)
        storage, tracking = plan.experiment.storage, plan.tracking_uri
        report["gpu"] = any(needs.gpu for needs in plan.needs)
    report |= {"storage": storage, "tracking": tracking and without_password(tracking)}
    report |= {"modules": imports.modules, "later": imports.later}
    with _marked(storage, report["problems"]) as mark:
        request = {
            "storage": storage if mark else None,
            "mark": mark,
            "tracking": tracking,
            "modules": [*imports.modules, *imports.later],
            "programs": [MPS] if plan is not None and plan.experiment.resources.mps else [],
        }
        report["nodes"] = [asdict(each) for each in _answers(request, machine, address)]
    return report, plan


def versions_here() -> dict[str, Any]:
    """What must be alike where the user is and where the driver is."""
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("raytuner", "ray")},
    }


def _answers(request: dict[str, Any], machine: Machine, address: str | None) -> list[NodeAnswer]:
    if address is not None:
        return ask_every_node(look, request)
    here, resources = socket.gethostname(), {"CPU": float(machine.cpus), "GPU": float(machine.gpus)}
    with suppress(OSError):
        address = socket.gethostbyname(here)
    return [NodeAnswer(here, here, address or "", head=True, resources=resources, answer=look(here, request))]


def _plan(file: str, overrides: Sequence[str], machine: Machine, problems: list[dict[str, str]]) -> Plan | None:
    try:
        plan = compile_plan(load(file, list(overrides)), file=Path(file), machine=machine)
        if _is_taken(plan):
            text = "an experiment of this name is there already; give another with --name, or go on with it"
            problems.append({"where": plan.storage, "text": text})
        return plan
    except RaytunerError as error:
        problems += [{"where": "the definition", "text": line} for line in str(error).splitlines()]
        return None


def _is_taken(plan: Plan) -> bool:
    with suppress(JournalError, StorageError):  # a store that cannot be reached is told of by the nodes
        return replay(Folder.find(plan.storage), history=False).steps > 0
    return False


@contextmanager
def _marked(storage: str | None, problems: list[dict[str, str]]) -> Iterator[list[str]]:
    """Write something to the storage that the nodes look for; it is gone afterwards."""
    if storage is None:
        yield []
        return
    name, word = f"{PROBE_MARK}{secrets.token_hex(8)}", secrets.token_hex(16)
    store = ObjectStore(storage) if is_address(storage) else None
    folder, made = Path(storage), [] if store is not None else _missing_folders(Path(storage))
    try:
        if store is not None:
            store.write(f"{name}/head", word.encode())
        else:
            (folder / name).mkdir(parents=True)
            (folder / name / "head").write_text(word)
    except (StorageError, OSError) as error:
        text = str(error).removeprefix(f"{storage}: ")
        problems.append({"where": f"storage {storage}", "text": f"the head node cannot write there: {text}"})
        yield []
        return
    try:
        yield [name, word]
    finally:
        if store is not None:
            with suppress(StorageError):
                store.remove(list(store.below(name)))
        else:
            shutil.rmtree(folder / name, ignore_errors=True)
            for path in made:
                with suppress(OSError):
                    path.rmdir()


def _missing_folders(folder: Path) -> list[Path]:
    """The folders that will be made for this one, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


# -- where the user is -----------------------------------------------------------------------------------------------


def judge(report: Mapping[str, Any], here: Mapping[str, Any]) -> list[Finding]:
    """What is wrong with a cluster: what keeps an experiment from running first.

    here: what ``versions_here`` says where the user is.
    """
    found = [Finding("error", problem["where"], problem["text"]) for problem in report["problems"]]
    nodes: list[dict[str, Any]] = report["nodes"]
    several = len(nodes) > 1 or report["grows"]
    head = nodes[0]["answer"] if nodes else {}
    found += _versions(report, here)
    for node in nodes:
        found += _of_node(node, head, report)
    found += _missing_modules(report)
    found += _not_shared(report, head)
    if several and str(report["tracking"]).startswith("sqlite"):
        text = (
            f"{report['tracking']} is a file of the head node, in a cluster of several nodes; "
            "name a server, as in tracking: {mlflow: http://mlflow:5000}, or write tracking: none"
        )
        found.append(Finding("error", "tracking.mlflow", text))
    return sorted(found, key=lambda each: each.level)


def _not_shared(report: Mapping[str, Any], head: Mapping[str, Any]) -> Iterator[Finding]:
    """A folder of the head's own disk, where nodes may join that would not see it: none of them can be asked."""
    kind = head.get("filesystem", "")
    if report["grows"] and kind in LOCAL:
        proven = len(report["nodes"]) > 1  # the others were asked: it is one folder for them
        text = (
            f"it is on the head node's own disk ({kind}), and nodes that join would not see it; name a folder that all "
            "nodes mount, such as one of NFS, or an object store (s3://bucket/folder)"
        )
        yield Finding("warning" if proven else "error", f"storage {report['storage']}", text)


def _missing_modules(report: Mapping[str, Any]) -> Iterator[Finding]:
    nodes = report["nodes"]
    remedy = "add it to cluster.requirements or to the nodes' image; a module of your own must be in git"
    for module, place in {**report["later"], **report["modules"]}.items():
        without = [node["host"] for node in nodes if module in node["answer"].get("missing", [])]
        where = "any node" if len(without) == len(nodes) else ", ".join(without)
        if without and module in report["modules"]:
            yield Finding("error", place, f"it imports {module}, which is not there on {where}; {remedy}")
        elif without:
            text = f"a function imports {module}, which is not there on {where}, and fails when it is called"
            yield Finding("warning", place, f"{text}; {remedy}")


def _versions(report: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Finding]:
    if _minor(here["python"]) != _minor(report["python"]):
        text = f"the cluster has Python {report['python']}, and this machine {here['python']}"
        yield Finding("error", "python", f"{text}; use the same minor version on both")
    for name, version in here["versions"].items():
        other = report["versions"].get(name, "")
        if _minor(version) != _minor(other):
            text = f"the cluster has {name} {other or '(none)'}, and this machine {version}; install the same on both"
            yield Finding("error", name, text)


def _of_node(node: Mapping[str, Any], head: Mapping[str, Any], report: Mapping[str, Any]) -> Iterator[Finding]:
    where, answer = f"node {node['host']} ({node['address']})", node["answer"]
    if node["error"]:
        remedy = "install the same version of raytuner on every node, and look at the node's logs"
        yield Finding("error", where, f"raytuner cannot be called there: {node['error']}; {remedy}")
        return
    ours, heads = answer["versions"], head["versions"]
    for name in [*ours, *(each for each in FOR_TRIALS if each in heads and each not in ours)]:
        if ours.get(name) != heads.get(name):
            text = f"it has {name} {ours.get(name, 'none')}, and the head node {heads.get(name, 'none')}"
            yield Finding("error", where, f"{text}; give all nodes the same image")
    if answer["storage"]:
        yield Finding("error", where, f"storage {report['storage']}: {answer['storage']}")
    if answer["mlflow"]:
        level: Literal["error", "warning"] = "error" if node["head"] else "warning"
        yield Finding(level, where, f"MLflow at {without_password(report['tracking'])}: {answer['mlflow']}")
    declared = int(node["resources"].get("GPU", 0))
    if declared and ours.get("torch", "").endswith("+cpu"):
        text = f"it has GPUs, and torch {ours['torch']}, which cannot use them; install a build of torch for CUDA"
        yield Finding("error" if report["gpu"] and "torch" in report["modules"] else "warning", where, text)
    if declared > len(answer["gpus"]):
        text = f"it declares {declared} GPUs, and its driver shows {len(answer['gpus'])}; look at nvidia-smi there"
        yield Finding("warning", where, text)
    if MPS in answer.get("without", []):
        text = f"resources.mps does nothing there, as it has no {MPS}: trials that share a GPU take turns"
        yield Finding("warning", where, text)
    for place, disk in answer["disks"].items():
        if disk["free"] < ROOM[0]:
            text = f"{place} has {format_size(disk['free'])} free; make room there"
            yield Finding("error" if disk["free"] < ROOM[1] else "warning", where, text)
    if abs(node["skew"]) > SKEW_SECONDS[0]:
        text = f"its clock is {abs(node['skew']):.0f} s {'ahead' if node['skew'] > 0 else 'behind'}; run chrony or ntpd"
        yield Finding("error" if abs(node["skew"]) > SKEW_SECONDS[1] else "warning", where, text)


def describe(report: Mapping[str, Any]) -> list[str]:
    """The nodes, a line or two each."""
    lines = []
    for node in report["nodes"]:
        answer, resources = node["answer"], node["resources"]
        has = f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"
        lines.append(f"{'head' if node['head'] else 'node'}  {node['host']} ({node['address']}): {has}")
        if not answer:
            continue
        facts = [f"Python {answer['python']}", *(f"{name} {each}" for name, each in answer["versions"].items())]
        lines.append("      " + ", ".join(facts))
        lines += [f"      {g['name']}, {g.get('memory', '?')}, driver {g.get('driver', '?')}" for g in answer["gpus"]]
        disks = [f"{place}: {format_size(disk['free'])} free" for place, disk in answer["disks"].items()]
        reached = [
            f"{what} {'answers' if not answer[key] else 'does not answer'}"
            for what, key, there in (("storage", "storage", "storage"), ("MLflow", "mlflow", "tracking"))
            if report[there]
        ]
        lines.append("      " + ", ".join([*disks, f"clock {node['skew']:+.2f} s", *reached]))
    if report["grows"]:
        lines.append("more  nodes may join: an autoscaler is at work; they are not looked at")
    return lines


def _version(package: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return ""


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]
