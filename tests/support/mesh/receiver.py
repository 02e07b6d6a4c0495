"""A receiver of webhooks on loopback: keeps what comes, and answers as a test says. Not here: any test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class Received:
    """One request as it came."""

    path: str
    fields: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """What came so far; `answer` makes the answer to each request (status, fields)."""

    url: str
    answer: Callable[[Received], tuple[int, dict[str, str]]]
    came: list[Received] = field(default_factory=list)


@asynccontextmanager
async def a_receiver(
    answer: Callable[[Received], tuple[int, dict[str, str]]] = lambda _one: (204, {}), host: str = "127.0.0.1"
) -> AsyncIterator[Receiver]:
    """Serve one at http://HOST:PORT/hook until the test leaves."""
    receiver = Receiver("", answer)

    async def take(request: web.Request) -> web.Response:
        received = Received(
            request.path, {name.lower(): text for name, text in request.headers.items()}, await request.read()
        )
        receiver.came.append(received)
        status, fields = receiver.answer(received)
        return web.Response(status=status, headers=fields)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", take)
    runner = web.AppRunner(application, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, host, 0)
    await site.start()
    port = runner.addresses[0][1]
    receiver.url = f"http://{host}:{port}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()
