"""The copy of a node's stores that is made before their schema changes, and the way back to it.

The copy is of one moment: both databases and the fence, whole and durable before the first change. Going back is good only
while the node has not voted since (node/upgrade/ keeps it silent as long as its new release is on trial): a vote that is
forgotten could be given twice. Not here: the schema itself (storage.py), and when to go back (node/upgrade/launcher.py).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

from node.keys import sync_tree
from node.store.storage import SCHEMA_VERSION
from runtime.durable import sync_folder

DATABASES = ("state.db", "vote.db")
"""In the order in which they are put back: while the last one is newer, going back is not done."""

FENCE = "fence"


def copy_folder(folder: Path, schema: int = SCHEMA_VERSION) -> Path:
    """Where the copy lies that was made before the stores of a data folder came to this schema."""
    return folder / f"before-schema-{schema}"


def copy_before_change(folder: Path) -> bool:
    """Copy the stores if opening them will change their schema; return whether there is a copy from before this schema.

    Raises sqlite3.Error, OSError. A damaged database is not copied: opening it sets it aside.
    """
    target = copy_folder(folder)
    if target.exists():
        return True
    databases = {name: schema_of(folder / name) for name in DATABASES}
    if not any(0 < version < SCHEMA_VERSION for version in databases.values()):
        return False
    making = target.with_name(target.name + ".new")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(mode=0o700)
    for name, version in databases.items():
        if version > 0:
            _copy_database(folder / name, making / name)
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(folder / FENCE, making / FENCE)
    sync_tree(making)
    making.rename(target)
    sync_folder(folder)
    return True


def put_back_if_newer(folder: Path) -> bool:
    """Put the copy back if the stores are of a schema from after this release; to be called again after a crash.

    Returns whether it was put back. Raises FileNotFoundError if there is no copy that this release can read.
    """
    if all(schema_of(folder / name) <= SCHEMA_VERSION for name in DATABASES):
        return False
    copies = [path for path in folder.glob("before-schema-*") if path.suffix != ".new" and _readable(path)]
    if not copies:
        raise FileNotFoundError(f"{folder} holds no copy of the stores that this release can read")
    source = min(copies, key=lambda one: int(one.name.rpartition("-")[2]))
    for name in (FENCE, *DATABASES):
        if (source / name).exists():
            _replace(source / name, folder / name)
    return True


def forget_copies(folder: Path) -> None:
    """Remove the copies: from now on the node votes, and there is no way back to before."""
    for path in folder.glob("before-schema-*"):
        shutil.rmtree(path, ignore_errors=True)


def schema_of(path: Path) -> int:
    """The schema's number of a database; 0 if there is none, or it cannot be read."""
    if not path.exists():
        return 0
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return int(connection.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.DatabaseError:
        return 0


def _readable(copy: Path) -> bool:
    return all(schema_of(copy / name) <= SCHEMA_VERSION for name in DATABASES)


def _copy_database(source: Path, target: Path) -> None:
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
        old.backup(new)


def _replace(source: Path, target: Path) -> None:
    """Have a copy of `source` stand in the place of `target`, and nothing of what was written behind it."""
    temporary = target.with_name(target.name + ".back")
    shutil.copyfile(source, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    for suffix in ("-wal", "-shm"):
        target.with_name(target.name + suffix).unlink(missing_ok=True)
    temporary.replace(target)
    sync_folder(target.parent)
