"""The developer's cache folder: built components, vendored packages, the JavaScript toolchain. Deleting it is safe.

Every entry is a folder named by the digest of what it was made from, made under a temporary name and renamed, so a
half-made entry is never seen; a lock per entry keeps two commands from making the same one. What a killed command left
half-made says whose it was, and goes with the next. XDG Base Directory 0.8.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

MAKING = "making-"
ENTRIES_MAX = 50
"""Entries kept of one kind, oldest removed first: a built component is 20 MB, and each save may make one."""


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/freehold`, by default ~/.cache/freehold."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if home.startswith("/") else Path.home() / ".cache"
    return base / "freehold"


def entry(kind: str, digest: str, make: Callable[[Path], None], *, entries_max: int = ENTRIES_MAX) -> Path:
    """Return the folder of `digest`, calling `make(empty folder)` if it is not there. What `make` raises passes on."""
    shelf = cache_folder() / kind
    shelf.mkdir(parents=True, exist_ok=True)
    path = shelf / digest
    if path.is_dir():
        os.utime(path)
        return path
    with (shelf / f"{digest}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_dir():
            work = _work_folder(shelf)
            try:
                make(work)
                work.rename(path)
            finally:
                shutil.rmtree(work, ignore_errors=True)
            _forget_oldest(shelf, keep=path, entries_max=entries_max)
    (shelf / f"{digest}.lock").unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give an empty folder for the time of the block, on the disk of the cache."""
    shelf = cache_folder() / "scratch"
    shelf.mkdir(parents=True, exist_ok=True)
    work = _work_folder(shelf)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _work_folder(shelf: Path) -> Path:
    """Return a new empty folder whose name says which process makes something in it; those of ended ones are removed."""
    for left in shelf.glob(f"{MAKING}*"):
        owner = left.name.removeprefix(MAKING).partition("-")[0]
        if not owner.isdigit() or not Path("/proc", owner).exists():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=shelf, prefix=f"{MAKING}{os.getpid()}-"))


def _forget_oldest(shelf: Path, *, keep: Path, entries_max: int) -> None:
    entries = [path for path in shelf.iterdir() if path.is_dir() and not path.name.startswith(MAKING)]
    entries.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in entries[entries_max:]:
        if path != keep:
            shutil.rmtree(path, ignore_errors=True)
