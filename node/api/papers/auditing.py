"""Operations on the audit log: entries to read, and the signed chains to verify. Not: writing them (node/journal/audit.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TypeVar

import msgspec
from aiohttp import web

from node.api.callers.objects import AuditObjects
from node.api.callers.scope import Scope, covered
from node.api.operations import Call, Operation, Page, Parameter, page
from node.api.reports.naming import KeyNames
from node.control import Control
from node.journal.audit import link_of, read_links
from protocols.api_models import AuditView
from protocols.envelope import DecodeError, Signed, encode
from protocols.records.audit import AuditEntry, ChainedEntry, read_entry

LINKS_MAX = 1_000
"""A page of at most 4 MiB; a client asks on from the last one."""

READ_AT_ONCE = 200
"""Records or entries that are read before others have their turn."""

T = TypeVar("T")

_OPTIONAL_PEER = {"type": "string", "pattern": "^([1-9A-HJ-NP-Za-km-z]{46,60})?$"}


class AuditLink(msgspec.Struct, frozen=True, array_like=True):
    """One entry as signed, under the node and number of its record's key.

    One that the caller's grants do not cover has `withheld`, the digest of what was signed, and no payload.
    """

    node: str
    number: int
    signed: Signed
    withheld: bytes = b""


async def audit(call: Call) -> Page:
    """List entries of every node, newest first."""
    control: Control = call.node
    await control.audit.settled()
    text = call.query.get("contains", "")
    objects = AuditObjects(control, call.scope)
    pairs = []
    for some in batched(await _links(control, call.query.get("node", ""))):
        pairs += [
            (link, entry)
            for link, entry in read_links(some)
            if (not text or text in f"{entry.verb} {entry.target} {entry.result} {' '.join(entry.signers)}")
            and covered(call.scope, objects.of(entry))
        ]
        await asyncio.sleep(0)

    def key(one: tuple[ChainedEntry, AuditEntry]) -> str:
        link, entry = one
        return f"{entry.at_ms:020d}-{link.node}-{link.number:010d}"

    cut = page(sorted(pairs, key=key, reverse=True), key, call.query)
    names = KeyNames(control.core, control.clock().wall_ms)
    return Page(tuple(_view(names, link, entry) for link, entry in cut.items), cut.cursor)


async def _links(control: Control, node: str = "") -> list[ChainedEntry]:
    """The entries held here, of one node or of all, in order. Others have their turns meanwhile: there may be 100,000."""
    chained_entries: list[ChainedEntry] = []
    for some in batched(list(control.core.records.store.entries.items())):
        chained_entries += [link for key, entry in some if (link := link_of(key, entry, node)) is not None]
        await asyncio.sleep(0)
    return sorted(chained_entries, key=lambda link: (link.node, link.number))


def batched(items: list[T]) -> Iterator[list[T]]:
    """Yield items in batches, each some milliseconds of work."""
    return (items[start : start + READ_AT_ONCE] for start in range(0, len(items), READ_AT_ONCE))


def _view(names: KeyNames, link: ChainedEntry, entry: AuditEntry) -> AuditView:
    return AuditView(
        node=link.node,
        number=link.number,
        at_ms=entry.at_ms,
        caller=entry.caller,
        signers=entry.signers,
        lineage=entry.lineage,
        names=tuple(names.of(bytes.fromhex(key)) for key in entry.signers),
        verb=entry.verb,
        target=entry.target,
        digest=entry.digest.hex(),
        result=entry.result,
        request=entry.request,
        count=entry.count,
        first_ms=entry.first_ms,
    )


async def audit_links(call: Call) -> web.Response:
    """Hand out signed entries in order of node and number, from `after` on."""
    control: Control = call.node
    await control.audit.settled()
    links = (await _links(control))[call.query.get("after", 0) :][:LINKS_MAX]
    objects = AuditObjects(control, call.scope)
    items = tuple(_link(call.scope, objects, link) for link in links)
    return web.Response(body=encode(items), content_type="application/octet-stream")


def _link(scope: Scope, objects: AuditObjects, link: ChainedEntry) -> AuditLink:
    try:
        readable = covered(scope, objects.of(read_entry(link.signed)))
    except DecodeError:
        readable = scope.whole
    if readable:
        return AuditLink(link.node, link.number, link.signed)
    signed = Signed(b"", link.signed.key, link.signed.signature)
    return AuditLink(link.node, link.number, signed, bytes(link.digest))


AUDIT_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "audit", "GET", "/v1/audit", "Writes through any node's API, newest first", audit, answer=tuple[AuditView, ...],
        parameters=(
            Parameter("node", _OPTIONAL_PEER, "only through this node"),
            Parameter("contains", {"type": "string", "maxLength": 200}, "only entries with this text"),
        ),
        paged=True,
    ),
    Operation(
        "audit_links", "GET", "/v1/audit/links", "Audit entries as signed", audit_links, answer=bytes,
        parameters=(Parameter("after", {"type": "integer", "minimum": 0, "maximum": 10_000_000}, "how many to skip"),),
    ),
)  # fmt: skip
