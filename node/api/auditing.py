"""Operations on the audit log: entries to read, and the signed chains to verify. Not: writing them (node/audit.py)."""

from __future__ import annotations

import msgspec
from aiohttp import web

from node.api.operations import Call, Operation, Parameter
from node.audit import links_of, read_links
from node.control import Control
from protocols.envelope import Signed, encode

LINKS_MAX = 1_000
"""A page of at most 4 MiB; a client asks on from the last one."""

_OPTIONAL_PEER = {"type": "string", "pattern": "^([1-9A-HJ-NP-Za-km-z]{46,60})?$"}


class AuditView(msgspec.Struct, frozen=True):
    """One write. `caller` reached the API, `signers` signed what it handed over; `names` are theirs, as granted."""

    node: str
    number: int
    at_ms: int
    caller: str
    signers: tuple[str, ...]
    lineage: tuple[str, ...]
    names: tuple[str, ...]
    verb: str
    target: str
    digest: str
    result: str
    request: str


class AuditLink(msgspec.Struct, frozen=True, array_like=True):
    """One entry as signed, under the node and number of its record's key."""

    node: str
    number: int
    signed: Signed


async def audit(call: Call) -> tuple[AuditView, ...]:
    """List entries of every node, newest first."""
    control: Control = call.node
    core, now = control.core, control.clock()
    query = call.query
    found = read_links(links_of(core, query.get("node", "")))
    text = query.get("contains", "")
    rows = sorted(found, key=lambda one: (one[1].at_ms, one[0].node, one[0].number), reverse=True)
    views = []
    for link, entry in rows:
        if text and text not in f"{entry.verb} {entry.target} {entry.result} {' '.join(entry.signers)}":
            continue
        names = [core.dossiers.name_of(bytes.fromhex(key), now.wall_ms) for key in entry.signers]
        views.append(
            AuditView(
                node=link.node,
                number=link.number,
                at_ms=entry.at_ms,
                caller=entry.caller,
                signers=entry.signers,
                lineage=entry.lineage,
                names=tuple(names),
                verb=entry.verb,
                target=entry.target,
                digest=entry.digest.hex(),
                result=entry.result,
                request=entry.request,
            )
        )
        if len(views) >= query.get("limit", 100):
            break
    return tuple(views)


async def audit_links(call: Call) -> web.Response:
    """Hand out signed entries in order of node and number, from `after` on."""
    control: Control = call.node
    links = links_of(control.core)[call.query.get("after", 0) :][:LINKS_MAX]
    items = tuple(AuditLink(link.node, link.number, link.signed) for link in links)
    return web.Response(body=encode(items), content_type="application/octet-stream")


AUDIT_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "audit", "GET", "/v1/audit", "Writes through any node's API, newest first", audit, answer=tuple[AuditView, ...],
        parameters=(
            Parameter("node", _OPTIONAL_PEER, "only through this node"),
            Parameter("contains", {"type": "string", "maxLength": 200}, "only entries with this text"),
            Parameter("limit", {"type": "integer", "minimum": 1, "maximum": 2000, "default": 100}, "how many"),
        ),
    ),
    Operation(
        "audit_links", "GET", "/v1/audit/links", "Audit entries as signed", audit_links, answer=bytes,
        parameters=(Parameter("after", {"type": "integer", "minimum": 0, "maximum": 10_000_000}, "how many to skip"),),
    ),
)  # fmt: skip
