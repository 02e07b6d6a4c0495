"""Proposing a change, starting it, and naming changes by a prefix of their id: all that a deploy says to a node.

A proposal is the change with its bytes and its evidence, filed with every node, which prepare it; nothing starts. The
start is signed here and handed to a node, which submits it once all that it needs is there. Not here: the change itself
(proposal.py), watching what becomes of it (views/watch.py), approving it, and any judgement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from cli.access.client import NodeClient, RefusedError
from cli.access.members import members_of
from cli.access.principals import require_right
from cli.access.secrets import versions_for
from cli.change.evidence import held_evidence, publish_evidence
from cli.change.proposal import (
    ChangeProposal,
    Offered,
    built_here,
    lane_of,
    make_proposal,
    pinned_nodes,
    start_of,
)
from cli.change.released import CHANGES_ASKED, PREFIX_MIN, held_release
from cli.change.review import change_at
from cli.errors import CommandError, ExitCode, UsageError
from cli.project.build import build_project
from cli.project.find import Found
from cli.text.going_on import goes_on
from cli.text.output import Output
from protocols.api_models import ChangeView
from protocols.changes.change import Change, Route
from protocols.changes.differences import route_words
from protocols.envelope import digest, encode
from protocols.keys import Ed25519Signer
from protocols.machine import Digest, PeerId
from protocols.state.commands import ClaimRoutes, SignedCommand
from protocols.state.model import Lane, MeshState

UNDER_WAY = frozenset({"candidate", "base"})
"""What a change is to its lane once it was started."""


@dataclass(frozen=True, slots=True)
class Filed:
    """A filed proposal: how many bytes went, how many pieces of evidence, and routes that a deployer must claim."""

    proposal: ChangeProposal
    sent_bytes: int
    evidence: int
    unclaimed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StartSigner:
    """Who signs the start, and how: an admin who breaks glass says why."""

    signer: Ed25519Signer
    supersede: bool = False
    break_glass: str = ""

    def start(self, mesh: Digest, lane: Lane, change: Digest, nodes: tuple[PeerId, ...]) -> SignedCommand:
        """Return the signed start of a change on these nodes."""
        return start_of(mesh, lane, change, nodes, self.signer, supersede=self.supersede, break_glass=self.break_glass)


@dataclass(frozen=True, slots=True)
class NewChange:
    """A change that is still to be proposed: of a project that is built on the way, or of a release that there is."""

    what: Found | Offered
    environment: str
    request: str

    @property
    def project(self) -> str:
        """The project's name."""
        return self.what.project.name


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
    lane_of(state, what.project.name, environment)
    if isinstance(what, Found):
        output.step("", "building")
        bundle = await asyncio.to_thread(build_project, what.project, what.text, what.root, output)
        what = built_here(what, bundle, signer.public_key)
    versions = await versions_for(client, what.effective(environment))
    proposal = make_proposal(
        state, mesh, what, environment=environment, request=request, signer=signer, versions=versions
    )
    return proposal, what


async def upload(client: NodeClient, proposal: ChangeProposal) -> int:
    """Send every artifact the node lacks; return how many bytes went."""
    sent = 0
    for data in (proposal.release_bytes, encode(proposal.effective)):
        if await client.put_artifact(data, digest(data)):
            sent += len(data)
    for named, path in proposal.components.items():
        if not await client.has_artifact(named):
            data = path.read_bytes()
            await client.put_artifact(data, named)
            sent += len(data)
    return sent


async def file_papers(
    client: NodeClient, output: Output, offered: Offered, proposal: ChangeProposal
) -> tuple[int, int]:
    """Upload what the change names, file it and the evidence kept here; return how many bytes and papers went."""
    output.step("", "uploading")
    sent = await upload(client, proposal)
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


async def claim_missing_routes(client: NodeClient, lane: Lane, routes: Sequence[Route], signer: Ed25519Signer) -> bool:
    """Claim routes for a lane, if it does not hold them all; return whether a decision was needed."""
    state = await client.state()
    mine = _claimed(state, lane)
    wanted = tuple(sorted({*mine, *routes}))
    if set(wanted) == set(mine):
        return False
    await client.decide(
        signer,
        ClaimRoutes(wanted),
        project=lane.project,
        environment=lane.environment,
        expect=lane.sequence,
        next_step="change the routes in freehold.toml",
    )
    return True


async def claim_routes(client: NodeClient, change: Change, signer: Ed25519Signer) -> tuple[str, ...]:
    """Claim the routes the lane lacks; return those that this signer may not claim."""
    state = await client.state()
    lane = lane_of(state, change.project, change.environment)
    lacking = [route for route in change.routes if route not in _claimed(state, lane)]
    if not lacking:
        return ()
    try:
        await claim_missing_routes(client, lane, lacking, signer)
    except RefusedError as error:
        if not error.rule.startswith(("command.", "grant.")):
            raise
        return tuple(route_words(route) for route in lacking)
    return ()


def _claimed(state: MeshState, lane: Lane) -> list[Route]:
    """The routes that a lane holds."""
    key = lane.project, lane.environment
    return [claim.route for claim in state.routes if (claim.project, claim.environment) == key]


async def resolve_change(client: NodeClient, text: str) -> ChangeView:
    """Return the change that `text`, its id or the beginning of it, names. Raises UsageError for none or several."""
    wanted = text.lower()
    known = await client.read(tuple[ChangeView, ...], "/v1/changes", limit=CHANGES_ASKED)
    changes = [change for change in known if len(wanted) >= PREFIX_MIN and change.id.startswith(wanted)]
    if len(changes) == 1:
        return changes[0]
    what = f"{len(changes)} changes begin with {text}" if changes else f"no change begins with {text!r}"
    raise UsageError(what, next_step="freehold changes", kind="no-such-change")


async def start_change(
    client: NodeClient,
    output: Output,
    wanted: NewChange | Digest,
    *,
    signer: Ed25519Signer,
    starter: StartSigner,
    expect: int | None = None,
) -> Digest:
    """Propose what is not proposed yet, claim its routes and hand over the signed start; return the change's id.

    A change that its node has started meanwhile, or that runs, is not started again. `expect` is the lane's sequence if
    it must not have moved. Raises CommandError, RefusedError; `answer` then says the outcome.
    """
    handing_over = False
    try:
        change_id, signed = await _signed_start(client, output, wanted, signer, starter, expect)
        if signed is not None:
            handing_over = True
            await client.start(signed)
    except CommandError as error:
        error.answer = {"outcome": _outcome_of(error, handing_over=handing_over), **error.answer}
        raise
    return change_id


def _outcome_of(error: CommandError, *, handing_over: bool) -> str:
    """What a start came to that was not taken: an answer that never came says nothing."""
    if error.exit_code is ExitCode.REFUSED_BY_POLICY:
        return "refused"
    return "unknown" if handing_over or error.kind == "unknown-outcome" else "not-started"


async def _signed_start(
    client: NodeClient,
    output: Output,
    wanted: NewChange | Digest,
    signer: Ed25519Signer,
    starter: StartSigner,
    expect: int | None,
) -> tuple[Digest, SignedCommand | None]:
    """Propose what is not proposed yet; return the change's id, and its start if it is still to be started."""
    if isinstance(wanted, NewChange):
        project, environment, moved_step = (
            wanted.project,
            wanted.environment,
            f"freehold diff --env {wanted.environment}",
        )
    else:
        change, _ = await change_at(client, wanted.hex())
        project, environment, moved_step = change.project, change.environment, f"freehold changes {wanted.hex()[:12]}"
    lane = lane_of(await client.state(), project, environment)
    if expect is not None and lane.sequence != expect:
        moved = f"{environment} has moved: its sequence is {lane.sequence}, not {expect}"
        raise CommandError(moved, next_step=moved_step, kind="moved")
    if isinstance(wanted, NewChange):
        change_id, change = await _propose(client, output, wanted, lane, signer, starter)
    else:
        await require_right(client, starter.signer.public_key, "start", project, environment)
        if not starter.supersede and (await client.read(ChangeView, f"/v1/changes/{wanted.hex()}")).state in UNDER_WAY:
            return wanted, None
        await claim_routes(client, change, signer)
        change_id = wanted
    state = await client.state()
    lane = lane_of(state, project, environment)
    down = [member.node for member in await members_of(client) if member.belief == "down"]
    nodes = pinned_nodes(state, lane, change, down)
    return change_id, starter.start(await client.mesh(), lane, change_id, nodes)


async def _propose(
    client: NodeClient, output: Output, wanted: NewChange, lane: Lane, signer: Ed25519Signer, starter: StartSigner
) -> tuple[Digest, Change]:
    """Build, claim routes and file a change that is to start at once; return its id and the change."""
    if lane.rollout is not None and not starter.supersede:
        raise UsageError(
            f"a rollout is under way in {lane.environment}",
            next_step="freehold status, or deploy with --supersede",
            kind="rollout.under-way",
        )
    await require_right(client, signer.public_key, "propose", lane.project, lane.environment)
    await require_right(client, starter.signer.public_key, "start", lane.project, lane.environment)
    proposal, offered = await put_together(client, output, wanted.what, lane.environment, wanted.request, signer)
    if await claim_missing_routes(client, lane, proposal.change.routes, signer):
        output.step("", f"claimed {', '.join(f'{route.host}{route.path}' for route in proposal.change.routes)}")
    await file_papers(client, output, offered, proposal)
    filed = proposal.id.hex()
    goes_on(
        f"change {filed[:12]} is filed and nothing of it has started",
        f"freehold changes {filed[:12]}",
        {"change": filed, "outcome": "proposed"},
    )
    return proposal.id, proposal.change
