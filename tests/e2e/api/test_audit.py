"""The audit log over real nodes: every write is an entry that all nodes hold, and what one node hides another shows."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from cli.errors import CommandError
from cli.views.audit import verify_chains
from node.config import NodeConfig
from protocols.envelope import Signed, decode, digest, encode
from protocols.records.audit import AuditFault, entry_key, read_entry
from protocols.records.quotas import RecordLimits
from protocols.state.commands import CreateEnvironment, CreateProject
from tests.support.mesh.in_process import House, a_house, until
from tests.support.mesh.nodes import free_port
from tests.unit.node.journal.test_audit_shares import LEAVES


@pytest.fixture
async def house() -> AsyncIterator[House]:
    with tempfile.TemporaryDirectory(prefix="fh-") as folder:
        new_house = House(Path(folder))
        try:
            await new_house.open(2)
            yield new_house
        finally:
            await new_house.close()


def held(house: House, index: int) -> int:
    return sum(key.startswith("/audit/") for key in house.control(index).core.records.store.entries)


async def test_both_nodes_hold_both_chains_and_a_removed_or_altered_entry_is_named(house: House) -> None:
    async with house.client(0) as client:
        await client.decide(house.admin, CreateEnvironment("production"), expect=(await client.state()).sequence)
        with pytest.raises(CommandError):
            await client.decide(house.admin, CreateEnvironment("production"), expect=0)
    async with house.client(1) as client:
        await client.decide(house.admin, CreateProject("site"))
    await until(lambda: held(house, 0) == held(house, 1) == 3)
    await house.stop(1)
    await house.start(1)
    async with house.client(1) as client:
        await client.decide(house.admin, CreateProject("blog"))
    await until(lambda: held(house, 0) == held(house, 1) == 4)
    nodes = sorted(house.control(index).core.node for index in (0, 1))
    for index in (0, 1):
        async with house.client(index) as client:
            assert await verify_chains(client) == (4, tuple(nodes), ())
            rows = await client.get("/v1/audit")
            assert [row["result"] for row in rows if row["result"] != "done"] == ["command.expect"]
            assert all(row["signers"] == [house.admin.public_key.hex()] for row in rows)
    # A node that hides or rewrites an entry of its own log: the others still hold what it said.
    liar = house.control(1).core
    entries = liar.records.store.entries
    second, first = entry_key(liar.node, 2), entry_key(liar.node, 1)
    entry = entries[second]
    forged = msgspec.structs.replace(entry.record, body=entries[first].record.body)
    entries[second] = dataclasses.replace(entry, record=forged)
    async with house.client(1) as client:
        assert (await verify_chains(client))[2] == (AuditFault(liar.node, 2, "reordered"),)
    signed = decode(entry.record.body, Signed)
    rewritten = msgspec.structs.replace(read_entry(signed), result="done", target="nothing to see")
    lie = msgspec.structs.replace(signed, payload=encode(rewritten))
    entries[second] = dataclasses.replace(entry, record=msgspec.structs.replace(entry.record, body=encode(lie)))
    async with house.client(1) as client:
        assert AuditFault(liar.node, 2, "altered") in (await verify_chains(client))[2]
    async with house.client(0) as client:
        assert (await verify_chains(client))[2] == (), "the other node holds what was said at first"
    entries[second] = entry
    own = entry_key(house.control(0).core.node, 1)
    removed = entries.pop(own)
    async with house.client(1) as client:
        count, _, faults = await verify_chains(client)
        assert (count, faults) == (3, (AuditFault(house.control(0).core.node, 1, "removed"),))
    entries[own] = removed
    async with house.client(0) as client:
        assert await verify_chains(client) == (4, tuple(nodes), ())


async def upload(house: House, index: int, text: str) -> str:
    """A write that needs no other node; return the digest, which its audit entry names."""
    async with house.client(index) as client:
        await client.put_artifact(text.encode(), digest(text.encode()))
    return digest(text.encode()).hex()


async def test_a_node_that_lost_its_records_waits_for_the_one_that_alone_holds_its_entries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    position = {name: f"127.0.0.1:{free_port()}" for name in ("n0", "n1", "n2")}  # who was away is found again
    monkeypatch.setattr(
        House,
        "config",
        lambda _self, name: NodeConfig(name, listen=(position[name],), ingress=("127.0.0.1:0",), workers=1),
    )
    async with a_house(3) as house:
        await house.stop(1)
        written = [await upload(house, 2, f"old {number}") for number in range(3)]
        await until(lambda: held(house, 0) == 3)
        await house.stop(2)
        await house.stop(0)
        for part in (house.folder / "n2").glob("state.db*"):
            part.unlink()
        await house.start(1)
        await house.start(2)
        log = house.control(2).audit
        await until(lambda: len(log.awaited) == 1 and house.control(1).core.node not in log.awaited)
        written.append(await upload(house, 2, "new"))
        assert held(house, 2) == 0, "it would overwrite what the node that is away holds"
        await house.start(0)
        await until(lambda: [held(house, index) for index in range(3)] == [4, 4, 4])
        async with house.client(1) as client:
            assert (await verify_chains(client))[2] == ()
            rows = await client.get("/v1/audit")
            assert [row["digest"] for row in sorted(rows, key=lambda row: int(row["number"]))] == written
        assert not house.control(2).audit.behind


async def test_a_node_that_lost_its_records_goes_on_behind_what_the_others_hold_of_its_chain(house: House) -> None:
    async with house.client(1) as client:
        for name in ("site", "blog"):
            await client.decide(house.admin, CreateProject(name))
    await until(lambda: held(house, 0) == held(house, 1) == 2)
    await house.stop(1)
    for part in (house.folder / "n1").glob("state.db*"):
        part.unlink()
    await house.start(1)
    async with house.client(1) as client:
        await client.decide(house.admin, CreateProject("shop"))
    await until(lambda: held(house, 0) == held(house, 1) == 3)
    node = house.control(1).core.node
    for index in (0, 1):
        async with house.client(index) as client:
            assert await verify_chains(client) == (3, (node,), ())
            assert [row["target"] for row in await client.get("/v1/audit")] == ["mesh shop", "mesh blog", "mesh site"]


async def test_a_node_whose_share_of_the_records_is_used_up_says_so_early_and_then_takes_no_writes(
    house: House,
) -> None:
    core, log = house.control(1).core, house.control(1).audit
    assert log.fullness < 0.01
    core.records.store.limits = RecordLimits(node_audit_max=20)
    while log.fullness < 0.8:
        await upload(house, 1, f"bytes {held(house, 1)}")
    async with house.client(1) as client:
        assert any(
            "of the records that this node may write" in entry for entry in (await client.get("/v1/node"))["warnings"]
        )
    while log.fullness < 1:
        await upload(house, 1, f"bytes {held(house, 1)}")
    assert held(house, 1) == 20
    with pytest.raises(CommandError, match="share of the mesh's records is used up") as told:
        await upload(house, 1, "no more")
    assert told.value.kind == "node.muted"
    async with house.client(1) as client:
        assert not await client.has_artifact(digest(b"no more")), "it was done, and its caller told that it was not"


async def test_a_deploy_leaves_as_many_entries_as_400_days_of_them_are_reckoned_with(
    house: House, component: Callable[[str], Path]
) -> None:
    await house.prepare_lane()
    await house.deploy(component("hello"))
    before = held(house, 0)
    await house.deploy(component("probe"))
    async with house.client(0) as client:
        rows = await client.get("/v1/audit")
    newest = sorted(rows, key=lambda row: int(row["number"]))[before:]
    assert Counter(row["verb"] for row in newest) == LEAVES
