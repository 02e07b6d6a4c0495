"""Clients that keep asking while a test does something to the workers."""

from __future__ import annotations

import asyncio

from tests.support.runtime.served import Client, Served, until


class Stream:
    """Clients that ask without a pause and count what they get."""

    def __init__(self, served: Served, path: str = "/hello", clients: int = 4) -> None:
        self.served = served
        self.path = path
        self.clients = clients
        self.answered = 0
        self.failed: list[str] = []
        self.lost = 0
        self.releases: dict[str, int] = {}
        self._stop = False

    async def __aenter__(self) -> Stream:
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        for _ in range(self.clients):
            self._tasks.create_task(self._ask())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stop = True
        await self._tasks.__aexit__(None, None, None)

    async def more(self, count: int) -> None:
        """Wait for `count` further answers."""
        goal = self.answered + count
        await until(lambda: self.answered >= goal)

    async def _ask(self) -> None:
        client: Client | None = None
        while not self._stop:
            try:
                client = client or await self.served.connect()
                answer = await client.get(self.path)
            except (ConnectionError, asyncio.IncompleteReadError):
                self.lost += 1
                client = None
                continue
            self.answered += 1
            if answer.status != 200 or not answer.whole:
                self.failed.append(f"{answer.status} {answer.body!r}")
            release = answer.header("freehold-release") or ""
            self.releases[release] = self.releases.get(release, 0) + 1
            if answer.header("connection") == "close":
                client.close()
                client = None
