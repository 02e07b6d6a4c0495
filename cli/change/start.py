"""Starting a change: one that is built and proposed on the way, or one that was proposed before.

The start is signed here and handed to a node, which submits it once all that it needs is there. Not here: watching what
becomes of it (views/watch.py), and any judgement.
"""

from __future__ import annotations

from dataclasses import dataclass

from cli.access.client import NodeClient
from cli.access.members import members_of
from cli.access.principals import require_right
from cli.change import deploy as deploying
from cli.change.deploy import Offered
from cli.change.propose import claim_routes, file_papers, put_together
from cli.change.review import change_at
from cli.errors import CommandError, ExitCode, UsageError
from cli.project.find import Found
from cli.text.going_on import goes_on
from cli.text.output import Output
from protocols.api_models import ChangeView
from protocols.changes.change import Change
from protocols.keys import Ed25519Signer
from protocols.machine import Digest, PeerId
from protocols.state.commands import SignedCommand
from protocols.state.model import Lane

UNDER_WAY = frozenset({"candidate", "base"})
"""What a change is to its lane once it was started."""


@dataclass(frozen=True, slots=True)
class StartSigner:
    """Who signs the start, and how: an admin who breaks glass says why."""

    signer: Ed25519Signer
    supersede: bool = False
    break_glass: str = ""

    def start(self, mesh: Digest, lane: Lane, change: Digest, nodes: tuple[PeerId, ...]) -> SignedCommand:
        """Return the signed start of a change on these nodes."""
        return deploying.start_of(
            mesh, lane, change, nodes, self.signer, supersede=self.supersede, break_glass=self.break_glass
        )


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
    lane = deploying.lane_of(await client.state(), project, environment)
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
    lane = deploying.lane_of(state, project, environment)
    down = [member.node for member in await members_of(client) if member.belief == "down"]
    nodes = deploying.pinned_nodes(state, lane, change, down)
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
    if await deploying.claim_missing_routes(client, lane, proposal.change.routes, signer):
        output.step("", f"claimed {', '.join(f'{route.host}{route.path}' for route in proposal.change.routes)}")
    await file_papers(client, output, offered, proposal)
    filed = proposal.id.hex()
    goes_on(
        f"change {filed[:12]} is filed and nothing of it has started",
        f"freehold changes {filed[:12]}",
        {"change": filed, "outcome": "proposed"},
    )
    return proposal.id, proposal.change
