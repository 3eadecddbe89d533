"""A fresh SQLite store in milliseconds: the tables exactly as MLflow's own migrations leave them.

MLflow runs all its 68 migrations on a new file, seconds of CPU, and has to be imported for it, seconds more.
``schema.sql`` holds their outcome for one revision. It is used only where the newest migration of the installed
MLflow is that revision; otherwise MLflow creates the store by itself. A test compares the two, table by table.
``python -m raytuner.tracking.schema`` writes the file anew from the installed MLflow.
"""

from __future__ import annotations

import os
import re
import sqlite3
import tempfile
from importlib.util import find_spec
from pathlib import Path

__all__ = ["REVISION", "create_database", "dump", "newest_revision", "revision_of"]

_FILE = Path(__file__).with_name("schema.sql")

REVISION = "dc11669786a5"
"""The schema that ``schema.sql`` holds and that is written without MLflow's help: MLflow 3.17's."""

_DATA = ("alembic_version", "workspaces")
"""The tables that MLflow's migrations leave rows in."""


def newest_revision() -> str | None:
    """The newest migration of the installed MLflow, found without importing it; None when that cannot be told."""
    spec = find_spec("mlflow")
    if spec is None or not spec.submodule_search_locations:
        return None
    revisions: set[str] = set()
    replaced: set[str] = set()
    folder = Path(spec.submodule_search_locations[0], "store", "db_migrations", "versions")
    for path in folder.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if found := re.search(r"^revision\b[^=]*=\s*[\"'](\w+)", text, re.MULTILINE):
            revisions.add(found[1])
        if found := re.search(r"^down_revision\b[^=]*=\s*(\([^)]*\)|[^\n]*)", text, re.MULTILINE):
            replaced.update(re.findall(r"[\"'](\w+)[\"']", found[1]))
    heads = revisions - replaced
    return heads.pop() if len(heads) == 1 else None


def revision_of(path: Path) -> str | None:
    """The revision of the store at ``path``; None when MLflow has not set it up. Raises sqlite3.Error."""
    # Not read-only: a writer that was killed leaves a journal, which the next one to open the store has to undo.
    connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)
    try:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchall():
            return None
        rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    finally:
        connection.close()
    return str(rows[0][0]) if len(rows) == 1 else None


def create_database(path: Path) -> bool:
    """Put an empty store at ``path``, whole or not at all; a file that is there already stays as it is.

    Returns False, and does nothing, when the installed MLflow has another schema.
    """
    if newest_revision() != REVISION:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        connection = sqlite3.connect(temporary)
        connection.executescript(f"BEGIN;\n{_FILE.read_text(encoding='utf-8')}\nCOMMIT;")
        connection.close()
        os.link(temporary, path)  # unlike a rename, this never replaces a store that another process just made
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)
    return True


def dump(path: Path) -> str:
    """The schema of the store at ``path`` as a script, with the rows that the migrations leave."""
    connection = sqlite3.connect(path)
    try:
        statements = [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]
        for table in _DATA:
            rows = connection.execute(f"SELECT * FROM {table}")  # noqa: S608 (the names are ours)
            statements += [f"INSERT INTO {table} VALUES ({', '.join(map(_literal, row))})" for row in rows]  # noqa: S608 (the same)
    finally:
        connection.close()
    return "".join(re.sub(r"[ \t]+$", "", sql.strip(), flags=re.MULTILINE) + ";\n" for sql in statements)


def _literal(value: str | None) -> str:
    return "NULL" if value is None else "'" + value.replace("'", "''") + "'"


def _regenerate() -> None:
    from mlflow.tracking import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fresh.db")
        MlflowClient(f"sqlite:///{path}").search_experiments()
        _FILE.write_text(
            "-- The tables of a fresh MLflow store (Apache-2.0), as its migrations leave them.\n"
            "-- Written by `python -m raytuner.tracking.schema`; set REVISION there to the alembic_version below.\n"
            + dump(path),
            encoding="utf-8",
        )


if __name__ == "__main__":
    _regenerate()
