"""The fold of a long journal, written down, so that a look at it need not read all of it again.

A snapshot is a convenience: where it is missing, of another version, or not of this journal, the journal is read from
its beginning. It is a pickle of this room's own classes, and nothing else is taken out of one.
"""

from __future__ import annotations

import gc
import io
import os
import pickle
import zlib
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytuner import __version__
from raytuner.journal.events import SCHEMA
from raytuner.journal.log import Cursor

if TYPE_CHECKING:
    from raytuner.journal.folder import Folder
    from raytuner.journal.state import ExperimentState

__all__ = ["load_snapshot", "save_snapshot", "worth_saving"]

EVENTS = 20_000
"""So many events take half a second to read: then it is worth the while."""
TAIL_BYTES = 4096
"""How much of the journal, before the cursor, must be as it was."""
_ROOM = __name__.rpartition(".")[0]
_MODULES = (f"{_ROOM}.state", f"{_ROOM}.events")


def worth_saving(new_events: int) -> bool:
    """Whether so many events beyond a snapshot are worth another one."""
    return new_events >= EVENTS


def _file(folder: Folder) -> Path:
    return folder.cursors / "state.pickle"


def _version(folder: Folder, state: ExperimentState) -> tuple[Any, ...]:
    from raytuner.journal.state import Checkpoint, Phase, Step, TrialState

    parts = (type(state), TrialState, Checkpoint, Phase, Step)
    place = str(folder.path)  # what it holds of paths is called so only there
    return (__version__, SCHEMA, place, *(tuple(field.name for field in fields(part)) for part in parts))


def _tail(folder: Folder, cursor: Cursor) -> int | None:
    """A checksum of what comes before the cursor; None where the journal is shorter."""
    path = folder.journal / f"{cursor.segment:06d}.jsonl"
    if not path.exists() or path.stat().st_size < cursor.offset:
        return None
    with path.open("rb") as file:
        file.seek(max(0, cursor.offset - TAIL_BYTES))
        return zlib.crc32(file.read(min(TAIL_BYTES, cursor.offset)))


def save_snapshot(folder: Folder, state: ExperimentState, cursor: Cursor, torn: list[str]) -> None:
    """Write down a fold without history, as far as the cursor. Does nothing where the folder cannot be written."""
    path = _file(folder)
    data = pickle.dumps(
        (_version(folder, state), (cursor.segment, cursor.offset), _tail(folder, cursor), torn, state),
        protocol=pickle.HIGHEST_PROTOCOL,
    )
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(data)
        temporary.replace(path)


def load_snapshot(folder: Folder, empty: ExperimentState) -> tuple[ExperimentState, Cursor, list[str]] | None:
    """The fold, how far it goes, and the torn tails before; None where there is none of this journal and version."""
    collecting = gc.isenabled()
    gc.disable()  # many objects are made, of which none is garbage: that takes half the time
    try:
        version, place, tail, torn, state = _Unpickler(io.BytesIO(_file(folder).read_bytes())).load()
        cursor = Cursor(*place)
        if version == _version(folder, empty) and tail is not None and tail == _tail(folder, cursor):
            return state, cursor, torn
    except Exception:  # whatever is wrong with it, the journal is right
        return None
    finally:
        if collecting:
            gc.enable()
    return None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in _MODULES and "." not in name and name[0].isupper():
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a snapshot holds no {module}.{name}")
