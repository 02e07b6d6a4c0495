"""The HTTP API on a real daemon: limits, retries, pages, streams, and what browsers and strangers are told."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import signal
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cli.access.client import PinnedKey
from node.api.callers.shares import CALLS
from node.feed import WATCHERS_MAX
from node.membership.pending_papers import FoundingPaper, PendingPapers, write_pending
from node.mesh.pump import system_now
from protocols.envelope import encode, sign
from protocols.keys import Ed25519Signer
from protocols.records.credentials import grant_record
from protocols.state.commands import Command, CreateEnvironment, SignedCommand, sign_command
from protocols.trust.grants import GRANT_DOMAIN, Grant
from tests.support.mesh.in_process import ENTROPY, LANE, House, a_house, until

Component = Callable[[str], Path]
KEY = "0123456789abcdef"
AGENT = Ed25519Signer(b"k" * 32).public_key


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with a_house(1) as new_house:
        yield new_house


@contextlib.asynccontextmanager
async def socket_of(house: House) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.UnixConnector(str(house.daemons[0].runtime / "api.sock"), limit=0)
    async with aiohttp.ClientSession("http://node", connector=connector) as session:
        yield session


async def problem(answer: aiohttp.ClientResponse) -> tuple[int, str, str]:
    assert answer.content_type == "application/problem+json", await answer.text()
    body = await answer.json(content_type=None)
    assert body["type"] == f"urn:freehold:problem:{body['rule']}"
    assert body["status"] == answer.status
    return answer.status, body["rule"], body["detail"]


def command(house: House, name: str) -> SignedCommand:
    core = house.control(0).core
    action = Command(ENTROPY.random_bytes(16), CreateEnvironment(name, ()), expect=core.state.sequence)
    return sign_command([house.admin], core.trust.mesh, action)


async def decide(session: aiohttp.ClientSession, signed: SignedCommand, key: str = KEY) -> tuple[int, dict[str, Any]]:
    body = json.dumps({"command": base64.b64encode(encode(signed)).decode()})
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    async with session.post("/v1/commands", data=body, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_a_retry_is_answered_as_the_first_was_at_once_later_and_after_a_restart(house: House) -> None:
    first = command(house, "first")
    async with socket_of(house) as session:
        together = await asyncio.gather(*(decide(session, first) for _ in range(5)))
        assert together == [together[0]] * 5
        assert together[0] == (200, {"outcome": "decided", "slot": together[0][1]["slot"], "rule": "", "detail": ""})
        async with session.get("/v1/audit", params={"contains": "create_environment"}) as answer:
            assert len(await answer.json()) == 1, "a retry was done again"
        assert (await decide(session, first, key="another-key")) == together[0], "another key, and the same command"
        status, refused = await decide(session, command(house, "second"))
        assert (status, refused["rule"]) == (409, "request.key-reused")
        async with session.post("/v1/commands", json={"command": ""}) as answer:
            status, rule, detail = await problem(answer)
            assert (status, rule) == (400, "request.invalid")
            assert "Idempotency-Key" in detail
        headers = {"Content-Type": "application/json", "Idempotency-Key": "nobody-signs"}
        async with session.post("/v1/commands", data='{"command": ""}', headers=headers) as answer:
            assert (await problem(answer))[:2] == (422, "request.unreadable"), "the chain's own no-op was taken"
    await house.stop(0)
    await house.start(0)
    async with socket_of(house) as session:
        assert await decide(session, first) == together[0]
        data = b"an artifact"
        for _ in range(2):
            async with put(session, data, hashlib.sha256(data).hexdigest()) as answer:
                assert answer.status == 204


def put(session: aiohttp.ClientSession, data: Any, name: str) -> Any:
    headers = {"Content-Type": "application/octet-stream", "Idempotency-Key": name[:16]}
    return session.put(f"/v1/artifacts/{name}", data=data, headers=headers)


async def test_bodies_are_bounded_before_they_are_held_and_uploads_never_are(house: House) -> None:
    async with socket_of(house) as session:
        huge = {"Content-Length": str(1 << 40), "Content-Type": "application/json", "Idempotency-Key": KEY}
        reader, writer = await asyncio.open_unix_connection(str(house.daemons[0].runtime / "api.sock"))
        head = "".join(f"{name}: {value}\r\n" for name, value in huge.items())
        writer.write(f"POST /v1/secrets HTTP/1.1\r\nHost: node\r\n{head}\r\n".encode())
        assert b" 413 " in await asyncio.wait_for(reader.readline(), 10), "the body was waited for"
        writer.close()

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b" " * 65536

        kind = {"Content-Type": "application/json", "Idempotency-Key": KEY}
        with contextlib.suppress(aiohttp.ClientError):  # the node may close while the client still sends
            async with session.post("/v1/records", data=endless(), headers=kind) as answer:
                assert (await problem(answer))[:2] == (413, "request.too-large")
        pieces = [bytes([number]) * (1 << 20) for number in range(48)]

        async def sent() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        whole = hashlib.sha256(b"".join(pieces)).hexdigest()
        tracemalloc.start()
        try:
            async with put(session, sent(), whole) as answer:
                assert answer.status == 204
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 24 << 20, f"{peak >> 20} MiB for an upload of {len(pieces)} MiB"
        named = hashlib.sha256(b"these bytes").hexdigest()
        async with put(session, b"other bytes", named) as answer:
            assert (await problem(answer))[:2] == (422, "artifact.other-bytes")
        async with session.get(f"/v1/artifacts/{named}/here") as answer:
            assert answer.status == 404


async def test_what_is_unknown_is_refused_by_name_with_what_is_known(house: House) -> None:
    async with socket_of(house) as session:
        for query, words in (
            ("colour=red", ("'colour'", "project, environment, limit, cursor")),
            ("limit=5&limit=6", ("limit", "twice")),
            ("limit=0", ("1 to 2000",)),
            ("limit=%D9%A3", ("whole number",)),
        ):
            async with session.get(f"/v1/decisions?{query}") as answer:
                status, rule, detail = await problem(answer)
                assert (status, rule) == (400, "request.invalid")
                assert all(word in detail for word in words), detail
        headers = {"Idempotency-Key": KEY}
        async with session.post("/v1/leave", json={"reason": "x", "colour": "red"}, headers=headers) as answer:
            status, rule, detail = await problem(answer)
            assert status == 400
            assert "colour" in detail
            assert "allowed: reason" in detail
        async with session.delete("/v1/node") as answer:
            assert answer.status == 405
            assert answer.headers["Allow"] == "GET,HEAD"


async def test_a_node_whose_core_takes_nothing_more_says_that_it_is_busy(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = house.control(0)
    monkeypatch.setattr(control.requests, "_post", lambda _event: False)
    async with socket_of(house) as session:
        async with session.get("/v1/read") as answer:
            assert (await problem(answer))[:2] == (503, "chain.busy")
        status, answered = await decide(session, command(house, "late"))
        assert (status, answered["rule"]) == (503, "chain.busy")


async def test_a_body_is_taken_as_it_is_sent_or_not_at_all(house: House) -> None:
    fields = {"Content-Type": "application/json", "Idempotency-Key": KEY}
    async with socket_of(house) as session:
        for encoding in ("gzip", "deflate", "br", "colour"):
            headers = {**fields, "Content-Encoding": encoding}
            async with session.post("/v1/commands", data=b"0123456789", headers=headers) as answer:
                assert (await problem(answer))[:2] == (415, "request.encoding"), encoding


async def test_pages_of_browsers_are_refused_and_the_host_must_be_this_node(house: House) -> None:
    base, pin = f"https://{house.control(0).api}", PinnedKey(bytes.fromhex(house.control(0).api_pin))
    port = base.rpartition(":")[2]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=pin)) as session:
        for host, status in (
            (f"127.0.0.1:{port}", 204), ("[::1]", 204), (f"[::1]:{port}", 204), ("localhost", 204), ("n0", 204),
            (f"evil.example:{port}", 421), ("127.0.0.1.evil.example", 421), ("", 421),
        ):  # fmt: skip
            async with session.get(f"{base}/healthz", headers={"Host": host}) as answer:
                assert answer.status == status, host
        for fields in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
            async with session.get(f"{base}/healthz", headers=fields) as answer:
                assert (await problem(answer))[:2] == (403, "request.origin")


async def test_readiness_follows_the_workers_and_health_the_process(house: House) -> None:
    async with socket_of(house) as session:

        async def status(path: str) -> int:
            async with session.get(path) as answer:
                return answer.status

        assert (await status("/healthz"), await status("/readyz")) == (204, 204)
        async with session.get("/metrics") as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            families = {family.name for family in text_string_to_metric_families(await answer.text())}
            assert "freehold_chain_slot" in families
        control = house.control(0)
        seen: set[int] = set()
        for slot in control.workloads._pool.slots():
            assert slot.pid is not None
            os.kill(slot.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while 503 not in seen:
                seen.add(await status("/readyz"))
                assert await status("/healthz") == 204
        await until(lambda: control.workloads.alive)
        assert await status("/readyz") == 204


async def test_a_paper_that_several_file_at_once_is_durable_for_each_of_them_within_a_moment(house: House) -> None:
    core, now_ms = house.control(0).core, system_now().wall_ms
    grant = Grant(AGENT, "agent", "bot", ("viewer",), ("*",), ("*",), now_ms + 3_600_000, ENTROPY.random_bytes(16))
    chain = encode((sign(house.admin, GRANT_DOMAIN, core.trust.mesh, grant),))
    async with house.client() as client, asyncio.timeout(5):
        await asyncio.gather(*(client.publish("grant", AGENT.hex(), chain) for _ in range(3)))
    assert core.dossiers.chains(AGENT)


async def test_what_was_signed_at_the_founding_is_told_again_though_a_part_of_it_was_filed(house: House) -> None:
    """The daemon ended after the papers were durable and before the commands were decided."""
    core, now_ms = house.control(0).core, system_now().wall_ms
    grant = Grant(AGENT, "agent", "bot", ("viewer",), ("*",), ("*",), now_ms + 3_600_000, ENTROPY.random_bytes(16))
    key, body = grant_record(AGENT, (sign(house.admin, GRANT_DOMAIN, core.trust.mesh, grant),))
    await house.control(0).filing.file(key, body)
    signed = encode(command(house, "from-the-start"))
    await house.stop(0)
    write_pending(house.folder / "n0", PendingPapers((FoundingPaper(key, body),), (signed,)))
    await house.start(0)
    await until(
        lambda: any(environment.name == "from-the-start" for environment in house.control(0).core.state.environments)
    )
    await until(lambda: not (house.folder / "n0" / "pending").exists())


async def test_who_does_not_wait_for_the_answer_is_in_the_audit_log_all_the_same(house: House) -> None:
    body = json.dumps({"command": base64.b64encode(encode(command(house, "quiet"))).decode()}).encode()
    head = f"POST /v1/commands HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\nIdempotency-Key: {KEY}\r\n"
    _, writer = await asyncio.open_unix_connection(str(house.daemons[0].runtime / "api.sock"))
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    writer.transport.abort()
    core = house.control(0).core
    await until(lambda: any(environment.name == "quiet" for environment in core.state.environments))
    await until(lambda: any(key.startswith("/audit/") for key in core.records.store.entries))
    async with house.client() as client:
        (entry,) = await client.get("/v1/audit")
    assert (entry["verb"], entry["target"]) == ("create_environment", "mesh quiet")
    assert entry["result"] in {"caller.left", "done"}
    assert entry["signers"] == [house.admin.public_key.hex()]


async def test_a_list_is_read_page_by_page_to_its_end(house: House) -> None:
    async with socket_of(house) as session, house.client() as client:
        for number in range(5):
            assert (await decide(session, command(house, f"env-{number}"), f"key-for-{number}"))[0] == 200
        for path, name in (("/v1/decisions", "slot"), ("/v1/audit", "number")):
            whole = await client.get(path)
            assert len(whole) >= 5
            paged: list[Any] = []
            url: str | None = f"{path}?limit=2"
            while url is not None:
                async with session.get(url) as answer:
                    items = await answer.json()
                    assert 0 < len(items) <= 2
                    paged += items
                    following = answer.links.get("next")
                    url = following["url"].path_qs if following else None
            assert [entry[name] for entry in paged] == [entry[name] for entry in whole]
        async with session.get("/v1/decisions?cursor=abc") as answer:
            assert answer.status == 400


async def test_streams_tell_logs_changes_of_the_mesh_and_how_a_rollout_goes(house: House, component: Component) -> None:
    await house.prepare_lane()
    heard: list[tuple[str, dict[str, Any]]] = []
    logged: list[str] = []

    async def hear(path: str, take: Callable[[str, dict[str, Any]], None], **query: Any) -> None:
        async with house.client() as client:
            async for name, fields in client.follow(path, **query):
                take(name, fields)

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(hear("/v1/events", lambda name, fields: heard.append((name, fields)))),
            group.create_task(hear("/v1/logs", lambda _, line: logged.append(line["event"]), follow=True)),
        ]
        await until(lambda: house.control(0).feed.watchers == 1 and bool(logged))
        await house.deploy(component("probe"), healthy="3s")
        await until(
            lambda: "run" in logged and [row["action"] for name, row in heard if name == "decision"][-1:] == ["promote"]
        )
        for task in tasks:
            task.cancel()
    assert {"decision", "run", "rollout"} <= {name for name, _ in heard}
    progress = [fields for name, fields in heard if name == "rollout"]
    assert {(row["project"], row["environment"]) for row in progress} == {LANE}
    assert any("pass" in row["verdicts"].values() or "pending" in row["verdicts"].values() for row in progress)
    await until(lambda: house.control(0).feed.watchers == 0 and house.control(0).logs.followers == 0)


async def test_those_who_follow_take_no_calls_from_others_and_are_bounded_themselves(house: House) -> None:
    async with socket_of(house) as session:
        streams = []
        for _ in range(WATCHERS_MAX):
            streams.append(await session.get("/v1/events"))  # noqa: PERF401  one after the other
        assert all(client_response.status == 200 for client_response in streams)
        assert CALLS.local_max < WATCHERS_MAX
        async with session.get("/v1/node") as answer:
            assert answer.status == 200
        async with session.get("/v1/events") as answer:
            assert (await problem(answer))[:2] == (503, "request.busy")
        for stream in streams:
            stream.close()
        await until(lambda: house.control(0).feed.watchers == 0)
