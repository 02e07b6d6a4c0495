"""The webhooks of this node: kept in DATA/webhooks, told of what happens, delivered by one task each.

A message is delivered at least once: it is written down with where the webhook looked last before it is tried, and
taken off after the receiver's 2xx, so that a crash between repeats it under the same id. One that fails is tried again ten
times within three days; others do not wait for it. A webhook that nobody answers costs its own queue and one connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from node.errors import NotDoneError
from node.keys import write_private_in
from node.reaching import Reaching, Sending, url_problem
from node.webhooks.formats import request_of
from node.webhooks.model import HOOKS_MAX, SECRET_BYTES, Handled, HookFile, Message, Undelivered, Webhook, valid_name
from node.webhooks.occasions import Occasions, message_id
from protocols.chain.messages import EntryStored, EraChanged
from protocols.liveness import BeliefChanged
from protocols.machine import Entropy, Now
from protocols.records.gossip import RecordsMerged
from protocols.refusal import Refusal
from runtime.durable import sync_folder

RETRIES_S: tuple[int, ...] = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""How long after each failed attempt the next one is; the schedule that Standard Webhooks recommends."""
JITTER = 0.1
LOOK_EVERY_S = 10.0
LOOK_AGAIN_S = 0.5
"""Between two looks, however much happens."""
SAVE_EVERY_S = 1.0

_log = logging.getLogger("freehold.webhooks")


class Webhooks:
    """All of a node's webhooks. Nothing is looked at while there is none."""

    def __init__(
        self, folder: Path, clock: Callable[[], Now], entropy: Entropy, *, retries_s: Sequence[int] = RETRIES_S
    ) -> None:
        """Take the folder, where each has a file; what an earlier life wrote there is read."""
        self._folder, self._clock, self._entropy, self._retries_s = folder, clock, entropy, retries_s
        self.files: dict[str, HookFile] = dict(_read(folder))
        self._woken = asyncio.Event()
        self._busy: set[str] = set()
        self._saving = asyncio.Lock()
        self._occasions: Occasions | None = None
        self._mesh = ""

    def hear(self, event: Any) -> None:
        """Take one of the core's notices: something may be news."""
        if self.files and isinstance(event, RecordsMerged | EntryStored | EraChanged | BeliefChanged):
            self._woken.set()

    # --- what an operator does ------------------------------------------------------------------------------------

    async def add(self, wanted: Webhook) -> bytes:
        """Begin to tell an address; return the secret that its messages are signed with. Raises NotDoneError."""
        refusal = self._problem(wanted)
        if refusal is not None:
            raise NotDoneError(refusal, "freehold webhook list")
        assert self._occasions is not None, "it is asked of a running node"
        wall_ms = self._clock().wall_ms
        hook = msgspec.structs.replace(wanted, secret=self._entropy.random_bytes(SECRET_BYTES), added_ms=wall_ms)
        standing = self._occasions.standing(wall_ms)
        file = HookFile(hook, self._occasions.slot, list(standing.holds), standing.bases)
        self.files[hook.name] = file
        if not await self._save(file):
            del self.files[hook.name]
            raise NotDoneError(Refusal("webhook.not-written", "the disk did not take it"), "freehold doctor")
        return hook.secret

    async def remove(self, name: str) -> None:
        """Tell an address no more, and forget what was to be delivered. Raises NotDoneError for one that is not there."""
        self._named(name)
        async with self._saving:
            del self.files[name]
            with contextlib.suppress(FileNotFoundError):
                await asyncio.to_thread(_remove, self._folder / name)

    async def test(self, name: str) -> Sending:
        """Send one message now and say how that ended; it also turns a webhook on again whose receiver was gone."""
        file = self._named(name)
        wall_ms = self._clock().wall_ms
        unique = secrets.token_hex(8)
        message = Message(message_id(unique.encode(), "test", name), "test", wall_ms, {"name": name})
        reaching = Reaching()
        try:
            attempt = await self._attempt(reaching, file.hook, message)
        finally:
            await reaching.close()
        file.ended.append(Handled(message.id, "test", attempt.delivered, wall_ms, 1, attempt.result))
        if attempt.delivered and file.off:
            file.off = ""
            self._woken.set()
        await self._save(file)
        return attempt

    def _named(self, name: str) -> HookFile:
        file = self.files.get(name)
        if file is None:
            raise NotDoneError(
                Refusal("webhook.unknown", f"no webhook is called {name[:63]!r}"), "freehold webhook list"
            )
        return file

    def _problem(self, wanted: Webhook) -> Refusal | None:
        if not valid_name(wanted.name):
            return Refusal("webhook.name", "a name has small letters, digits and dashes, at most 63")
        if wanted.name in self.files:
            return Refusal("webhook.exists", f"there is a webhook {wanted.name} already; remove it first")
        if len(self.files) >= HOOKS_MAX:
            return Refusal("webhook.too-many", f"a node has at most {HOOKS_MAX} webhooks; remove one first")
        return url_problem(wanted.url, private=wanted.private)

    def concerns(self) -> list[str]:
        """What an operator should look at, each with what to do."""
        texts = [
            f"the webhook {name} delivers no more: {file.off}; freehold webhook test {name}, or remove it"
            for name, file in sorted(self.files.items())
            if file.off
        ]
        for name, file in sorted(self.files.items()):
            lost = file.lost()
            if lost:
                texts.append(
                    f"{len(lost)} messages to the webhook {name} were given up, the last one: {lost[-1].result};"
                    f" freehold webhook test {name}"
                )
        return texts

    # --- while the node runs --------------------------------------------------------------------------------------

    async def run(self, occasions: Occasions, mesh: str) -> None:
        """Look for news and deliver it until cancelled; `mesh` is its name for people."""
        self._occasions, self._mesh = occasions, mesh
        reaching = Reaching()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._look(occasions)
                    for name, file in list(self.files.items()):
                        if name not in self._busy and not file.off and self._due(file) is not None:
                            self._busy.add(name)
                            group.create_task(self._deliver(reaching, name))
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._woken.wait(), self._wait_s())
                    await asyncio.sleep(LOOK_AGAIN_S)
                    self._woken.clear()
        finally:
            await reaching.close()

    async def _look(self, occasions: Occasions) -> None:
        if not self.files:
            return
        wall_ms = self._clock().wall_ms
        standing = occasions.standing(wall_ms)
        for file in list(self.files.values()):
            before = file.slot, file.told, file.bases
            wanted = [message for message in occasions.since(file, standing, wall_ms) if file.hook.wants(message)]
            for message in wanted:
                file.queue(message, wall_ms)
            if wanted or before != (file.slot, file.told, file.bases):
                await self._save(file)

    def _wait_s(self) -> float:
        """Until something is due, at most until the next look."""
        due = [undelivered.next_ms for file in self.files.values() if not file.off for undelivered in file.pending]
        soonest_s = (min(due) - self._clock().wall_ms) / 1000 if due else LOOK_EVERY_S
        return max(0.0, min(LOOK_EVERY_S, soonest_s))

    def _due(self, file: HookFile) -> Undelivered | None:
        wall_ms = self._clock().wall_ms
        return next((undelivered for undelivered in file.pending if undelivered.next_ms <= wall_ms), None)

    async def _deliver(self, reaching: Reaching, name: str) -> None:
        """Deliver what one webhook has due, one message after the other."""
        saved_s = self._clock().mono_ms / 1000
        try:
            while (file := self.files.get(name)) is not None and not file.off:
                undelivered = self._due(file)
                if undelivered is None:
                    break
                self._note(file, undelivered, await self._attempt(reaching, file.hook, undelivered.message))
                if self._clock().mono_ms / 1000 - saved_s >= SAVE_EVERY_S:
                    await self._save(file)
                    saved_s = self._clock().mono_ms / 1000
        finally:
            self._busy.discard(name)
            if name in self.files:
                await self._save(self.files[name])

    async def _attempt(self, reaching: Reaching, hook: Webhook, message: Message) -> Sending:
        body, fields = request_of(hook, message, self._mesh, self._clock().wall_ms // 1000)
        return await reaching.post(hook.url, body, fields, private=hook.private)

    def _note(self, file: HookFile, one: Undelivered, attempt: Sending) -> None:
        """Take down how an attempt ended, and when the next one is."""
        wall_ms = self._clock().wall_ms
        one.attempts += 1
        one.last = attempt.result
        if attempt.gone:
            file.off = attempt.result
            for left in list(file.pending):
                file.end(left, wall_ms, delivered=False, result=attempt.result)
        elif attempt.delivered or one.attempts > len(self._retries_s):
            file.end(one, wall_ms, delivered=attempt.delivered, result=attempt.result)
        else:
            wait_s = self._retries_s[one.attempts - 1] * self._entropy.uniform(1 - JITTER, 1 + JITTER)
            one.next_ms = wall_ms + round(1000 * max(wait_s, attempt.again_s))
        if not attempt.delivered:
            _log.warning(
                "webhook %s: %s, attempt %d: %s", file.hook.name, one.message.kind, one.attempts, attempt.result,
                extra={"event": "webhook.failed"},
            )  # fmt: skip

    async def _save(self, file: HookFile) -> bool:
        """Write one webhook down, durably; return whether the disk took it. What it did not take may be told twice."""
        async with self._saving:
            if self.files.get(file.hook.name) is not file:
                return False
            data = msgspec.msgpack.encode(file)
            try:
                await asyncio.to_thread(write_private_in, self._folder, file.hook.name, data)
            except OSError as error:
                _log.error("webhook not written: %s", error, extra={"event": "webhook.not-written"})
                return False
        return True


def _remove(path: Path) -> None:
    path.unlink()
    sync_folder(path.parent)


def _read(folder: Path) -> list[tuple[str, HookFile]]:
    """The webhooks of an earlier life; one whose file is damaged is left out, and stays where it is."""
    pairs = []
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        if not valid_name(path.name):
            continue
        try:
            pairs.append((path.name, msgspec.msgpack.decode(path.read_bytes(), type=HookFile)))
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            _log.error("webhook %s cannot be read: %s", path.name, error, extra={"event": "webhook.unreadable"})
    return pairs
