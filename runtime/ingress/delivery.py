"""Gives a message to its handler: a POST to the app, at a path that no visitor's request can have.

The path is `/.freehold/messages/SUBJECT` and the body is the message; an answer of 2xx says that the handler is done with
it. No route leads below `/.freehold`, and fields that begin with `freehold-` are taken from visitors' requests, so an app
can tell a message from a visitor. Not here: where messages wait and who takes them (`node/serving/deliveries.py`).
"""

from __future__ import annotations

from typing import Final

from runtime.exchange import Headers, RequestHead
from runtime.ingress.app_call import call_app
from runtime.ingress.dispatch import HostedApp
from runtime.ingress.faces import Front
from runtime.ingress.incoming import Incoming
from runtime.ingress.request_head import GuestRequest, is_recorded
from runtime.messages import Deliver, Delivered, DeliveryFate

PATH: Final = "/.freehold/messages/"
AUTHORITY: Final = "messages.freehold.internal"
ANSWER_MAX_BYTES: Final = 64 * 1024
"""Of an answer nothing is kept; a longer one is a mistake."""


async def deliver(ingress: Front, app: HostedApp, message: Deliver) -> Delivered:
    """Have the app handle one message; say what became of it."""
    path = PATH + message.subject
    trace_id, span_id, flags = (
        ingress.identifiers.trace_id(),
        ingress.identifiers.span_id(),
        ingress.identifiers.flags(),
    )
    fields: Headers = (
        ("content-type", b"application/octet-stream"),
        ("content-length", b"%d" % len(message.body)),
        ("traceparent", f"00-{trace_id}-{span_id}-{flags}".encode()),
        ("freehold-message", b"%d" % message.id),
        ("freehold-message-attempt", b"%d" % message.attempt),
        ("freehold-message-published-ms", b"%d" % message.published_ms),
    )
    head = RequestHead("POST", "http", AUTHORITY, path, fields)
    ids = (f"{message.subject}-{message.id}-{message.attempt}", trace_id)
    incoming = Incoming("POST", path.encode("latin-1"), [])
    incoming.bytes_in = len(message.body)
    reply = await call_app(ingress, app, head, message.body, ids, ANSWER_MAX_BYTES)
    if reply.outcome is None:  # no guest was asked
        return Delivered(message.number, "refused", reply.status)
    asked = GuestRequest(
        fields, "http", AUTHORITY, trace_id, ids[0],
        wants_trailers=False, span_id=span_id, parent_id="", recorded=is_recorded(flags),
    )  # fmt: skip
    ingress.access(
        incoming, asked, app, path, status=reply.status or 502, bytes_out=len(reply.body), outcome=reply.outcome,
        closed_s=reply.closed_s,
    )  # fmt: skip
    fate: DeliveryFate = "done" if 200 <= reply.status < 300 else "failed"
    return Delivered(message.number, fate, reply.status or 502)
