"""Requests that are signed well and are odd in all else, by keys of many rights: no 5xx but a 503 that says when to come again.

Each call is an operation of the API with values of every kind in its path, its query and its body: right ones, those of
other places, and what no value is. A key that was refused is not locked out by it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import pytest

from cli.access.client import PinnedKey
from node.api.handlers import OPERATIONS
from node.api.operations import Operation, examples, parameters_of
from node.mesh.pump import system_now
from protocols.envelope import encode, sign
from protocols.keys import Ed25519Signer
from protocols.trust.grants import GRANT_DOMAIN, Grant, Role
from protocols.trust.request_signatures import sign_request
from tests.support.mesh.in_process import ENTROPY, House, a_house, until

SHORT, LONG = 600, 12_000
AT_ONCE = 8
HOUR_MS = 3_600_000
ODD: Sequence[Any] = (
    "", " ", "\u0000", "\ud800"[:0] + "\ufffd", "\u202e", "x" * 300, "../..", "%00", "*", "-1", "1e99", "null", "ab" * 32,
    "00" * 32, "12D3KooW" + "x" * 44, 0, -1, 2**31, 2**63, 1e300, None, True, [], {}, [[]] * 3, {"a": {"b": []}}, "{}", "\n",
    base64.b64encode(bytes(64)).decode(), base64.b64encode(b"\xc1" * 40).decode(), "production", "site", "shop",
)  # fmt: skip


def mutated(dice: random.Random, value: Any) -> Any:
    """A JSON value with something in it changed, taken away, doubled or put in its place."""
    if dice.random() < 0.15:
        return dice.choice(ODD)
    match value:
        case dict():
            items = {name: mutated(dice, entry) if dice.random() < 0.4 else entry for name, entry in value.items()}
            if items and dice.random() < 0.15:
                del items[dice.choice(sorted(items))]
            return items if dice.random() < 0.9 else {**items, "more": dice.choice(ODD)}
        case list():
            return [mutated(dice, entry) for entry in value] * dice.choice((1, 1, 2, 0))
        case str() if len(value) > 8 and dice.random() < 0.5:
            position = dice.randrange(len(value))
            return value[:position] + dice.choice("A0=z/") + value[position + 1 :]
        case _:
            return value


def a_call(dice: random.Random, operation: Operation, pool: dict[str, list[str]]) -> tuple[str, bytes, str]:
    """The target, body and content type of a call of an operation."""
    example = examples().get(operation.name, {})

    def value(name: str) -> str:
        known = [*pool.get(name, ()), *([str(example["path"][name])] if name in example.get("path", {}) else [])]
        return dice.choice(known) if known and dice.random() < 0.7 else str(dice.choice(ODD))

    path = re.sub(r"\{(\w+)\}", lambda found: quote(value(found[1]), safe=""), operation.path)
    query = {
        parameter.name: value(parameter.name) if dice.random() < 0.6 else str(dice.choice(ODD))
        for parameter in parameters_of(operation)
        if parameter.place == "query" and parameter.name != "follow" and dice.random() < 0.4
    }
    body = b""
    if operation.body is bytes:
        body = dice.randbytes(dice.choice((0, 1, 100, 5_000)))
    elif operation.body is not None:
        whole = mutated(dice, example.get("body", dice.choice(ODD)))
        body = json.dumps(whole).encode() if dice.random() < 0.95 else dice.choice((b"", b"{", b"\xff", b"[" * 3_000))
    kind = "application/octet-stream" if operation.body is bytes else "application/json"
    kind = kind if dice.random() < 0.97 else dice.choice(("text/plain", "", "multipart/form-data"))
    return path + (f"?{urlencode(query, errors='replace')}" if query else ""), body, kind


async def key_of(house: House, role: Role, project: str) -> Ed25519Signer:
    ed25519_signer, control = Ed25519Signer(ENTROPY.random_bytes(32)), house.control(0)
    kind = "person" if role in {"approver", "admin"} else "agent"
    grant = Grant(
        ed25519_signer.public_key, kind, f"{role} of {project}", (role,), (project,), ("*",), system_now().wall_ms + HOUR_MS,
        ENTROPY.random_bytes(16),
    )  # fmt: skip
    async with house.client() as client:
        chain = encode((sign(house.admin, GRANT_DOMAIN, control.core.trust.mesh, grant),))
        await client.publish("grant", ed25519_signer.public_key.hex(), chain)
    await until(lambda: ed25519_signer.public_key in control.core.dossiers.principals())
    return ed25519_signer


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("calls", [SHORT, pytest.param(LONG, marks=pytest.mark.long)], ids=["short", "long"])
async def test_odd_requests_of_known_keys_are_no_defects_of_the_node(
    calls: int, caplog: pytest.LogCaptureFixture
) -> None:
    dice, seen, bad = random.Random(11), Counter[int](), []
    operations = [
        operation
        for operation in OPERATIONS
        if operation.stream != "always" and operation.name not in {"leave", "enrol"}
    ]
    async with a_house(1) as house:
        await house.prepare_lane()
        control = house.control(0)
        signers = [house.admin] + [
            await key_of(house, role, project)
            for role, project in (("deployer", "site"), ("proposer", "other"), ("viewer", "*"), ("approver", "*"))
        ]
        node = control.core.node
        pool = {"node": [node], "project": ["site", "shop"], "environment": ["production", "staging"], "limit": ["1", "100"],
                "key": [signer.public_key.hex() for signer in signers]}  # fmt: skip
        places = asyncio.Semaphore(AT_ONCE)
        await asyncio.sleep(2)  # signatures of the second in which the node started are not taken

        async def one(session: aiohttp.ClientSession, number: int) -> None:
            operation = operations[number % len(operations)]
            target, body, kind = a_call(dice, operation, pool)
            url, signer = f"https://{control.api}{target}", dice.choice(signers)
            fields = {"Content-Type": kind} if body else {}
            if operation.access == "write" and dice.random() < 0.97:
                fields["Idempotency-Key"] = (
                    f"fuzz-{number:08}" if dice.random() < 0.9 else dice.choice(("", "x", "y" * 65))
                )
            async with places:
                fields |= sign_request(
                    signer, operation.method, url, body, created_s=int(time.time()), nonce=f"{number}", node=control.api_pin,
                )  # fmt: skip
                asked = session.request(
                    operation.method, aiohttp.client.URL(url, encoded=True), data=body or None, headers=fields
                )
                async with asked as answer:
                    told = await answer.content.read(4_096)
            seen[answer.status] += 1
            if answer.status >= 500 and not (answer.status == 503 and "Retry-After" in answer.headers):
                bad.append((operation.name, answer.status, target[:200], body[:300], told[:300]))

        with caplog.at_level(logging.WARNING):
            connector = aiohttp.TCPConnector(ssl=PinnedKey(bytes.fromhex(control.api_pin)), limit=AT_ONCE)
            async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
                for begin in range(0, calls, 500):
                    await asyncio.gather(*[one(session, begin + index) for index in range(min(500, calls - begin))])
        traces = [record for record in caplog.records if record.exc_info or "Traceback" in record.getMessage()]
        assert not bad, (len(bad), bad[:8])
        assert not traces, [(trace.getMessage()[:200], str(trace.exc_info)[:400]) for trace in traces[:5]]
        assert sum(seen.values()) == calls
        assert seen[200] + seen[204] > calls / 12, seen
        assert sum(count for status, count in seen.items() if 400 <= status < 500) > calls / 4, seen
        async with house.client() as client:
            assert (await client.get("/v1/node"))["node"] == node
