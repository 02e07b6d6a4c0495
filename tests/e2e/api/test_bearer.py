"""Bearer tokens on a real node: they read and propose, nothing else, and end within seconds when they are revoked."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from cli.access.client import PinnedKey
from node.api.handlers import OPERATIONS
from node.mesh.pump import system_now
from protocols.envelope import digest, encode, sign
from protocols.records.credentials import revocation_record
from protocols.trust.bearer import SECRET_BYTES, make_token, signer_of
from protocols.trust.grants import GRANT_DOMAIN, Grant
from protocols.trust.revocations import NOTHING_VALID, Revocation, sign_revocation
from tests.support.mesh.in_process import ENTROPY, House, a_house, until

HOUR_MS = 3_600_000


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with a_house(1) as new_house:
        yield new_house


async def give(house: House, key: bytes, **changed: Any) -> Any:
    """File a grant to a key; by default what `token create --bearer` gives."""
    control = house.control(0)
    fields: dict[str, Any] = {
        "kind": "agent", "name": "bot", "roles": ("proposer",), "projects": ("site",), "environments": ("*",),
        "expires_ms": system_now().wall_ms + HOUR_MS, "nonce": ENTROPY.random_bytes(16), "verbs": ("view", "propose"),
    } | changed  # fmt: skip
    signed = sign(house.admin, GRANT_DOMAIN, control.core.trust.mesh, Grant(key=key, **fields))
    async with house.client() as client:
        await client.publish("grant", key.hex(), encode((signed,)))
    await until(lambda: key in control.core.dossiers.principals())
    return signed


def made(house: House, mesh: bytes = b"") -> tuple[str, bytes]:
    mesh = mesh or house.control(0).core.trust.mesh
    token = make_token(mesh, secrets.token_bytes(SECRET_BYTES))
    signer = signer_of(token, mesh)
    assert signer is not None
    return token, signer.public_key


def session(house: House, token: str) -> aiohttp.ClientSession:
    control = house.control(0)
    pin = PinnedKey(bytes.fromhex(control.api_pin))
    return aiohttp.ClientSession(
        f"https://{control.api}", connector=aiohttp.TCPConnector(ssl=pin),
        headers={"Authorization": f"Bearer {token}"},
    )  # fmt: skip


async def test_a_token_reads_what_its_grant_covers_and_writes_nothing_that_takes_a_signature(house: House) -> None:
    token, key = made(house)
    await give(house, key)
    digests = dict.fromkeys(("digest", "change", "key", "draft"), "0" * 64)
    named = {"project": "site", "environment": "production", "node": house.control(0).core.node, **digests}
    mine, theirs = {"read": 0, "refused": 0}, []
    async with session(house, token) as asking:
        for operation in OPERATIONS:
            path = re.sub(r"\{(\w+)\}", lambda found: named.get(found[1], "0" * 32), operation.path)
            if operation.stream == "always":
                continue
            async with asking.request(
                operation.method,
                path,
                headers={"Idempotency-Key": secrets.token_urlsafe(12)},
                params={"project": "site"} if operation.name == "logs" else None,
            ) as answer:
                rule = (
                    (await answer.json(content_type=None)).get("rule", operation.name) if answer.status >= 400 else ""
                )
                if operation.takes_tokens:
                    assert answer.status not in {401, 429}, operation.name
                    assert rule != "caller.bearer", operation.name
                    mine["read"] += 1
                else:
                    assert (answer.status, rule) == (403, "caller.bearer"), operation.name
                    mine["refused"] += 1
                    theirs.append(operation.name)
    assert set(theirs) >= {"submit", "start", "publish", "reset", "leave", "set_secret", "enrol"} & {
        entry.name for entry in OPERATIONS
    }
    assert {"submit", "start", "publish", "reset", "leave", "enrol"} <= set(theirs)
    assert mine["read"] > 15


async def test_no_write_takes_a_token_but_those_that_only_propose() -> None:
    assert {operation.name for operation in OPERATIONS if operation.access == "write" and operation.takes_tokens} <= {
        "put_artifact", "draft", "propose",
    }  # fmt: skip


async def test_tokens_of_another_mesh_broad_grants_and_both_proofs_at_once_are_refused(house: House) -> None:
    token, key = made(house)
    await give(house, key, roles=("deployer",), verbs=())
    async with session(house, token) as asking, asking.get("/v1/lanes") as answer:
        assert (answer.status, (await answer.json())["rule"]) == (403, "caller.bearer"), "a token that may start"
    other, _ = made(house, b"m" * 32)
    for wrong in (other, token[:-1], token.upper(), "fht1.", f"{token}x"):
        async with session(house, wrong) as asking, asking.get("/v1/lanes") as answer:
            assert answer.status == 401, wrong
            assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    async with session(house, token) as asking:
        fields = {"Signature-Input": "a=()", "Signature": "a=::"}
        async with asking.get("/v1/lanes", headers=fields) as answer:
            assert (answer.status, "not both" in (await answer.json())["detail"]) == (401, True)
        async with asking.get("/v1/lanes", headers={"Authorization": "Basic YTpi"}) as answer:
            assert answer.status == 401


async def test_what_the_mesh_keeps_tells_nothing_of_the_token_and_revoking_ends_it_at_once(house: House) -> None:
    token, key = made(house)
    signed = await give(house, key)
    control = house.control(0)
    content = b"".join(entry.record.body for entry in control.core.records.store.entries.values())
    secret = token.rpartition(".")[2]
    assert secret.encode() not in content
    async with session(house, token) as asking:
        async with asking.get("/v1/lanes") as answer:
            assert answer.status == 200
        subject = bytes(digest(signed.payload))
        said = Revocation("grant", subject, NOTHING_VALID, NOTHING_VALID, "lost", system_now().wall_ms)
        statement = sign_revocation(house.admin, control.core.trust.mesh, said, (signed,))
        async with house.client() as client:
            await client.publish("revocation", subject.hex(), revocation_record(said, statement)[1])
        async with asking.get("/v1/lanes") as answer:
            assert (answer.status, (await answer.json())["rule"]) == (403, "grant.revoked")


async def test_reads_have_tags_heads_and_say_when_to_come_again(house: House) -> None:
    token, key = made(house)
    await give(house, key)
    async with session(house, token) as asking:
        async with asking.get("/v1/mesh") as answer:
            tag, size = answer.headers["ETag"], len(await answer.read())
        async with asking.get("/v1/mesh", headers={"If-None-Match": tag}) as answer:
            assert (answer.status, await answer.read(), answer.headers["ETag"]) == (304, b"", tag)
        async with asking.get("/v1/mesh", headers={"If-None-Match": '"other"'}) as answer:
            assert answer.status == 200
        async with asking.head("/v1/mesh") as answer:
            assert (answer.status, answer.headers["Content-Length"], await answer.read()) == (200, str(size), b"")
