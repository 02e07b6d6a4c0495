"""`freehold audit [--verify]`: every write through any node's API, who made it and how it ended; and proof of the chain.

Not here: what the chain of decisions holds (`freehold decisions`), which is proven by its certificates.
"""

from __future__ import annotations

import click

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.access.members import find_member, members_of
from cli.errors import CommandError
from cli.frame import command
from cli.text.foreign import builtins_of
from cli.text.output import Output
from cli.text.table import short, table
from cli.text.times import moment
from cli.views.audit import delivery_figures, delivery_text, verify_chains
from cli.views.dora import Delivery
from protocols.api_models import AuditView


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
    _, context = contexts.current_context(context_name)
    if check:
        count, nodes, faults = talk(context, verify_chains)
        if faults:
            named = "; ".join(f"entry {fault.number} of {short(fault.node)} was {fault.what}" for fault in faults[:20])
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

    async def conversation(client: NodeClient) -> tuple[tuple[AuditView, ...], dict[str, Delivery]]:
        node = find_member(await members_of(client), node_text).node if node_text else ""
        rows = await client.read(tuple[AuditView, ...], "/v1/audit", node=node, contains=contains, limit=limit)
        return rows, await delivery_figures(client)

    rows, figures = talk(context, conversation)
    lines = [
        (moment(row.at_ms), _who(row), row.verb, row.target[:60],
         row.result, f"{short(row.node)}#{row.number}")
        for row in rows
    ]  # fmt: skip
    text = table(("WHEN", "WHO", "DID", "TO", "RESULT", "ENTRY"), lines)
    shown = "\n".join(f"{lane}: {delivery_text(figure)}" for lane, figure in sorted(figures.items()))
    value = {"entries": rows, "delivery": {lane: builtins_of(figure) for lane, figure in figures.items()}}
    output.result(value, f"{text}\n\n{shown}".strip())
    output.hint("freehold audit --verify")


def _who(one: AuditView) -> str:
    names = [name or key[:12] for name, key in zip(one.names, one.signers, strict=True)]
    return ", ".join(names) or one.caller[:16]
