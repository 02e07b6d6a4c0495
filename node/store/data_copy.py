"""Consistent copies of a lane's data as blocks with hashes, and putting one together again from blocks.

A copy of a database is SQLite's own backup, so it is one moment of it; the bytes that two copies share are not sent twice.
Not here: when data moves and who may have it moved (node/serving/data_moves.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

from node.errors import ConfigError
from node.keys import sync_tree

BLOCK_BYTES = 64 * 1024
FILES_MAX = 100_000
NAME_MAX_CHARS = 200
BLOCKS_MAX = 1 << 20
"""Of all files together: 64 GiB."""

MANIFEST_MAX_BYTES = 48 * 1024 * 1024
BACKUP_PAGES = 4_096
NOT_COPIED = re.compile(r".*(-wal|-shm|-journal|\.lock|\.new)|frozen|lease")
"""What belongs to the place and not to the data."""


class FileCopy(msgspec.Struct, frozen=True, array_like=True):
    """One file: its path inside the folder, size in bytes, SHA-256, and the SHA-256 of each block."""

    name: str
    size: int
    digest: bytes
    blocks: tuple[bytes, ...]


class DataCopy(msgspec.Struct, frozen=True, tag="data_copy"):
    """All files of a copy, by ascending name."""

    files: tuple[FileCopy, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def take_copy(folder: Path, target: Path) -> DataCopy:
    """Copy `folder` as it is now into the new folder `target`; return what is there. Raises OSError, sqlite3.Error."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(mode=0o700, parents=True)
    for path in sorted(_files(folder), key=lambda path: path.suffix != ".db"):  # names of blobs before their bytes
        name = path.relative_to(folder)
        (target / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.suffix == ".db":
            _copy_database(path, target / name)
        else:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(path, target / name)
    return describe(target)


def clone(folder: Path, target: Path) -> None:
    """Make `target` the folder's data as it is now, to be written on: objects, which never change, are shared.

    Raises OSError, sqlite3.Error.
    """
    target.mkdir(mode=0o700, parents=True)
    for path in sorted(_files(folder), key=lambda path: path.suffix != ".db"):
        name = path.relative_to(folder)
        (target / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.suffix == ".db":
            _copy_database(path, target / name)
        elif name.parts[0] == "blobs":
            _share(path, target / name)
        else:
            shutil.copyfile(path, target / name)


def seal(folder: Path) -> None:
    """Bring the logs of all databases in, and leave nothing but the data, durable. Raises OSError, sqlite3.Error."""
    for path in sorted(folder.rglob("*.db")):
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
            busy, _, _ = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise sqlite3.OperationalError(f"{path.name} is still used")
    for path in folder.rglob("*"):
        if path.is_file() and NOT_COPIED.fullmatch(path.name):
            path.unlink()
    sync_tree(folder)


def describe(folder: Path) -> DataCopy:
    """Return the files of a folder that nobody writes, with their hashes."""
    return DataCopy(tuple(_describe(path, str(path.relative_to(folder).as_posix())) for path in _files(folder)))


def check_copy(copy: DataCopy) -> None:
    """Raise ConfigError if a copy that came from outside breaks a bound, or would leave its folder."""
    names = [file.name for file in copy.files]
    if (
        len(names) > FILES_MAX
        or len(set(names)) != len(names)
        or sum(len(file.blocks) for file in copy.files) > BLOCKS_MAX
    ):
        raise ConfigError("the copy is too large, or names a file twice", "export the data and import it")
    for file in copy.files:
        parts = PurePosixPath(file.name).parts
        if (
            not 0 < len(file.name) <= NAME_MAX_CHARS
            or ".." in parts
            or file.name.startswith("/")
            or NOT_COPIED.fullmatch(parts[-1])
            or "\0" in file.name
        ):
            raise ConfigError(f"the copy holds a file {file.name[:50]!r}", "do not trust its source")
        if len(file.blocks) != -(-file.size // BLOCK_BYTES):
            raise ConfigError(f"the copy's {file.name[:50]!r} has blocks missing", "do not trust its source")


def missing(copy: DataCopy, folder: Path) -> dict[str, list[int]]:
    """Return, by file, the numbers of the blocks that `folder` does not hold in their place."""
    wanted = {}
    for file in copy.files:
        path = folder / file.name
        have = _describe(path, file.name).blocks if path.is_file() else ()
        lacking = [number for number, block in enumerate(file.blocks) if number >= len(have) or have[number] != block]
        if lacking:
            wanted[file.name] = lacking
    return wanted


def read_block(folder: Path, name: str, number: int) -> bytes:
    """Return one block of a file."""
    with (folder / name).open("rb") as file:
        file.seek(number * BLOCK_BYTES)
        return file.read(BLOCK_BYTES)


def write_block(folder: Path, name: str, number: int, block: bytes) -> None:
    """Put one block into its place, making the file if it is missing."""
    path = folder / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(handle, block, number * BLOCK_BYTES)
    finally:
        os.close(handle)


def complete(copy: DataCopy, folder: Path) -> None:
    """Cut files to size, drop those that are gone, compare everything, make it durable. Raises ConfigError, OSError."""
    names = {file.name for file in copy.files}
    for path in _files(folder):
        if str(path.relative_to(folder).as_posix()) not in names:
            path.unlink()
    for file in copy.files:
        path = folder / file.name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        os.truncate(path, file.size)
        if _describe(path, file.name).digest != file.digest:
            raise ConfigError(f"{file.name} is not what its source said", "move it again")
        if path.suffix == ".db":
            _check_database(path)
    sync_tree(folder)


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and not NOT_COPIED.fullmatch(path.name)
    )


def _describe(path: Path, name: str) -> FileCopy:
    whole = hashlib.sha256()
    blocks = []
    for block in _blocks(path):
        whole.update(block)
        blocks.append(hashlib.sha256(block).digest())
    return FileCopy(name, path.stat().st_size, whole.digest(), tuple(blocks))


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _share(path: Path, target: Path) -> None:
    try:
        target.hardlink_to(path)
    except OSError:  # a file system without links
        shutil.copyfile(path, target)


def _copy_database(path: Path, target: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as reader,
        contextlib.closing(sqlite3.connect(target)) as writer,
    ):
        reader.backup(writer, pages=BACKUP_PAGES)


def _check_database(path: Path) -> None:
    """Raise ConfigError if a database is damaged; its own table of contents is read, not every page."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
            database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.Error as error:
        raise ConfigError(f"{path.name} is damaged: {error}", "move it again") from None
