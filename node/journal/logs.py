"""Logs of one node: one JSON object per line, its own and its guests', in a bounded ring of files, and followed live.

Fields: time, level, event, node, project, app, release, rollout, request_id, trace_id, principal; guests' lines carry
`stream` and are marked as theirs by the workers. Nothing here looks inside a guest's message. Not here: redaction
(the worker's log sink), and how lines look to a person (cli/).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from runtime.messages import LogBatch
from runtime.services.spans import SPAN_MARK

LINE_MAX_BYTES = 32 * 1024
FILES = 8
"""The ring: with the default cap each file has 32 MiB, so a full ring forgets an eighth at a time."""

FOLLOWERS_MAX = 64
FOLLOWER_LINES_MAX = 2_000
"""Lines a slow follower may lag; beyond it the oldest are dropped, and it is told how many."""

RECENT_LINES = 5_000
LOOKED_AT_ONCE = 200
"""Lines that a look at the recent ones reads before others have their turn: about a millisecond."""

DAY_S = 86_400
_FIELDS = ("project", "environment", "app", "release", "rollout", "request_id", "trace_id", "principal", "peer", "rule",
           "detail", "change", "role", "count")  # fmt: skip


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which lines: empty fields match everything; `after` is an ISO time, exclusive."""

    project: str = ""
    app: str = ""
    release: str = ""
    contains: str = ""
    after: str = ""

    def matches(self, line: bytes) -> bool:
        """Whether a line (one JSON object) is wanted; a line that is none never is."""
        try:
            fields = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False
        return (
            (not self.project or fields.get("project") == self.project)
            and (not self.app or fields.get("app") == self.app)
            and (not self.release or str(fields.get("release", "")).startswith(self.release))
            and (not self.after or str(fields.get("time", "")) > self.after)
            and (not self.contains or self.contains.encode() in line)
        )


class LogStore:
    """The ring of files and those who follow it."""

    def __init__(self, folder: Path, max_bytes: int, *, days: int = 0) -> None:
        """Take the folder, whose lines of earlier runs stay readable, and how long any is kept (0: as room allows)."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file_max_bytes = max_bytes // FILES
        self._followers: dict[int, tuple[LogFilter, deque[bytes], asyncio.Event]] = {}
        self._number = 0
        self._recent: deque[bytes] = deque(maxlen=RECENT_LINES)
        self._path = folder / "current.jsonl"
        self._recent.extend(self._tail())
        self._file = self._path.open("ab", buffering=0)
        self._size = self._path.stat().st_size
        self.in_memory_only = False
        """While the disk has no room: what is left of it is for votes."""
        self.dropped = 0
        self._days = days
        self.listeners: list[Callable[[bytes], None]] = []
        """Each is told of every line; none may raise."""
        self.span_listeners: list[Callable[[bytes], None]] = []
        """Each is told of every span that a worker sent, with its mark; none may raise."""

    def append(self, line: bytes) -> None:
        """Keep one line; a full disk loses it and says so in `dropped`, never more."""
        line = line[:LINE_MAX_BYTES]
        self._recent.append(line)
        if self.in_memory_only:
            self.dropped += 1
        else:
            self._write(line)
        for listener in self.listeners:
            listener(line)
        for wanted, queue, event in self._followers.values():
            if wanted.matches(line):
                queue.append(line)
                event.set()

    def take_batch(self, batch: LogBatch) -> None:
        """Keep the lines that a worker sent; spans among them are handed on."""
        for line in batch.lines:
            if not line.startswith(SPAN_MARK):
                self.append(line)
                continue
            for listener in self.span_listeners:
                listener(line)

    async def recent(
        self, wanted: LogFilter, limit: int, seen: Callable[[bytes], bool] = lambda _line: True
    ) -> list[bytes]:
        """Return the newest matching lines that `seen` lets pass, oldest first.

        It looks at some at a time, from the newest on, so that the others who use the loop have their turns.
        """
        lines: list[bytes] = []
        for number, line in enumerate(reversed(list(self._recent)), 1):
            if len(lines) >= limit:
                break
            if wanted.matches(line) and seen(line):
                lines.append(line)
            if number % LOOKED_AT_ONCE == 0:
                await asyncio.sleep(0)
        return lines[::-1]

    @property
    def followers(self) -> int:
        """How many follow now."""
        return len(self._followers)

    async def follow(self, wanted: LogFilter) -> AsyncIterator[bytes]:
        """Yield matching lines as they come, for ever. Raises RuntimeError when too many follow."""
        if len(self._followers) >= FOLLOWERS_MAX:
            raise RuntimeError(f"at most {FOLLOWERS_MAX} follow the logs of one node at once")
        self._number += 1
        number = self._number
        queue: deque[bytes] = deque(maxlen=FOLLOWER_LINES_MAX)
        event = asyncio.Event()
        self._followers[number] = (wanted, queue, event)
        try:
            while True:
                await event.wait()
                event.clear()
                while queue:
                    yield queue.popleft()
        finally:
            del self._followers[number]

    def expire(self, now_s: float) -> None:
        """Forget what is older than it may get; a file goes as a whole, so it is begun anew every day."""
        if not self._days:
            return
        oldest_s = now_s - self._days * DAY_S
        for path in self._folder.glob("[0-9]*.jsonl"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < oldest_s:
                    path.unlink()
        oldest = datetime.fromtimestamp(oldest_s, UTC).isoformat(timespec="milliseconds")
        recent = [line for line in self._recent if _time_of(line) >= oldest]
        if len(recent) < len(self._recent):
            self._recent.clear()
            self._recent.extend(recent)
        if self._size and _time_of(self._first()) < datetime.fromtimestamp(now_s - DAY_S, UTC).isoformat():
            with contextlib.suppress(OSError):
                self._turn()

    def _first(self) -> bytes:
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            return file.readline(LINE_MAX_BYTES + 1).rstrip(b"\n")
        return b""

    def close(self) -> None:
        """Close the current file."""
        self._file.close()

    def _write(self, line: bytes) -> None:
        try:
            self._file.write(line + b"\n")
            self._size += len(line) + 1
            if self._size > self._file_max_bytes:
                self._turn()
        except OSError:
            self.dropped += 1

    def _turn(self) -> None:
        # The successor first: without a descriptor for it nothing moves, and it is tried again.
        following = self._folder / "next.jsonl"
        fresh = following.open("ab", buffering=0)
        for number in range(FILES - 2, 0, -1):
            older = self._folder / f"{number}.jsonl"
            if older.exists():
                older.replace(self._folder / f"{number + 1}.jsonl")
        self._path.replace(self._folder / "1.jsonl")
        following.replace(self._path)
        before, self._file = self._file, fresh
        before.close()
        self._size = 0

    def _tail(self) -> Iterator[bytes]:
        for path in (self._folder / "1.jsonl", self._path):
            if path.exists():
                yield from path.read_bytes().splitlines()[-RECENT_LINES:]


def _time_of(line: bytes) -> str:
    """When a line was written, as ISO text in UTC; a line that does not say so is old."""
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(line, type=_Dated).time
    return ""


class _Dated(msgspec.Struct):
    time: str = ""


class JsonHandler(logging.Handler):
    """Turns the daemon's own log records into lines of the store."""

    def __init__(self, write: Callable[[bytes], None], node: str) -> None:
        """Take where lines go, and this node's name."""
        super().__init__()
        self._write = write
        self._node = node

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; never raises into the code that logged."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name),
            "node": self._node,
            "message": record.getMessage(),
        }
        line |= {name: str(value) for name in _FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            line["traceback"] = logging.Formatter().formatException(record.exc_info)[-8_000:]
        with contextlib.suppress(OSError):  # a file that takes no more must not end the node
            self._write(msgspec.json.encode(line))
