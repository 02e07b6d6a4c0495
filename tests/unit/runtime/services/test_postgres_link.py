"""What a link holds of what a server says; the server is a script of its messages on a socket."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from threading import Thread

import pytest

from runtime.providers import SqlError
from runtime.services.declared_providers import DeclaredProvider
from runtime.services.postgres_link import ExchangeBounds, Login, PostgresLink
from runtime.services.postgres_sql import PostgresSql

LOGIN = Login("one", "password", "one", {})
READY = b"Z\0\0\0\x05I"


def message(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("!i", len(data) + 4) + data


def completed(tag: str) -> bytes:
    return message(b"C", tag.encode() + b"\0")


NOTICE = message(b"N", b"SNOTICE\0C00000\0M" + b"x" * 60_000 + b"\0\0")
NOTIFICATION = message(b"A", struct.pack("!i", 1) + b"channel\0\xc3\xa9\0")
COLUMN = message(b"T", struct.pack("!h", 1) + b"n\0" + struct.pack("!ihihih", 0, 0, 23, 4, -1, 0))
ROW = message(b"D", struct.pack("!hi", 1, 1) + b"7")


class Server:
    """The other end of a link that is logged in."""

    def __init__(self) -> None:
        self._said: socket.socket | None = None
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(2)
            port = listener.getsockname()[1]
            access = DeclaredProvider("main", "postgres", f"postgres://apps@127.0.0.1:{port}", "/password")
            thread = Thread(target=self._accept, args=(listener,))
            thread.start()
            self.link = PostgresLink(access, LOGIN, ExchangeBounds(time.monotonic() + 2))
            thread.join()

    def _accept(self, listener: socket.socket) -> None:
        self._said, _ = listener.accept()
        self._said.sendall(message(b"R", struct.pack("!i", 0)) + READY)

    def says(self, *messages: bytes) -> None:
        assert self._said is not None
        self._said.sendall(b"".join(messages))

    def close(self) -> None:
        self.link.shut()
        assert self._said is not None
        self._said.close()


@pytest.fixture
def server() -> Iterator[Server]:
    new_server = Server()
    yield new_server
    new_server.close()


def bounds(rows: int = 10, row_bytes: int = 1_000) -> ExchangeBounds:
    return ExchangeBounds(time.monotonic() + 2, 1_000_000, max_rows=rows, max_row_bytes=row_bytes)


def test_nothing_of_a_notice_or_a_notification_is_held(server: Server) -> None:
    for _ in range(3):
        server.says(NOTICE, NOTIFICATION, completed("DO"), READY)
        assert server.link.script("DO $$ $$", bounds()).tag == "DO"
    assert not server.link.notices
    assert not server.link.notifications


@pytest.mark.parametrize(
    ("rows", "row_bytes", "held", "is_over"),
    [(10, 1_000, 10, False), (9, 1_000, 10, True), (3, 1_000, 4, True), (100, 160, 10, False), (100, 159, 10, True),
     (100, 31, 2, True)],
    ids=["as many", "one more", "many more", "as large", "one larger", "much larger"],
)  # fmt: skip
def test_of_an_answer_no_more_is_held_than_it_may_have_and_the_link_goes_on(
    server: Server, rows: int, row_bytes: int, held: int, is_over: bool
) -> None:
    server.says(COLUMN, ROW * 10, completed("SELECT 10"), READY)
    taken = bounds(rows, row_bytes)
    answer = server.link.script("SELECT n FROM n", taken)
    assert (answer.rows, taken.is_over) == ([[7]] * held, is_over)
    server.says(COLUMN, ROW, completed("SELECT 1"), READY)
    assert server.link.script("SELECT 7", bounds()).rows == [[7]]


@pytest.mark.parametrize(
    ("statements", "tags", "is_refused"),
    [
        ("COMMIT", ("ROLLBACK",), True),
        ("COMMIT; SELECT 1", ("ROLLBACK", "SELECT 1"), True),
        ("/* x */ END; BEGIN", ("ROLLBACK", "BEGIN"), True),
        ("PREPARE TRANSACTION 'x'", ("ROLLBACK",), True),
        ("COMMIT; BEGIN; ROLLBACK", ("COMMIT", "BEGIN", "ROLLBACK"), False),
        ("ROLLBACK; SELECT 1", ("ROLLBACK", "SELECT 1"), False),
    ],
    ids=["alone", "behind it", "end", "prepared", "kept", "given up"],
)
def test_a_commit_that_kept_nothing_is_refused_whatever_stands_behind_it(
    server: Server, statements: str, tags: tuple[str, ...], is_refused: bool
) -> None:
    provider = PostgresSql(server.link.access, "shop/production", pytest.fail)
    connection = provider.open("main")
    connection._link = server.link
    server.says(*map(completed, tags), READY)
    if is_refused:
        with pytest.raises(SqlError, match="all of it was undone"):
            connection.script(statements)
    else:
        connection.script(statements)
