"""One token makes keys as it likes: on a real node all of them hold one share of its calls, and others go on."""

from __future__ import annotations

import asyncio
import contextlib

from cli.access.client import NodeClient
from cli.access.contexts import Context
from cli.errors import CommandError
from node.api.callers.shares import FOLLOWERS
from node.mesh.pump import system_now
from protocols.envelope import Signed, digest, encode, sign
from protocols.keys import Ed25519Signer
from protocols.trust.grants import GRANT_DOMAIN, Grant
from tests.support.mesh.in_process import ENTROPY, House, a_house, until

UNTIL_MS = system_now().wall_ms + 3_600_000


async def granted(
    house: House, name: str, by: Ed25519Signer, above: tuple[Signed, ...] = ()
) -> tuple[Ed25519Signer, tuple[Signed, ...]]:
    ed25519_signer, control = Ed25519Signer(ENTROPY.random_bytes(32)), house.control(0)
    grant = Grant(
        ed25519_signer.public_key, "agent", name, ("proposer",), ("*",), ("*",), UNTIL_MS,
        ENTROPY.random_bytes(16), parent=digest(above[-1].payload) if above else b"",
    )  # fmt: skip
    chain = (*above, sign(by, GRANT_DOMAIN, control.core.trust.mesh, grant))
    async with house.client() as client:
        await client.publish("grant", ed25519_signer.public_key.hex(), encode(chain))
    await until(lambda: ed25519_signer.public_key in control.core.dossiers.principals())
    return ed25519_signer, chain


def remote(house: House, signer: Ed25519Signer) -> NodeClient:
    control = house.control(0)
    return NodeClient(Context("m", "", "", url=f"https://{control.api}", pin=control.api_pin), signer)


async def test_a_token_with_ten_keys_of_its_own_follows_no_more_than_one() -> None:
    async with a_house(1) as house:
        token, chain = await granted(house, "token", house.admin)
        beside, _ = await granted(house, "beside", house.admin)
        keys = [token, *[(await granted(house, f"made-{number}", token, chain))[0] for number in range(9)]]
        refused: list[str] = []

        async def follow(signer: Ed25519Signer) -> None:
            try:
                async with remote(house, signer) as client:
                    async for _ in client.follow("/v1/events"):
                        pass
            except CommandError as error:
                refused.append(error.kind)

        following = [asyncio.ensure_future(follow(keys[number % len(keys)])) for number in range(40)]
        try:
            await until(lambda: len(refused) + house.control(0).feed.watchers == len(following))
            assert house.control(0).feed.watchers == FOLLOWERS.principal_max
            assert set(refused) == {"share.followers"}
            async with remote(house, beside) as client:
                assert (await client.get("/v1/node"))["node"] == house.control(0).core.node
            more = asyncio.ensure_future(follow(beside))
            following.append(more)
            await until(lambda: house.control(0).feed.watchers == FOLLOWERS.principal_max + 1)
        finally:
            for task in following:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*following, return_exceptions=True)
