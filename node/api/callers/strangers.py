"""What anybody can send to the API's listeners before a call is known, kept from being a fault of the node.

aiohttp answers what it cannot read by itself and writes a traceback of it; a stranger could fill the log so. It also puts
the value of an Expect field, undecodable bytes and all, in its answer. Not here: who calls (callers.py), nor the calls.
"""

from __future__ import annotations

import logging

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError

from node.api.problems import PROBLEM_TYPE_PREFIX, Problem, response


def listener_log() -> logging.Logger:
    """The log of the HTTP server: without what clients sent that is no HTTP, which is answered 400 and is no fault here."""
    log = logging.getLogger("freehold.api.http")
    if not log.filters:
        log.addFilter(_is_a_fault)
    return log


def _is_a_fault(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)


async def expect(request: web.Request) -> web.StreamResponse | None:
    """Have a client that asked first send its body; answer any other expectation with 417 (RFC 9110, 10.1.1)."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        if request.version == HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # of the answer itself, nothing is sent
        return None
    return response(
        Problem(f"{PROBLEM_TYPE_PREFIX}http", "this expectation is not met", 417, "only 100-continue is known")
    )


async def unknown(request: web.Request) -> web.StreamResponse:
    """Answer for a path that leads nowhere, or whose operations have other methods."""
    allowed: set[str] = set()
    for resource in request.app.router.resources():
        if resource is not request.match_info.route.resource:
            allowed |= (await resource.resolve(request))[1]
    if allowed:
        raise web.HTTPMethodNotAllowed(request.method, allowed)
    raise web.HTTPNotFound
