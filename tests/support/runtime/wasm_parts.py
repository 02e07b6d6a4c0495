"""What several tests of the runtime need: a spec, logs, an exchange without a loop. Not a test."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.exchange import Exchange, Headers, RequestHead
from runtime.spec import AppSpec

HEADERS: Headers = (("host", b"a.example"), ("x-a", b"1"), ("x-a", b"2"))


class SilentLog:
    """A log that keeps what it got."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, str]] = []

    def emit(self, level: str, context: str, message: str) -> bool:
        self.entries.append((level, context, message))
        return True

    def keep(self, entries: Sequence[tuple[str, str, str]]) -> None:
        self.entries.extend(entries)


def a_spec(**changes: Any) -> AppSpec:
    values: dict[str, Any] = {
        "project": "p", "app": "a", "release": "r", "artifact": Path("none"), "artifact_digest": "0", **changes,
    }  # fmt: skip
    return AppSpec(**values)


def an_exchange(path: str = "/", method: str = "GET", headers: Headers = HEADERS, timeout_s: float = 30.0) -> Exchange:
    head = RequestHead(method, "http", "a.example:8080", path, headers)
    exchange = Exchange(head, deadline_s=time.monotonic() + timeout_s, loop=None)
    exchange.body.feed_end()
    return exchange
