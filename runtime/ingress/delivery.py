"""Asks an app for the node itself: a message for its handler, or to migrate its data.

Each is a POST at a path that no visitor's request can have: `/.freehold/messages/SUBJECT`, whose body is the message, and
`/.freehold/migrate`. An answer of 2xx says that it is done. No route leads below `/.freehold`, and fields that begin with
`freehold-` are taken from visitors' requests, so an app can tell the node from a visitor. Not here: where messages wait and
who takes them (`node/serving/deliveries.py`), when data is migrated (`node/serving/migrations.py`).
"""

from __future__ import annotations

from typing import Final

from runtime.exchange import Headers, RequestHead
from runtime.ingress.app_call import AppReply, call_app
from runtime.ingress.dispatch import HostedApp
from runtime.ingress.faces import Front
from runtime.ingress.incoming import Incoming
from runtime.ingress.request_head import GuestRequest, is_recorded
from runtime.messages import Deliver, Delivered, DeliveryFate, Migrate, Migrated

PATH: Final = "/.freehold/messages/"
MIGRATE_PATH: Final = "/.freehold/migrate"
AUTHORITY: Final = "messages.freehold.internal"
ANSWER_MAX_BYTES: Final = 64 * 1024
"""Of an answer to a message nothing is kept; a longer one is a mistake."""

SAID_MAX_CHARS: Final = 4_000
"""Of why a migration failed: the end, where a traceback says what happened."""


async def deliver(ingress: Front, app: HostedApp, message: Deliver) -> Delivered:
    """Have the app handle one message; say what became of it."""
    fields: Headers = (
        ("content-type", b"application/octet-stream"),
        ("content-length", b"%d" % len(message.body)),
        ("freehold-message", b"%d" % message.id),
        ("freehold-message-attempt", b"%d" % message.attempt),
        ("freehold-message-published-ms", b"%d" % message.published_ms),
    )
    name = f"{message.subject}-{message.id}-{message.attempt}"
    reply = await _ask(ingress, app, PATH + message.subject, fields, message.body, name)
    if reply.outcome is None:  # no guest was asked
        return Delivered(message.number, "refused", reply.status)
    fate: DeliveryFate = "done" if 200 <= reply.status < 300 else "failed"
    return Delivered(message.number, fate, reply.status or 502)


async def migrate(ingress: Front, app: HostedApp, asked: Migrate) -> Migrated:
    """Have the app migrate its data; return what it answered."""
    reply = await _ask(ingress, app, MIGRATE_PATH, (("content-length", b"0"),), b"", "migrate")
    if reply.outcome is None:
        return Migrated(asked.number, 503, "")
    status = reply.status or 502
    said = "" if 200 <= status < 300 else reply.body.decode(errors="replace")[-SAID_MAX_CHARS:]
    return Migrated(asked.number, status, said)


async def _ask(ingress: Front, app: HostedApp, path: str, fields: Headers, body: bytes, name: str) -> AppReply:
    """Call the app, and have it in the log like any request; `name` is the request's id."""
    trace_id, span_id, flags = (
        ingress.identifiers.trace_id(),
        ingress.identifiers.span_id(),
        ingress.identifiers.flags(),
    )
    fields = (*fields, ("traceparent", f"00-{trace_id}-{span_id}-{flags}".encode()))
    head = RequestHead("POST", "http", AUTHORITY, path, fields)
    incoming = Incoming("POST", path.encode("latin-1"), [])
    incoming.bytes_in = len(body)
    reply = await call_app(ingress, app, head, body, (name, trace_id), ANSWER_MAX_BYTES)
    if reply.outcome is not None:
        asked = GuestRequest(
            fields, "http", AUTHORITY, trace_id, name,
            wants_trailers=False, span_id=span_id, parent_id="", recorded=is_recorded(flags),
        )  # fmt: skip
        ingress.access(
            incoming, asked, app, path, status=reply.status or 502, bytes_out=len(reply.body), outcome=reply.outcome,
            closed_s=reply.closed_s,
        )  # fmt: skip
    return reply
