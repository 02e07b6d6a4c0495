"""Log lines of a worker: one bounded buffer, and per app a sink that marks, bounds and rate-limits what guests write.

A line is one JSON object. Guest output never takes the worker's memory, its thread or another app's share: what
exceeds a limit is counted and dropped, and the count is logged once there is room again. Not here: where lines end up
(the daemon stores them), and capturing stdout (the sandbox does).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import msgspec

LINE_MAX_BYTES: Final = 16 * 1024
"""One encoded line; the sandbox cuts guest lines at 8 KiB, and escapes seldom double that."""

BUFFER_MAX_BYTES: Final = 4 * 1024 * 1024
"""Lines held while the daemon is away or slow: seconds of a busy worker, minutes of a calm one."""

RESERVE_BYTES: Final = 256 * 1024
"""Beyond that, for the last lines of commands."""

LINES_PER_S: Final = 200.0
"""Sustained guest lines per app; beyond it logs are noise that nobody reads and disks fill."""

LINES_BURST: Final = 1000.0
"""Lines an app that was quiet may write at once: a long stack trace, a start-up banner."""

REFILL: Final = 0.1
"""Share of a burst that must be back before a writer that ran dry is heard again: lines then come in runs that can be
read, a whole stack trace among them, where one at a time would be odd lines out of many."""

REDACTED_MIN_CHARACTERS: Final = 4
"""Blotting out shorter values would shred every log, and guessing them needs no log."""

BYTES_PER_S: Final = 256 * 1024.0
BYTES_BURST: Final = 1024 * 1024.0

_encode = msgspec.json.Encoder().encode


@lru_cache(maxsize=4)
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


class Blotter:
    """Writes `[secret NAME]` over exact secret values: best effort, since a guest may write them any other way.

    Looks for whole values and for the lines of longer ones, the longest first.
    """

    def __init__(self, redacted: Mapping[str, str]) -> None:
        """Take the values by name; empty means that nothing is looked for."""
        table: dict[str, str] = {}
        for name, value in redacted.items():
            for part in (value, *value.splitlines()):
                if len(part) >= REDACTED_MIN_CHARACTERS:
                    table[part] = f"[secret {name}]"
        self._blots = tuple(sorted(table.items(), key=lambda pair: -len(pair[0])))

    def __bool__(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self._blots)

    def __call__(self, text: str) -> str:
        """Return the text without the values."""
        for value, instead in self._blots:
            text = text.replace(value, instead)
        return text


def timestamp(seconds: float) -> str:
    """Return a Unix time as RFC 3339 text in UTC with milliseconds."""
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


class LogBuffer:
    """Encoded lines on their way to the daemon, bounded by bytes; any thread appends, the loop takes."""

    def __init__(self, max_bytes: int = BUFFER_MAX_BYTES) -> None:
        self._lock = threading.Lock()
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._max_bytes = max_bytes
        self._dropped = 0
        self.dropped_total = 0

    def append(self, line: bytes, *, last: bool = False) -> None:
        """Keep one line, or count it as dropped when the buffer is full (the oldest lines say how it began).

        `last` lines, which say how a command ended, have RESERVE_BYTES beyond that.
        """
        with self._lock:
            if self._size + len(line) > self._max_bytes + (RESERVE_BYTES if last else 0):
                self._dropped += 1
                self.dropped_total += 1
                return
            self._lines.append(line)
            self._size += len(line)

    def take(self, max_bytes: int) -> tuple[tuple[bytes, ...], int]:
        """Remove lines of up to `max_bytes` together; return them and how many were dropped since the last call."""
        with self._lock:
            lines: list[bytes] = []
            room = max_bytes
            while self._lines and (not lines or len(self._lines[0]) <= room):
                line = self._lines.popleft()
                room -= len(line)
                self._size -= len(line)
                lines.append(line)
            dropped, self._dropped = self._dropped, 0
            return tuple(lines), dropped


class Allowance:
    """A token bucket for lines and bytes together; not locked, its owner does that."""

    def __init__(self, lines_per_s: float, lines_burst: float, bytes_per_s: float, bytes_burst: float) -> None:
        self._rates = (lines_per_s, bytes_per_s)
        self._bursts = (lines_burst, bytes_burst)
        self._lines = lines_burst
        self._bytes = bytes_burst
        self._filled_s = 0.0
        self._dry = False

    def admit(self, now_s: float) -> bool:
        """Whether one more line may pass at the monotonic time `now_s`; if so its size is to be charged."""
        elapsed_s = max(now_s - self._filled_s, 0.0)
        self._filled_s = now_s
        self._lines = min(self._lines + elapsed_s * self._rates[0], self._bursts[0])
        self._bytes = min(self._bytes + elapsed_s * self._rates[1], self._bursts[1])
        share = REFILL if self._dry else 0.0
        self._dry = self._lines < max(self._bursts[0] * share, 1.0) or self._bytes <= self._bursts[1] * share
        if self._dry:
            return False
        self._lines -= 1
        return True

    def charge(self, size_bytes: int) -> None:
        """Take an admitted line's bytes; they may exceed what is left, and the next lines wait for it."""
        self._bytes -= size_bytes


@dataclass(frozen=True, slots=True)
class LogOrigin:
    """Which app wrote a line, on which node."""

    node: str
    project: str
    app: str
    release: str
    environment: str = ""


class AppLog:
    """One app's way into the buffer: encodes, cuts, rate-limits. Safe from any thread."""

    def __init__(
        self,
        buffer: LogBuffer,
        origin: LogOrigin,
        allowance: Allowance | None = None,
        *,
        redacted: Mapping[str, str] | None = None,
    ) -> None:
        """Take the buffer, who writes, how much, and values that never appear in a line, by the name that does."""
        self._blotted = Blotter(redacted or {})
        self._buffer = buffer
        self.origin = origin
        self._allowance = allowance or Allowance(LINES_PER_S, LINES_BURST, BYTES_PER_S, BYTES_BURST)
        self._lock = threading.Lock()
        self._dropped = 0
        self.dropped_total = 0

    def write(self, level: str, event: str, stream: str, fields: dict[str, object]) -> bool:
        """Log one entry if it is admitted, and return whether it was.

        `stream` is "guest" for the guest's words, "host" for ours about it.
        """
        if not self.admits():
            return False
        self.write_admitted(level, event, stream, fields)
        return True

    def write_last(self, event: str, stream: str, entries: Sequence[tuple[str, dict[str, object]]]) -> None:
        """Log entries (level, fields) that were not admitted, and are the last of a command, all the same."""
        with self._lock:
            self._dropped = max(0, self._dropped - len(entries))
        for level, fields in entries:
            self.write_admitted(level, event, stream, fields, last=True)

    def write_admitted(
        self, level: str, event: str, stream: str, fields: dict[str, object], *, last: bool = False
    ) -> None:
        """Log one entry that `admits` let pass, so that its fields need not be made when it does not."""
        line = self._encode(level, event, stream, fields)
        with self._lock:
            self._allowance.charge(len(line))
            dropped, self._dropped = self._dropped, 0
        if dropped:
            self._buffer.append(self._encode("warn", "log.dropped", "host", {"count": dropped}), last=last)
        self._buffer.append(line, last=last)

    def admits(self) -> bool:
        """Whether one more line may be written now; if not, it is counted as dropped."""
        now_s = time.monotonic()
        with self._lock:
            if self._allowance.admit(now_s):
                return True
            self._dropped += 1
            self.dropped_total += 1
            return False

    def leave_out(self, count: int) -> None:
        """Count lines that were never made because nobody would have read them."""
        with self._lock:
            self._dropped += count
            self.dropped_total += count

    def append_span(self, marked: bytes) -> None:
        """Put an encoded span among the lines; whoever makes spans bounds them."""
        self._buffer.append(marked)

    def flush_dropped(self) -> None:
        """Say how many lines were dropped, if any; called now and then so that a fallen-silent app's count is told."""
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            self._buffer.append(self._encode("warn", "log.dropped", "host", {"count": dropped}))

    def _encode(self, level: str, event: str, stream: str, fields: dict[str, object]) -> bytes:
        origin = self.origin
        entry: dict[str, object] = {
            "time": timestamp(time.time()),
            "level": level,
            "event": event,
            "node": origin.node,
            "project": origin.project,
            **({"environment": origin.environment} if origin.environment else {}),
            "app": origin.app,
            "release": origin.release,
            **fields,
            "stream": stream,
        }
        for name, value in fields.items() if self._blotted else ():
            if isinstance(value, str):
                entry[name] = self._blotted(value)
        line = _encode(entry)
        while len(line) > LINE_MAX_BYTES:
            entry["truncated"] = True
            for name, value in entry.items():
                if isinstance(value, str) and len(value) > 256:
                    entry[name] = value[: len(value) // 2]
            line = _encode(entry)
        return line
