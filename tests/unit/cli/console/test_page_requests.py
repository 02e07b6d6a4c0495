"""Requests to pages on localhost: whose they are, and every near miss of one that is answered."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from yarl import URL

from cli.console.callers import PageCallers
from cli.console.serving import CODE_FIELD, TRIES_MAX, PageGuard, asset, asset_names
from protocols.keys import Ed25519Signer
from protocols.trust.request_signatures import sign_request

PORT, HOST = 4188, "localhost:4188"
ME, BROWSER, STRANGER = (Ed25519Signer(bytes([number]) * 32) for number in (1, 2, 3))
BODY = b'{"act":"abort"}'


def request(path: str = "/console/draw", **fields: str) -> web.Request:
    return make_mocked_request("POST", path, headers={"Host": HOST, "Content-Length": str(len(BODY)), **fields})


def test_only_our_own_page_is_answered_and_by_code_only_who_holds_it() -> None:
    guard = PageGuard(PORT, "the-code")
    assert guard.refusal(request(), by_code=False) == ""
    assert guard.refusal(request(**{CODE_FIELD: "the-code"}), by_code=True) == ""
    for near in ({"Host": "localhost:4189"}, {"Host": "127.0.0.1:4188"}, {"Host": "localhost"},
                 {"Origin": "http://localhost:4189"}, {"Origin": "https://localhost:4188"}, {"Origin": "null"},
                 {"Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "cross-site"}):  # fmt: skip
        assert guard.refusal(request(**near), by_code=False), near
    for code in ("", "the-cod", "the-code ", "THE-CODE"):
        assert guard.refusal(request(**{CODE_FIELD: code}), by_code=True), code


def test_who_guesses_codes_closes_the_page() -> None:
    guard = PageGuard(PORT, "the-code")
    for number in range(TRIES_MAX):
        assert guard.refusal(request(**{CODE_FIELD: str(number)}), by_code=True)
    assert guard.refusal(request(**{CODE_FIELD: "the-code"}), by_code=True), "also for who knows it: run it again"


class Node:
    """A node that knows the browser's grant, until it is revoked."""

    def __init__(self) -> None:
        self.problem, self.asked = "", 0

    async def read(self, kind: Any, path: str, **_: Any) -> Any:
        self.asked += 1
        key = path.rpartition("/")[2]
        mine = key == BROWSER.public_key.hex()
        lineage = (ME.public_key.hex(), key) if mine else (key,)
        return SimpleNamespace(problem=self.problem, lineage=lineage)


def signed(signer: Ed25519Signer, body: bytes = BODY, **other: Any) -> web.Request:
    said = {"method": "POST", "target": f"http://{HOST}/console/draw", "created_s": int(time.time()), "nonce": "n" * 16}
    said |= other
    fields = sign_request(
        signer, said["method"], said["target"], body, created_s=said["created_s"], nonce=said["nonce"]
    )
    return request(URL(said.get("sent", "/console/draw")).path, **fields)


def judge(callers: PageCallers, asked: web.Request, body: bytes = BODY) -> bytes | str:
    return asyncio.run(callers.key_of(asked, body))


@pytest.fixture
def callers(monkeypatch: pytest.MonkeyPatch) -> PageCallers:
    node = Node()

    async def principal_of(client: Node, key: bytes) -> Any:
        return await client.read(None, f"/v1/principals/{key.hex()}")

    monkeypatch.setattr("cli.console.callers.principal_of", principal_of)
    page_callers = PageCallers(node, ME.public_key)  # type: ignore[arg-type]
    page_callers.node = node  # type: ignore[attr-defined]
    return page_callers


def test_a_browser_that_was_let_in_is_known_by_its_signature_once(callers: PageCallers) -> None:
    asked = signed(BROWSER)
    assert judge(callers, asked) == BROWSER.public_key
    assert "before" in str(judge(callers, asked)), "a replay"
    assert judge(callers, signed(BROWSER, nonce="m" * 16)) == BROWSER.public_key


def test_near_misses_are_nobodys(callers: PageCallers) -> None:
    now_s = int(time.time())
    assert "grant" in str(judge(callers, signed(STRANGER)))
    assert "body" in str(judge(callers, signed(BROWSER, nonce="a" * 16), b'{"act":"promote"}'))
    for other in ({"target": f"http://{HOST}/console/decide"}, {"target": "http://localhost:4189/console/draw"},
                  {"target": f"https://{HOST}/console/draw"}, {"method": "GET"}):  # fmt: skip
        assert isinstance(judge(callers, signed(BROWSER, nonce="b" * 16, **other)), str), other
    for created_s in (now_s - 61, now_s + 120):
        assert "minute" in str(judge(callers, signed(BROWSER, nonce="c" * 16, created_s=created_s)))
    assert isinstance(judge(callers, request()), str)


def test_a_browser_whose_grant_ended_is_refused_once_that_is_asked_again(
    callers: PageCallers, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judge(callers, signed(BROWSER)) == BROWSER.public_key
    callers.node.problem = "grant.revoked: it was"  # type: ignore[attr-defined]
    later_s = time.monotonic() + 11
    monkeypatch.setattr("cli.console.callers.time.monotonic", lambda: later_s)
    assert "grant" in str(judge(callers, signed(BROWSER, nonce="d" * 16)))


def test_all_files_of_the_pages_are_small_and_hold_nothing_inline() -> None:
    assert sum(len(asset(name)) for name in asset_names()) <= 60_000
    for name in asset_names():
        text = asset(name).decode()
        assert "innerHTML" not in text
        assert "eval(" not in text
        if name.endswith(".html"):
            assert "<script>" not in text
            assert "style=" not in text
    with pytest.raises(KeyError):
        asset("../serving.py")
