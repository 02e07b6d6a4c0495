"""The services a guest may reach, as the host sees them: stores, databases, blobs, queues and a log sink.

Not here: any provider (`runtime/services/`) or the wasi interfaces over them (`runtime/wasi/`). Configuration needs no
provider: it is a plain mapping. Every method may be called from any guest thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

ProviderErrorKind = Literal["no-such-store", "access-denied", "other"]


class ProviderError(Exception):
    """A provider refused or failed; becomes the `error` variant of `wasi:keyvalue/store`."""

    def __init__(self, kind: ProviderErrorKind, text: str = "", *, retry_after_s: int | None = None) -> None:
        """`retry_after_s`: it is away for now, and a visitor may try again after so many seconds."""
        super().__init__(text or kind)
        self.kind: ProviderErrorKind = kind
        self.text = text
        self.retry_after_s = retry_after_s


class Bucket(Protocol):
    """One open key-value store. Every method raises `ProviderError`."""

    def get(self, key: str) -> bytes | None:
        """Return the value of `key`, or None."""
        ...

    def set(self, key: str, value: bytes) -> None:
        """Store `value` under `key`."""
        ...

    def delete(self, key: str) -> None:
        """Remove `key`; no error if absent."""
        ...

    def exists(self, key: str) -> bool:
        """Whether `key` is present."""
        ...

    def list_keys(self, cursor: str | None) -> tuple[Sequence[str], str | None]:
        """Return one page of keys after `cursor`, and the cursor of the next page or None at the end."""
        ...

    def increment(self, key: str, delta: int) -> int:
        """Add `delta` (signed 64 bit) to the integer under `key`, 0 if absent, atomically; return the new value."""
        ...

    def swap(self, key: str, expected: bytes | None, value: bytes) -> bool:
        """Store `value` only if the present value is `expected` (None: absent), atomically; whether it did."""
        ...

    def get_many(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        """Return the values of `keys`, in their order."""
        ...

    def set_many(self, pairs: Sequence[tuple[str, bytes]]) -> None:
        """Store all pairs."""
        ...

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove all keys."""
        ...


class KeyValueProvider(Protocol):
    """Where key-value stores live."""

    def open(self, store: str) -> Bucket:
        """Open `store`; raises `ProviderError`. The host has already checked that the app may open it."""
        ...


SqlValue = int | float | str | bytes | None
"""A value of SQLite; integers have 64 bits."""


class SqlError(Exception):
    """A statement was refused or failed. `code` is SQLite's own name, such as SQLITE_CONSTRAINT_UNIQUE."""

    def __init__(self, code: str, text: str, *, retry_after_s: int | None = None) -> None:
        """`retry_after_s`: the data is away for now, and a visitor may try again after so many seconds."""
        super().__init__(text)
        self.code = code
        self.text = text
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class SqlColumn:
    """A column of an answer; `declared` is its type as its table was made, None for an expression."""

    name: str
    declared: str | None


@dataclass(frozen=True, slots=True)
class SqlOutcome:
    """What a statement gave: its rows, rows it changed, and where the connection stands after it.

    `last_changes` are of the newest statement that may change rows, this one or an earlier one.
    """

    columns: tuple[SqlColumn, ...]
    rows: tuple[tuple[SqlValue, ...], ...]
    changes: int
    total_changes: int
    last_insert_rowid: int
    in_transaction: bool
    last_changes: int = 0


class SqlConnection(Protocol):
    """A connection to one database, used by one thread at a time. Raises `SqlError`."""

    def execute(
        self,
        statement: str,
        parameters: Sequence[SqlValue] | Mapping[str, SqlValue] = (),
        *,
        deadline_s: float = ...,
        cancelled: Callable[[], bool] | None = None,
    ) -> SqlOutcome:
        """Run one statement; `deadline_s` is monotonic, `cancelled` is asked while it runs."""
        ...

    def execute_many(
        self,
        statement: str,
        rows: Sequence[Sequence[SqlValue] | Mapping[str, SqlValue]],
        *,
        deadline_s: float = ...,
        cancelled: Callable[[], bool] | None = None,
    ) -> SqlOutcome:
        """Run one statement for each of `rows`, all of them or none."""
        ...

    def script(
        self, statements: str, *, deadline_s: float = ..., cancelled: Callable[[], bool] | None = None
    ) -> SqlOutcome:
        """Run statements one after the other."""
        ...

    def rollback(self) -> None:
        """Undo a transaction that was left open."""
        ...

    def close(self) -> None:
        """Close it; a transaction under way is undone."""
        ...


class SqlProvider(Protocol):
    """Where SQL databases live."""

    def open(self, name: str) -> SqlConnection:
        """Open a database; raises `SqlError`. The host has already checked that the app may."""
        ...


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """One object: its size in bytes and when it was written (wall ms)."""

    size: int
    created_ms: int


class BlobReader(Protocol):
    """The bytes of an object as it was when it was opened, even if it is replaced or deleted meanwhile."""

    size: int

    def read(self, max_bytes: int) -> bytes:
        """Return the next bytes; empty at the end. Raises `ProviderError`."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class BlobWriter(Protocol):
    """An object on its way in; nobody sees it before `commit`."""

    def write(self, data: bytes) -> None:
        """Add bytes. Raises `ProviderError`."""
        ...

    def commit(self, names: Sequence[tuple[str, str]]) -> None:
        """Put it under these containers and names, durable on return. Raises `ProviderError`."""
        ...

    def close(self) -> None:
        """Throw away what was not committed; nothing happens after `commit`."""
        ...


class BlobProvider(Protocol):
    """Where objects live, by container and name. Every method raises `ProviderError`; the host checks grants."""

    def created_ms(self, container: str) -> int:
        """Return when the container was first used (wall ms), which makes it."""
        ...

    def put(self) -> BlobWriter:
        """Begin an object."""
        ...

    def get(self, container: str, name: str, start: int = 0, end: int | None = None) -> BlobReader:
        """Open an object, or its bytes from `start` to `end`, both included."""
        ...

    def info(self, container: str, name: str) -> BlobInfo | None:
        """Return what is known of an object, or None."""
        ...

    def names(self, container: str, after: str | None, limit: int) -> Sequence[str]:
        """Return names in byte order after `after`."""
        ...

    def copy(self, source: tuple[str, str], target: tuple[str, str], *, move: bool = False) -> None:
        """Put an object under another container and name too, or instead."""
        ...

    def delete(self, container: str, names: Sequence[str] | None) -> None:
        """Remove objects, or all of the container; no error for one that is absent."""
        ...


class QueueProvider(Protocol):
    """Where messages are kept until a handler is done with them."""

    def publish(self, subject: str, body: bytes, now_ms: int) -> int:
        """Keep a message, durable on return; raises `ProviderError`. The host checks that the app may publish there."""
        ...


@dataclass(frozen=True, slots=True)
class Providers:
    """Where the data of one project lies in one environment; None is what it has not.

    `declared` gives a key-value provider that the node's operator declared, by its name, and raises
    `ProviderError`; where it is None, as for smoke checks, every store lies with the node's own data. `declared_sql` does
    so for databases, and raises `SqlError`.
    """

    keyvalue: KeyValueProvider | None = None
    sql: SqlProvider | None = None
    blobs: BlobProvider | None = None
    queue: QueueProvider | None = None
    declared: Callable[[str], KeyValueProvider] | None = None
    declared_sql: Callable[[str], SqlProvider] | None = None


class LogSink(Protocol):
    """Takes what a guest logs, through `wasi:logging` or its stdout and stderr."""

    def emit(self, level: str, context: str, message: str) -> bool:
        """Keep one entry: level trace, debug, info, warn, error or critical; never blocks, never raises.

        Return whether it was kept: an app may say too much at once.
        """
        ...

    def keep(self, entries: Sequence[tuple[str, str, str]]) -> None:
        """Keep entries that were refused, all the same: they turned out to be the last that a command said."""
        ...
