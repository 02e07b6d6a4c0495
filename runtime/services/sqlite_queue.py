"""The embedded queue: messages of a project in an environment, kept until a handler said that it is done with them.

One SQLite database per lane. A message is durable before its publisher hears so, and stays until `done`. Whoever takes it
has it alone for a while; then it is due again, so a message is handled at least once, and in no promised order. One that
failed too often becomes a dead letter: it goes on as a message of the subject `SUBJECT.dead`. Not here: who takes messages
(`node/serving/deliveries.py`), which app may publish (the host checks), what makes a write durable (`sqlite_file.py`).
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.providers import ProviderError
from runtime.services.sqlite_file import SqliteFile, lane_folder

QUEUE_VERSION: Final = 1

QUEUE_SCHEMA: Final = """
CREATE TABLE subjects (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
    messages INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, subject INTEGER NOT NULL REFERENCES subjects (id), body BLOB NOT NULL,
    published_ms INTEGER NOT NULL, due_ms INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX messages_due ON messages (subject, due_ms, id);
"""

FILE_NAME: Final = "queue.db"
DEAD: Final = ".dead"
SUBJECT: Final = re.compile(r"[a-z][a-z0-9-]{0,39}(\.[a-z][a-z0-9-]{0,39}){0,7}")

PAUSE_FIRST_MS: Final = 1_000
PAUSE_MAX_MS: Final = 3_600_000
"""A message that failed waits twice as long each time, an hour at most."""

VISIBILITY_MAX_MS: Final = 2 * 3_600_000
"""Longest time for which one taker has a message alone. One that is due later than this was put there by another clock."""


@dataclass(frozen=True, slots=True)
class QueueCaps:
    """Limits of each subject of a lane. Sizes are of bodies, without SQLite's own overhead."""

    message_max_bytes: int = 1024 * 1024
    subject_max_messages: int = 100_000
    subject_max_bytes: int = 1024 * 1024 * 1024
    dead_max_messages: int = 10_000
    """Of dead letters; the oldest goes when one more comes."""
    subjects_max: int = 128
    attempts_max: int = 5


@dataclass(frozen=True, slots=True)
class QueuedMessage:
    """A message that was taken; `attempt` counts from 1, `published_ms` is wall time."""

    id: int
    subject: str
    body: bytes
    attempt: int
    published_ms: int


@dataclass(frozen=True, slots=True)
class SubjectCounts:
    """What a subject holds now, those that somebody has taken included."""

    subject: str
    messages: int
    size_bytes: int


class SqliteQueue:
    """The messages of one lane, in `folder`; safe from any thread and process.

    `owner` is whose they are: "PROJECT", or "PROJECT/ENVIRONMENT". Every method raises `ProviderError`.
    """

    def __init__(self, folder: Path, owner: str, caps: QueueCaps | None = None) -> None:
        self._caps = caps or QueueCaps()
        self.file = SqliteFile(lane_folder(folder, owner), FILE_NAME.removesuffix(".db"), QUEUE_SCHEMA, QUEUE_VERSION)

    def publish(self, subject: str, body: bytes, now_ms: int) -> int:
        """Keep a message, durable on return; return its number."""
        if not SUBJECT.fullmatch(subject):
            raise ProviderError("other", "a subject is words of a-z, 0-9 and dash, with dots between them")
        if len(body) > self._caps.message_max_bytes:
            raise ProviderError("other", f"a message has more than {self._caps.message_max_bytes} bytes")

        def add(db: sqlite3.Connection) -> int:
            row = self._subject(db, subject)
            if row[1] >= self._caps.subject_max_messages or row[2] + len(body) > self._caps.subject_max_bytes:
                raise ProviderError(
                    "other",
                    f"the queue {subject} is full: {row[1]} messages of {row[2]} bytes wait; its handler has to catch up",
                    retry_after_s=60,
                )
            return _insert(db, row[0], body, now_ms, now_ms)

        return self.file.write(add)

    def take(self, subject: str, limit: int, visibility_ms: int, now_ms: int) -> Sequence[QueuedMessage]:
        """Take up to `limit` messages that are due; nobody else gets them for `visibility_ms`.

        One whose last permitted attempt ended without a word becomes a dead letter here.
        """
        assert visibility_ms <= VISIBILITY_MAX_MS

        def lease(db: sqlite3.Connection) -> list[QueuedMessage]:
            entry = db.execute("SELECT id FROM subjects WHERE name = ?", (subject,)).fetchone()
            if entry is None:
                return []
            rows = db.execute(_DUE, (entry[0], now_ms, now_ms + VISIBILITY_MAX_MS, limit)).fetchall()
            taken = []
            for number, body, attempts, published_ms in rows:
                if self._is_spent(subject, attempts):
                    self._bury(db, subject, number, now_ms)
                    continue
                query = "UPDATE messages SET attempts = attempts + 1, due_ms = ? WHERE id = ?"
                db.execute(query, (now_ms + visibility_ms, number))
                taken.append(QueuedMessage(number, subject, bytes(body), attempts + 1, published_ms))
            return taken

        return self.file.write(lease)

    def done(self, message: QueuedMessage) -> None:
        """Its handler is done with it: it is gone, durably, whoever has it now."""
        self.file.write(lambda db: _remove(db, message.id))

    def failed(self, message: QueuedMessage, now_ms: int) -> bool:
        """Its handler failed: it is due again after a pause, or is a dead letter now; return whether it is one."""

        def put_back(db: sqlite3.Connection) -> bool:
            if not _is_held(db, message):
                return False
            if self._is_spent(message.subject, message.attempt):
                self._bury(db, message.subject, message.id, now_ms)
                return True
            pause_ms = min(PAUSE_FIRST_MS << min(message.attempt - 1, 20), PAUSE_MAX_MS)
            db.execute("UPDATE messages SET due_ms = ? WHERE id = ?", (now_ms + pause_ms, message.id))
            return False

        return self.file.write(put_back)

    def give_back(self, message: QueuedMessage, now_ms: int) -> None:
        """Nobody began with it: it is due again, and the attempt does not count."""

        def undo(db: sqlite3.Connection) -> None:
            if _is_held(db, message):
                query = "UPDATE messages SET due_ms = ?, attempts = attempts - 1 WHERE id = ?"
                db.execute(query, (now_ms, message.id))

        self.file.write(undo)

    def next_due_ms(self, subjects: Sequence[str], now_ms: int) -> int | None:
        """When the next message of one of these subjects is due (wall ms, in the past if it is), None if there is none."""

        def first(db: sqlite3.Connection) -> int | None:
            dues = []
            for subject in subjects:
                (due_ms,) = db.execute(_NEXT, (subject,)).fetchone()
                if due_ms is not None:
                    dues.append(due_ms if due_ms <= now_ms + VISIBILITY_MAX_MS else now_ms)
            return min(dues, default=None)

        return self.file.read(first)

    def counts(self) -> Sequence[SubjectCounts]:
        """What every subject holds, by name."""
        query = "SELECT name, messages, bytes FROM subjects ORDER BY name"
        return [SubjectCounts(*row) for row in self.file.read(lambda db: db.execute(query).fetchall())]

    def close(self) -> None:
        """Close it for good."""
        self.file.close()

    def _is_spent(self, subject: str, attempts: int) -> bool:
        """Whether a message has no attempt left; a dead letter has always one more."""
        return attempts >= self._caps.attempts_max and not subject.endswith(DEAD)

    def _subject(self, db: sqlite3.Connection, subject: str) -> tuple[int, int, int]:
        query = "SELECT id, messages, bytes FROM subjects WHERE name = ?"
        row: tuple[int, int, int] | None = db.execute(query, (subject,)).fetchone()
        if row is not None:
            return row
        if db.execute("SELECT count(*) FROM subjects").fetchone()[0] >= self._caps.subjects_max:
            raise ProviderError("other", f"there are {self._caps.subjects_max} subjects already")
        db.execute("INSERT INTO subjects (name) VALUES (?)", (subject,))
        row = db.execute(query, (subject,)).fetchone()
        assert row is not None
        return row

    def _bury(self, db: sqlite3.Connection, subject: str, number: int, now_ms: int) -> None:
        """Make a message a dead letter, in place of the oldest one if there are too many."""
        body, published_ms = db.execute("SELECT body, published_ms FROM messages WHERE id = ?", (number,)).fetchone()
        _remove(db, number)
        dead, count, _ = self._subject(db, subject + DEAD)
        if count >= self._caps.dead_max_messages:
            oldest = db.execute("SELECT min(id) FROM messages WHERE subject = ?", (dead,)).fetchone()
            _remove(db, oldest[0])
        _insert(db, dead, bytes(body), published_ms, now_ms)


_DUE: Final = """
SELECT id, body, attempts, published_ms FROM messages
WHERE subject = ? AND (due_ms <= ? OR due_ms > ?) ORDER BY due_ms, id LIMIT ?
"""
_NEXT: Final = """
SELECT min(due_ms) FROM messages WHERE subject = (SELECT id FROM subjects WHERE name = ?)
"""


def _insert(db: sqlite3.Connection, subject: int, body: bytes, published_ms: int, due_ms: int) -> int:
    query = "INSERT INTO messages (subject, body, published_ms, due_ms) VALUES (?, ?, ?, ?)"
    number = db.execute(query, (subject, body, published_ms, due_ms)).lastrowid
    assert number is not None
    query = "UPDATE subjects SET messages = messages + 1, bytes = bytes + ? WHERE id = ?"
    db.execute(query, (len(body), subject))
    return number


def _remove(db: sqlite3.Connection, number: int) -> None:
    query = "DELETE FROM messages WHERE id = ? RETURNING subject, length(body)"
    for subject, size in db.execute(query, (number,)).fetchall():
        query = "UPDATE subjects SET messages = messages - 1, bytes = bytes - ? WHERE id = ?"
        db.execute(query, (size, subject))


def _is_held(db: sqlite3.Connection, message: QueuedMessage) -> bool:
    """Whether this attempt still has the message: a later one that took it meanwhile is not disturbed."""
    query = "SELECT 1 FROM messages WHERE id = ? AND attempts = ?"
    return db.execute(query, (message.id, message.attempt)).fetchone() is not None
