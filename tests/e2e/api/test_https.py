"""The API over TCP: TLS with a pinned certificate, every request signed by a key that has a grant, and how one logs in."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import ssl
import stat
import time
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest

from cli.access.client import NodeClient, PinnedKey, RefusedError
from cli.access.contexts import Context
from cli.access.login import Offer, enrol, offer_of, papers_for, share_with_everyday_key
from cli.errors import CommandError
from node.api import listening
from node.api.callers.callers import FAILURES_MAX
from node.api.callers.shares import ADMISSIONS, CALLS
from node.api.handlers import OPERATIONS
from node.config import NodeConfig
from node.journal import audit
from node.mesh.pump import system_now
from protocols.envelope import digest, encode, sign
from protocols.keys import Ed25519Signer
from protocols.trust.grants import GRANT_DOMAIN, Grant, Role
from protocols.trust.invites import Address, Invite, make_invite, read_line, write_line
from protocols.trust.request_signatures import sign_request
from tests.support.mesh.in_process import ENTROPY, House, a_house, until

HOUR_MS = 3_600_000


def new_signer() -> Ed25519Signer:
    return Ed25519Signer(ENTROPY.random_bytes(32))


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with a_house(1) as new_house:
        yield new_house


def invite(house: House, *roles: Role, projects: tuple[str, ...] = ("*",)) -> Offer:
    """A line for one person, read back as the person's machine does."""
    control = house.control(0)
    mesh, seed, now_ms = control.core.trust.mesh, ENTROPY.random_bytes(32), system_now().wall_ms
    key = Ed25519Signer(seed).public_key
    grant = Grant(
        key, "person", "ada", roles, projects, ("*",), now_ms + HOUR_MS, ENTROPY.random_bytes(16), invite_uses=1
    )
    signed = sign(house.admin, GRANT_DOMAIN, mesh, grant)
    new_signed = make_invite(house.admin, Invite(mesh, key, "principal", (), (), 1, now_ms, now_ms + HOUR_MS, signed))
    return offer_of(read_line(write_line(seed, new_signed, (Address(f"https://{control.api}", control.api_pin),))))


def remote(house: House, signer: Ed25519Signer) -> NodeClient:
    control = house.control(0)
    return NodeClient(Context("m", "", "", url=f"https://{control.api}", pin=control.api_pin), signer)


async def test_a_stranger_sees_only_that_the_process_is_up(house: House) -> None:
    control = house.control(0)
    base, pin = f"https://{control.api}", PinnedKey(bytes.fromhex(control.api_pin))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=pin)) as session:
        async with session.get(f"{base}/healthz") as answer:
            assert answer.status == 204
        for path in ("/v1/node", "/v1/state", "/metrics", "/readyz", "/v1/logs"):
            async with session.get(f"{base}{path}") as answer:
                assert answer.status == 401, path
                assert (await answer.json())["rule"] == "caller.unsigned"
        async with session.get(f"{base}/healthz", headers={"Host": "evil.example"}) as answer:
            assert answer.status == 421
    async with remote(house, new_signer()) as client:
        with pytest.raises(RefusedError) as refused:
            await client.get("/v1/node")
        assert refused.value.rule == "grant.none"
    for name in ("api-ca.pem", "api-tls.pem"):
        assert stat.S_IMODE((control.folder / name).stat().st_mode) == 0o600


async def test_no_operation_answers_a_request_that_nobody_signed(house: House) -> None:
    control = house.control(0)
    pin = PinnedKey(bytes.fromhex(control.api_pin))
    rules: set[str] = set()
    async with aiohttp.ClientSession(f"https://{control.api}", connector=aiohttp.TCPConnector(ssl=pin)) as session:
        for operation in OPERATIONS:
            path = operation.path.replace("{", "").replace("}", "")
            async with session.request(
                operation.method, path, headers={"Idempotency-Key": "a-key-of-nobody"}
            ) as answer:
                if operation.access == "open":
                    assert answer.status in {200, 204}
                    continue
                assert answer.status in {401, 429}, operation.name
                rules.add((await answer.json(content_type=None))["rule"])
    assert rules == {"caller.unsigned", "caller.too-many-failures"}


async def test_nothing_older_than_tls_13_and_no_other_certificate_is_spoken_with(house: House) -> None:
    control = house.control(0)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode, old.maximum_version = False, ssl.CERT_NONE, ssl.TLSVersion.TLSv1_2
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=old)) as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"https://{control.api}/healthz")
    wrong = Context("m", "", "", url=f"https://{control.api}", pin="00" * 32)
    async with NodeClient(wrong, new_signer()) as client:
        with pytest.raises(CommandError, match="is not the node of this login"):
            await client.get("/v1/node")
    pin = control.api_pin
    await house.stop(0)
    await house.start(0)
    assert house.control(0).api_pin == pin, "a restart made every login worthless"


async def test_strangers_who_only_connect_or_dribble_leave_room_for_those_who_are_known(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "STRANGERS_MAX", 16)
    control = house.control(0)
    host, _, port = control.api.rpartition(":")
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    offer, person = invite(house, "viewer"), new_signer()
    await enrol(offer, person)
    async with remote(house, person) as client:
        assert (await client.get("/v1/node"))["node"] == control.core.node
        silent = [await asyncio.open_connection(host, int(port), ssl=anybody) for _ in range(40)]
        ended = [asyncio.ensure_future(reader.read()) for reader, _ in silent]
        await until(lambda: sum(task.done() for task in ended) >= 24)
        assert sum(task.done() for task in ended) < 40, "the newest may stay"
        assert (await client.get("/v1/node"))["node"] == control.core.node, "who is known stays connected"
        for _, writer in silent:
            writer.close()
        await asyncio.gather(*ended, return_exceptions=True)
        monkeypatch.setattr(listening, "STRANGERS_MAX", 256)
        dribbling = [await asyncio.open_connection(host, int(port), ssl=anybody) for _ in range(CALLS.remote_max)]
        for _, writer in dribbling:
            fields = sign_request(
                new_signer(), "POST", f"https://{control.api}/v1/admissions", b"x" * 100, created_s=int(time.time()),
                nonce=secrets.token_urlsafe(16), node=control.api_pin,
            )  # fmt: skip
            lines = [f"{name}: {value}" for name, value in fields.items()]
            head = [f"POST /v1/admissions HTTP/1.1\r\nHost: {control.api}", "Content-Type: application/json", *lines]
            writer.write(("\r\n".join([*head, "Content-Length: 100"]) + "\r\n\r\n{").encode())
            await writer.drain()
        answers = [asyncio.ensure_future(reader.readline()) for reader, _ in dribbling]
        await until(lambda: sum(task.done() for task in answers) >= CALLS.remote_max - ADMISSIONS.principal_max)
        assert all(b" 429 " in task.result() for task in answers if task.done()), "one address has a share"
        assert (await client.get("/v1/node"))["node"] == control.core.node
        for answer in answers:
            answer.cancel()
        for _, writer in dribbling:
            writer.transport.abort()


async def test_an_invite_makes_a_key_known_once_and_its_grant_says_what_it_may(house: House) -> None:
    offer, person = invite(house, "viewer"), new_signer()
    url, pin = await enrol(offer, person)
    assert url.endswith(house.control(0).api)
    assert pin == house.control(0).api_pin
    await enrol(offer, person)  # the answer was lost: the same papers are answered alike
    with pytest.raises(RefusedError) as spent:
        await enrol(offer, new_signer())
    assert spent.value.rule == "invite.spent"
    async with remote(house, person) as client:
        view = await client.get("/v1/node")
        assert view["node"] == house.control(0).core.node
        assert (await client.get("/v1/lanes", project="any-project")) == []
        with pytest.raises(RefusedError, match="only lets it look"):
            await client.put_artifact(b"bytes", secrets.token_bytes(32))
    papers, _ = papers_for(offer, person.public_key)
    async with remote(house, new_signer()) as client:
        with pytest.raises(RefusedError) as other:
            await client.post("/v1/admissions", {"papers": encode(papers)})
        assert other.value.rule == "invite.join-key", "a key was admitted by papers of another"


async def test_an_approver_acts_daily_with_a_key_that_cannot_approve(house: House) -> None:
    offer, person, everyday = invite(house, "deployer", "approver", projects=("site",)), new_signer(), new_signer()
    url, pin = await enrol(offer, person)
    await share_with_everyday_key(Context("m", "", "", url=url, pin=pin), offer, person, everyday.public_key)
    async with remote(house, everyday) as client:
        mine = await client.get(f"/v1/principals/{everyday.public_key.hex()}")
        assert mine["roles"] == ["deployer"]
        assert "approve" not in mine["verbs"]
        assert mine["lineage"][-2:] == [person.public_key.hex(), everyday.public_key.hex()]
        await client.get("/v1/logs", project="site")
        for query in ({"project": "other"}, {}):
            with pytest.raises(RefusedError, match="project"):
                await client.get("/v1/logs", **query)


async def test_a_signature_is_good_once_for_one_body_and_guessing_is_stopped(house: House) -> None:
    offer, person = invite(house, "deployer"), new_signer()
    await enrol(offer, person)
    control = house.control(0)
    url = f"https://{control.api}/v1/records"
    body = msgspec.json.encode({"kind": "grant", "scope": "00", "body": b""})

    def signed(nonce: str, created_s: int) -> dict[str, str]:
        fields = sign_request(person, "POST", url, body, created_s=created_s, nonce=nonce, node=control.api_pin)
        return {**fields, "Content-Type": "application/json", "Idempotency-Key": secrets.token_urlsafe(16)}

    pin = PinnedKey(bytes.fromhex(control.api_pin))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=pin)) as session:

        async def post(data: bytes, headers: dict[str, str]) -> tuple[int, str]:
            async with session.post(url, data=data, headers=headers) as answer:
                return answer.status, (await answer.json())["rule"]

        now_s = int(time.time())
        fields = signed("n" * 20, now_s)
        assert (await post(body, fields))[0] == 422, "the signature was not taken"
        assert await post(body, fields) == (401, "caller.unsigned"), "a request was taken twice"
        assert (await post(body + b" ", signed("m" * 20, now_s)))[0] == 401, "another body was taken"
        assert (await post(body, signed("o" * 20, now_s - 300)))[0] == 401, "an old signature was taken"
        for _ in range(FAILURES_MAX):
            status, rule = await post(body, {**signed("p" * 20, now_s), "Signature": "fh=:AAAA:"})
        assert (status, rule) == (429, "caller.too-many-failures")


def entries(house: House) -> int:
    return sum(key.startswith("/audit/") for key in house.control(0).core.records.store.entries)


async def refused_writes(client: NodeClient, count: int) -> set[str]:
    """Upload so often; return the rules that refused it."""
    rules = set()
    for number in range(count):
        body = f"bytes {number}".encode()
        with pytest.raises(CommandError) as refused:
            await client.put_artifact(body, digest(body))
        rules.add(refused.value.kind)
    return rules


async def test_refused_writes_do_not_use_up_the_audit_log_whoever_asks_for_them(house: House) -> None:
    offer, person = invite(house, "viewer"), new_signer()
    await enrol(offer, person)
    before = entries(house)
    async with remote(house, new_signer()) as stranger:
        assert await refused_writes(stranger, 3) == {"grant.none"}
    assert entries(house) == before, "anybody can make a key: the node's share of the records would be anybody's"
    async with remote(house, person) as viewer:
        assert await refused_writes(viewer, 6) == {"caller.not-allowed"}
    assert entries(house) == before + 1, "the first is an entry; the others are told together when their minute is over"


async def test_a_node_that_can_take_nothing_down_takes_down_no_refusal_either(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer, person = invite(house, "viewer"), new_signer()
    await enrol(offer, person)
    log = house.control(0).audit
    monkeypatch.setattr(audit, "BACKLOG_MAX", 1)
    log._backlog.begin()
    log._forgetful = True  # as if it had lost its records, and no peer were there
    async with remote(house, person) as viewer:
        assert await refused_writes(viewer, 1) == {"caller.not-allowed"}
        assert await refused_writes(viewer, 3) == {"node.muted"}
    assert len(log._backlog.load()) == 1


def ipv6_is_here() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.skipif(not ipv6_is_here(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["[::1]", "[::]"])
async def test_a_login_finds_its_node_where_it_listens_on_ipv6(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def config(_house: House, name: str) -> NodeConfig:
        return NodeConfig(name, listen=("127.0.0.1:0",), api=f"{host}:0", ingress=("127.0.0.1:0",), workers=1)

    monkeypatch.setattr(House, "config", config)
    async with a_house(1) as house:
        offer, person = invite(house, "viewer"), new_signer()
        await enrol(offer, person)
        async with remote(house, person) as client:
            assert (await client.get("/v1/node"))["node"] == house.control(0).core.node
