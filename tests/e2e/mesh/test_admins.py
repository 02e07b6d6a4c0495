"""Admins of a real mesh: a second one, a threshold, statements that gather signatures, a renewed grant."""

from __future__ import annotations

import asyncio
import secrets
import time

import pytest

from cli.access.client import NodeClient, RefusedError
from cli.access.cosigning import domain_of, read_paper, write_paper
from cli.access.principals import principal_of
from cli.access.statements import add_signature, read_statement, write_statement
from cli.commands.mesh.admins import plan_of
from cli.commands.principals.key import _again
from protocols.api_data import MandateBody
from protocols.api_upkeep import UpgradeBody, UpgradeView
from protocols.changes.mandates import MANDATE_AHEAD_MS, DataMandate, sign_mandate
from protocols.envelope import encode, sign
from protocols.keys import Ed25519Signer
from protocols.machine import Digest, PeerId
from protocols.state.commands import Command, CreateProject, SetAdmins, SignedCommand, sign_command
from protocols.state.model import MeshState
from protocols.trust.cosigning import Cosigned, cosign
from protocols.trust.grants import GRANT_DOMAIN, Grant
from protocols.trust.upgrades import UpgradePaper, Wheel, sign_upgrade
from tests.support.mesh.in_process import a_house

DAY_MS = 86_400_000


def changed(
    admin: Ed25519Signer, mesh: Digest, state: MeshState, admins: tuple[bytes, ...], threshold: int
) -> SignedCommand:
    action = SetAdmins(admins, threshold)
    return sign_command([admin], mesh, Command(secrets.token_bytes(16), action, expect=state.sequence))


async def test_two_admins_decide_together_and_neither_alone_and_the_paper_key_saves_the_day() -> None:
    second, paper = (Ed25519Signer(secrets.token_bytes(32)) for _ in range(2))
    async with a_house(1) as house, house.client(0) as client:
        mesh, state = await client.mesh(), await client.state()
        plan = plan_of(state, [second.public_key], [], 2)
        await client.decide_signed(changed(house.admin, mesh, state, plan.after, plan.threshold))
        state = await client.state()
        assert (set(state.admins), state.threshold) == ({house.admin.public_key, second.public_key}, 2)
        plan = plan_of(state, [paper.public_key], [], None)
        alone = changed(house.admin, mesh, state, plan.after, plan.threshold)
        with pytest.raises(RefusedError) as refused:
            await client.decide_signed(alone)
        assert "threshold" in refused.value.kind
        stranger = Ed25519Signer(secrets.token_bytes(32))
        with pytest.raises(RefusedError):
            await client.decide_signed(add_signature(alone, mesh, stranger))
        with pytest.raises(RefusedError):
            await client.decide_signed(add_signature(alone, mesh, paper))
        both = add_signature(read_statement(write_statement(alone), mesh)[0], mesh, second)
        await client.decide_signed(both)
        state = await client.state()
        assert len(state.admins) == 3
        await client.decide_signed(both)  # the same words once more: they were decided, and change nothing
        assert (await client.state()).sequence == state.sequence
        await client.decide(second, CreateProject("shop"), expect=state.sequence)
        # The first admin's key is lost: the second and the paper key replace it.
        state, fresh = await client.state(), Ed25519Signer(secrets.token_bytes(32))
        plan = plan_of(state, [fresh.public_key], [house.admin.public_key], None)
        await client.decide_signed(add_signature(changed(second, mesh, state, plan.after, 2), mesh, paper))
        state = await client.state()
        assert house.admin.public_key not in state.admins
        with pytest.raises(RefusedError):
            await client.decide(house.admin, CreateProject("blog"), expect=state.sequence)


async def test_an_upgrade_and_a_mandate_ask_for_both_admins_and_go_from_hand_to_hand_as_a_line() -> None:
    second = Ed25519Signer(secrets.token_bytes(32))
    async with a_house(1) as house, house.client(0) as client:
        mesh, state = await client.mesh(), await client.state()
        plan = plan_of(state, [second.public_key], [], 2)
        await client.decide_signed(changed(house.admin, mesh, state, plan.after, plan.threshold))
        await asyncio.sleep(MANDATE_AHEAD_MS / 1000)  # a mandate that may be from before the node's start is none
        now_ms, node = time.time_ns() // 1_000_000, PeerId((await client.get("/v1/node"))["node"])
        start = UpgradePaper("start", now_ms, "0.2.0", (Wheel("freehold-0.2.0-py3-none-any.whl", b"d" * 32),))
        freeze = DataMandate("freeze", "shop", "production", node, secrets.token_bytes(16), now_ms)
        for begun, alone, together, hand in (
            (sign_upgrade(house.admin, mesh, start), "upgrade.paper", "upgrade.refused", hand_upgrade),
            (sign_mandate(house.admin, mesh, freeze), "command.not-allowed", "data.none", hand_freeze),
        ):
            with pytest.raises(RefusedError) as refused:
                await hand(client, begun)
            assert refused.value.kind == alone
            paper, said = read_paper(write_paper(begun), mesh)
            stranger = Ed25519Signer(secrets.token_bytes(32))
            with pytest.raises(RefusedError) as refused:
                await hand(client, cosign(stranger, domain_of(said), mesh, paper))
            assert refused.value.kind == alone
            with pytest.raises(RefusedError) as refused:
                await hand(client, cosign(second, domain_of(said), mesh, paper))
            assert refused.value.kind == together, "both count; what is missing now are the wheels, and the data"


async def hand_upgrade(client: NodeClient, paper: Cosigned) -> None:
    await client.send(UpgradeView, "/v1/upgrade", UpgradeBody(encode(paper)))


async def hand_freeze(client: NodeClient, paper: Cosigned) -> None:
    await client.post_nothing("/v1/data/shop/production/freeze", MandateBody(encode(paper)))


async def test_a_renewed_grant_gives_the_same_rights_to_the_same_key_for_longer() -> None:
    person = Ed25519Signer(secrets.token_bytes(32))
    async with a_house(1) as house, house.client(0) as client:
        mesh, now_ms = await client.mesh(), time.time_ns() // 1_000_000
        grant = Grant(
            person.public_key, "person", "ann", ("proposer",), ("*",), ("staging",), now_ms + DAY_MS, b"n" * 16
        )
        await client.publish("grant", person.public_key.hex(), encode((sign(house.admin, GRANT_DOMAIN, mesh, grant),)))
        before = await principal_of(client, person.public_key)
        chain = (_again(house.admin, mesh, before, before.each[0], now_ms + 365 * DAY_MS, same_person=False),)
        await client.publish("grant", before.key, encode(chain))
        after = await principal_of(client, person.public_key)
        assert max(rights.expires_ms for rights in after.each) == now_ms + 365 * DAY_MS
        assert {(rights.roles, rights.projects, rights.environments, rights.verbs) for rights in after.each} == {
            (before.roles, before.projects, before.environments, before.verbs)
        }
        assert after.kind == "person"
