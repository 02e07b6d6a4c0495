"""Queues and providers in an effective configuration: what is refused, and what keeps a lane on one node."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from protocols.changes.effective import Effective, EffectiveApp, effective_problem
from protocols.envelope import digest, encode


def app(name: str = "web", **given: Any) -> EffectiveApp:
    return EffectiveApp(name, b"c" * 32, given.pop("kind", "http"), 1_000, 1 << 26, "fresh", **given)


def problem(*apps: EffectiveApp) -> str:
    return effective_problem(Effective("shop", "production", apps)) or ""


def test_what_is_not_set_leaves_the_digest_as_it_was() -> None:
    names = {"publish", "subscribe", "providers", "websocket", "websocket_origins"}
    written = msgspec.msgpack.decode(encode(app()))
    assert not names & set(written if isinstance(written, dict) else {})
    assert digest(encode(app())) != digest(encode(app(publish=("jobs",))))


@pytest.mark.parametrize("name", ["Jobs", "", "a..b", "a.", "*", "a/b", "jobs\n", "x" * 41, ".".join("abcdefgh")])
@pytest.mark.parametrize("key", ["publish", "subscribe"])
def test_a_name_that_no_queue_may_bear_is_refused(key: str, name: str) -> None:
    assert "malformed name of a queue" in problem(app(**{key: (name,)}))


def test_one_app_handles_a_queue() -> None:
    assert "two apps handle" in problem(app(subscribe=("jobs",)), app("other", subscribe=("mail", "jobs")))
    assert "two apps handle" in problem(app(subscribe=("jobs", "jobs")))
    assert problem(app(subscribe=("jobs", "jobs.dead")), app("other", publish=("jobs",))) == ""
    assert "does not answer requests" in problem(app(kind="command", subscribe=("jobs",)))
    assert problem(app(kind="command", publish=("jobs",))) == ""


def test_a_provider_is_of_a_store_of_the_app() -> None:
    good = app(keyvalue=("a", "b"), providers=(("a", "main"), ("b", "cache")))
    assert problem(good) == ""
    for providers in ((("c", "main"),), (("b", "main"), ("a", "main")), (("a", "main"), ("a", "other"))):
        assert "has a provider for what is no key-value store" in problem(app(keyvalue=("a", "b"), providers=providers))
    assert "malformed name of a provider" in problem(app(keyvalue=("a",), providers=(("a", "../etc"),)))


def test_a_provider_may_be_of_a_database() -> None:
    mapped = (("a", "main"),)
    assert problem(app(sql=("a",), providers=mapped)) == ""
    assert "both a key-value store and a database" in problem(app(keyvalue=("a",), sql=("a",), providers=mapped))
    assert "no key-value store and no database" in problem(app(blobs=("a",), providers=mapped))
    assert not app(sql=("a",), providers=mapped).keeps_data
    assert app(sql=("a", "b"), providers=mapped).keeps_data


def test_only_stores_of_the_node_keep_a_lane_on_one_node() -> None:
    mapped = (("a", "main"),)
    assert not app(keyvalue=("a",), providers=mapped).keeps_data
    assert app(keyvalue=("a", "b"), providers=mapped).keeps_data
    assert app(publish=("jobs",)).keeps_data
    assert app(subscribe=("jobs",)).keeps_data
    assert not app().keeps_data
