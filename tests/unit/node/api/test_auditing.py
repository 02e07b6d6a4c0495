"""A list of the audit log is read a few entries at a time: however long the log is, others have their turns meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from node.api.papers.auditing import READ_AT_ONCE, _links, batched
from protocols.envelope import Signed, encode
from protocols.machine import PeerId
from protocols.records.audit import entry_key
from protocols.records.key_table import parse_key
from tests.support.protocols.record_world import fast_id

NODE, OTHER = fast_id("n1"), fast_id("n2")


def held(node: PeerId, number: int, *, tombstone: bool = False) -> tuple[str, Any]:
    """An audit entry as a node's store holds it."""
    key = entry_key(node, number)
    body = encode(Signed(b"entry %d" % number, bytes(32), bytes(64)))
    return key, SimpleNamespace(record=SimpleNamespace(body=body, tombstone=tombstone), parsed=parse_key(key))


async def test_entries_are_read_in_order_and_others_have_a_turn_between_two_batches() -> None:
    count = 10 * READ_AT_ONCE
    entries = dict(held(NODE, number) for number in range(count, 0, -1))
    entries |= dict([held(OTHER, 1), held(OTHER, 2, tombstone=True), ("/status/x", None)])
    control: Any = SimpleNamespace(
        core=SimpleNamespace(records=SimpleNamespace(store=SimpleNamespace(entries=entries)))
    )
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.ensure_future(other())
    chained_entries = await _links(control)
    beside.cancel()
    assert turns >= 10
    assert [(entry.node, entry.number) for entry in chained_entries] == sorted(
        [(NODE, number) for number in range(1, count + 1)] + [(OTHER, 1)]
    )
    assert [link.number for link in await _links(control, OTHER)] == [1]


def test_batches_hold_everything_once_and_few_at_a_time() -> None:
    items = list(range(2 * READ_AT_ONCE + 1))
    batches = list(batched(items))
    assert [number for batch in batches for number in batch] == items
    assert [len(batch) for batch in batches] == [READ_AT_ONCE, READ_AT_ONCE, 1]
    assert list(batched([])) == []
