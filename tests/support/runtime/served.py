"""A pool of real worker processes for a test, and an HTTP/1.1 client that sends exactly the bytes it is given.

Two kinds of worker: `STUB` runs Python functions as apps (`stub_worker.py`), `REAL` runs components.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runtime.ingress.settings import IngressSettings
from runtime.messages import AppLimits, AppLoad, LogBatch, ReleaseLoad, WorkerRoute
from runtime.native.choice import Wanted, load_module
from runtime.spec import AppSpec
from runtime.workers.pool import WorkerPool
from runtime.workers.pool_settings import PoolSettings

STUB = (sys.executable, "-P", str(Path(__file__).with_name("stub_worker.py")))
REAL = (sys.executable, "-P", "-m", "runtime.workers.worker")

ANSWER_TIMEOUT_S = 20.0

_NOT_BUILT = load_module()[1]
ENGINES = ("python", pytest.param("native", marks=pytest.mark.skipif(bool(_NOT_BUILT), reason=_NOT_BUILT or "built")))
"""Both engines, for `params`; the native one is skipped, with the reason, where it is not built."""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    trailers: list[tuple[str, str]]
    whole: bool

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def problem(self) -> str:
        """The problem's name; the test fails if this is no problem."""
        assert self.header("content-type") == "application/problem+json", self
        slug: str = json.loads(self.body)["type"].rpartition(":")[2]
        return slug


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def receive(self, *, head_only: bool = False) -> Response:
        """Read one response; `whole` is False if the connection ended before the body did."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return await self._receive(head_only=head_only)

    async def _receive(self, *, head_only: bool) -> Response:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        status = int(lines[0].split(" ")[1])
        headers = [_field(line) for line in lines[1:]]
        response = Response(status, headers, b"", [], True)
        if head_only or status in {100, 204, 304}:
            return response
        try:
            if response.header("transfer-encoding") == "chunked":
                body, trailers = await self._chunks()
                return Response(status, headers, body, trailers, True)
            length = response.header("content-length")
            body = await (self.reader.read() if length is None else self.reader.readexactly(int(length)))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            return Response(status, headers, getattr(error, "partial", b""), [], False)
        return Response(status, headers, body, [], True)

    async def _chunks(self) -> tuple[bytes, list[tuple[str, str]]]:
        parts = []
        while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
            parts.append((await self.reader.readexactly(size + 2))[:-2])
        trailers = []
        while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
            trailers.append(_field(line.decode("latin-1").rstrip("\r\n")))
        return b"".join(parts), trailers

    async def get(self, path: str, *fields: str) -> Response:
        await self.send(request("GET", path, *fields))
        return await self.receive()

    async def closed(self) -> bool:
        """Wait for the other side to close; True once it has, False if more bytes came instead."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True

    def close(self) -> None:
        self.writer.close()


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.lower(), value.strip()


def request(method: str, path: str, *fields: str, body: bytes = b"", host: str = "app.test") -> bytes:
    """Return a request's bytes; a body gets its content-length."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Served:
    """A running pool and its logs."""

    def __init__(self, pool: WorkerPool, logs: list[dict[str, Any]]) -> None:
        self.pool = pool
        self.logs = logs
        self._clients: list[Client] = []

    @property
    def port(self) -> int:
        return int(self.pool.addresses[0].rpartition(":")[2])

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20))
        self._clients.append(client)
        return client

    def forget(self, client: Client) -> None:
        """Leave a connection to the test, which has ended it: of many, none is kept here."""
        self._clients.remove(client)

    async def hang_up(self) -> None:
        """Close every connection of the test."""
        for client in self._clients:
            client.writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await client.writer.wait_closed()

    async def fetch(self, data: bytes, *, head_only: bool = False) -> Response:
        """Send one request on its own connection."""
        client = await self.connect()
        try:
            await client.send(data)
            return await client.receive(head_only=head_only)
        finally:
            client.close()

    async def get(self, path: str, *fields: str) -> Response:
        return await self.fetch(request("GET", path, *fields))

    async def serve(self, release: ReleaseLoad) -> None:
        """Load a release and route /NAME to each of its apps, and nothing else."""
        await self.pool.load(release)
        apps = [load.spec.app for load in release.apps if load.spec.kind == "http"]
        await self.pool.activate([WorkerRoute(None, f"/{app}", release.key, app) for app in apps])

    async def logged(self, event: str, **fields: object) -> dict[str, Any]:
        """Wait for a log line with these fields."""
        return await until(
            lambda: next(
                (entry for entry in self.logs if entry["event"] == event and fields.items() <= entry.items()), None
            )
        )


async def until(look: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    """Return what `look` returns as soon as it is true; real processes have no virtual time."""
    async with asyncio.timeout(timeout_s):
        while not (entry := look()):  # noqa: ASYNC110 - what is awaited happens in another process
            await asyncio.sleep(0.01)
        return entry


def stub_release(key: str, *apps: str, timeout_ms: int = 5_000, limits: AppLimits | None = None) -> ReleaseLoad:
    """A release of stub apps, each named after the function it runs."""
    specs = [
        AppSpec("project", app, key, Path("/none"), "0", timeout_ms=timeout_ms, config={"do": app}) for app in apps
    ]
    return ReleaseLoad(key, key, "project", tuple(AppLoad(spec, limits or AppLimits()) for spec in specs))


@asynccontextmanager
async def running(
    folder: Path,
    *,
    command: Sequence[str] = STUB,
    workers: int = 1,
    listen: tuple[str, ...] = ("127.0.0.1:0",),
    build: str = "test",
    ingress: IngressSettings | None = None,
    drain_grace_ms: int = 5_000,
    orphan_limit_s: float = 20.0,
    proxies: tuple[str, ...] = (),
    engine: Wanted = "python",
    certificates: Path | None = None,
    leave: bool = False,
) -> AsyncIterator[Served]:
    """Run a pool for the body of the test; `leave` leaves its workers alive for another pool."""
    logs: list[dict[str, Any]] = []

    def keep(batch: LogBatch) -> None:
        logs.extend(json.loads(line) for line in batch.lines)

    settings = PoolSettings(
        listen=listen,
        runtime_folder=folder / "run",
        data_folder=folder / "data",
        build=build,
        workers=workers,
        ingress=ingress or IngressSettings(),
        drain_grace_ms=drain_grace_ms,
        orphan_limit_s=orphan_limit_s,
        proxies=proxies,
        engine=engine,
        certificates=certificates,
        command=tuple(command),
    )
    pool = WorkerPool(settings, on_logs=keep)
    served = Served(pool, logs)
    async with asyncio.TaskGroup() as tasks:
        life = tasks.create_task(pool.run())
        try:
            async with asyncio.timeout(60):
                await pool.started()
            yield served
        finally:
            await served.hang_up()
            await (pool.detach() if leave else pool.stop())
            await asyncio.wait([life])  # also when the test has failed: the workers end with it
