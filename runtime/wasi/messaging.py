"""wasmcloud:messaging 0.2.0, the half that publishes: a message is in the lane's queue, durably, before the call returns.

Source: the WIT of wasmCloud/wasmCloud. Not here: how messages reach a handler, which is a request to the app
(docs/guides/messaging.md).
"""

from __future__ import annotations

import re
from typing import Any, Final

from runtime.engine.codecs import Err
from runtime.engine.guest import Guest
from runtime.engine.interface import Interface
from runtime.providers import ProviderError
from runtime.wasi.services import note_away

_VERSION: Final = re.compile(r"0\.2\.0")

types: Final = Interface("wasmcloud:messaging/types", _VERSION)
consumer: Final = Interface(
    "wasmcloud:messaging/consumer", _VERSION, system="freehold.queue", quiet=frozenset({"request"})
)
INTERFACES: Final = (types, consumer)


@consumer.function("publish")
def _publish(guest: Guest, message: tuple[str, bytes, str | None]) -> Err | None:
    subject, body, reply_to = message
    if reply_to:
        return Err("a queue takes no reply-to: its handler answers by publishing to a subject that both know")
    try:
        guest.services.publish(subject, body)
    except ProviderError as error:
        note_away(guest, error)
        return Err(error.text)
    return None


@consumer.function("request")
def _request(guest: Guest, subject: str, body: bytes, timeout_ms: int) -> Any:
    return Err("a queue answers no requests; publish, and have the handler publish its answer")
