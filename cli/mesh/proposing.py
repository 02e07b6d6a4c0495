"""Proposing without starting, and naming changes by a prefix of their id.

A proposal is the change with its bytes and its evidence, filed with every node, which prepare it; nothing starts. Not
here: the change itself (deploying.py), starting it, approving it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from cli.errors import UsageError
from cli.mesh import deploying
from cli.mesh.client import NodeClient, RefusedError
from cli.mesh.deploying import Proposal
from cli.mesh.diffing import route_words
from cli.mesh.evidence import held_evidence, publish_evidence
from cli.mesh.sealing import versions_for
from cli.output import Output
from cli.project.build import build_project
from cli.project.bundle import Bundle
from cli.project.find import Found
from protocols.change import Change
from protocols.commands import ClaimRoutes
from protocols.envelope import encode
from protocols.keys import Ed25519Signer

PREFIX_MIN = 4
CHANGES_ASKED = 500


@dataclass(frozen=True, slots=True)
class Filed:
    """A filed proposal: how many bytes went, how many pieces of evidence, and routes that a deployer must claim."""

    proposal: Proposal
    bundle: Bundle
    sent_bytes: int
    evidence: int
    unclaimed: tuple[str, ...]


async def put_together(
    client: NodeClient, output: Output, found: Found, environment: str, request: str, signer: Ed25519Signer
) -> tuple[Proposal, Bundle]:
    """Build the project and make the signed change, computed against the state now."""
    mesh, state = await client.mesh(), await client.state()
    deploying.lane_of(state, found.project.name, environment)
    output.step("", "building")
    bundle = await asyncio.to_thread(build_project, found.project, found.text, found.root, output)
    versions = await versions_for(client, deploying.effective_of(found, bundle, environment))
    proposal = deploying.propose(
        state, mesh, found, bundle, environment=environment, request=request, signer=signer, versions=versions
    )
    return proposal, bundle


async def file_proposal(
    client: NodeClient, output: Output, found: Found, proposal: Proposal, bundle: Bundle, signer: Ed25519Signer
) -> Filed:
    """Upload what the change names, file it and its evidence. Nothing starts."""
    unclaimed = await claim_routes(client, proposal.change, signer)
    output.step("", "uploading")
    sent = await deploying.upload(client, proposal)
    await client.publish("change", proposal.change.project, encode(proposal.signed))
    held = held_evidence(found.root, bundle.id, proposal.change.configuration)
    for envelope in held:
        await publish_evidence(client, proposal.release, envelope)
    return Filed(proposal, bundle, sent, len(held), unclaimed)


async def claim_routes(client: NodeClient, change: Change, signer: Ed25519Signer) -> tuple[str, ...]:
    """Claim the routes the lane lacks; return those that this signer may not claim."""
    state = await client.state()
    lane = deploying.lane_of(state, change.project, change.environment)
    mine = [one.route for one in state.routes if (one.project, one.environment) == (lane.project, lane.environment)]
    lacking = [route for route in change.routes if route not in mine]
    if not lacking:
        return ()
    action = ClaimRoutes(tuple(sorted({*mine, *lacking})))
    try:
        await client.decide(
            signer, action, project=lane.project, environment=lane.environment, expect=lane.sequence,
            next_step="change the routes in freehold.toml",
        )  # fmt: skip
    except RefusedError as error:
        if not error.rule.startswith(("command.", "grant.")):
            raise
        return tuple(route_words(route) for route in lacking)
    return ()


async def resolve_change(client: NodeClient, text: str) -> dict[str, Any]:
    """Return the change that `text`, its id or the beginning of it, names. Raises UsageError for none or several."""
    wanted = text.lower()
    known: list[dict[str, Any]] = await client.get("/v1/changes", limit=CHANGES_ASKED)
    found = [one for one in known if len(wanted) >= PREFIX_MIN and one["id"].startswith(wanted)]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} changes begin with {text}" if found else f"no change begins with {text!r}"
    raise UsageError(what, next_step="freehold changes", kind="no-such-change")
