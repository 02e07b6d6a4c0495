"""An export of an app's data as a folder that people and other programs can read, and back into what a node takes.

`manifest.json` lists every file with its digest. Key-value stores are `keyvalue.ndjson`, one entry a line; SQL databases
are SQLite files in `sql/`; objects are files named by their SHA-256 in `blobs/`, their names in `blobs.db`. The folder
appears whole or not at all. Not here: how files come from a node and go there (cli/commands/mesh/data_files.py).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from cli.errors import CommandError, UsageError
from node.errors import ConfigError
from node.keys import sync_tree
from node.store.sealed_copy import open_sealed
from protocols.api_data import DataManifest, ListedFile
from runtime.durable import sync_folder
from runtime.providers import ProviderError
from runtime.services.sqlite_keyvalue import SqliteKeyValue

MANIFEST = "manifest.json"
MANIFEST_MAX_BYTES = 32 << 20
KEYVALUE_DATABASE = "keyvalue.db"
KEYVALUE_LINES = "keyvalue.ndjson"
LINE_MAX_BYTES = 8 << 20
BATCH_ENTRIES = 500
BLOCK_BYTES = 1 << 20


class StoredEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One entry of a key-value store; `value` if it is text, else `base64`."""

    store: str
    key: str
    value: str | None = None
    base64: str | None = None


class ExportFolder:
    """A folder on its way: files are written below `path`, and `finish` gives it its name."""

    def __init__(self, target: Path) -> None:
        """Take where the export is to be. Raises UsageError if there is something already."""
        self._target = target.absolute()
        self.path = self._target.with_name(self._target.name + ".part")
        if os.path.lexists(self._target):
            raise UsageError(f"{target} exists", next_step="choose another name", kind="exists")
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(mode=0o700)

    def finish(self, project: str, environment: str, node: str, at_ms: int) -> DataManifest:
        """Write entries as lines, list everything, make it durable, and let it be seen. Raises OSError, sqlite3.Error."""
        database = self.path / KEYVALUE_DATABASE
        if database.exists():
            _write_lines(database, self.path / KEYVALUE_LINES)
            database.unlink()
        names = sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file())
        files = tuple(_listed(self.path, name) for name in names)
        manifest = DataManifest(1, project, environment, node, at_ms, files)
        (self.path / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
        sync_tree(self.path)
        self.path.rename(self._target)
        sync_folder(self._target.parent)
        return manifest

    def drop(self) -> None:
        """Throw away what came."""
        shutil.rmtree(self.path, ignore_errors=True)


def read_manifest(folder: Path) -> DataManifest:
    """Return what a folder says it holds, every file compared. Raises CommandError naming what is not as listed."""
    again = "export the data again, or take another copy"
    try:
        with (folder / MANIFEST).open("rb") as file:
            manifest = msgspec.json.decode(file.read(MANIFEST_MAX_BYTES), type=DataManifest)
    except OSError as error:
        what = f"{folder} is no export: {MANIFEST}: {error.strerror}"
        raise CommandError(what, next_step="freehold data export", kind="no-export") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CommandError(f"{folder / MANIFEST} cannot be read: {error}", next_step=again, kind="no-export") from None
    for listed_file in manifest.files:
        path = folder / listed_file.name
        inside = not Path(listed_file.name).is_absolute() and ".." not in Path(listed_file.name).parts
        if not inside or path.is_symlink() or not path.is_file() or _listed(folder, listed_file.name) != listed_file:
            what = f"{listed_file.name[:80]!r} is missing, or is not what {MANIFEST} says"
            raise CommandError(what, next_step=again, kind="damaged-export")
    return manifest


@contextlib.contextmanager
def opened(source: Path, identity: Path | None) -> Iterator[Path]:
    """Yield the folder of an export, or of an encrypted backup while the context lasts. Raises CommandError."""
    if source.is_dir():
        yield source
        return
    if identity is None or not source.exists():
        what = f"{source} is no folder" if source.exists() else f"there is no {source}"
        step = f"freehold data import NAME {source} --identity FILE, if it is a backup"
        raise UsageError(what, next_step=step, kind="no-export")
    with tempfile.TemporaryDirectory(dir=source.absolute().parent, prefix=".import-") as temporary:
        folder = Path(temporary) / "backup"
        try:
            open_sealed(source, identity, folder)
        except (ConfigError, OSError) as error:
            raise CommandError(
                str(error), next_step=getattr(error, "advice", "") or "name another file", kind="no-export"
            ) from None
        yield folder


@contextlib.contextmanager
def as_stored(folder: Path, manifest: DataManifest) -> Iterator[tuple[tuple[ListedFile, ...], dict[str, Path]]]:
    """Yield the files as a node keeps them, and where each lies while the context lasts. Raises CommandError."""
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=".import-") as temporary:
        files = {file.sha256: folder / file.name for file in manifest.files}
        listed = [file for file in manifest.files if file.name != KEYVALUE_LINES]
        if len(listed) < len(manifest.files):
            path = _read_lines(folder / KEYVALUE_LINES, Path(temporary))
            listed_file = msgspec.structs.replace(_listed(path.parent, path.name), name=KEYVALUE_DATABASE)
            listed.append(listed_file)
            files[listed_file.sha256] = path
        yield tuple(listed), files


def _write_lines(database: Path, target: Path) -> None:
    query = "SELECT stores.name, key, value FROM entries JOIN stores ON store = stores.id ORDER BY stores.name, key"
    with (
        contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)) as reader,
        target.open("wb") as file,
    ):
        for store, key, value in reader.execute(query):
            file.write(msgspec.json.encode(_entry(store, key, bytes(value))) + b"\n")


def _entry(store: str, key: str, value: bytes) -> StoredEntry:
    try:
        return StoredEntry(store, key, value=value.decode())
    except UnicodeDecodeError:
        return StoredEntry(store, key, base64=base64.b64encode(value).decode())


def _read_lines(lines: Path, folder: Path) -> Path:
    """Make a key-value database of entries, by the store's own code and limits."""
    provider = SqliteKeyValue(folder, "import")
    number = 0
    try:
        with lines.open("rb") as file:
            batch: dict[str, list[tuple[str, bytes]]] = {}
            while line := file.readline(LINE_MAX_BYTES):
                number += 1
                stored_entry = msgspec.json.decode(line, type=StoredEntry)
                batch.setdefault(stored_entry.store, []).append((stored_entry.key, _value(stored_entry)))
                if number % BATCH_ENTRIES == 0:
                    _put(provider, batch)
            _put(provider, batch)
    except (msgspec.MsgspecError, UnicodeDecodeError, binascii.Error, ProviderError) as error:
        what = f"{lines.name} cannot be taken, at line {number}: {error}"
        raise CommandError(what, next_step="export the data again", kind="damaged-export") from None
    finally:
        provider.close()
    path = folder / "import" / KEYVALUE_DATABASE
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def _put(provider: SqliteKeyValue, batch: dict[str, list[tuple[str, bytes]]]) -> None:
    for store, pairs in batch.items():
        provider.open(store).set_many(pairs)
    batch.clear()


def _value(one: StoredEntry) -> bytes:
    if (one.value is None) == (one.base64 is None):
        raise msgspec.ValidationError("an entry has `value` or `base64`")
    return one.value.encode() if one.value is not None else base64.b64decode(one.base64 or "", validate=True)


def _listed(folder: Path, name: str) -> ListedFile:
    whole, size = hashlib.sha256(), 0
    with (folder / name).open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            whole.update(block)
            size += len(block)
    return ListedFile(name, size, whole.hexdigest())
