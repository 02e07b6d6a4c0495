"""A node's data folder as one file, taken while the node runs or not, and put back.

The fence is copied before the databases: a copy whose database is newer than its fence is what a crash leaves too,
one whose database is older would be quarantined. Databases are read through SQLite's own backup, by a connection that
never writes, so the copy is one moment of each. Logs and caches stay out.

What a restore means: the copy has forgotten every promise made since. So a restored voter says nothing before it has
read what the others hold; a sole voter has nobody to ask, and forgets what it decided since the copy (a stated limit).
A copy must never run beside its original: two lives of one identity are noticed, and both give up their vote. Not
here: asking a person, and where backups are kept.
"""

from __future__ import annotations

import contextlib
import io
import os
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

from node.errors import ConfigError
from node.journal.audit_backlog import BACKLOG_FILE_NAME, Backlog
from node.membership.new_folder import abandon, begin, finish
from runtime.durable import sync_folder

MANIFEST = "backup.json"
FORMAT = 1
MANIFEST_MAX_BYTES = 64 * 1024
FIRST = (
    "node.key",
    "node.toml",
    "genesis",
    "credentials",
    "addresses",
    "pending",
    "fence",
    "api.pem",
    "api-ca.pem",
    "api-tls.pem",
    BACKLOG_FILE_NAME,
)
"""In this order, before any database."""

DATABASES = ("vote.db", "state.db")
FOLDERS = ("data", "artifacts", "certificates", "webhooks", "trusts")
SQLITE_MAGIC = b"SQLite format 3\0"
WAL_SUFFIXES = ("-wal", "-shm", "-journal")


class Manifest(msgspec.Struct, frozen=True):
    """What a backup says of itself; times are wall milliseconds."""

    format: int
    node: str
    mesh: str
    at_ms: int


def write_backup(folder: Path, target: Path, node: str, mesh: str) -> int:
    """Write the folder's backup to a new file of mode 0600; return its bytes. Raises ConfigError, OSError."""
    if not (folder / "node.key").exists():
        raise ConfigError(f"{folder} holds no node", "name its folder with --data")
    temporary = target.with_name(target.name + ".new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
                _fill(archive, folder, Manifest(FORMAT, node, mesh, time.time_ns() // 1_000_000))
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(target)
    sync_folder(target.parent)
    return target.stat().st_size


def read_backup(source: Path, folder: Path) -> Manifest:
    """Unpack a backup into a new folder; return what it says of itself. Raises ConfigError if it is none."""
    temporary = begin(folder)
    try:
        with tarfile.open(source, "r:gz") as archive:
            archive.extractall(temporary, members=list(_expected(archive)), filter="data")
        manifest = _manifest(temporary)
        for name in FIRST:
            if (temporary / name).exists():
                (temporary / name).chmod(0o600)
    except (tarfile.TarError, EOFError, OSError) as error:
        abandon(folder)
        raise ConfigError(f"{source} cannot be restored: {error}", "try an older backup") from None
    except Exception:
        abandon(folder)
        raise
    Backlog(temporary).begin()  # the others may hold audit entries that this node wrote since
    finish(folder)
    return manifest


def manifest_of(source: Path) -> Manifest:
    """Return what a backup says of itself. Raises ConfigError if it is none."""
    try:
        with tarfile.open(source, "r:gz") as archive:
            head = archive.extractfile(MANIFEST)
            return msgspec.json.decode(head.read(MANIFEST_MAX_BYTES) if head is not None else b"", type=Manifest)
    except (tarfile.TarError, EOFError, OSError, KeyError, msgspec.MsgspecError):
        raise ConfigError(f"{source} is no backup of a node", "try another file") from None


def _fill(archive: tarfile.TarFile, folder: Path, manifest: Manifest) -> None:
    data = msgspec.json.encode(manifest)
    head = tarfile.TarInfo(MANIFEST)
    head.size, head.mode, head.mtime = len(data), 0o600, manifest.at_ms // 1000
    archive.addfile(head, io.BytesIO(data))
    for name in FIRST:
        if (folder / name).exists():
            archive.add(folder / name, name)
    for name in DATABASES:
        _add(archive, folder / name, name)
    for name in FOLDERS:
        for path in sorted((folder / name).rglob("*")):
            if path.is_file() and not path.is_symlink() and not path.name.endswith(WAL_SUFFIXES):
                with contextlib.suppress(FileNotFoundError):  # collected meanwhile
                    _add(archive, path, str(path.relative_to(folder)))


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    with path.open("rb") as file:
        is_database = file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    if not is_database:
        archive.add(path, name)
        return
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "copy.db"
        with (
            contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as reader,
            contextlib.closing(sqlite3.connect(copy)) as writer,
        ):
            reader.backup(writer)
            writer.execute("PRAGMA journal_mode=DELETE")
        archive.add(copy, name)


def _expected(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Only regular files that a backup may hold."""
    single = {MANIFEST, *FIRST, *DATABASES}
    for member in archive:
        parts = PurePosixPath(member.name).parts
        known = member.name in single or (len(parts) > 1 and parts[0] in FOLDERS and ".." not in parts)
        if not member.isreg() or not known:
            raise ConfigError(f"the file {member.name!r} belongs to no backup", "try another backup")
        yield member


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (FileNotFoundError, msgspec.MsgspecError):
        raise ConfigError("the file is no backup of a node", "try another file") from None
    if not all((folder / name).exists() for name in ("node.key", "genesis")):
        raise ConfigError("the backup lacks the node's key or its mesh", "try another backup")
    if manifest.format != FORMAT:
        raise ConfigError(f"the backup has format {manifest.format}, this version reads {FORMAT}", "update freehold")
    path.unlink()
    return manifest
