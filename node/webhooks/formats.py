"""What a message looks like to its receiver: signed JSON, or the text that a chat or a phone shows.

Signatures are those of Standard Webhooks 1.0.0: HMAC-SHA256 over "id.timestamp.body", so a receiver uses that
specification's libraries. Text that people and apps wrote is made harmless for the place it is shown in. Pure.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from node.webhooks.model import Message, Webhook

SECRET_PREFIX = "whsec_"  # noqa: S105  how the specification marks one; not a secret
TEXT_MAX_CHARS = 1_000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]+")

TITLES: Mapping[str, str] = {
    "approval.needed": "{project} in {environment} waits for an approval: {request}",
    "rollout.started": "{project} in {environment}: the rollout of change {change} began",
    "rollout.paused": "{project} in {environment}: the rollout is paused: {reason}",
    "rollout.resumed": "{project} in {environment}: the rollout goes on",
    "rollout.aborted": "{project} in {environment}: the rollout was aborted: {reason}",
    "rollout.succeeded": "{project} in {environment}: change {change} runs",
    "rollout.rolled-back": "{project} in {environment}: rolled back to change {change}: {reason}",
    "node.down": "node {name} is down, or not reached",
    "node.up": "node {name} is back",
    "grant.ending": "the grant of {name} ends at {ends}",
    "certificate.ending": "the certificate of node {name} ends at {ends}",
    "test": "a test of the webhook {name}",
}
URGENT = frozenset({"node.down", "rollout.aborted", "rollout.rolled-back", "certificate.ending"})


def secret_text(secret: bytes) -> str:
    """Return a secret as receivers are given it."""
    return SECRET_PREFIX + base64.b64encode(secret).decode()


def signed_fields(secret: bytes, message: str, at_s: int, body: bytes) -> dict[str, str]:
    """Return the fields that prove who sent `body` as the message of this id, at a moment (Unix seconds)."""
    mac = hmac.new(secret, f"{message}.{at_s}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": message,
        "webhook-timestamp": str(at_s),
        "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
    }


def request_of(hook: Webhook, message: Message, mesh: str, at_s: int) -> tuple[bytes, dict[str, str]]:
    """Return the body and the header fields of one attempt."""
    match hook.format:
        case "slack":
            text = headline(message).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            body, kind = msgspec.json.encode({"text": f"[{mesh}] {text}"}), "application/json"
            fields: dict[str, str] = {}
        case "ntfy":
            body, kind = headline(message).encode(), "text/plain; charset=utf-8"
            fields = {"Title": f"{mesh}: {message.kind}", "Priority": "high" if message.kind in URGENT else "default"}
        case _:
            body, kind = msgspec.json.encode(payload(message, mesh)), "application/json"
            fields = {}
    return body, {"Content-Type": kind, **fields, **signed_fields(hook.secret, message.id, at_s, body)}


def payload(message: Message, mesh: str) -> dict[str, Any]:
    """Return what the JSON format sends: the specification's `type`, `timestamp` and `data`."""
    position = (
        datetime.fromtimestamp(message.at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
    return {
        "type": message.kind,
        "timestamp": position,
        "data": {"mesh": mesh, "text": headline(message), **message.data},
    }


def headline(message: Message) -> str:
    """Return a message as one line for people, without control and direction characters."""
    known = {name: _CONTROL.sub(" ", value) for name, value in message.data.items()}
    shown = {**dict.fromkeys(("project", "environment", "change", "name", "request", "reason", "ends"), "?"), **known}
    shown["change"] = shown["change"][:12]
    return TITLES[message.kind].format_map(shown)[:TEXT_MAX_CHARS].rstrip(": ")
