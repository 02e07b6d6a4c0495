"""The embedded queue: nothing is lost before its handler is done, nobody has a message twice at once, limits hold."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runtime.providers import ProviderError
from runtime.services import freeze
from runtime.services.sqlite_queue import PAUSE_FIRST_MS, VISIBILITY_MAX_MS, QueueCaps, QueuedMessage, SqliteQueue

ROOT = Path(__file__).parents[4]
NOW = 1_800_000_000_000
MINUTE = 60_000


@pytest.fixture
def queue(tmp_path: Path) -> SqliteQueue:
    return SqliteQueue(tmp_path, "shop/production", QueueCaps(1_000, 5, 3_000, 2, 6, 3))


def take(queue: SqliteQueue, now_ms: int = NOW, limit: int = 10, subject: str = "jobs") -> list[QueuedMessage]:
    return list(queue.take(subject, limit, MINUTE, now_ms))


def held(queue: SqliteQueue) -> dict[str, tuple[int, int]]:
    return {count.subject: (count.messages, count.size_bytes) for count in queue.counts()}


def test_a_message_is_had_by_one_until_it_is_done(queue: SqliteQueue) -> None:
    first = queue.publish("jobs", b"a", NOW)
    queue.publish("jobs", b"b", NOW)
    taken = take(queue, limit=1)
    assert taken == [QueuedMessage(first, "jobs", b"a", 1, NOW)]
    assert [queued_message.body for queued_message in take(queue)] == [b"b"]
    assert take(queue) == []
    queue.done(taken[0])
    assert held(queue) == {"jobs": (1, 1)}
    queue.done(taken[0])  # its handler was asked twice
    assert held(queue) == {"jobs": (1, 1)}


def test_what_was_not_done_in_time_comes_again_with_its_attempt(queue: SqliteQueue) -> None:
    queue.publish("jobs", b"a", NOW)
    (first,) = take(queue)
    assert take(queue, NOW + MINUTE - 1) == []
    (again,) = take(queue, NOW + MINUTE)
    assert (again.id, again.attempt) == (first.id, 2)
    queue.failed(first, NOW + MINUTE)  # the first handler ends late: the second one still has it
    assert take(queue, NOW + MINUTE + PAUSE_FIRST_MS) == []
    queue.give_back(first, NOW)
    assert take(queue, NOW + MINUTE + PAUSE_FIRST_MS) == []
    queue.done(first)
    assert held(queue) == {"jobs": (0, 0)}


def test_a_failure_waits_longer_each_time_and_ends_as_a_dead_letter(queue: SqliteQueue) -> None:
    queue.publish("jobs", b"bad", NOW)
    now = NOW
    for attempt, pause in ((1, 1_000), (2, 2_000)):
        (message,) = take(queue, now)
        assert message.attempt == attempt
        assert not queue.failed(message, now)
        assert take(queue, now + pause - 1) == []
        now += pause
    (message,) = take(queue, now)
    assert queue.failed(message, now)
    assert held(queue) == {"jobs": (0, 0), "jobs.dead": (1, 3)}
    (dead,) = take(queue, now, subject="jobs.dead")
    assert (dead.body, dead.published_ms, dead.attempt) == (b"bad", NOW, 1)
    for _ in range(5):  # a dead letter is never thrown away for its failures
        assert not queue.failed(dead, now)
        now += 3_600_000
        (dead,) = take(queue, now, subject="jobs.dead")


def test_handlers_that_never_answer_make_a_dead_letter_too(queue: SqliteQueue) -> None:
    queue.publish("jobs", b"poison", NOW)
    for attempt in range(3):
        assert [queued_message.attempt for queued_message in take(queue, NOW + attempt * MINUTE)] == [attempt + 1]
    assert take(queue, NOW + 3 * MINUTE) == []
    assert held(queue) == {"jobs": (0, 0), "jobs.dead": (1, 6)}


def test_an_attempt_that_nobody_began_does_not_count(queue: SqliteQueue) -> None:
    queue.publish("jobs", b"a", NOW)
    for _ in range(9):
        (message,) = take(queue)
        assert message.attempt == 1
        queue.give_back(message, NOW)


def test_a_clock_that_was_set_back_holds_nothing_up(queue: SqliteQueue) -> None:
    year = 365 * 86_400_000
    queue.publish("jobs", b"a", NOW + year)
    take(queue, NOW + year)
    assert queue.next_due_ms(["jobs"], NOW) == NOW
    assert [queued_message.attempt for queued_message in take(queue, NOW)] == [2]
    assert queue.next_due_ms(["jobs"], NOW) == NOW + MINUTE
    assert VISIBILITY_MAX_MS > MINUTE


def test_limits_are_of_each_subject(queue: SqliteQueue) -> None:
    for number in range(5):
        queue.publish("jobs", b"x", number)
    with pytest.raises(ProviderError, match="queue jobs is full: 5 messages") as exception_info:
        queue.publish("jobs", b"x", NOW)
    assert exception_info.value.retry_after_s
    queue.publish("mail", b"x" * 1_000, NOW)
    with pytest.raises(ProviderError, match="more than 1000 bytes"):
        queue.publish("mail", b"x" * 1_001, NOW)
    queue.publish("mail", b"x" * 1_000, NOW)
    queue.publish("mail", b"x" * 1_000, NOW)
    with pytest.raises(ProviderError, match="queue mail is full"):
        queue.publish("mail", b"x", NOW)
    for bad in ("", "Jobs", "a..b", ".a", "a.", "a/b", "../b", "a\n", "x" * 41, "a b", "*", ">", "jobs\0"):
        with pytest.raises(ProviderError, match="a subject is"):
            queue.publish(bad, b"", NOW)
    for number in range(4):
        queue.publish(f"s{number}", b"", NOW)
    with pytest.raises(ProviderError, match="6 subjects already"):
        queue.publish("s5", b"", NOW)


def test_the_oldest_dead_letter_goes_when_there_are_too_many(queue: SqliteQueue) -> None:
    for number in range(3):
        queue.publish("jobs", b"%d" % number, NOW)
        for attempt in range(4):
            take(queue, NOW + attempt * MINUTE)
    assert [queued_message.body for queued_message in take(queue, NOW + 9 * MINUTE, subject="jobs.dead")] == [
        b"1",
        b"2",
    ]
    assert held(queue)["jobs.dead"] == (2, 2)


def test_a_frozen_lane_takes_and_gives_nothing(
    queue: SqliteQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.publish("jobs", b"a", NOW)
    monkeypatch.setattr(freeze, "WRITER_WAIT_S", 0.1)
    (tmp_path / "shop" / "production" / freeze.FROZEN).touch()
    for call in (lambda: queue.publish("jobs", b"b", NOW), lambda: take(queue)):
        with pytest.raises(ProviderError) as exception_info:
            call()
        assert exception_info.value.retry_after_s


def test_takers_in_threads_share_the_messages_out(tmp_path: Path) -> None:
    queues = [SqliteQueue(tmp_path, "shop") for _ in range(4)]
    for number in range(40):
        queues[0].publish("jobs", b"%d" % number, NOW)
    bodies: list[bytes] = []

    def work(one: SqliteQueue) -> None:
        while taken := take(one, limit=3):
            for message in taken:
                bodies.append(message.body)
                one.done(message)

    threads = [threading.Thread(target=work, args=(queue,)) for queue in queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(bodies, key=int) == [b"%d" % number for number in range(40)]


def test_a_message_is_synced_before_publish_returns_and_before_it_is_gone(queue: SqliteQueue) -> None:
    pragma = queue.file.read(
        lambda db: (db.execute("PRAGMA synchronous").fetchone()[0], db.execute("PRAGMA journal_mode").fetchone()[0])
    )
    assert pragma == (2, "wal")  # FULL: the log is synced at each commit


KILLED = """
import os, sys
from pathlib import Path
from runtime.services.sqlite_queue import SqliteQueue
queue = SqliteQueue(Path(sys.argv[1]), "shop/production")
for number in range(10_000):
    queue.publish("jobs", b"%d" % number, 0)
    os.write(1, b"%d\\n" % number)
"""


def test_what_a_killed_publisher_was_told_is_there(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout is not None
    told = [child.stdout.readline() for _ in range(50)]
    os.kill(child.pid, 9)
    told += child.stdout.read().splitlines(keepends=True)
    child.stdout.close()
    child.wait()
    bodies = {
        queued_message.body
        for queued_message in SqliteQueue(tmp_path, "shop/production").take("jobs", 10_000, MINUTE, NOW)
    }
    assert {line.strip() for line in told if line.endswith(b"\n")} <= bodies
    assert len(bodies) >= 50


def test_a_damaged_file_is_an_error_of_the_provider(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "queue.db").write_bytes(b"no database" * 100)
    with pytest.raises(ProviderError):
        SqliteQueue(tmp_path, "shop").publish("jobs", b"", NOW)
