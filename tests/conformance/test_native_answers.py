"""The native engine answers as `wasmtime serve` does: the cases of `test_same_answers.py`, requests to other hosts included.

Skipped where it is not built.
"""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from runtime.native.choice import load_module
from tests.conformance.cases import BY_FIXTURE, REUSABLE
from tests.conformance.compare import ask, differences
from tests.conformance.ours import serve_ours
from tests.conformance.record import golden
from tests.conformance.upstream import DEAD_AUTHORITY, upstream
from tests.conformance.wire import Answer

MODULE, WHY = load_module()

pytestmark = pytest.mark.skipif(MODULE is None, reason=WHY or "built")


@pytest.fixture(scope="module")
def authority() -> Iterator[str]:
    with upstream() as running:
        yield running


@pytest.mark.parametrize(
    ("fixture", "instances"),
    [*((fixture, "fresh") for fixture in BY_FIXTURE), *((fixture, "reuse") for fixture in REUSABLE)],
)
def test_the_native_engine_answers_the_same(
    fixture: str, instances: str, component: Callable[[str], Path], authority: str
) -> None:
    recorded = golden(fixture)["answers"]
    hosts = (authority, DEAD_AUTHORITY)
    with serve_ours(
        component(fixture), engine="native", instances=instances, allow_hosts=hosts, allow_loopback=True
    ) as server:
        assert server.engine == "native"
        table = {}
        for case in BY_FIXTURE[fixture]:
            wanted = Answer.from_json(recorded[case.name])
            table[case.name] = differences(ask(server.port, case, authority), wanted, case)
            if case.pieces and table[case.name]:  # a busy machine may join two pieces on their way
                table[case.name] = differences(ask(server.port, case, authority), wanted, case)
    assert not {name: sentences for name, sentences in table.items() if sentences}


@pytest.mark.parametrize("engine", ["python", "native"])
def test_what_an_app_asks_goes_on_in_the_trace_of_the_request(engine: str, component: Callable[[str], Path]) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        authority = f"127.0.0.1:{listener.getsockname()[1]}"
        Thread(target=_hear_one, args=(listener, heard), daemon=True).start()
        with serve_ours(component("probe"), engine=engine, allow_hosts=(authority,), allow_loopback=True) as server:
            assert server.engine == engine
            table = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01", "tracestate": "a=b"}
            asked = urllib.request.Request(
                f"http://127.0.0.1:{server.port}/proxy?authority={authority}&path=/", headers=table
            )
            with urllib.request.urlopen(asked, timeout=20) as answer:
                assert answer.status == 200
    fields = dict(line.split(": ", 1) for line in heard[0].split(b"\r\n\r\n")[0].decode().split("\r\n")[1:])
    version, trace, parent, flags = fields["traceparent"].split("-")
    assert (version, trace, flags, "tracestate" in fields) == ("00", trace_id, "01", False)
    assert parent != "b7ad6b7169203331", "what the app asks is the host's child, not the visitor's"


def _hear_one(listener: socket.socket, heard: list[bytes]) -> None:
    connection, _ = listener.accept()
    with connection:
        said = b""
        while b"\r\n\r\n" not in said:
            said += connection.recv(65536)
        heard.append(said)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
