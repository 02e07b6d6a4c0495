"""MCP over HTTP on a real node, with the official SDK as the client: both revisions, the gates of tokens, and near misses."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import pytest
from jsonschema import Draft202012Validator
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from node.api import rollout_page
from node.api.mcp import HANDSHAKEN, STATELESS, TOOLS
from tests.e2e.api.test_bearer import give, made, session
from tests.e2e.api.test_drafts import change, put
from tests.support.mesh.in_process import LANE, House, a_house, until

Component = Callable[[str], Path]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with a_house(1) as chosen_house:
        await chosen_house.prepare_lane()
        yield chosen_house


@asynccontextmanager
async def client(house: House, token: str, mode: Any = "auto") -> AsyncIterator[Client]:
    """The SDK's own client, which verifies the node by its authority."""
    control = house.control(0)
    trusted = ssl.create_default_context(cadata=ssl.DER_cert_to_PEM_cert(control.api_place.authority))
    fields = {"Authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=fields, verify=trusted, timeout=60) as http,
        Client(streamable_http_client(f"https://{control.api}/mcp", http_client=http), mode=mode) as new_client,
    ):
        yield new_client


def told(result: Any) -> Any:
    assert not result.is_error, result
    return result.structured_content["untrusted_answer"]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_an_agent_reviews_proposes_and_watches_and_starts_nothing(
    house: House, component: Component, mode: Any
) -> None:
    token, key = made(house)
    await give(house, key)
    async with session(house, token) as asking:
        named = await put(asking, component("hello").read_bytes())
    async with client(house, token, mode) as agent:
        assert agent.protocol_version == (STATELESS if mode == "auto" else HANDSHAKEN[0])
        tools = {entry.name: entry for entry in (await agent.list_tools()).tools}
        assert set(tools) == {mcp_tool.name for mcp_tool in TOOLS}
        assert not any(word in name for name in tools for word in ("approve", "start", "rollback"))
        for tool in tools.values():
            Draft202012Validator.check_schema(tool.input_schema)
        (shown,) = (await agent.list_resources()).resources
        assert tools["rollout_status"].meta == {"ui": {"resourceUri": str(shown.uri)}}
        (page,) = (await agent.read_resource(str(shown.uri))).contents
        assert (page.mime_type, page.text) == ("text/html;profile=mcp-app", rollout_page.page())
        assert tools["logs"].meta is None
        wanted = {name: value for name, value in change(named).items() if name != "kind"}
        Draft202012Validator(tools["diff"].input_schema).validate(wanted)
        view = told(await agent.call_tool("diff", wanted))
        assert ("configuration", "greeting") in {(entry["section"], entry["name"]) for entry in view["differences"]}
        filed = told(await agent.call_tool("propose", {"digest": view["digest"]}))
        assert (filed["change"], filed["through"]) == (view["digest"], house.control(0).core.node)
        seen = told(await agent.call_tool("watch", {"change": filed["change"]}))
        assert (seen["state"], seen["start"]) == ("proposed", None)
        assert told(await agent.call_tool("list_projects", {}))["projects"] == [LANE[0]]
        for name, row, kind in (
            ("build", {}, "needs-files"), ("rollout_status", {"change": "0" * 64}, "change.unknown"),
            ("rollout_status", {}, "arguments"), ("status", {"colour": "red"}, "arguments"),
            ("diff", {**wanted, "project": "other"}, "caller.not-allowed"), ("logs", {}, ""),
        ):  # fmt: skip
            result = await agent.call_tool(name, row)
            if kind:
                assert result.is_error, (name, result)
                assert json.loads(result.content[0].text)["error"]["kind"] == kind, result
    async with house.client() as operator:
        entries = await operator.get("/v1/audit", contains="propose")
    assert [entry["caller"] for entry in entries if entry["target"] == "/mcp"] == [key.hex()]


async def test_a_watch_tells_how_far_it_is_and_ends_with_the_release(house: House, component: Component) -> None:
    token, key = made(house)
    await give(house, key)
    proposal, _ = await house.propose(component("hello"), healthy="4s")
    said: list[float] = []

    async def heard(progress: float, _total: float | None, _text: str | None) -> None:
        said.append(progress)

    async with client(house, token) as agent:
        result = await agent.call_tool("watch", {"change": proposal.id.hex(), "part": 1}, progress_callback=heard)
        assert told(result)["state"] == "base"
    assert len(said) >= 1
    assert said == sorted(said)
    task_count = len(asyncio.all_tasks())
    proposal, _ = await house.propose(component("hello"), app='config = { A = "b" }', healthy="30s")
    async with client(house, token) as agent:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await agent.call_tool("watch", {"change": proposal.id.hex()}, progress_callback=heard)
    await until(lambda: len(asyncio.all_tasks()) <= task_count + 3)


async def test_a_long_answer_is_read_part_by_part_to_its_end(house: House, component: Component) -> None:
    token, key = made(house)
    await give(house, key)
    config = {f"KEY_{number}": f"{number}-" + "é" * 900 for number in range(40)}
    async with session(house, token) as asking:
        named = await put(asking, component("hello").read_bytes())
    async with client(house, token) as agent:
        wanted = change(named, apps=[{"name": "web", "component": named, "routes": ["site.test"], "config": config}])
        view = await whole(agent, "diff", {name: value for name, value in wanted.items() if name != "kind"})
        assert {
            entry["name"]: entry["after"] for entry in view["differences"] if entry["section"] == "configuration"
        } == config


async def whole(agent: Client, tool: str, given: dict[str, Any]) -> Any:
    """An answer put together; each part is short, and the parts are of one answer as far as what is stable goes."""
    text, number = "", 1
    while True:
        result = await agent.call_tool(tool, {**given, "part": number})
        assert not result.is_error, result
        assert len(result.content[0].text) < 80_000
        said = result.structured_content
        if "untrusted_answer" in said:
            return said["untrusted_answer"]
        text += said["untrusted_part"]
        if number == said["parts"]:
            return json.loads(text)
        number += 1


def request(method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


async def test_who_may_not_is_told_how_to_be_let_in(house: House) -> None:
    token, key = made(house)
    await give(house, key)
    control = house.control(0)
    url = f"https://{control.api}/mcp"
    metadata = f"https://{control.api}/.well-known/oauth-protected-resource/mcp"
    async with aiohttp.ClientSession() as asking:
        for fields in ({}, {"Authorization": "Bearer fht1.wrong"}, {"Authorization": "Basic YTpi"}):
            async with asking.post(url, json=request("ping"), headers=fields, ssl=False) as answer:
                assert answer.status == 401, fields
                assert f'resource_metadata="{metadata}"' in answer.headers["WWW-Authenticate"]
        async with asking.get(metadata, ssl=False) as answer:
            said = await answer.json()
            assert (answer.status, said["resource"], said["bearer_methods_supported"]) == (200, url, ["header"])
        async with asking.get(metadata.removesuffix("/mcp"), ssl=False) as answer:
            assert (await answer.json())["resource"] == f"https://{control.api}"
    other, other_key = made(house)
    await give(house, other_key, projects=("elsewhere",))
    async with session(house, token) as asking:
        good = {"MCP-Protocol-Version": HANDSHAKEN[0]}
        for fields, status in (
            (good, 200), ({"Origin": "https://evil.example"}, 403), ({"Origin": f"https://{control.api}"}, 403),
            ({"Host": "evil.example"}, 421), ({"Host": f"evil.example.{control.api}"}, 421),
            ({"Content-Type": "text/plain"}, 415),
        ):  # fmt: skip
            async with asking.post("/mcp", data=json.dumps(request("ping")), headers={
                "Content-Type": "application/json", **fields
            }) as answer:  # fmt: skip
                assert answer.status == status, (fields, await answer.text())
        for method in ("GET", "DELETE"):
            async with asking.request(method, "/mcp") as answer:
                assert answer.status == 405, method
        async with asking.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"}) as answer:
            assert (answer.status, await answer.read()) == (202, b"")
        for body, status in (
            ([request("ping")], 400), ({"jsonrpc": "1.0", "id": 1, "method": "ping"}, 400), ({"id": 1}, 400),
            (request("ping", x="y" * 300_000), 413),
        ):  # fmt: skip
            async with asking.post("/mcp", json=body) as answer:
                assert answer.status == status, await answer.text()
    async with client(house, other) as agent:
        assert told(await agent.call_tool("status", {})) == []


async def test_fields_that_disagree_with_the_body_are_refused(house: House) -> None:
    token, key = made(house)
    await give(house, key)
    prefix = "io.modelcontextprotocol/"
    meta = {f"{prefix}protocolVersion": STATELESS, f"{prefix}clientCapabilities": {}}
    good = {"MCP-Protocol-Version": STATELESS, "Mcp-Method": "tools/call", "Mcp-Name": "status"}
    body = request("tools/call", name="status", arguments={}, _meta=meta)
    async with session(house, token) as asking:
        for fields, status, code in (
            (good, 200, None), (good | {"Mcp-Name": "logs"}, 400, -32020), (good | {"Mcp-Method": "ping"}, 400, -32020),
            (good | {"MCP-Protocol-Version": HANDSHAKEN[0]}, 400, -32020),
        ):  # fmt: skip
            async with asking.post("/mcp", json=body, headers=fields) as answer:
                said = await answer.json()
                assert (answer.status, said.get("error", {}).get("code")) == (status, code), said
        for uri, named, status in (
            (rollout_page.URI, rollout_page.URI, 200), (rollout_page.URI, "ui://freehold/other", 400),
            ("ui://freehold/other", "ui://freehold/other", 400),
        ):  # fmt: skip
            fields = {"MCP-Protocol-Version": STATELESS, "Mcp-Method": "resources/read", "Mcp-Name": named}
            async with asking.post(
                "/mcp", json=request("resources/read", uri=uri, _meta=meta), headers=fields
            ) as answer:
                assert answer.status == status, await answer.text()
        odd = {**meta, f"{prefix}protocolVersion": "2031-01-01"}
        fields = {"MCP-Protocol-Version": "2031-01-01", "Mcp-Method": "ping"}
        async with asking.post("/mcp", json=request("ping", _meta=odd), headers=fields) as answer:
            said = await answer.json()
            assert (answer.status, said["error"]["code"]) == (400, -32022)
            assert said["error"]["data"]["supported"] == [STATELESS]
        listed = request("tools/call", name="watch", arguments=[1], _meta={"progressToken": 1})
        async with asking.post("/mcp", json=listed) as answer:
            said = json.loads((await answer.text()).partition("data: ")[2])
            assert (answer.status, said["error"]["code"]) == (200, -32602), "told as an event where events began"
        async with asking.post("/mcp", json=request("no/such")) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (200, -32601)
