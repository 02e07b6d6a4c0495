"""Proposing without starting, and naming changes by a prefix of their id.

A proposal is the change with its bytes and its evidence, filed with every node, which prepare it; nothing starts. Not
here: the change itself (deploy.py), starting it, approving it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from cli.access.client import NodeClient, RefusedError
from cli.access.secrets import versions_for
from cli.change import deploy as deploying
from cli.change.deploy import ChangeProposal, Offered
from cli.change.evidence import held_evidence, publish_evidence
from cli.change.released import CHANGES_ASKED, PREFIX_MIN, held_release
from cli.errors import UsageError
from cli.project.build import build_project
from cli.project.find import Found
from cli.text.output import Output
from protocols.api_models import ChangeView
from protocols.changes.change import Change
from protocols.changes.differences import route_words
from protocols.envelope import encode
from protocols.keys import Ed25519Signer
from protocols.state.commands import ClaimRoutes


@dataclass(frozen=True, slots=True)
class Filed:
    """A filed proposal: how many bytes went, how many pieces of evidence, and routes that a deployer must claim."""

    proposal: ChangeProposal
    sent_bytes: int
    evidence: int
    unclaimed: tuple[str, ...]


async def to_offer(client: NodeClient, found: Found | Offered | None, release: str) -> Found | Offered:
    """Return what a command is about: the release that is named, or what is there: a build, or a project to be built."""
    if release:
        return await held_release(client, release, found if isinstance(found, Found) else None)
    assert found is not None, "a command without a project names a release"
    return found


async def put_together(
    client: NodeClient, output: Output, what: Found | Offered, environment: str, request: str, signer: Ed25519Signer
) -> tuple[ChangeProposal, Offered]:
    """Build what is not built, and make the signed change, computed against the state now."""
    mesh, state = await client.mesh(), await client.state()
    deploying.lane_of(state, what.project.name, environment)
    if isinstance(what, Found):
        output.step("", "building")
        bundle = await asyncio.to_thread(build_project, what.project, what.text, what.root, output)
        what = deploying.built_here(what, bundle, signer.public_key)
    versions = await versions_for(client, what.effective(environment))
    proposal = deploying.propose(
        state, mesh, what, environment=environment, request=request, signer=signer, versions=versions
    )
    return proposal, what


async def file_papers(
    client: NodeClient, output: Output, offered: Offered, proposal: ChangeProposal
) -> tuple[int, int]:
    """Upload what the change names, file it and the evidence kept here; return how many bytes and papers went."""
    output.step("", "uploading")
    sent = await deploying.upload(client, proposal)
    output.step("", f"uploaded {sent / (1 << 20):.1f} MiB, proposing change {proposal.id.hex()[:12]}")
    await client.publish("change", proposal.change.project, encode(proposal.signed))
    held: tuple[bytes, ...] = ()
    if offered.root is not None:
        held = held_evidence(offered.root, offered.build, proposal.release, proposal.change.configuration)
    for envelope in held:
        await publish_evidence(client, proposal.release, envelope)
    return sent, len(held)


async def file_proposal(
    client: NodeClient, output: Output, offered: Offered, proposal: ChangeProposal, signer: Ed25519Signer
) -> Filed:
    """Upload what the change names, file it and its evidence. Nothing starts."""
    unclaimed = await claim_routes(client, proposal.change, signer)
    sent, evidence = await file_papers(client, output, offered, proposal)
    return Filed(proposal, sent, evidence, unclaimed)


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


async def resolve_change(client: NodeClient, text: str) -> ChangeView:
    """Return the change that `text`, its id or the beginning of it, names. Raises UsageError for none or several."""
    wanted = text.lower()
    known = await client.read(tuple[ChangeView, ...], "/v1/changes", limit=CHANGES_ASKED)
    found = [one for one in known if len(wanted) >= PREFIX_MIN and one.id.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} changes begin with {text}" if found else f"no change begins with {text!r}"
    raise UsageError(what, next_step="freehold changes", kind="no-such-change")
