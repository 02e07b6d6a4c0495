"""Sending: retries, what ends a webhook, what a restart keeps, what is synced; and who pays for a deaf receiver."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from node.errors import NotDoneError
from node.keys import SystemEntropy
from node.mesh.pump import system_now
from node.webhooks.model import HOOKS_MAX, PENDING_MAX, HookFile, Message, Webhook
from node.webhooks.occasions import Occasions, Sight
from node.webhooks.webhooks import Webhooks
from tests.support.mesh.in_process import until
from tests.support.mesh.receiver import Received, a_receiver


@dataclass
class Said:
    """News that a test says, in the place of a chain's."""

    news: list[Message] = field(default_factory=list)
    slot: int = 0

    def standing(self, _wall_ms: int) -> Sight:
        return Sight()

    def since(self, file: HookFile, _standing: Sight, _wall_ms: int) -> list[Message]:
        messages = self.news[file.slot :]
        file.slot = self.slot = len(self.news)
        return messages


def message(number: int, **data: str) -> Message:
    return Message(f"msg_{number}", "rollout.started", system_now().wall_ms, {"project": "site", **data})


@asynccontextmanager
async def running(folder: Path, said: Said, retries_s: tuple[float, ...] = (0.05, 0.05)) -> AsyncIterator[Webhooks]:
    webhooks = Webhooks(folder / "webhooks", system_now, SystemEntropy(), retries_s=cast("tuple[int, ...]", retries_s))
    task = asyncio.ensure_future(webhooks.run(cast("Occasions", said), "home"))
    await asyncio.sleep(0)
    try:
        yield webhooks
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def hook(url: str, name: str = "ops", **more: Any) -> Webhook:
    return Webhook(name, url, b"", private=True, **more)


def tell(webhooks: Webhooks, said: Said, *messages: Message) -> None:
    said.news.extend(messages)
    webhooks._woken.set()


def failing(times: int, status: int = 500, fields: dict[str, str] | None = None) -> Callable[[Received], Any]:
    left = [times]

    def answer(_one: Received) -> tuple[int, dict[str, str]]:
        left[0] -= 1
        return (status, fields or {}) if left[0] >= 0 else (200, {})

    return answer


async def test_a_failed_message_is_sent_again_under_its_id_and_others_do_not_wait(tmp_path: Path) -> None:
    said = Said()
    async with a_receiver(failing(1)) as receiver, running(tmp_path, said, (0.6, 0.6)) as webhooks:
        await webhooks.add(hook(receiver.url))
        tell(webhooks, said, message(1), message(2))
        await until(lambda: len(receiver.came) == 3, 10)
    assert [received.fields["webhook-id"] for received in receiver.came] == ["msg_1", "msg_2", "msg_1"]


async def test_what_is_never_taken_is_given_up_and_said(tmp_path: Path) -> None:
    said = Said()
    async with a_receiver(failing(99)) as receiver, running(tmp_path, said) as webhooks:
        await webhooks.add(hook(receiver.url))
        tell(webhooks, said, message(1))
        await until(lambda: bool(webhooks.files["ops"].ended), 10)
        assert len(receiver.came) == 3, "the first attempt and one for each pause"
        ended = webhooks.files["ops"].ended[0]
        assert (ended.delivered, ended.attempts, ended.result) == (False, 3, "status 500")
        assert "1 messages to the webhook ops were given up" in webhooks.concerns()[0]


async def test_a_receiver_that_asks_for_time_gets_it(tmp_path: Path) -> None:
    said = Said()
    async with (
        a_receiver(failing(1, 503, {"Retry-After": "3600"})) as receiver,
        running(tmp_path, said) as webhooks,
    ):
        await webhooks.add(hook(receiver.url))
        tell(webhooks, said, message(1))
        await until(lambda: bool(webhooks.files["ops"].pending) and webhooks.files["ops"].pending[0].attempts == 1, 10)
        wait_ms = webhooks.files["ops"].pending[0].next_ms - system_now().wall_ms
        assert 3_590_000 < wait_ms <= 3_600_000


async def test_a_receiver_that_is_gone_is_told_nothing_more_until_a_test_reaches_it(tmp_path: Path) -> None:
    said = Said()
    async with a_receiver(failing(1, 410)) as receiver, running(tmp_path, said) as webhooks:
        await webhooks.add(hook(receiver.url))
        tell(webhooks, said, message(1))
        await until(lambda: bool(webhooks.files["ops"].off), 10)
        tell(webhooks, said, message(2))
        await asyncio.sleep(0.8)
        assert len(receiver.came) == 1
        assert "delivers no more" in webhooks.concerns()[0]
        assert (await webhooks.test("ops")).delivered
        await until(lambda: "msg_2" in [received.fields["webhook-id"] for received in receiver.came], 10)


async def test_what_waits_survives_the_process_and_keeps_its_id(tmp_path: Path) -> None:
    said = Said()
    async with a_receiver(failing(1)) as receiver:
        async with running(tmp_path, said, (1, 1)) as webhooks:
            await webhooks.add(hook(receiver.url))
            tell(webhooks, said, message(1))
            await until(lambda: bool(webhooks.files["ops"].pending) and webhooks.files["ops"].pending[0].attempts, 10)
            await asyncio.sleep(0.1)
        async with running(tmp_path, said) as again:
            assert [undelivered.message.id for undelivered in again.files["ops"].pending] == ["msg_1"]
            await until(lambda: len(receiver.came) == 2, 10)
    assert {received.fields["webhook-id"] for received in receiver.came} == {"msg_1"}


async def test_news_is_durable_before_it_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order, by what is synced: the folder's name, the webhook's file, and only then the attempt."""
    order: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        real(handle)

    def answer(_one: Received) -> tuple[int, dict[str, str]]:
        order.append("attempt")
        return 200, {}

    said = Said()
    async with a_receiver(answer) as receiver, running(tmp_path, said) as webhooks:
        monkeypatch.setattr(os, "fsync", fsync)
        await webhooks.add(hook(receiver.url))
        assert order == [tmp_path.name, "ops.new", "webhooks"]
        order.clear()
        tell(webhooks, said, message(1))
        await until(lambda: bool(webhooks.files["ops"].ended), 10)
    assert order[:3] == ["ops.new", "webhooks", "attempt"]


async def test_filters_hold(tmp_path: Path) -> None:
    said = Said()
    async with a_receiver() as receiver, running(tmp_path, said) as webhooks:
        await webhooks.add(hook(receiver.url, projects=("site",), environments=("production",)))
        tell(
            webhooks, said, message(1, environment="staging"), message(2, environment="production", project="other"),
            Message("msg_3", "node.down", 0, {"node": "n"}), message(4, environment="production"),
        )  # fmt: skip
        await until(lambda: bool(receiver.came), 10)
        await asyncio.sleep(0.3)
    assert [received.fields["webhook-id"] for received in receiver.came] == ["msg_4"]


async def test_a_deaf_receiver_costs_its_own_queue_and_no_other_webhook(tmp_path: Path) -> None:
    said = Said()
    async with (
        a_receiver(failing(9_999)) as deaf,
        a_receiver() as hearing,
        running(tmp_path, said, (3_600,)) as webhooks,
    ):
        await webhooks.add(hook(deaf.url, "deaf"))
        await webhooks.add(hook(hearing.url, "hearing"))
        tell(webhooks, said, *(message(number) for number in range(PENDING_MAX + 40)))
        await until(lambda: len(hearing.came) >= PENDING_MAX, 20)
        assert len(webhooks.files["deaf"].pending) <= PENDING_MAX
        assert f"over {PENDING_MAX}" in webhooks.files["deaf"].ended[0].result


async def test_limits_and_names(tmp_path: Path) -> None:
    async with running(tmp_path, Said()) as webhooks:
        for number in range(HOOKS_MAX):
            await webhooks.add(hook("http://127.0.0.1:9/", f"h{number}"))
        for wanted, rule in (
            (hook("http://127.0.0.1:9/", "h1"), "webhook.exists"),
            (hook("http://127.0.0.1:9/", "one-more"), "webhook.too-many"),
            (hook("http://127.0.0.1:9/", "../x"), "webhook.name"),
        ):
            with pytest.raises(NotDoneError) as caught:
                await webhooks.add(wanted)
            assert caught.value.refusal.rule == rule
        await webhooks.remove("h1")
        assert not (tmp_path / "webhooks" / "h1").exists()
        with pytest.raises(NotDoneError):
            await webhooks.test("h1")
        with pytest.raises(NotDoneError):
            await webhooks.add(Webhook("plain", "http://93.184.216.34/", b""))


async def test_a_damaged_file_costs_its_own_webhook_alone(tmp_path: Path) -> None:
    async with running(tmp_path, Said()) as webhooks:
        await webhooks.add(hook("http://127.0.0.1:9/", "good"))
        await webhooks.add(hook("http://127.0.0.1:9/", "bad"))
    (tmp_path / "webhooks" / "bad").write_bytes(b"\xc1nonsense")
    assert (tmp_path / "webhooks" / "good").stat().st_mode & 0o777 == 0o600, "it holds the secret"
    async with running(tmp_path, Said()) as again:
        assert list(again.files) == ["good"]
        assert (tmp_path / "webhooks" / "bad").exists()
