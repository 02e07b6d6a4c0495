"""Guest output as log lines: marked, bounded, rate-limited, and never silently short."""

from __future__ import annotations

import json
from typing import Any

from runtime.services.log_sink import LINE_MAX_BYTES, Allowance, AppLog, LogBuffer, LogOrigin, timestamp

ORIGIN = LogOrigin("node-1", "guestbook", "web", "d1")


def entries(buffer: LogBuffer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in buffer.take(1 << 20)[0]]


def test_a_line_says_when_who_and_that_the_guest_said_it() -> None:
    buffer = LogBuffer()
    AppLog(buffer, ORIGIN).write("info", "guest", "guest", {"message": "hi", "request_id": "r", "trace_id": "t"})
    (entry,) = entries(buffer)
    assert entry.pop("time").endswith("Z")
    assert entry == {
        "level": "info", "event": "guest", "node": "node-1", "project": "guestbook", "app": "web", "release": "d1",
        "message": "hi", "request_id": "r", "trace_id": "t", "stream": "guest",
    }  # fmt: skip


def test_a_timestamp_is_utc_with_milliseconds() -> None:
    assert timestamp(1_700_000_000.0625) == "2023-11-14T22:13:20.062Z"


def test_a_long_line_is_cut_and_says_so() -> None:
    buffer = LogBuffer()
    AppLog(buffer, ORIGIN).write("info", "guest", "guest", {"message": "\x01" * 20_000})
    ((line,), _) = buffer.take(1 << 20)
    assert len(line) <= LINE_MAX_BYTES
    assert json.loads(line)["truncated"] is True


def test_an_app_beyond_its_allowance_is_cut_off_and_counted() -> None:
    buffer = LogBuffer()
    log = AppLog(buffer, ORIGIN, Allowance(0.0, 3.0, 0.0, 1e6))
    for number in range(10):
        log.write("info", "guest", "guest", {"message": str(number)})
    assert [entry["message"] for entry in entries(buffer)] == ["0", "1", "2"]
    assert log.dropped_total == 7
    log.flush_dropped()
    (entry,) = entries(buffer)
    assert (entry["event"], entry["count"], entry["stream"]) == ("log.dropped", 7, "host")
    log.flush_dropped()
    assert entries(buffer) == []


def test_an_allowance_comes_back_with_time_up_to_its_burst() -> None:
    allowance = Allowance(2.0, 4.0, 100.0, 100.0)
    assert [allowance.admit(0.0) for _ in range(5)] == [True] * 4 + [False]
    assert allowance.admit(0.5)
    assert not allowance.admit(0.5)
    assert [allowance.admit(100.0) for _ in range(5)] == [True] * 4 + [False]


def test_a_writer_that_ran_dry_is_heard_in_runs_of_lines_not_one_by_one() -> None:
    allowance = Allowance(100.0, 100.0, 1e6, 1e6)
    heard = "".join(".x"[allowance.admit(tick * 0.001)] for tick in range(1000))
    runs = [len(run) for run in heard.split(".") if run]
    assert min(runs) >= 10, heard
    assert 150 < heard.count("x") < 210


def test_bytes_overdrawn_by_one_line_hold_back_the_next() -> None:
    allowance = Allowance(100.0, 100.0, 10.0, 10.0)
    assert allowance.admit(0.0)
    allowance.charge(30)
    assert not allowance.admit(1.0)
    assert allowance.admit(2.5)


def test_a_full_buffer_keeps_the_oldest_lines_and_counts_the_rest() -> None:
    buffer = LogBuffer(max_bytes=10)
    for line in (b"aaaa", b"bbbb", b"cccc", b"dd"):
        buffer.append(line)
    assert buffer.take(100) == ((b"aaaa", b"bbbb", b"dd"), 1)
    assert buffer.take(100) == ((), 0)
    assert buffer.dropped_total == 1


def test_lines_leave_in_batches_but_never_none_at_all() -> None:
    buffer = LogBuffer()
    for line in (b"aaaa", b"bbbb", b"cc"):
        buffer.append(line)
    assert buffer.take(1) == ((b"aaaa",), 0)
    assert buffer.take(6) == ((b"bbbb", b"cc"), 0)
