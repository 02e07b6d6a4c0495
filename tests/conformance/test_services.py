"""The node's services as a compiled guest sees them: keyvalue with atomics and batch, configuration, logging, environment.

No peer here: the independent hosts keep no data between requests and read no configuration of ours. What is expected is
what the interfaces' own text says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.ours import serve_ours
from tests.conformance.wire import Ask, exchange
from tests.support.runtime.served import ENGINES

Get = Callable[[str], tuple[int, str]]


@pytest.fixture(scope="module", params=ENGINES)
def get(request: pytest.FixtureRequest, component: Callable[[str], Path]) -> Iterator[Get]:
    spec = {
        "keyvalue": ("visitors", "other"),
        "config": {"GREETING": "hello", "EMPTY": ""},
        "environment": {"MODE": "test"},
    }
    with serve_ours(component("services"), engine=request.param, **spec) as server:
        assert server.engine == request.param

        def ask(path: str) -> tuple[int, str]:
            answer = exchange(server.port, Ask(path))
            return answer.status, answer.body

        yield ask


def test_a_value_is_kept_between_requests_and_instances(get: Get) -> None:
    assert get("/kv/get?store=visitors&key=a") == (404, "none")
    assert get("/kv/set?store=visitors&key=a&value=one") == (200, "set")
    assert get("/kv/get?store=visitors&key=a") == (200, "one")
    assert get("/kv/exists?store=visitors&key=a") == (200, "yes")
    assert get("/kv/delete?store=visitors&key=a") == (200, "deleted")
    assert get("/kv/exists?store=visitors&key=a") == (200, "no")


def test_stores_are_apart(get: Get) -> None:
    get("/kv/set?store=visitors&key=same&value=here")
    assert get("/kv/get?store=other&key=same") == (404, "none")


def test_an_increment_counts_from_nothing_and_by_steps(get: Get) -> None:
    assert get("/kv/increment?store=visitors&key=n") == (200, "1")
    assert get("/kv/increment?store=visitors&key=n&by=41") == (200, "42")


def test_a_batch_keeps_the_order_of_its_keys(get: Get) -> None:
    assert get("/kv/batch?store=visitors") == (200, "batch-2=two\nnone\nbatch-1=one\ndeleted\n")


def test_keys_are_listed(get: Get) -> None:
    for key in ("k1", "k2", "k3"):
        get(f"/kv/set?store=other&key={key}&value=x")
    status, body = get("/kv/list?store=other")
    assert (status, sorted(body.split())) == (200, ["k1", "k2", "k3"])


def test_a_store_that_was_not_granted_is_refused(get: Get) -> None:
    status, body = get("/kv/get?store=secret-of-others")
    assert status == 500
    assert body in {"error access-denied", "error no-such-store"}


def test_configuration_is_read_by_key_and_whole(get: Get) -> None:
    assert get("/config?key=GREETING") == (200, "hello")
    assert get("/config?key=EMPTY") == (200, "")
    assert get("/config?key=ABSENT") == (404, "none")
    assert sorted(get("/config/all")[1].split("\n")) == ["", "EMPTY=", "GREETING=hello"]


def test_the_environment_is_what_was_granted_and_nothing_else(get: Get) -> None:
    assert get("/env") == (200, "env MODE=test\n")


def test_a_guest_can_log_at_every_level(get: Get) -> None:
    assert [get(f"/log?level={level}&message=hello") for level in range(6)] == [(200, "logged")] * 6
