"""A developer's node answers this machine's browsers alone: no page of elsewhere reaches it by a name or by its scripts."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from runtime.ingress.settings import IngressSettings
from runtime.messages import WorkerRoute
from tests.support.runtime.served import Served, request, running, stub_release

FIELDS = [
    ("127.0.0.1:8080", "", True),
    ("127.0.0.1", "http://127.0.0.1:8080", True),
    ("127.8.9.10:8080", "", True),
    ("localhost:8080", "http://localhost:5173", True),
    ("LOCALHOST", "", True),
    ("shop.localhost:8080", "https://shop.localhost", True),
    ("[::1]:8080", "", True),
    ("app.test:8080", "", True),
    ("app.test", "http://app.test", True),
    ("evil.example:8080", "", False),
    ("evil.example", "http://evil.example", False),
    ("127.0.0.1.evil.example", "", False),
    ("localhost.evil.example", "", False),
    ("evil-localhost", "", False),
    ("192.168.1.7:8080", "", False),
    ("0.0.0.0:8080", "", False),
    ("[::ffff:7f00:1]:8080", "", False),
    ("other.test", "", False),
    ("127.0.0.1:8080", "https://evil.example", False),
    ("localhost:8080", "http://localhost.evil.example", False),
    ("localhost:8080", "null", False),
    ("localhost:8080", "file://", False),
    ("localhost:8080", "chrome-extension://abc", False),
    ("localhost:8080", "http://", False),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    listen = ("127.0.0.1:0", f"unix:{folder}/in.sock")
    async with running(folder, listen=listen, ingress=IngressSettings(local_only=True)) as served:
        release = stub_release("r1", "hello")
        await served.pool.load(release)
        routes = [WorkerRoute(None, "/hello", release.key, "hello"), WorkerRoute("app.test", "/", release.key, "hello")]
        await served.pool.activate(routes)
        yield served


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(("host", "origin", "answered"), FIELDS)
async def test_hosts_and_origins_of_elsewhere_are_refused(
    served: Served, host: str, origin: str, answered: bool
) -> None:
    fields = (f"Origin: {origin}",) if origin else ()
    answer = await served.fetch(request("GET", "/hello", *fields, host=host))
    if answered:
        assert (answer.status, answer.body) == (200, b"hello")
    else:
        assert (answer.status, answer.problem) == (421, "foreign-host")


async def test_every_origin_counts_and_so_does_an_absolute_target(served: Served) -> None:
    both = ("Origin: http://localhost:8080", "Origin: http://evil.example")
    assert (await served.fetch(request("GET", "/hello", *both, host="localhost"))).status == 421
    assert (await served.fetch(request("GET", "http://evil.example/hello", host="localhost"))).status == 421
    assert (await served.fetch(request("GET", "http://localhost/hello", host="evil.example"))).status == 200


async def test_what_comes_by_the_socket_is_the_nodes_own(served: Served) -> None:
    import asyncio

    reader, writer = await asyncio.open_unix_connection(served.pool.addresses[1].removeprefix("unix:"))
    writer.write(request("GET", "/hello", "Connection: close", host="any.internal"))
    assert (await reader.read()).endswith(b"hello")
    writer.close()
