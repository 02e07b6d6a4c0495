"""The way to a collector: bounded, tried again where that helps, and every item is sent, dropped or waiting."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import Mapping

import pytest

from node.reaching import Sending
from node.telemetry import exporter
from node.telemetry.exporter import BATCH_MAX, QUEUE_MAX_BYTES, Exporter


class Collector:
    """Answers as told; keeps the bodies it took."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.took: list[bytes] = []

    async def post(self, url: str, body: bytes, fields: Mapping[str, str]) -> Sending:
        assert (url, fields["Content-Encoding"], fields["key"]) == ("http://c/v1/logs", "gzip", "k")
        answer = self.answers.pop(0) if self.answers else "status 200"
        if answer == "status 200":
            self.took.append(gzip.decompress(body))
        return Sending(answer == "status 200", answer)


def made(collector: Collector) -> Exporter:
    return Exporter("logs", "http://c/v1/logs", {"key": "k"}, b"|".join, collector.post)


@contextlib.asynccontextmanager
async def running(one: Exporter):  # type: ignore[no-untyped-def]  # a generator of nothing
    task = asyncio.get_running_loop().create_task(one.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_what_does_not_fit_is_dropped_the_oldest_first_and_counted() -> None:
    chosen_exporter = made(Collector())
    for number in range(10):
        chosen_exporter.put(b"%d" % number * (QUEUE_MAX_BYTES // 4))
    assert (chosen_exporter.dropped, chosen_exporter.waiting) == (6, 4)
    assert await chosen_exporter.send_batch() is None
    assert chosen_exporter.sent == 1, "a batch has a size"


@pytest.mark.parametrize(
    "later", ["status 503", "status 429", "no answer within 15 s", "ClientConnectorError: refused"]
)
async def test_a_batch_that_could_be_taken_later_is_tried_again_whole(
    later: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "EVERY_S", 0.01)
    monkeypatch.setattr(exporter, "PATIENCE_S", (0.01, 0.02))
    collector = Collector(later, later, later)
    chosen_exporter = made(collector)
    for number in range(3):
        chosen_exporter.put(b"%d" % number)
    async with running(chosen_exporter):
        async with asyncio.timeout(5):
            while chosen_exporter.waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert collector.took == [b"0|1|2"]
    assert (chosen_exporter.sent, chosen_exporter.dropped, chosen_exporter.problem) == (3, 0, "")


async def test_a_batch_that_is_refused_is_dropped_and_said() -> None:
    collector = Collector("status 400")
    chosen_exporter = made(collector)
    for number in range(BATCH_MAX + 1):
        chosen_exporter.put(b"%d" % number)
    assert await chosen_exporter.send_batch() is None
    assert (chosen_exporter.dropped, chosen_exporter.sent, chosen_exporter.problem) == (BATCH_MAX, 0, "status 400")
    assert await chosen_exporter.send_batch() is None
    assert (chosen_exporter.dropped, chosen_exporter.sent, chosen_exporter.waiting, chosen_exporter.problem) == (
        BATCH_MAX,
        1,
        0,
        "",
    )


async def test_what_is_left_at_the_end_is_sent_within_a_time() -> None:
    collector = Collector()
    chosen_exporter = made(collector)
    chosen_exporter.put(b"last")
    await chosen_exporter.flush(1.0)
    assert collector.took == [b"last"]
    stuck = made(Collector(*["status 503"] * 99))
    stuck.put(b"never")
    await stuck.flush(1.0)
    assert stuck.waiting == 1
