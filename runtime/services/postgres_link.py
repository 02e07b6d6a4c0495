"""One connection to a PostgreSQL server, bounded: no message is read that is larger than what is left of an answer's limit.

The protocol is pg8000's; the socket, its time and its bytes are ours. Not here: pools, tenants and guests' errors
(`postgres_sql.py`), where the server is (`declared_providers.py`).
Source: postgresql.org/docs/current/protocol.html.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import select
import socket
import ssl
import struct
import time
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import pbkdf2_hmac, sha256
from typing import Any, Final

from pg8000.core import Context, CoreConnection
from pg8000.exceptions import DatabaseError, InterfaceError

from runtime.providers import SqlColumn, SqlValue
from runtime.services.declared_providers import DeclaredProvider, ProviderUnusableError
from runtime.services.sql_rules import fits

CONNECT_TIMEOUT_S: Final = 2.0
LOOK_EVERY_S: Final = 0.1
LOGIN_MAX_BYTES: Final = 64 * 1024
HELD_ROWS_MAX: Final = 1_000
"""Rows of an answer to the node's own questions; a guest's have limits of their own."""

UNANSWERED_MAX_MS: Final = 3_000
"""How long the kernel tries to send what nobody acknowledges."""

SCRAM_ROUNDS: Final = 4096
_SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)
_CANCEL_REQUEST: Final = struct.pack("!ii", 16, 80877102)


class LostError(Exception):
    """The connection broke; whether what was under way was done is not known."""


class StoppedError(Exception):
    """We broke it off, for time, for its size, or since the call is over; the text says which."""

    def __init__(self, code: str, text: str) -> None:
        """`code` is SQLite's name for it."""
        super().__init__(text)
        self.code = code


class ServerRefusedError(Exception):
    """The server refused a statement, or a login; the connection goes on, unless it was a login."""

    def __init__(self, fields: dict[str, str]) -> None:
        """`fields` are the server's, by their letters: C is the SQLSTATE, M its words."""
        super().__init__(fields.get("M", ""))
        self.fields = fields
        self.state = fields.get("C", "")


@dataclass(slots=True)
class ExchangeBounds:
    """What one exchange may take: bytes of answers, and time (monotonic). `cancelled` is asked while it waits.

    `max_rows` and `max_row_bytes` are what of an answer is held in memory: what is beyond is read, so that the link goes on,
    and let go. `is_over` says whether there was more.
    """

    end_s: float
    max_bytes: int = LOGIN_MAX_BYTES
    cancelled: Callable[[], bool] = field(default=lambda: False)
    max_rows: int = HELD_ROWS_MAX
    max_row_bytes: int = LOGIN_MAX_BYTES

    @property
    def is_over(self) -> bool:
        """Whether an answer was larger than what is held of one."""
        return self.max_rows < 0 or self.max_row_bytes < 0


class Wire:
    """A socket as pg8000 wants one, which reads and writes within bounds."""

    def __init__(self, link: socket.socket, bounds: ExchangeBounds) -> None:
        self.bounds = bounds
        self._socket = link
        self._in = bytearray()
        self._out = bytearray()

    def makefile(self, mode: str) -> Wire:
        """Read and write here."""
        return self

    def write(self, data: bytes) -> None:
        """Take what `flush` sends."""
        self._out += data

    def flush(self) -> None:
        """Send it. Raises LostError, StoppedError."""
        try:
            self._socket.settimeout(max(self.bounds.end_s - time.monotonic(), 0.001))
            self._socket.sendall(self._out)
        except TimeoutError:
            raise StoppedError("SQLITE_INTERRUPT", "the server took no more in time") from None
        except OSError as error:
            raise LostError(str(error)) from error
        finally:
            self._out.clear()

    def read(self, size: int) -> bytes:
        """Return exactly so many bytes. Raises LostError, StoppedError."""
        self.bounds.max_bytes -= size
        if size < 0 or self.bounds.max_bytes < 0:
            raise StoppedError("SQLITE_TOOBIG", "the answer is too large; ask for less with LIMIT")
        while len(self._in) < size:
            self._fill()
        received = bytes(self._in[:size])
        del self._in[:size]
        return received

    def _fill(self) -> None:
        while True:
            left_s = self.bounds.end_s - time.monotonic()
            if self.bounds.cancelled():
                raise StoppedError("SQLITE_INTERRUPT", "the call is over")
            if left_s <= 0:
                raise StoppedError("SQLITE_INTERRUPT", "the server gave no answer in time")
            try:
                self._socket.settimeout(min(left_s, LOOK_EVERY_S))
                data = self._socket.recv(64 * 1024)
            except TimeoutError:
                continue
            except OSError as error:
                raise LostError(str(error)) from error
            if not data:
                raise LostError("the server closed the connection")
            self._in += data
            return

    @property
    def is_quiet(self) -> bool:
        """Whether an idle connection still stands: a server that ended it has said so, or hung up."""
        try:
            return not self._in and not select.select([self._socket], [], [], 0)[0]
        except (OSError, ValueError):
            return False

    def hang_up(self) -> None:
        """Break it off from any thread; whoever reads hears of it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def dial(access: DeclaredProvider, bounds: ExchangeBounds) -> Wire:
    """Reach the server, over TLS if that is how. Raises LostError, ProviderUnusableError."""
    try:
        link = socket.create_connection((access.host, access.port), CONNECT_TIMEOUT_S)
    except OSError as error:
        raise LostError(str(error)) from error
    try:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNANSWERED_MAX_MS)
        return Wire(_secured(link, access) if access.tls else link, bounds)
    except ssl.SSLError as error:
        link.close()
        raise ProviderUnusableError(
            f"the provider {access.name} cannot be trusted: {error.reason or error}; name its authority: ca"
        ) from error
    except OSError as error:
        link.close()
        raise LostError(str(error)) from error
    except BaseException:
        link.close()
        raise


def _secured(link: socket.socket, access: DeclaredProvider) -> ssl.SSLSocket:
    link.sendall(_SSL_REQUEST)
    if link.recv(1) != b"S":  # one byte: what a stranger may have put behind it is never read as plain text
        raise ProviderUnusableError(
            f"the provider {access.name} has no TLS; set ssl = on there, or ?sslmode=disable in its url"
        )
    return ssl.create_default_context(cafile=access.ca or None).wrap_socket(link, server_hostname=access.host)


@dataclass(frozen=True, slots=True)
class PostgresAnswer:
    """What a statement gave; `tag` is the word its completion begins with, `count` the rows it speaks of.

    Of several statements that is the last one. `first_tag` is the first one's.
    """

    columns: tuple[SqlColumn, ...]
    rows: list[list[SqlValue]]
    tag: str
    count: int
    first_tag: str = ""


class PostgresLink(CoreConnection):
    """A connection that somebody is logged in on. Used by one thread at a time; `hang_up` by any."""

    def __init__(self, access: DeclaredProvider, who: Login, bounds: ExchangeBounds) -> None:
        """Connect and log in. Raises LostError, StoppedError, ServerRefusedError, ProviderUnusableError."""
        self.wire = dial(access, bounds)
        self.access = access
        self.opened_s = time.monotonic()
        self._tag = self._first_tag = ""
        try:
            super().__init__(
                who.user, database=who.database, password=who.password, ssl_context=False, sock=self.wire,
                application_name="freehold", startup_params=who.settings,
            )  # fmt: skip
        except DatabaseError as error:
            self.wire.close()
            raise ServerRefusedError(error.args[0]) from None
        except InterfaceError as error:
            self.wire.close()
            raise ProviderUnusableError(f"the provider {access.name} cannot be logged in to: {error}") from error
        except (LostError, StoppedError, ProviderUnusableError):
            self.wire.close()
            raise
        except Exception as error:  # whatever a server that is none answers
            self.wire.close()
            raise LostError(f"no answer of a PostgreSQL server: {error!r}") from error
        self.pg_types = defaultdict(lambda: _same, _READ)
        self._transaction_status = b"I"

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction stands open, a failed one too."""
        return bool(self._transaction_status != b"I")

    @property
    def has_failed(self) -> bool:
        """Whether a statement failed in the open transaction, which then takes nothing but its end."""
        return bool(self._transaction_status == b"E")

    def ask(self, statement: str, values: Sequence[str | None], bounds: ExchangeBounds) -> PostgresAnswer:
        """Run one statement, in one round trip. Raises LostError, StoppedError, ServerRefusedError."""

        def send() -> None:
            self.send_PARSE(b"\0", statement)
            self.send_BIND(b"\0", values)
            self._send_message(b"D", b"P\0")
            self.send_EXECUTE()
            self.wire.write(b"S\0\0\0\x04")

        return self._exchanged(statement, send, bounds)

    def script(self, statements: str, bounds: ExchangeBounds) -> PostgresAnswer:
        """Run statements one after the other, all or none unless they end transactions. Raises as `ask`."""
        return self._exchanged(statements, lambda: self.send_QUERY(statements), bounds)

    def _exchanged(self, statement: str, send: Callable[[], None], bounds: ExchangeBounds) -> PostgresAnswer:
        self.wire.bounds = bounds
        self._tag = self._first_tag = ""
        context: Any = Context(statement)
        try:
            send()
            self.wire.flush()
            self.handle_messages(context)
        except DatabaseError as error:
            raise ServerRefusedError(error.args[0]) from None
        except (LostError, StoppedError):
            raise
        except Exception as error:  # what it answered is not understood, so nothing behind it is
            raise LostError(f"an answer that is not understood: {error!r}") from error
        named = context.columns or ()
        columns = tuple(SqlColumn(column["name"], _TYPES.get(column["type_oid"])) for column in named)
        return PostgresAnswer(columns, context.rows or [], self._tag, max(context.row_count, 0), self._first_tag)

    def handle_COMMAND_COMPLETE(self, data: bytes, context: Any) -> None:  # noqa: N802 - pg8000's name
        """Note what was completed: a COMMIT of a failed transaction is completed as a ROLLBACK."""
        words = data.rstrip(b"\0").decode("ascii", "replace").split()
        self._tag = words[0] if words else ""
        self._first_tag = self._first_tag or self._tag
        context.row_count = int(words[-1]) if words and words[-1].isdecimal() else 0

    def handle_DATA_ROW(self, data: bytes, context: Any) -> None:  # noqa: N802
        """Hold a row while there is room: a small row on the wire takes ten times as much in memory."""
        bounds = self.wire.bounds
        if bounds.is_over:
            return
        super().handle_DATA_ROW(data, context)
        bounds.max_rows -= 1
        bounds.max_row_bytes -= fits(context.rows[-1])

    def handle_NOTICE_RESPONSE(self, data: bytes, context: Any) -> None:  # noqa: N802
        """Let it go: nobody reads notices, and a guest writes them as large as an answer may be."""

    def handle_NOTIFICATION_RESPONSE(self, data: bytes, context: Any) -> None:  # noqa: N802
        """Let it go, as a notice."""

    def handle_COPY_IN_RESPONSE(self, data: bytes, context: Any) -> None:  # noqa: N802
        """Refuse it: rows are sent as values."""
        raise StoppedError("SQLITE_AUTH", "COPY FROM STDIN is not permitted here: insert rows")

    def handle_COPY_OUT_RESPONSE(self, data: bytes, context: Any) -> None:  # noqa: N802
        """Refuse it: rows are answers."""
        raise StoppedError("SQLITE_AUTH", "COPY TO STDOUT is not permitted here: select rows")

    def cancel(self) -> None:
        """Have the server stop what it runs for us, as well as it can be asked now, and hang up."""
        key = self._backend_key_data
        with contextlib.suppress(LostError, StoppedError, ProviderUnusableError):
            if key is not None:
                wire = dial(self.access, ExchangeBounds(time.monotonic() + CONNECT_TIMEOUT_S))
                try:
                    wire.write(_CANCEL_REQUEST + key)
                    wire.flush()
                finally:
                    wire.close()
        self.shut()

    def shut(self) -> None:
        """Close it, without a word to the server."""
        self.wire.close()


@dataclass(frozen=True, slots=True)
class Login:
    """Who logs in to which database, and the settings that hold for the connection."""

    user: str
    password: str
    database: str
    settings: dict[str, str]


def scram_verifier(password: str) -> str:
    """What a server keeps of a password (RFC 5803): so the password itself is in no statement and no log of it."""
    salt = secrets.token_bytes(16)
    salted = pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ROUNDS)
    stored = sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    parts = [b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${SCRAM_ROUNDS}:{parts[0]}${parts[1]}:{parts[2]}"


def _same(text: str) -> str:
    return text


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:]) if text.startswith("\\x") else text.encode()


def _truth(text: str) -> int:
    return int(text == "t")


_READ: Final[dict[int, Callable[[str], SqlValue]]] = {
    16: _truth, 17: _bytes, 20: int, 21: int, 23: int, 26: int, 700: float, 701: float,
}  # fmt: skip
"""By the number of a type; what is not here stays text: numeric, uuid, times, json."""

_TYPES: Final = {
    16: "boolean", 17: "bytea", 20: "bigint", 21: "smallint", 23: "integer", 25: "text", 114: "json", 700: "real",
    701: "double precision", 1042: "char", 1043: "varchar", 1082: "date", 1083: "time", 1114: "timestamp",
    1184: "timestamptz", 1700: "numeric", 2950: "uuid", 3802: "jsonb",
}  # fmt: skip
