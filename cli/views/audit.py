"""What the audit log proves and what decisions add up to: its chains verified, and the delivery figures of each lane.

Not here: the entries themselves (`freehold audit`), and how a figure is computed (dora.py).
"""

from __future__ import annotations

import time

from cli.access.client import NodeClient
from cli.text.units import in_words
from cli.views.dora import Delivery, delivery_of
from node.api.papers.auditing import LINKS_MAX, AuditLink
from protocols.api_models import ChangeView, DecisionView
from protocols.envelope import decode
from protocols.keys import Ed25519Verifier
from protocols.machine import PeerId
from protocols.records.audit import AuditFault, ChainedEntry, chain_faults

PAGE_MAX_BYTES = 16 << 20
DECISIONS_ASKED = 2_000


async def verify_chains(client: NodeClient) -> tuple[int, tuple[str, ...], tuple[AuditFault, ...]]:
    """Return how many entries of which nodes the asked node holds, and what is wrong with them."""
    links: list[ChainedEntry] = []
    while True:
        data = await client.get_bytes("/v1/audit/links", after=len(links))
        page: tuple[AuditLink, ...] = decode(data, tuple[AuditLink, ...], PAGE_MAX_BYTES)
        links += [
            ChainedEntry(PeerId(audit_link.node), audit_link.number, audit_link.signed, audit_link.withheld)
            for audit_link in page
        ]
        if len(page) < LINKS_MAX:
            break
    faults = chain_faults(Ed25519Verifier(), await client.mesh(), links, time.time_ns() // 1_000_000)
    return len(links), tuple(sorted({link.node for link in links})), faults


async def delivery_figures(client: NodeClient, project: str = "") -> dict[str, Delivery]:
    """Return the delivery figures by "project/environment"."""
    decisions = await client.read(tuple[DecisionView, ...], "/v1/decisions", project=project, limit=DECISIONS_ASKED)
    changes = await client.read(tuple[ChangeView, ...], "/v1/changes", project=project, limit=DECISIONS_ASKED)
    created = {change.id: change.created_ms for change in changes}
    lanes: dict[str, list[DecisionView]] = {}
    for row in decisions:
        if row.project:
            lanes.setdefault(f"{row.project}/{row.environment}", []).append(row)
    return {lane: delivery_of(rows, created) for lane, rows in lanes.items()}


def delivery_text(delivery: Delivery) -> str:
    """The figures for people."""
    lead = in_words(delivery.lead_time_ms) if delivery.lead_time_ms is not None else "-"
    rate = f"{delivery.change_fail_rate:.0%}" if delivery.change_fail_rate is not None else "-"
    plural = "" if delivery.deployments == 1 else "s"
    recovery = f", recovered in {in_words(delivery.recovery_time_ms)}" if delivery.recovery_time_ms is not None else ""
    return (
        f"{delivery.deployments} deployment{plural} ({delivery.per_day:g} a day), lead time {lead}, {rate} of changes failed"
        f"{recovery}"
    )
