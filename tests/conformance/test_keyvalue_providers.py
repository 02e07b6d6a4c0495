"""Every provider of key-value stores against one suite, and the page that is made from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.providers import KeyValueProvider
from runtime.services.redis_keyvalue import RedisKeyValue
from runtime.services.sqlite_keyvalue import SqliteKeyValue, StoreCaps
from tests.conformance.judging import judge_capability
from tests.conformance.keyvalue_providers import CAPABILITIES, HOSTILE_KEYS, LACKS, NEAR, PROVIDERS, Make
from tests.conformance.providers_page import PAGE, page
from tests.support.runtime.redis_server import BINARY, RedisServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if BINARY is None:
        pytest.skip("neither valkey-server nor redis-server is on this machine")
    redis_server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield redis_server
    redis_server.kill()


def maker(provider: str, folder: Path, request: pytest.FixtureRequest, made: list[KeyValueProvider]) -> Make:
    if provider == "embedded":

        def embedded(owner: str, caps: StoreCaps | None) -> KeyValueProvider:
            made.append(SqliteKeyValue(folder, owner, caps))
            return made[-1]

        return embedded
    server: RedisServer = request.getfixturevalue("server")
    server.say("FLUSHALL")

    def declared(owner: str, caps: StoreCaps | None) -> KeyValueProvider:
        made.append(RedisKeyValue(server.declared(), owner, pytest.fail, caps))
        return made[-1]

    return declared


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_provider_does_what_the_page_says(
    provider: str, capability: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    value_providers: list[KeyValueProvider] = []
    make = maker(provider, tmp_path, request, value_providers)
    judge_capability(CAPABILITIES[capability], make, value_providers, lacks=(provider, capability) in LACKS)


def test_at_least_two_hundred_attempts_to_reach_another_tenant() -> None:
    assert len(NEAR) * len(HOSTILE_KEYS) >= 200


def test_the_page_is_the_suite() -> None:
    assert PAGE.read_text() == page(), "python -m tests.conformance.providers_page writes it anew"
