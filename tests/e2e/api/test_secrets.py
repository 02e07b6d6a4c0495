"""A secret reaches the app and nothing else: not a file, a log, a record, or any answer of the node's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from cli.access.client import NodeClient, RefusedError
from cli.access.secrets import remove_versions, rows_of, set_secret
from cli.errors import CommandError
from node.api.handlers import OPERATIONS
from protocols.changes.secrets import SealedSecret, SecretRemoval, sign_paper
from protocols.envelope import encode
from protocols.keys import Ed25519Signer
from protocols.state.commands import Rollback
from tests.support.mesh.canary import files_that_tell, tells
from tests.support.mesh.in_process import ENTROPY, LANE, House, a_house, until

Component = Callable[[str], Path]
CANARY = "canary-7f3e9a41c2-do-not-tell"
SECOND = "canary-second-88d1b0-do-not-tell"
HOST = {"host": "site.test"}
PLACE = (*LANE, "API_KEY")
APP = 'secrets = ["API_KEY"]\nconfig = { PLAIN = "seen" }'


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with a_house(2) as new_house:
        await new_house.prepare_lane()
        yield new_house


async def seen_by_app(house: House, index: int) -> str:
    async with (
        aiohttp.ClientSession(headers=HOST) as session,
        session.get(f"http://{house.ingress(index)}/config?key=API_KEY") as answer,
    ):
        return await answer.text()


def found_in(data: bytes) -> bool:
    return tells(data, (CANARY, SECOND))


def files_with_canary(house: House) -> list[str]:
    """Every file of every node that holds the value."""
    return files_that_tell([house.folder, *(daemon.runtime for daemon in house.daemons)], (CANARY, SECOND))


async def answers_with_canary(client: NodeClient, house: House) -> list[str]:
    """Every reading operation of the API whose answer holds the value."""
    lane = house.control(0).core.state.lane(*LANE)
    assert lane is not None
    assert lane.base is not None
    known = {
        "project": LANE[0], "environment": LANE[1], "node": house.control(1).core.node,
        "change": lane.base.change.hex(), "digest": lane.base.configuration.hex(),
        "key": house.admin.public_key.hex(),
    }  # fmt: skip
    telling, asked = [], 0
    for operation in OPERATIONS:
        if operation.method != "GET" or operation.stream or operation.name == "read":
            continue
        path = operation.path
        for name, value in known.items():
            path = path.replace(f"{{{name}}}", value)
        if "{" in path:
            continue
        try:
            data = await client.get_bytes(path)
        except CommandError as error:
            data = str(error).encode()
        asked += 1
        if found_in(data):
            telling.append(operation.name)
    assert asked > 15
    return telling


async def test_the_app_gets_the_value_and_nobody_else_ever_sees_it(house: House, component: Component) -> None:
    async with house.client() as client:
        with pytest.raises(CommandError, match="no value is set in production for secret API_KEY"):
            await house.deploy(component("services"), app=APP, smoke="/config?key=PLAIN")
        number, nodes = await set_secret(client, house.admin, PLACE, CANARY.encode())
        assert (number, len(nodes)) == (1, 2)
        await until(lambda: all(house.control(text).secrets.versions() for text in (0, 1)))
        await house.deploy(component("services"), app=APP, smoke="/config?key=PLAIN")
        for index in (0, 1):
            assert await seen_by_app(house, index) == CANARY
        # The guest itself tells its log, plain and in the middle of words; a running app keeps its version.
        telling = f"http://{house.ingress(0)}/log?message=it-is-{CANARY}-there"
        async with aiohttp.ClientSession(headers=HOST) as session, session.get(telling) as answer:
            assert answer.status == 200
        assert (await set_secret(client, house.admin, PLACE, SECOND.encode()))[0] == 2
        assert await seen_by_app(house, 0) == CANARY

        async def logged() -> str:
            return "\n".join((await client.get("/v1/logs", limit=2000))["lines"])

        async with asyncio.timeout(10):
            while "it-is-" not in await logged():  # noqa: ASYNC110  a log line announces itself to nobody
                await asyncio.sleep(0.1)
        assert "it-is-[secret API_KEY]-there" in await logged()
        await house.deploy(component("services"), app=APP, smoke="/config?key=PLAIN")
        assert await seen_by_app(house, 0) == SECOND
        assert await answers_with_canary(client, house) == []
        rows = await rows_of(client, *LANE)
        assert [(row.version, row.in_use, row.lacking, row.problem) for row in rows] == [
            (2, True, (), ""),
            (1, True, (), ""),
        ]
        with pytest.raises(RefusedError) as used:
            await remove_versions(client, house.admin, PLACE, rows)
        assert used.value.rule == "secret.in-use"
        lane = house.control(0).core.state.lane(*LANE)
        assert lane is not None
        back = Rollback(lane.retained[0].change, "the second value was wrong")
        await client.decide(house.admin, back, project=LANE[0], environment=LANE[1], expect=lane.sequence)
        async with asyncio.timeout(10):
            for index in (0, 1):
                while await seen_by_app(house, index) != CANARY:  # noqa: ASYNC110  the app is asked, it tells nobody
                    await asyncio.sleep(0.05)
    assert files_with_canary(house) == []
    assert found_in(json.dumps({"message": CANARY}).encode()), "the search itself is blind"


async def test_a_node_that_comes_later_is_served_by_a_holder_which_says_so(house: House, component: Component) -> None:
    async with house.client() as client:
        await set_secret(client, house.admin, PLACE, CANARY.encode())
        await house.deploy(component("services"), app=APP, smoke="/config?key=PLAIN")
        await house.join(2)
        await until(lambda: house.runs(2), 60)
        assert await seen_by_app(house, 2) == CANARY
        newcomer = house.control(2).core.node
        assert all(newcomer in row.sealed_to for row in await rows_of(client, *LANE))
        noted = [
            record
            for index in (0, 1)
            for key, record in house.control(index).core.records.store.entries.items()
            if key.startswith("/audit/") and b"reseal secret" in record.record.body
        ]
        assert any(newcomer.encode() in entry.record.body for entry in noted)
    await house.stop(1)
    await house.start(1)
    await until(lambda: house.runs(1), 30)
    assert await seen_by_app(house, 1) == CANARY, "a restarted node lost what it could open"
    assert files_with_canary(house) == []


async def test_only_who_may_set_secrets_files_them_and_removal_takes_them_away(house: House) -> None:
    async with house.client() as client:
        stranger = Ed25519Signer(ENTROPY.random_bytes(32))
        with pytest.raises(RefusedError) as refused:
            await set_secret(client, stranger, PLACE, b"value")
        assert refused.value.rule == "grant.none"
        with pytest.raises(RefusedError) as nowhere:
            await set_secret(client, house.admin, ("nothing", LANE[1], "API_KEY"), b"value")
        assert nowhere.value.rule == "secret.nowhere"
        await set_secret(client, house.admin, PLACE, CANARY.encode())
        rows = await rows_of(client, *LANE)
        await remove_versions(client, house.admin, PLACE, rows)
        assert await rows_of(client, *LANE) == ()
        mesh = house.control(0).core.trust.mesh
        for paper in (
            SealedSecret(*LANE, "API_KEY", 1, 1, b"", ()),
            SecretRemoval(*LANE, "not a name", (b"d" * 32,), 1),
        ):
            with pytest.raises(CommandError):
                await client.post_nothing("/v1/secrets", {"paper": encode(sign_paper(house.admin, mesh, paper))})
