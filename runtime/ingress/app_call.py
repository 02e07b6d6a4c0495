"""One call of an app by the ingress itself: a whole request in, a whole answer out, wherever the app runs.

A WebSocket's events are such calls. Not here: clients' requests (connection.py), which stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import Final

from runtime.exchange import Exchange, Headers, RequestHead
from runtime.ingress.dispatch import HostedApp, Ticket
from runtime.ingress.faces import Front
from runtime.ingress.forwarding import ANSWER_MAX_BYTES, GO, HERE, MARK, TELLS_ITSELF
from runtime.ingress.routing import Elsewhere
from runtime.messages import FORWARD_SOCKET
from runtime.outbound.response_reader import ResponseFailed, ResponseReader
from runtime.outcome import Outcome

ELSEWHERE_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class AppReply:
    """An app's answer; status 0: none came, and nothing says that the app was not run."""

    status: int
    headers: Headers = ()
    body: bytes = b""
    outcome: Outcome | None = None
    app: HostedApp | None = None
    closed_s: float | None = None


async def call_app(
    ingress: Front, found: HostedApp | Elsewhere, head: RequestHead, body: bytes, ids: tuple[str, str], max_bytes: int
) -> AppReply:
    """Call an app with one request; `ids` are those of request and trace. An answer over `max_bytes` is none."""
    if isinstance(found, HostedApp):
        return await _call_here(ingress, found, head, body, ids, max_bytes)
    try:
        async with asyncio.timeout(ELSEWHERE_TIMEOUT_S):
            return await _call_elsewhere(ingress, found, head, body, ids, max_bytes)
    except (OSError, TimeoutError, ValueError, EOFError, ResponseFailed):
        return AppReply(0)


async def _call_here(
    ingress: Front, app: HostedApp, head: RequestHead, body: bytes, ids: tuple[str, str], max_bytes: int
) -> AppReply:
    since_s = time.monotonic()
    exchange = Exchange(head, deadline_s=since_s + app.timeout_s, loop=ingress.loop)
    await exchange.body.feed(body)
    exchange.body.feed_end()
    if not ingress.dispatcher.submit(Ticket(app, exchange, since_s, *ids)):
        exchange.body.close()
        return AppReply(503, app=app)
    status, size, whole = 0, 0, False
    headers: Headers = ()
    content: list[bytes] = []
    while True:
        batch = await exchange.take()
        if batch.head is not None:
            status, headers = batch.head.status, batch.head.headers
        size += sum(map(len, batch.chunks))
        if size > max_bytes:
            exchange.cancel()
        else:
            content += batch.chunks
        whole = whole or batch.complete
        if batch.outcome is not None:
            break
    if not whole or size > max_bytes:
        status, headers, content = 500, (), []
    return AppReply(status, headers, b"".join(content), batch.outcome, app, exchange.closed_s)


async def _call_elsewhere(
    ingress: Front, found: Elsewhere, head: RequestHead, body: bytes, ids: tuple[str, str], max_bytes: int
) -> AppReply:
    reader, writer = await asyncio.open_unix_connection(
        str(ingress.runtime_folder / FORWARD_SOCKET), limit=ANSWER_MAX_BYTES
    )
    try:
        writer.write(found.lane.encode() + b"\n")
        word = await reader.readline()
        if word == HERE:
            here = ingress.routes.find(head.authority, head.path_with_query.partition("?")[0])
            if isinstance(here, HostedApp):
                return await _call_here(ingress, here, head, body, ids, max_bytes)
        if word != GO:
            return AppReply(503)
        lines = [f"{head.method} {head.path_with_query} HTTP/1.1\r\nhost: {head.authority}\r\n".encode("latin-1")]
        lines += [b"%b: %b\r\n" % (name.encode("latin-1"), value) for name, value in head.headers]
        if ingress.topics.node:
            lines.append(f"{TELLS_ITSELF}: {ingress.topics.node}\r\n".encode("ascii"))
        lines.append(b"content-length: %d\r\n%b: 1\r\nconnection: close\r\n\r\n" % (len(body), MARK.encode()))
        writer.write(b"".join(lines) + body)
        answer = ResponseReader(reader, head.method)
        said = await answer.read_head()
        content = b""
        while (piece := await answer.read_piece()) is not None:
            content += piece
            if len(content) > max_bytes:
                return AppReply(500)
        return AppReply(said.status, said.headers, content)
    finally:
        with contextlib.suppress(OSError):
            writer.transport.abort()
