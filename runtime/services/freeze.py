"""The mark that holds a lane's data still: a file in its folder, whose presence refuses every write to any store there.

It is made while the write lock of every database in the folder is held, and a writer looks for it once it holds that
lock: so no write that was acknowledged comes after the mark. Not here: who freezes and why (node/serving/), and stores.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from runtime.durable import sync_folder
from runtime.providers import ProviderError

FROZEN: Final = "frozen"
"""Name of the mark in the folder of a project's data in an environment."""

LEASE: Final = "lease"
"""Name of the file that says until when the data may be written, where a node may do so for a time only."""

LEASE_MAX_BYTES: Final = 128
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
WRITER_WAIT_S: Final = 8.0
"""How long a writer waits for a freeze to end: an app's usual time limit of 10 s has room for its answer."""

LOOK_EVERY_S: Final = 0.05
RETRY_AFTER_S: Final = 2
LOCK_WAIT_S: Final = 10.0
"""How long a freeze waits for a transaction under way; an app's own time limit ends most of them."""

ResultT = TypeVar("ResultT")


class FrozenError(Exception):
    """The data may not be written now."""


def check(folder: Path) -> None:
    """Raise FrozenError if the folder's data may not be written; the caller holds the write lock of what it means to write."""
    if os.path.lexists(folder / FROZEN) or not leased(folder):
        raise FrozenError


def leased(folder: Path) -> bool:
    """Whether the data may be written by its lease, which ends by itself though the daemon is gone; True if it needs none."""
    try:
        with (folder / LEASE).open("rb") as file:
            boot, _, until = file.read(LEASE_MAX_BYTES).decode(errors="replace").partition(" ")
    except (FileNotFoundError, NotADirectoryError):
        return True
    try:
        return boot == _boot() and time.monotonic() < float(until)
    except ValueError:
        return False


def lease(folder: Path, until_s: float) -> None:
    """Let the data be written until then (monotonic, which all processes of a machine share) and no longer. Durable."""
    temporary = folder / (LEASE + ".new")
    temporary.write_text(f"{_boot()} {until_s}")
    temporary.replace(folder / LEASE)
    sync_folder(folder)


def end_lease(folder: Path) -> None:
    """Have the data need no lease any more."""
    (folder / LEASE).unlink(missing_ok=True)


@functools.cache
def _boot() -> str:
    """What names this start of the machine: monotonic time means nothing in another."""
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""


def patiently(write: Callable[[], ResultT]) -> ResultT:
    """Run a write again while it raises FrozenError, for a few seconds; then raises a ProviderError that says so."""
    try:
        return write()
    except FrozenError:
        end_s = time.monotonic() + WRITER_WAIT_S
    while time.monotonic() < end_s:
        time.sleep(LOOK_EVERY_S)
        try:
            return write()
        except FrozenError:
            continue
        except ProviderError:
            break  # it went to another node while this one waited
    raise ProviderError("other", "the data is frozen; try again", retry_after_s=RETRY_AFTER_S)


def freeze(folder: Path, note: bytes) -> None:
    """Make the mark, with `note` in it, durable on return, when no write is under way. Raises OSError, sqlite3.Error."""
    with contextlib.ExitStack() as held:
        for path in databases(folder):
            held.enter_context(_locked(path))
        temporary = folder / (FROZEN + ".new")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(handle, note)
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.replace(folder / FROZEN)
        try:
            sync_folder(folder)
        except OSError:  # who asked for it hears that there is none
            (folder / FROZEN).unlink(missing_ok=True)
            raise


def thaw(folder: Path) -> None:
    """Take the mark away; nothing happens if there is none."""
    (folder / FROZEN).unlink(missing_ok=True)
    sync_folder(folder)


def note_of(folder: Path) -> bytes | None:
    """Return what the mark says, None if the data is not frozen."""
    try:
        return (folder / FROZEN).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def databases(folder: Path) -> list[Path]:
    """Return every database of the folder, ascending."""
    return sorted(path for path in folder.rglob("*.db") if path.is_file() and not path.is_symlink())


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, LOCK_WAIT_S, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            database.execute("ROLLBACK")
