"""`freehold audit [--verify]`: every write through any node's API, who made it and how it ended; and proof of the chain.

Not here: what the chain of decisions holds (`freehold decisions`), which is proven by its certificates.
"""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec

from cli.access import contexts as home
from cli.access.client import NodeClient, talk
from cli.access.members import find_member, members_of
from cli.errors import CommandError
from cli.frame import command
from cli.text.output import Output
from cli.text.table import short, table
from cli.text.times import moment
from cli.text.units import in_words
from cli.views.dora import Delivery, delivery_of
from node.api.auditing import LINKS_MAX, AuditLink
from protocols.envelope import decode
from protocols.keys import Ed25519Verifier
from protocols.machine import PeerId
from protocols.records.audit import Fault, Link, chain_faults

PAGE_MAX_BYTES = 16 << 20
DECISIONS_ASKED = 2_000


@command("audit", examples=("freehold audit", "freehold audit --contains approval", "freehold audit --verify --json"))
@click.option(
    "--verify", "check", is_flag=True, help="Check every signature and link; name what was removed or altered."
)
@click.option("--node", "node_text", default="", help="Only writes through this node: name, id or its end.")
@click.option("--contains", default="", help="Only entries whose verb, target, result or signer has this text.")
@click.option("--limit", type=click.IntRange(1, 2000), default=50, show_default=True, help="How many.")
@click.option("--context", "context_name", help="The mesh, if not the current context.")
def audit(output: Output, *, check: bool, node_text: str, contains: str, limit: int, context_name: str | None) -> None:
    """Show who wrote what through which node, newest first, with the delivery figures; or verify the chains."""
    _, context = home.current_context(context_name)
    if check:
        count, nodes, faults = talk(context, verify_chains)
        if faults:
            named = "; ".join(f"entry {one.number} of {short(one.node)} was {one.what}" for one in faults[:20])
            raise CommandError(
                f"the audit log is not whole: {named}",
                next_step="compare what another node holds: freehold audit --verify --context OTHER",
                kind="audit.broken",
            )
        value = {"entries": count, "nodes": list(nodes), "faults": []}
        output.result(
            value,
            f"{count} entries of {len(nodes)} node{'' if len(nodes) == 1 else 's'}: nothing removed, nothing altered",
        )
        return

    async def conversation(client: NodeClient) -> tuple[list[dict[str, Any]], dict[str, Delivery]]:
        node = find_member(await members_of(client), node_text).node if node_text else ""
        rows = await client.get("/v1/audit", node=node, contains=contains, limit=limit)
        return rows, await delivery_figures(client)

    rows, figures = talk(context, conversation)
    lines = [
        (moment(one["at_ms"]), _who(one), one["verb"], one["target"][:60],
         one["result"], f"{short(one['node'])}#{one['number']}")
        for one in rows
    ]  # fmt: skip
    text = table(("WHEN", "WHO", "DID", "TO", "RESULT", "ENTRY"), lines)
    shown = "\n".join(f"{lane}: {delivery_text(one)}" for lane, one in sorted(figures.items()))
    value = {"entries": rows, "delivery": {lane: msgspec.to_builtins(one) for lane, one in figures.items()}}
    output.result(value, f"{text}\n\n{shown}".strip())
    output.hint("freehold audit --verify")


def _who(one: dict[str, Any]) -> str:
    names = [name or key[:12] for name, key in zip(one["names"], one["signers"], strict=True)]
    return ", ".join(names) or str(one["caller"])[:16]


async def verify_chains(client: NodeClient) -> tuple[int, tuple[str, ...], tuple[Fault, ...]]:
    """Return how many entries of which nodes the asked node holds, and what is wrong with them."""
    links: list[Link] = []
    while True:
        data = await client.get_bytes("/v1/audit/links", after=len(links))
        page: tuple[AuditLink, ...] = decode(data, tuple[AuditLink, ...], PAGE_MAX_BYTES)
        links += [Link(PeerId(one.node), one.number, one.signed) for one in page]
        if len(page) < LINKS_MAX:
            break
    faults = chain_faults(Ed25519Verifier(), await client.mesh(), links, time.time_ns() // 1_000_000)
    return len(links), tuple(sorted({link.node for link in links})), faults


async def delivery_figures(client: NodeClient, project: str = "") -> dict[str, Delivery]:
    """Return the delivery figures by "project/environment"."""
    decisions = await client.get("/v1/decisions", project=project, limit=DECISIONS_ASKED)
    changes = await client.get("/v1/changes", project=project, limit=DECISIONS_ASKED)
    created = {one["id"]: int(one["created_ms"]) for one in changes}
    lanes: dict[str, list[dict[str, Any]]] = {}
    for row in decisions:
        if row["project"]:
            lanes.setdefault(f"{row['project']}/{row['environment']}", []).append(row)
    return {lane: delivery_of(rows, created) for lane, rows in lanes.items()}


def delivery_text(one: Delivery) -> str:
    """The figures for people."""
    lead = in_words(one.lead_time_ms) if one.lead_time_ms is not None else "-"
    rate = f"{one.change_fail_rate:.0%}" if one.change_fail_rate is not None else "-"
    plural = "" if one.deployments == 1 else "s"
    recovery = f", recovered in {in_words(one.recovery_time_ms)}" if one.recovery_time_ms is not None else ""
    return (
        f"{one.deployments} deployment{plural} ({one.per_day:g} a day), lead time {lead}, {rate} of changes failed"
        f"{recovery}"
    )
