"""What a webhook is and what it keeps: its settings, the messages it has yet to deliver, how the last ones ended.

Not here: what is told (occasions.py), how it looks on the wire (formats.py), delivering it (webhooks.py).
"""

from __future__ import annotations

import re

import msgspec

from protocols.api_outward import WEBHOOK_NAME, WebhookFormat, WebhookKind

HOOKS_MAX = 16
PENDING_MAX = 256
"""Messages that one webhook has yet to deliver: the oldest gives way, and is said to be given up."""
ENDED_KEPT = 50
SECRET_BYTES = 32


class Webhook(msgspec.Struct, frozen=True):
    """Where messages go, and which: empty `events`, `projects` and `environments` mean all.

    With projects or environments it is told of those alone, and of nothing about nodes and people. `private` lets it reach
    addresses that are not public, and plain http. `author` is who made it, as the audit log names callers.
    """

    name: str
    url: str
    secret: bytes
    format: WebhookFormat = "json"
    events: tuple[WebhookKind, ...] = ()
    projects: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    private: bool = False
    author: str = ""
    added_ms: int = 0

    def wants(self, message: Message) -> bool:
        """Whether it is told of a message."""
        if self.events and message.kind not in self.events:
            return False
        if self.projects and message.data.get("project", "") not in self.projects:
            return False
        return not self.environments or message.data.get("environment", "") in self.environments


class Message(msgspec.Struct, frozen=True):
    """One thing that happened. `id` is the same on every node that tells of it, where all of them know it alike."""

    id: str
    kind: WebhookKind
    at_ms: int
    data: dict[str, str]


class Undelivered(msgspec.Struct):
    """A message under way. Mutable: it counts its attempts. `next_ms` is when it is tried (wall)."""

    message: Message
    next_ms: int
    attempts: int = 0
    last: str = ""
    """How the last attempt ended."""


class Handled(msgspec.Struct, frozen=True):
    """A message that was delivered or given up; `result` says how the last attempt ended."""

    id: str
    kind: str
    delivered: bool
    at_ms: int
    attempts: int
    result: str


class HookFile(msgspec.Struct):
    """All that a webhook keeps on disk. Mutable.

    `slot` is the last decision that was looked at, `told` what it was told that still holds, `bases` the change that ran
    in each lane; `off` says why it delivers no more ("" while it does).
    """

    hook: Webhook
    slot: int
    told: list[str] = []
    bases: dict[str, str] = {}
    pending: list[Undelivered] = []
    ended: list[Handled] = []
    off: str = ""

    def queue(self, message: Message, now_ms: int) -> None:
        """Take a message to deliver; the oldest gives way where there are too many."""
        if any(undelivered.message.id == message.id for undelivered in self.pending):
            return
        while len(self.pending) >= PENDING_MAX:
            self.end(self.pending[0], now_ms, delivered=False, result=f"over {PENDING_MAX} messages wait")
        self.pending.append(Undelivered(message, now_ms))

    def end(self, undelivered: Undelivered, now_ms: int, *, delivered: bool, result: str) -> None:
        """Take a message off, and remember how it ended."""
        self.pending = [other for other in self.pending if other is not undelivered]
        ended = Handled(
            undelivered.message.id, undelivered.message.kind, delivered, now_ms, undelivered.attempts, result
        )
        self.ended = [*self.ended, ended][-ENDED_KEPT:]

    def lost(self) -> list[Handled]:
        """Of the newest messages those that were given up; one that an operator sent to try it is none."""
        return [handled for handled in self.ended if not handled.delivered and handled.kind != "test"]


def valid_name(name: str) -> bool:
    """Whether a webhook may be called so: its file is."""
    return re.fullmatch(WEBHOOK_NAME, name) is not None
