"""What a command on the head node came to, as a line of a job's output: the way back that every cluster has."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytuner.errors import LaunchError

__all__ = ["ANSWER_MARK", "EXPORT", "Answer", "answer_line", "read_answer", "unpack"]

ANSWER_MARK = "raytuner-answer:"
EXPORT = "{export}"
"""Stands for the place on the head node to which something is exported that is to be fetched."""
MOST_FETCHED = 200 * 2**20
"""Bytes of an export that come through the dashboard, which is not made for more."""


@dataclass(frozen=True)
class Answer:
    """What a command on the head node came to."""

    code: int
    out: str
    err: str
    export: bytes | None = None
    """A tar archive of what it exported."""


def answer_line(code: int, out: str, err: str, export: Path | None = None) -> str:
    """An answer as one line of a job's output."""
    data: dict[str, Any] = {"code": code, "out": out, "err": err}
    if export is not None and export.exists():
        size = sum(path.stat().st_size for path in [export, *export.rglob("*")] if path.is_file())
        if size > MOST_FETCHED:
            data["code"] = 1
            data["err"] += (
                f"{export.suffix.lstrip('.') or 'the checkpoint'}: what is fetched through the dashboard may have "
                f"{MOST_FETCHED // 2**20} MiB, and this has {size // 2**20} MiB; fetch it from the storage\n"
            )
        else:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as archive:
                archive.add(export, arcname=export.name)
            data["export"] = base64.b64encode(buffer.getvalue()).decode()
    return ANSWER_MARK + json.dumps(data)


def read_answer(text: str) -> Answer:
    """The answer of a line, without its mark, and whatever follows it."""
    data = json.loads(text.splitlines()[0])
    export = base64.b64decode(data["export"]) if "export" in data else None
    return Answer(data["code"], data["out"], data["err"], export)


def unpack(archive: bytes, target: Path) -> Path:
    """Put what was exported where the user wants it; what is there already stays. Raises LaunchError for that."""
    if target.exists():
        raise LaunchError(f"{target}: it is there already; name another place")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".raytuner-") as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        (found,) = Path(folder).iterdir()
        found.rename(target)
    return target
