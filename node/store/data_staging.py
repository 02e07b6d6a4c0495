"""Data on its way into a lane's place from outside: files by digest, then the swap, whole or not at all.

What is there is held still, put aside as it is, and what came is put into its place; a note that is durable before the
first rename has a later start go on where this one was killed. So the lane's data is the old or the new, and nobody
writes in between. Not here: who may do it and when (node/serving/data_custody.py), and moves from another node.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec

from node.errors import ConfigError
from node.keys import sync_tree, write_private
from node.store.data_folders import DataFolders, Lane, Mark, children
from node.store.migrated import MIGRATED, migrated_by
from protocols.api_data import ListedFile
from protocols.envelope import DecodeError, decode, encode
from runtime.durable import sync_folder
from runtime.services import freeze
from runtime.services.file_blobs import BLOBS_SCHEMA, BLOBS_VERSION
from runtime.services.sqlite_keyvalue import KEYVALUE_SCHEMA, KEYVALUE_VERSION
from runtime.services.sqlite_queue import QUEUE_SCHEMA, QUEUE_VERSION

FILES_MAX = 100_000
SIZE_MAX_BYTES = 64 << 30
PIECE_MAX_BYTES = 1 << 20
DATABASES = {
    "keyvalue.db": (KEYVALUE_SCHEMA, KEYVALUE_VERSION),
    "blobs.db": (BLOBS_SCHEMA, BLOBS_VERSION),
    "queue.db": (QUEUE_SCHEMA, QUEUE_VERSION),
}
_log = logging.getLogger("freehold.data")
_SQL = re.compile(r"sql/[a-z][a-z0-9-]{0,39}\.db")
_BLOB = re.compile(r"blobs/([0-9a-f]{2})/(\1[0-9a-f]{62})")


class InstallNote(msgspec.Struct, frozen=True, tag="data_install"):
    """What a later start goes on by: when the swap began (wall ms), and whether the data stays frozen behind it.

    `kept`: what was there is aside, so what lies in its place now is new. `source` is the folder of the new, below the node's,
    "" for what came by an import.
    """

    at_ms: int
    stays_frozen: bool
    kept: bool = False
    source: str = ""


def check_listing(files: tuple[ListedFile, ...]) -> None:
    """Raise ConfigError for a list of files that is no lane's data, or too much of it."""
    if len(files) > FILES_MAX or sum(max(file.size_bytes, 0) for file in files) > SIZE_MAX_BYTES:
        raise ConfigError(f"at most {FILES_MAX} files of {SIZE_MAX_BYTES >> 30} GiB together are taken", "import less")
    if len({file.name for file in files}) != len(files):
        raise ConfigError("a file is listed twice", "export the data again")
    for file in files:
        blob = _BLOB.fullmatch(file.name)
        if file.name not in DATABASES and file.name != MIGRATED and not _SQL.fullmatch(file.name) and not blob:
            raise ConfigError(f"{file.name[:80]!r} is no file of an app's data", "export the data again")
        if file.size_bytes < 0 or not re.fullmatch("[0-9a-f]{64}", file.sha256) or (blob and blob[2] != file.sha256):
            raise ConfigError(f"{file.name[:80]!r} has a size or a digest that cannot be", "export the data again")


class Staging:
    """One lane's import: `staged` files that came, then `install`."""

    def __init__(self, place: DataFolders, lane: Lane) -> None:
        self._place = place
        self._lane = lane
        self.folder = place.importing(lane)
        self._parts = self.folder / "parts"
        self._files = self.folder / "files"
        self._note = self.folder / "install"

    @property
    def begun(self) -> InstallNote | None:
        """The note of a swap under way."""
        try:
            note: InstallNote = decode(self._note.read_bytes(), InstallNote)
        except (FileNotFoundError, NotADirectoryError, DecodeError):
            return None
        return note

    def clear(self) -> None:
        """Throw away what came, unless a swap is under way."""
        if self.begun is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def open(self) -> None:
        """Make room for files, and begin anew."""
        self.clear()
        self._parts.mkdir(mode=0o700, parents=True)

    def has(self, sha256: str) -> bool:
        """Whether a file came whole."""
        return (self._parts / sha256).exists()

    def begin_part(self, listed: ListedFile) -> Part:
        """Take a file's bytes."""
        return Part(self._parts / listed.sha256, listed)

    def assemble(self, files: tuple[ListedFile, ...]) -> None:
        """Put what came under its names and check the databases. Raises ConfigError, OSError."""
        shutil.rmtree(self._files, ignore_errors=True)
        self._files.mkdir(mode=0o700)
        for file in files:
            target = self._files / file.name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copyfile(self._parts / file.sha256, target) if _shared(files, file) else (
                (self._parts / file.sha256).rename(target)
            )
            target.chmod(0o600)
            if target.suffix == ".db":
                check_database(target, file.name)
        migrated_by(self._files)
        _check_blobs(self._files)
        sync_tree(self._files)
        sync_folder(self.folder)

    def install(self, at_ms: int, *, stays_frozen: bool, source: str = "") -> None:
        """Put the assembled files into the lane's place, or those of a folder of the node. Durable on return.

        A later start goes on after a kill.
        Raises OSError, sqlite3.Error; nothing was changed unless `begun` says that the swap goes on.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self._note, encode(InstallNote(at_ms, stays_frozen, source=source)))
        try:
            self._hold(at_ms)
        except BaseException:
            self._note.unlink(missing_ok=True)
            sync_folder(self.folder)
            raise
        self.go_on()

    def go_on(self) -> None:
        """End a swap that has begun; nothing happens if none has. Raises OSError, sqlite3.Error: try again later."""
        note = self.begun
        if note is None:
            return
        stores = self._place.stores(self._lane)
        if not note.kept:
            self._hold(note.at_ms)
            self._place.keep(self._lane, note.at_ms)
            note = msgspec.structs.replace(note, kept=True)
            write_private(self._note, encode(note))
        for path in children(self._place.folder / note.source if note.source else self._files):
            path.rename(stores / path.name)
        sync_folder(stores)
        if note.stays_frozen:
            write_private(stores / freeze.FROZEN, encode(Mark(None, note.at_ms)))
        else:
            freeze.thaw(stores)
        self._note.unlink()
        sync_folder(self.folder)
        self.clear()

    def _hold(self, at_ms: int) -> None:
        """See that nobody writes what is there."""
        stores = self._place.stores(self._lane)
        if freeze.note_of(stores) is None:
            stores.mkdir(mode=0o700, parents=True, exist_ok=True)
            freeze.freeze(stores, encode(Mark(None, at_ms)))


class Part:
    """One file on its way in. Raises ConfigError for other bytes than were listed."""

    def __init__(self, path: Path, listed: ListedFile) -> None:
        self._path = path
        self._listed = listed
        self._temporary = path.with_name(path.name + ".new")
        self._file = self._temporary.open("wb")
        self._hash = hashlib.sha256()
        self._size_bytes = 0

    def write(self, piece: bytes) -> None:
        """Add bytes."""
        self._size_bytes += len(piece)
        if self._size_bytes > self._listed.size_bytes:
            raise ConfigError(f"{self._listed.name} is longer than was said", "begin the import again")
        self._hash.update(piece)
        self._file.write(piece)

    def finish(self) -> None:
        """Keep it under its digest, durable on return."""
        if self._size_bytes != self._listed.size_bytes or self._hash.hexdigest() != self._listed.sha256:
            raise ConfigError(f"{self._listed.name} is not what was listed", "begin the import again")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._temporary.rename(self._path)

    def close(self) -> None:
        """Let go of it, and of its bytes unless it was finished."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def settle_imports(place: DataFolders, *, clear: bool = True) -> None:
    """End swaps that began, also in an earlier life; with `clear` throw away what came and was never put in place.

    A swap that cannot end now is told to the log and stays begun: its data is frozen until it does.
    """
    for folder in sorted((place.folder / "importing").glob("*/*")):
        staging = Staging(place, (folder.parent.name, folder.name))
        try:
            staging.go_on()
        except (OSError, sqlite3.Error) as error:
            _log.error("an import cannot end yet: %s", error, extra={"event": "data.import", "detail": str(folder)})
        if clear:
            staging.clear()


def check_database(path: Path, name: str) -> None:
    """Raise ConfigError unless a file is a whole SQLite database, and one of the node's own has its tables alone."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
            if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise ConfigError(f"{name} is damaged", "take another copy")
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if (expected := DATABASES.get(name)) is not None and (
                version != expected[1] or _tables(database) != _expected_tables(expected[0])
            ):
                raise ConfigError(
                    f"{name} has other tables than this release's (version {version})", "upgrade the node"
                )
    except sqlite3.Error as error:
        raise ConfigError(f"{name} is damaged: {error}", "take another copy") from None


def _tables(database: sqlite3.Connection) -> set[tuple[str, str, str]]:
    return set(database.execute("SELECT type, name, coalesce(sql, '') FROM sqlite_schema"))


def _expected_tables(schema: str) -> set[tuple[str, str, str]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.executescript(schema)
        return _tables(database)


def _check_blobs(files: Path) -> None:
    """Raise ConfigError unless every name of an object leads to bytes that came."""
    path = files / "blobs.db"
    if not path.exists():
        if (files / "blobs").exists():
            raise ConfigError("there are objects without blobs.db, which has their names", "export the data again")
        return
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
        for digest, size in _contents(database):
            found_path = files / "blobs" / digest.hex()[:2] / digest.hex()
            if not found_path.is_file() or found_path.stat().st_size != size:
                raise ConfigError("an object's name leads to bytes that did not come", "export the data again")


def _contents(database: sqlite3.Connection) -> Iterator[tuple[bytes, int]]:
    yield from database.execute("SELECT DISTINCT digest, size FROM objects JOIN contents USING (digest)")


def _shared(files: tuple[ListedFile, ...], one: ListedFile) -> bool:
    return one.name.endswith(".db") and sum(other.sha256 == one.sha256 for other in files) > 1
