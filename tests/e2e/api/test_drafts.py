"""From JSON to a running release by HTTP alone: drafts, their review, detached signatures, and what tokens may of it."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from protocols.keys import Ed25519Signer
from tests.e2e.api.test_bearer import give, made, session
from tests.support.mesh.in_process import ENTROPY, LANE, House, a_house, until

Component = Callable[[str], Path]
PLAN = {"stages": [{"nodes": "100%", "min_healthy_ms": 0}]}


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with a_house(1) as chosen_house:
        await chosen_house.prepare_lane()
        yield chosen_house


async def ask(asking: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    fields = {} if method == "GET" else {"Idempotency-Key": secrets.token_urlsafe(12)}
    async with asking.request(method, path, json=body, headers=fields) as answer:
        return answer.status, await answer.json(content_type=None)


async def put(asking: aiohttp.ClientSession, data: bytes) -> str:
    named = hashlib.sha256(data).hexdigest()
    fields = {"Idempotency-Key": named[:20], "Content-Type": "application/octet-stream"}
    async with asking.put(f"/v1/artifacts/{named}", data=data, headers=fields) as answer:
        assert answer.status == 204, await answer.text()
    return named


def change(component: str, **more: Any) -> dict[str, Any]:
    app = {"name": "web", "component": component, "routes": ["site.test"], "config": {"greeting": "hi"}}
    smoke = [{"app": "web", "path": "/"}]
    return {"kind": "change", "project": LANE[0], "environment": LANE[1], "request": "greet", "apps": [app],
            "smoke": smoke, "plan": PLAN} | more  # fmt: skip


def signature(signer: Ed25519Signer, view: dict[str, Any]) -> dict[str, str]:
    raw = signer.sign(base64.b64decode(view["to_sign"]))
    return {"key": signer.public_key.hex(), "signature": base64.b64encode(raw).decode()}


async def local(house: House) -> aiohttp.ClientSession:
    connector = aiohttp.UnixConnector(str(house.daemons[0].runtime / "api.sock"))
    return aiohttp.ClientSession("http://node", connector=connector)


async def test_a_change_goes_from_json_to_a_running_release_with_two_signatures(
    house: House, component: Component
) -> None:
    signer = Ed25519Signer(ENTROPY.random_bytes(32))
    await give(house, signer.public_key, roles=("deployer",), verbs=())
    async with await local(house) as asking:
        named = await put(asking, component("hello").read_bytes())
        status, view = await ask(asking, "POST", "/v1/drafts", change(named, author=signer.public_key.hex()))
        assert status == 200, view
        assert view["digest"] == hashlib.sha256(base64.b64decode(view["payload"])).hexdigest()
        assert ("configuration", "greeting", "hi") in {
            (entry["section"], entry["name"], entry["after"]) for entry in view["differences"]
        }
        assert view["missing"][0]["rule"] == "signature.author"
        assert (await ask(asking, "GET", f"/v1/changes/{view['digest']}"))[0] == 404, "a draft is nobody's change"
        wrong = signature(Ed25519Signer(b"x" * 32), view) | {"key": ""}
        assert (await ask(asking, "POST", "/v1/changes", {"digest": view["digest"], **wrong}))[0] == 422
        body = {"digest": view["digest"], **signature(signer, view)}
        status, proposed = await ask(asking, "POST", "/v1/changes", body)
        assert (status, proposed["change"], proposed["through"]) == (200, view["digest"], "")
        for draft in (
            {"kind": "routes", "project": LANE[0], "environment": LANE[1], "routes": ["site.test"]},
            {"kind": "start", "change": view["digest"]},
        ):
            status, command = await ask(asking, "POST", "/v1/drafts", draft)
            assert status == 200, command
            path = f"/v1/drafts/{command['digest']}/signature"
            status, done = await ask(asking, "POST", path, signature(signer, command))
            assert (status, done["outcome"] in {"decided", "waiting", "started"}) == (200, True), done
        await until(lambda: house.based(bytes.fromhex(view["digest"])))  # type: ignore[arg-type]
        status, again = await ask(asking, "POST", "/v1/drafts", change(
            named, author=signer.public_key.hex(), apps=[{"name": "web", "component": named, "routes": ["site.test"]}],
        ))  # fmt: skip
        assert {entry["section"] for entry in again["differences"]} == {"configuration"}, again["differences"]


async def test_a_token_proposes_and_ends_there(house: House, component: Component) -> None:
    token, key = made(house)
    await give(house, key)
    async with session(house, token) as asking:
        named = await put(asking, component("hello").read_bytes())
        status, view = await ask(asking, "POST", "/v1/drafts", change(named))
        assert (status, view["author"]) == (200, key.hex()), view
        status, proposed = await ask(asking, "POST", "/v1/changes", {"digest": view["digest"]})
        assert (status, proposed["through"]) == (200, house.control(0).core.node), proposed
        status, shown = await ask(asking, "GET", f"/v1/changes/{view['digest']}")
        assert (shown["state"], shown["author"]) == ("proposed", key.hex())
        for draft in ({"kind": "start", "change": view["digest"]},
                      {"kind": "routes", "project": LANE[0], "environment": LANE[1], "routes": ["site.test"]}):  # fmt: skip
            status, refused = await ask(asking, "POST", "/v1/drafts", draft)
            assert (status, refused["rule"]) == (403, "caller.bearer"), draft
    async with house.client() as client:
        entries = await client.get("/v1/audit", contains="propose")
    assert any(entry["caller"] == key.hex() and entry["node"] == house.control(0).core.node for entry in entries)


async def test_drafts_are_their_callers_own_and_what_is_missing_is_named(house: House, component: Component) -> None:
    token, key = made(house)
    await give(house, key)
    other, other_key = made(house)
    await give(house, other_key)
    async with session(house, token) as asking, session(house, other) as others:
        status, refused = await ask(asking, "POST", "/v1/drafts", change("0" * 64))
        assert (status, "PUT /v1/artifacts" in refused["next"]) == (422, True)
        named = await put(asking, component("hello").read_bytes())
        _, view = await ask(asking, "POST", "/v1/drafts", change(named))
        assert (await ask(others, "POST", "/v1/changes", {"digest": view["digest"]}))[0] == 404
        for wrong, code in (
            ({"project": "other"}, 403), ({"environment": "staging"}, 404), ({"author": "00" * 32}, 422),
            ({"apps": []}, 422), ({"release": "0" * 64, "apps": []}, 422), ({"colour": "red"}, 400),
        ):  # fmt: skip
            status, refused = await ask(asking, "POST", "/v1/drafts", change(named, **wrong))
            assert status == code, (wrong, refused)
