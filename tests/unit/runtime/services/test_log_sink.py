"""Guest output as log lines: marked, bounded, rate-limited, and never silently short."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.engine.guest import LAST_LINES_MAX_BYTES, GuestLog
from runtime.services.log_sink import LINE_MAX_BYTES, Allowance, AppLog, Blotter, LogBuffer, LogOrigin, timestamp
from runtime.workers.app_host import ThreadLog

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


def command_log(buffer: LogBuffer, lines: float, share_bytes: int = 1 << 20) -> GuestLog:
    """The output of one run of a command, into an allowance of `lines` that never comes back."""
    sink = ThreadLog(AppLog(buffer, ORIGIN, Allowance(0.0, lines, 0.0, 1e6)))
    log = GuestLog(sink, "info", "stdout", 8192, share_bytes)
    log.captured = bytearray()
    log.begin_call(share_bytes)
    return log


def said(buffer: LogBuffer) -> list[str]:
    return [entry.get("message", f"({entry.get('count')} dropped)") for entry in entries(buffer)]


def test_the_last_lines_of_a_command_are_never_the_dropped_ones() -> None:
    buffer = LogBuffer()
    log = command_log(buffer, 3.0)
    for number in range(5000):
        log.write(f"line {number}\n".encode())
    log.write(b"Traceback: it ended here")
    log.flush()
    shown = said(buffer)
    assert shown[:3] == ["line 0", "line 1", "line 2"]
    assert shown[-2:] == ["line 4999", "Traceback: it ended here"]
    (gap,) = [text for text in shown if "dropped" in text]
    answer = len(shown) - 1
    assert gap == f"({5001 - answer} dropped)"
    assert sum(map(len, shown[4:-1])) <= LAST_LINES_MAX_BYTES


def test_lines_behind_its_share_of_the_log_and_its_allowance_are_kept_too() -> None:
    buffer = LogBuffer()
    log = command_log(buffer, 3.0, share_bytes=100)
    for number in range(5000):
        log.write(f"line {number}\n".encode())
    log.entry("error", "app", "the last word")
    log.flush()
    shown = said(buffer)
    assert {"line 4999", "the last word"} <= set(shown)
    assert shown[-1] == "line 4999"
    assert "line 2000" not in shown


def test_what_a_command_says_after_a_gap_leaves_the_gap_alone() -> None:
    buffer = LogBuffer()
    log = command_log(buffer, 1.0)
    log.write(b"a\nb\n")
    log._sink._log._allowance = Allowance(0.0, 2.0, 0.0, 1e6)  # type: ignore[attr-defined]
    log.write(b"c\n")
    log.flush()
    assert said(buffer) == ["a", "(1 dropped)", "c"]


def test_a_request_has_no_last_lines_of_its_own() -> None:
    buffer = LogBuffer()
    log = command_log(buffer, 1.0)
    log.captured = None
    log.write(b"a\nb\n")
    log.flush()
    assert said(buffer) == ["a"]


def test_a_buffer_that_is_full_has_room_for_the_last_lines_of_commands() -> None:
    buffer = LogBuffer(max_bytes=400)
    log = command_log(buffer, 1.0)
    buffer.append(b"x" * 390)
    log.write(b"a\nb\n")
    log.flush()
    assert json.loads(buffer.take(1 << 20)[0][-1])["message"] == "b"


@pytest.mark.parametrize("names", [("SHORT", "LONG"), ("LONG", "SHORT")])
def test_of_two_secrets_of_which_one_begins_the_other_nothing_of_the_longer_leaks(names: tuple[str, str]) -> None:
    values = {"SHORT": "hunter2", "LONG": "hunter2-and-more"}
    blot = Blotter({name: values[name] for name in names})
    assert blot("a hunter2-and-more b hunter2 c") == "a [secret LONG] b [secret SHORT] c"


def test_a_secret_inside_another_and_one_of_several_lines_are_blotted_whole_and_by_line() -> None:
    blot = Blotter({"INNER": "token", "OUTER": "my-token-here", "PEM": "-----BEGIN\nabcdef\n-----END"})
    assert blot("my-token-here token") == "[secret OUTER] [secret INNER]"
    assert blot("-----BEGIN\nabcdef\n-----END") == "[secret PEM]"
    assert blot("abcdef") == "[secret PEM]"


def test_what_is_too_short_to_blot_is_left() -> None:
    blot = Blotter({"PIN": "123", "FOUR": "1234"})
    assert blot("123 1234") == "123 [secret FOUR]"
    assert not Blotter({"PIN": "123"})
