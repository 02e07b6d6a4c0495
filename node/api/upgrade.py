"""Operations on the upgrade of the mesh's daemons: how it goes, and handing over what an admin signed of it.

Not here: conducting it and taking it up (node/upgrade/upgrader.py).
"""

from __future__ import annotations

from node.api.callers.access import MORE_RIGHTS
from node.api.callers.scope import Place, may
from node.api.operations import Call, Operation
from node.api.problems import NOT_ALLOWED, ProblemError, refused, unreadable
from node.control import Control
from node.mesh.presence import status_of
from node.upgrade.upgrader import Conducted, NotTakenError, UpgradeStanding
from protocols.api_upkeep import UpgradeBody, UpgradeNodeView, UpgradeView
from protocols.envelope import DecodeError, decode, digest
from protocols.machine import PeerId
from protocols.refusal import Refusal
from protocols.trust.cosigning import Cosigned
from protocols.trust.upgrades import PAPER_MAX_BYTES, UpgradePaper

NEXT = "freehold mesh upgrade plan"


async def show_upgrade(call: Call) -> UpgradeView:
    """Say how every node stands, and how the newest upgrade goes that is known where nodes are reached."""
    control: Control = call.node
    standings = await control.upgrader.standings()
    going = _newest(standings)
    nodes = tuple(
        _node_view(control, node, standing, going[1] if going else None) for node, standing in sorted(standings.items())
    )
    if going is None:
        return UpgradeView("none", "", "", "", "", "", nodes)
    conductor, conducted = going
    paper = _paper(conducted)
    waits = control.upgrader.waits_for if conductor == control.core.node else ""
    return UpgradeView(
        conducted.phase, paper.version, digest(conducted.paper.payload).hex(), conductor, conducted.why, waits, nodes
    )


async def upgrade(call: Call) -> UpgradeView:
    """Begin an upgrade, or pause, resume or abort one."""
    control: Control = call.node
    if not may(call.scope, "admin", Place()):
        raise ProblemError(403, NOT_ALLOWED, "this key may not", "run it on the node's own machine", MORE_RIGHTS)
    try:
        signed: Cosigned = decode(call.body.paper, Cosigned, PAPER_MAX_BYTES)
    except DecodeError as error:
        raise unreadable(str(error)) from None
    try:
        await control.upgrader.hand(signed)
    except NotTakenError as error:
        raise refused(Refusal(error.rule, error.detail), NEXT) from None
    return await show_upgrade(call)


def _newest(standings: dict[PeerId, UpgradeStanding | None]) -> tuple[PeerId, Conducted] | None:
    pairs = [
        (node, standing.conducted)
        for node, standing in standings.items()
        if standing is not None and standing.conducted is not None
    ]
    return max(pairs, key=lambda one: _paper(one[1]).at_ms, default=None)


def _paper(conducted: Conducted) -> UpgradePaper:
    """What a paper says that a member keeps: shown, and judged again by whoever takes it up."""
    try:
        paper: UpgradePaper = decode(conducted.paper.payload, UpgradePaper, PAPER_MAX_BYTES)
    except DecodeError:
        return UpgradePaper("start", 0)
    return paper


def _node_view(
    control: Control, node: PeerId, standing: UpgradeStanding | None, conducted: Conducted | None
) -> UpgradeNodeView:
    said = status_of(control.core.records, node)
    voter = any(voter.node == node for voter in control.core.state.voters)
    if standing is None:
        return UpgradeNodeView(node, said.name, said.version, voter, "unknown", "")
    if standing.trial:
        state = "on trial"
    elif (
        conducted is not None
        and standing.failed is not None
        and (standing.failed.order == digest(conducted.paper.payload).hex())
    ):
        return UpgradeNodeView(node, said.name, standing.version, voter, "went back", standing.failed.why)
    elif conducted is not None and standing.version == _paper(conducted).version:
        state = "done"
    elif conducted is not None and conducted.phase in {"running", "paused"}:
        state = "at work" if conducted.taking == node else "waits"
    else:
        state = "runs"
    return UpgradeNodeView(node, said.name, standing.version, voter, state, "")


UPGRADE_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "show_upgrade", "GET", "/v1/upgrade", "What each node runs, and how an upgrade goes", show_upgrade,
        answer=UpgradeView,
    ),
    Operation(
        "upgrade", "POST", "/v1/upgrade", "Begin an upgrade of the daemons, or pause, resume or abort it", upgrade, "write",
        UpgradeBody, answer=UpgradeView,
    ),
)  # fmt: skip
