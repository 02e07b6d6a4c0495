"""Whose pages may open a WebSocket of an app: its own, by scheme, host and port, and those that it names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from runtime.ingress.dispatch import HostedApp
from runtime.ingress.websocket import FOREIGN_ORIGIN, event_problem


def refused(origin: str, authority: str, *, secure: bool, named: tuple[str, ...] = ()) -> bool:
    app = cast(HostedApp, SimpleNamespace(spec=SimpleNamespace(websocket="/ws", websocket_origins=named)))
    headers: Any = (("origin", origin.encode()),) if origin else ()
    problem = event_problem(app, headers, authority, "/ws?x", secure=secure)
    assert problem in {None, FOREIGN_ORIGIN}
    return problem is not None


@pytest.mark.parametrize(
    ("origin", "authority", "secure"),
    [
        ("https://a.test", "a.test", True), ("https://A.test.", "a.test:443", True), ("https://a.test:443", "a.test", True),
        ("https://a.test:8443", "a.test:8443", True), ("http://a.test", "a.test", False),
        ("https://a.test", "a.test", False), ("http://[::1]:8080", "[::1]:8080", False), ("", "a.test", True),
    ],
)  # fmt: skip
def test_an_apps_own_pages_and_programs_may(origin: str, authority: str, secure: bool) -> None:
    assert not refused(origin, authority, secure=secure)


@pytest.mark.parametrize(
    ("origin", "authority", "secure"),
    [
        ("http://a.test", "a.test", True), ("http://a.test:443", "a.test", True), ("https://a.test:8443", "a.test", True),
        ("https://a.test", "a.test:8443", True), ("https://a.test", "b.test", True), ("https://a.test.b", "a.test", True),
        ("http://a.test:8080", "a.test", False), ("http://a.test", "a.test:8080", False), ("null", "null", False),
        ("file://", "", False), ("https://", "", True), ("ftp://a.test", "a.test", False), ("a.test", "a.test", False),
        ("https://a.test@b.test", "a.test", True), ("http://[::1]:8080", "[::2]:8080", False),
    ],
)  # fmt: skip
def test_pages_of_elsewhere_may_not(origin: str, authority: str, secure: bool) -> None:
    assert refused(origin, authority, secure=secure)


def test_pages_that_it_names_may_to_the_letter() -> None:
    named = ("https://www.test",)
    assert not refused("https://www.test", "a.test", secure=True, named=named)
    for near in ("http://www.test", "https://www.test:444", "https://www.test.evil", "https://WWW.test/"):
        assert refused(near, "a.test", secure=True, named=named)
    assert not refused("https://anybody", "a.test", secure=True, named=("*",))
