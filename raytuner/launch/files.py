"""The files that an experiment's folder begins with, and those that an extension puts in their place."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from raytuner.definition import to_yaml
from raytuner.engine.snapshot import changed_since, take_snapshot
from raytuner.errors import LaunchError, PlanError
from raytuner.journal import Cursor, Extended, Folder, JournalReader, Lock, replay, write_whole
from raytuner.plan import Plan
from raytuner.storage import ObjectStore, is_address, pull

__all__ = ["create", "make_folder", "refuse_taken", "settle", "stage"]

STAGED = "extension-"
"""How a folder begins that holds an extension's files until it is on record; then comes the journal's segment."""


def refuse_taken(plan: Plan, folder: Folder) -> None:
    """Raise PlanError where the name is an experiment's already. One that never got to a step does not count."""
    if is_address(plan.storage) and not Lock(folder).held_here():
        pull(ObjectStore(plan.storage), folder.path)
    if _contents(folder) and (Lock(folder).held_by_other() or not _is_empty(folder)):
        raise PlanError(
            f"{plan.storage}: the name of an experiment must be new, and this one is taken; give another with "
            f"--name, go on with `raytuner resume {shlex.quote(plan.storage)}` (with the code as it was then), "
            "or delete the folder"
        )


def make_folder(folder: Folder) -> None:
    """Make the folder, for its lock; it stays empty until that is held."""
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(folder, error) from error


def create(plan: Plan, folder: Folder, say: Callable[[str], None]) -> None:
    """Write what an experiment begins with. Call it under the folder's lock: then nobody else writes there."""
    try:
        if _contents(folder):
            _put_aside(plan, folder, say)
        folder.journal.mkdir(parents=True, exist_ok=True)
        folder.control.mkdir(exist_ok=True)
        write_whole(folder.definition, to_yaml(plan.experiment))
        write_whole(folder.plan, json.dumps(plan.to_dict(), indent=2))
        _copy_code(plan, folder, folder.code)
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: Folder, error: OSError) -> LaunchError:
    return LaunchError(f"{folder.path}: the experiment's folder must be writable: {error}")


def _put_aside(plan: Plan, folder: Folder, say: Callable[[str], None]) -> None:
    if not _is_empty(folder):
        refuse_taken(plan, folder)
    aside = _free(folder.path.with_name, f"{folder.path.name}~")
    aside.mkdir()
    for path in _contents(folder):
        path.rename(aside / path.name)
    if is_address(plan.storage):
        ObjectStore(plan.storage).clear()
    say(f"an earlier attempt under this name never got to a step; it lies in {aside}")


def stage(plan: Plan, folder: Folder, segment: int) -> None:
    """Lay an extension's files ready, for ``settle`` to put in place once it is on record in this segment."""
    staged = Folder(folder.path / f"{STAGED}{segment:06d}")
    shutil.rmtree(staged.path, ignore_errors=True)
    staged.path.mkdir()
    write_whole(staged.definition, to_yaml(plan.experiment))
    write_whole(staged.plan, json.dumps(plan.to_dict(), indent=2))
    if folder.code.is_dir() and changed_since(folder.code):
        _copy_code(plan, folder, staged.code)


def settle(folder: Folder) -> bool:
    """Put the files of extensions that are on record in place, however often that was cut off, and delete those of
    extensions that never came on record; whether any was put in place. Call it under the folder's lock.
    """
    settled = False
    for path in sorted(folder.path.glob(f"{STAGED}*")):
        if _is_on_record(folder, int(path.name.removeprefix(STAGED))):
            settled = True
            _put_in_place(Folder(path), folder)
        shutil.rmtree(path)
    return settled


def _is_on_record(folder: Folder, segment: int) -> bool:
    reader = JournalReader(folder.journal, Cursor(segment, 0))
    return any(isinstance(event, Extended) and reader.cursor.segment == segment for event in reader.read())


def _put_in_place(staged: Folder, folder: Folder) -> None:
    if staged.code.is_dir():
        if folder.code.is_dir():
            folder.code.rename(_free(folder.path.joinpath, "code."))
        staged.code.rename(folder.code)
    for new, old in ((staged.plan, folder.plan), (staged.definition, folder.definition)):
        if new.exists():
            new.replace(old)


def _copy_code(plan: Plan, folder: Folder, target: Path) -> None:
    take_snapshot(plan.import_root, target, without=[folder.path.parent, folder.path])


def _free(place: Callable[[str], Path], name: str) -> Path:
    return next(path for number in range(1, 10**6) if not (path := place(f"{name}{number}")).exists())


def _contents(folder: Folder) -> list[Path]:
    if not folder.path.exists():
        return []
    return [path for path in folder.path.iterdir() if path != folder.lock]


def _is_empty(folder: Folder) -> bool:
    """Whether it is an experiment's folder, and no trial of it ever reported a step."""
    return folder.journal.is_dir() and replay(folder, history=False).steps == 0
