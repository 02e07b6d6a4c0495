"""Operations for admins that no decision alone does: a drain that ends by itself, and the word that a reset was looked into.

Not here: keeping an undrain and handing it over (node/decisions/undrains.py), and an acknowledgement (acknowledged.py there).
"""

from __future__ import annotations

from node.api.callers.access import MORE_RIGHTS
from node.api.callers.scope import Place, may
from node.api.operations import Call, Operation
from node.api.problems import NOT_ALLOWED, ProblemError, unreadable
from node.api.reports.naming import KeyNames
from node.control import Control
from node.decisions.start_queue import DUPLICATE
from node.mesh.core_requests import BusyChainError
from protocols.api_models import OutcomeView
from protocols.api_upkeep import AcknowledgementBody, AcknowledgementView, DrainBody
from protocols.envelope import DecodeError, Signed, decode
from protocols.state.commands import SignedCommand
from protocols.trust.acknowledgements import PAPER_MAX_BYTES


async def show_acknowledgement(call: Call) -> AcknowledgementView:
    """Say how often the mesh was reset, and who looked into the newest reset."""
    control: Control = call.node
    resets, era = control.core.state.resets, control.core.state.era.hex()
    newest = control.acknowledged.newest
    if newest is None:
        return AcknowledgementView(resets, era)
    key, said = newest
    name = KeyNames(control.core, control.clock().wall_ms).of(key)
    return AcknowledgementView(resets, era, key.hex(), name, said.at_ms, said.note)


async def acknowledge(call: Call) -> AcknowledgementView:
    """Take an admin's word that the newest reset was looked into; every node hears of it, and its warning ends."""
    control: Control = call.node
    require_admin(call)
    try:
        signed: Signed = decode(call.body.paper, Signed, PAPER_MAX_BYTES)
    except DecodeError as error:
        raise unreadable(str(error)) from None
    control.acknowledged.take(signed)
    return await show_acknowledgement(call)


async def drain(call: Call) -> OutcomeView:
    """Drain a node for a time: this node keeps the signed undrain, and hands it to the chain when the time is over."""
    control: Control = call.node
    require_admin(call)
    body: DrainBody = call.body
    control.undrains.keep(body.drain, body.undrain, body.material, body.until_ms)
    try:
        outcome = await control.requests.submit(body.drain, body.material)
    except BusyChainError as error:
        raise ProblemError(503, "chain.busy", "the node is busy", str(error), "try again") from None
    if outcome.rule == DUPLICATE and (slot := control.history.slot_of(decode(body.drain, SignedCommand))):
        return OutcomeView("decided", slot, "", "")
    return OutcomeView(outcome.outcome, outcome.slot, outcome.rule, outcome.detail)


def require_admin(call: Call) -> None:
    """Raise ProblemError unless the caller may administer, or is whoever owns the machine."""
    if not may(call.scope, "admin", Place()):
        raise ProblemError(403, NOT_ALLOWED, "this key may not", "run it on the node's own machine", MORE_RIGHTS)


MAINTENANCE_OPERATIONS: tuple[Operation, ...] = (
    Operation("drain", "POST", "/v1/drains", "Drain a node for a time", drain, "write", DrainBody, answer=OutcomeView),
    Operation(
        "show_acknowledgement", "GET", "/v1/resets/acknowledgement", "Who looked into the newest reset",
        show_acknowledgement, answer=AcknowledgementView,
    ),
    Operation(
        "acknowledge", "POST", "/v1/resets/acknowledgement", "End the warning about the newest reset", acknowledge, "write",
        AcknowledgementBody, answer=AcknowledgementView,
    ),
)  # fmt: skip
