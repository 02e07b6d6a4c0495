"""The ring of log files forgets its oldest lines, and no others, whatever the machine lacks at the moment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from node.journal.logs import FILES, LOOKED_AT_ONCE, LogFilter, LogStore

FILE_BYTES = 1_000


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def write(store: LogStore, first: int, count: int) -> None:
    for number in range(first, first + count):
        store.append(b'{"number":%d,"text":"%s"}' % (number, b"x" * 60))


def newest(store: LogStore, limit: int) -> list[bytes]:
    return asyncio.run(store.recent(LogFilter(), limit))


def kept(folder: Path) -> list[int]:
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_bytes().splitlines()]
    return sorted(int(line.partition(b":")[2].partition(b",")[0]) for line in lines)


def test_a_moment_without_descriptors_costs_no_line_of_the_ring(tmp_path: Path) -> None:
    store = LogStore(tmp_path, FILES * FILE_BYTES)
    with contextlib.closing(store):
        write(store, 0, 200)
        before = kept(tmp_path)
        with no_descriptor_left():
            write(store, 200, 30)
        assert kept(tmp_path) == [*before, *range(200, 230)]
        write(store, 230, 200)
        assert len(list(tmp_path.glob("*.jsonl"))) == FILES
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < (FILES + 1) * FILE_BYTES
        assert kept(tmp_path)[-1] == 429
        assert len(newest(store, 1_000)) == 430


async def test_a_look_at_recent_lines_gives_others_their_turns_and_ends_with_what_was_asked(tmp_path: Path) -> None:
    store, turns, looked = LogStore(tmp_path, 1 << 20), [0], [0]
    with contextlib.closing(store):
        write(store, 0, 10 * LOOKED_AT_ONCE)

        async def other() -> None:
            while True:
                turns[0] += 1
                await asyncio.sleep(0)

        def seen(_line: bytes) -> bool:
            looked[0] += 1
            return looked[0] % 2 == 0

        beside = asyncio.ensure_future(other())
        assert len(await store.recent(LogFilter(), 10_000, seen)) == 5 * LOOKED_AT_ONCE
        assert turns[0] >= 9
        looked[0] = 0
        lines = await store.recent(LogFilter(), 3, seen)
        assert looked[0] == 6, "no more is read than was asked for"
        assert lines == (await store.recent(LogFilter(), 6))[::2]
        beside.cancel()


def dated(store: LogStore, day: int) -> None:
    store.append(b'{"time":"2026-11-%02dT12:00:00.000Z","number":%d}' % (day, day))


def test_lines_older_than_their_days_are_forgotten_in_files_and_in_memory(tmp_path: Path) -> None:
    store = LogStore(tmp_path, 1 << 20, days=3)
    with contextlib.closing(store):
        for day in (20, 21, 22, 23, 24):
            dated(store, day)
            store.expire(moment_s(day))
            for path in tmp_path.glob("*.jsonl"):
                if path.name != "current.jsonl" and path.stat().st_mtime > moment_s(day + 1):
                    os.utime(path, (moment_s(day), moment_s(day)))
        assert [int(line[-3:-1]) for line in newest(store, 99)] == [22, 23, 24]
        store.expire(moment_s(26) + 3600)
        assert [int(line[-3:-1]) for line in newest(store, 99)] == [24]
        left = b"".join(path.read_bytes() for path in tmp_path.glob("*.jsonl"))
        assert b'"number":23' not in left
        assert b'"number":24' in left


def test_without_days_nothing_is_forgotten_for_its_age(tmp_path: Path) -> None:
    store = LogStore(tmp_path, 1 << 20)
    with contextlib.closing(store):
        dated(store, 20)
        store.expire(moment_s(30))
        assert len(newest(store, 9)) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["current.jsonl"]


def moment_s(day: int) -> float:
    return datetime(2026, 11, day, 13, tzinfo=UTC).timestamp()
