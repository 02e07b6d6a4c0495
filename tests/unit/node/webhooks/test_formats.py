"""Webhook messages on the wire, judged by the specification's own library; text that lies stays text."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook as Judge
from standardwebhooks.webhooks import WebhookVerificationError

from node.webhooks.formats import TITLES, headline, request_of, secret_text
from node.webhooks.model import Message, Webhook
from protocols.api_outward import WEBHOOK_KINDS

SECRET = bytes(range(32))
MESSAGE = Message(
    "msg_1", "approval.needed", 1_700_000_000_123,
    {"project": "site", "environment": "production", "change": "ab" * 32, "request": "greet everybody"},
)  # fmt: skip


def sent(hook: Webhook | None = None, message: Message = MESSAGE, at_s: int = 0) -> tuple[bytes, dict[str, str]]:
    hook = hook or Webhook("ops", "https://x.example/", SECRET)
    return request_of(hook, message, "home", at_s or int(time.time()))


@pytest.mark.parametrize("kind", ["json", "slack", "ntfy"])
def test_the_specifications_library_believes_what_is_sent(kind: Any) -> None:
    body, fields = sent(Webhook("ops", "https://x.example/", SECRET, format=kind))
    judge = Judge(secret_text(SECRET))
    if kind == "ntfy":
        with pytest.raises(json.JSONDecodeError):  # the signature is good, and the body is text
            judge.verify(body, fields)
        assert body == b"site in production waits for an approval: greet everybody"
    else:
        assert judge.verify(body, fields)


@pytest.mark.parametrize("wrong", ["body", "id", "secret", "old", "future", "timestamp"])
def test_what_was_altered_is_not_believed(wrong: str) -> None:
    now_s = int(time.time())
    at_s = {"old": now_s - 400, "future": now_s + 400}.get(wrong, now_s)
    body, fields = sent(at_s=at_s)
    secret = bytes(32) if wrong == "secret" else SECRET
    if wrong == "body":
        body += b" "
    if wrong == "id":
        fields["webhook-id"] += "x"
    if wrong == "timestamp":
        fields["webhook-timestamp"] = str(at_s + 1)
    with pytest.raises(WebhookVerificationError):
        Judge(secret_text(secret)).verify(body, fields)


def test_the_payload_is_the_specifications() -> None:
    body, fields = sent()
    said = json.loads(body)
    assert set(said) == {"type", "timestamp", "data"}
    assert (said["type"], said["timestamp"]) == ("approval.needed", "2023-11-14T22:13:20.123Z")
    assert said["data"]["mesh"] == "home"
    assert said["data"]["project"] == "site"
    assert fields["Content-Type"] == "application/json"


def test_text_from_outside_is_no_markup_no_line_and_no_field() -> None:
    lying = Message(
        "m", "approval.needed", 0, {**MESSAGE.data, "request": "x\r\nPriority: max\n<!channel> <b>\u202e{key}"}
    )
    assert headline(lying).count("\n") == 0
    body, _ = sent(Webhook("ops", "https://x.example/", SECRET, format="slack"), lying)
    text = json.loads(body)["text"]
    assert "<!channel>" not in text
    assert "&lt;!channel&gt;" in text
    assert "\u202e" not in text
    assert "{key}" in text, "nothing of a message is a template"
    _, fields = sent(Webhook("ops", "https://x.example/", SECRET, format="ntfy"), lying)
    assert all("\n" not in field and "\r" not in field for field in fields.values())
    assert fields["Priority"] == "default"


def test_every_kind_has_its_words() -> None:
    assert set(TITLES) == {*WEBHOOK_KINDS, "test"}
    for kind in (*WEBHOOK_KINDS, "test"):
        assert headline(Message("m", kind, 0, {"name": "n1", "reason": ""})).rstrip(": ")  # type: ignore[arg-type]
