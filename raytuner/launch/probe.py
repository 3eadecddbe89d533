"""What one node has, and what it can reach: called on every node of a cluster, or here."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from raytuner.errors import StorageError

__all__ = ["PROBE_MARK", "look"]

PROBE_MARK = ".raytuner-doctor-"
PACKAGES = ("raytuner", "ray", "torch", "mlflow", "numpy")


def look(node: str, request: dict[str, Any]) -> dict[str, Any]:
    """What this node has, and what keeps it from what an experiment needs; plain data.

    node: what the node is called. request: ``storage`` (absolute; a folder, or an address), ``mark`` (a name that
    nothing else has there, with the word that the head wrote below it), ``tracking`` (the MLflow store), ``modules``
    (top-level modules that the user's code imports) and ``programs``; each may be None.
    """
    storage, tracking = request.get("storage"), request.get("tracking")
    return {
        "python": platform.python_version(),
        "versions": _versions(),
        "gpus": _gpus(),
        "disks": _disks([tempfile.gettempdir(), *([storage] if storage and "://" not in storage else [])]),
        "filesystem": _filesystem(Path(storage)) if storage and "://" not in storage else "",
        "storage": _storage(node, storage, request["mark"]) if storage else "",
        "mlflow": _mlflow(tracking) if tracking else "",
        "without": [program for program in request.get("programs") or [] if shutil.which(program) is None],
        "missing": _missing(request.get("modules") or []),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _gpus() -> list[dict[str, str]]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    fields = ("name", "driver_version", "memory.total")
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [dict(zip(("name", "driver", "memory"), line.split(", "), strict=False)) for line in listing.splitlines()]


def _disks(places: list[str]) -> dict[str, dict[str, int]]:
    found = {}
    for place in places:
        with suppress(OSError):
            there = next(path for path in (Path(place), *Path(place).parents) if path.exists())
            usage = shutil.disk_usage(there)
            found[place] = {"free": usage.free, "size": usage.total}
    return found


def _filesystem(folder: Path) -> str:
    """The kind of file system that a folder is, or would be, on; an empty string where the system does not tell."""
    found: dict[Path, str] = {}
    with suppress(OSError):
        for line in Path("/proc/mounts").read_text(errors="replace").splitlines():
            _, place, kind, *_ = line.split(" ")
            # What is mounted over another is told later; blanks are told as \\040.
            found[Path(re.sub(r"\\([0-7]{3})", lambda each: chr(int(each[1], 8)), place))] = kind
    folder = folder.resolve()
    return next((found[path] for path in (folder, *folder.parents) if path in found), "")


def _storage(node: str, storage: str, mark: list[str]) -> str:
    """Why the node cannot use the storage: it must see what the head wrote there, and may write too."""
    name, word = mark
    if "://" in storage:
        from raytuner.storage import ObjectStore

        try:
            store = ObjectStore(storage)
            seen = store.read(f"{name}/head")
            if seen != word.encode():
                return "it does not hold what the head node wrote there; give all nodes the same store and credentials"
            store.write(f"{name}/{node}", word.encode())
        except StorageError as error:
            return str(error).removeprefix(f"{storage}: ")
        return ""
    folder = Path(storage) / name
    try:
        if (folder / "head").read_text() != word:
            return "it is not the head node's"
        (folder / node).write_text(word)
    except FileNotFoundError:
        return (
            "it is not the folder that the head node sees under this name; mount a shared one there on every node, or "
            "use an object store (s3://bucket/folder)"
        )
    except OSError as error:
        return f"it cannot be used: {error.strerror}; let the user {_user()} read and write it on every node"
    return ""


def _user() -> str:
    import getpass

    with suppress(OSError, KeyError):
        return getpass.getuser()
    return str(os.getuid())


def _mlflow(uri: str) -> str:
    from raytuner.tracking import reach

    return reach(uri)


def _missing(modules: list[str]) -> list[str]:
    import importlib.util

    missing = []
    for name in modules:
        with suppress(ValueError):  # it is loaded here, in a way of its own
            if importlib.util.find_spec(name) is None:
                missing.append(name)
    return missing
