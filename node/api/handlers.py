"""The operations of the API and what each does: a table at the end, one short function each.

A handler reads the core's state or hands over what a principal signed. None of them signs, approves or decides. Not
here: checking requests (server.py), and how state looks as JSON (views.py).
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from aiohttp import web

from node.api.artifacts import ARTIFACT_OPERATIONS
from node.api.callers.access import MORE_RIGHTS
from node.api.callers.objects import (
    of_decision,
    within,
)
from node.api.callers.scope import Owned, Place, covered, may, place_of
from node.api.data import DATA_OPERATIONS
from node.api.hooks import HOOK_OPERATIONS
from node.api.maintenance import MAINTENANCE_OPERATIONS
from node.api.mcp import MCP_OPERATIONS
from node.api.names import NAME_OPERATIONS
from node.api.operations import PAGE_ITEMS, Call, Operation, Page, Parameter, page
from node.api.papers.auditing import AUDIT_OPERATIONS
from node.api.papers.drafts import DRAFT_OPERATIONS
from node.api.papers.paper_checks import paper_refusal
from node.api.papers.papers import PAPER_OPERATIONS, change_named
from node.api.problems import NOT_ALLOWED, ProblemError, invalid, not_found, refused, unreadable
from node.api.reports.app_metrics import look
from node.api.reports.following import FOLLOWING_OPERATIONS, require_known, unreachable
from node.api.reports.metrics import METRICS_TYPE, render
from node.api.reports.naming import KeyNames
from node.api.reports.views import (
    authority_views,
    change_view,
    lane_view,
    member_views,
    mesh_view,
    node_view,
    peers_view,
    start_view,
    voter_views,
)
from node.api.secrets import SECRET_OPERATIONS
from node.api.server import VERSION
from node.api.trusts import TRUST_OPERATIONS
from node.api.upgrade import UPGRADE_OPERATIONS
from node.control import Control
from node.decisions.outcomes import abort_words
from node.decisions.start_queue import DUPLICATE
from node.mesh.core_requests import BusyChainError, begin_era
from node.mesh.peer_addresses import parse_address
from node.transport import StreamError
from protocols.api_models import (
    AdmissionBody,
    AdmissionView,
    ApprovalBody,
    AuthorityView,
    ChangeView,
    CommandBody,
    DecisionView,
    LaneView,
    MemberView,
    MeshView,
    NodeView,
    OutcomeView,
    RecordBody,
    RecordView,
    StartView,
    VoterView,
)
from protocols.api_upkeep import AddressesBody, LeaveBody, ResetBody
from protocols.chain.decision import ResetTo
from protocols.changes.approvals import read_approval
from protocols.envelope import DecodeError, decode, digest, encode
from protocols.machine import PeerId
from protocols.records.key_table import make_key
from protocols.refusal import Refusal
from protocols.rollout.dossiers import Proposed
from protocols.state.commands import COMMAND_MAX_BYTES, Command, SignedCommand
from protocols.trust.admission import JoinPapers

PAPERS_MAX_BYTES = 4 << 20

_NAME = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"}
_OPTIONAL_NAME = {"type": "string", "pattern": "^[a-z0-9-]{0,63}$"}
_PEER = {"type": "string", "pattern": "^[1-9A-HJ-NP-Za-km-z]{46,60}$"}
_DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_PROJECT = Parameter("project", _OPTIONAL_NAME, "only this project")
_ENVIRONMENT = Parameter("environment", _OPTIONAL_NAME, "only this environment")


async def health(call: Call) -> None:
    """Answer: the process runs."""


async def ready(call: Call) -> None:
    """Answer once this node follows its chain and its workers serve."""
    control: Control = call.node
    if control.core.chain.stalled:
        raise ProblemError(503, "node.stalled", "not ready", control.core.chain.stalled, "freehold doctor")
    if not control.workloads.alive:
        raise ProblemError(503, "node.no-workers", "not ready", "no worker is up", "freehold logs")
    if control.core.chain.muted:
        raise ProblemError(503, "node.muted", "not ready", control.core.chain.muted, "free some space on its disk")


async def node(call: Call) -> NodeView:
    """Describe this node."""
    return node_view(call.node, VERSION, call.scope)


async def peer(call: Call) -> NodeView:
    """Describe another node, in its own words."""
    control: Control = call.node
    named = call.path["node"]
    if named == control.core.node:
        return node_view(control, VERSION, call.scope)
    require_known(control, named)
    try:
        view: NodeView = msgspec.json.decode(await control.asking.description(PeerId(named)), type=NodeView)
    except (StreamError, TimeoutError, msgspec.MsgspecError) as error:
        raise unreachable(named, error) from None
    return peers_view(view, call.scope)


async def metrics(call: Call) -> web.Response:
    """Hand out this node's metrics."""
    await look(call.node)
    return web.Response(body=render(call.node, VERSION, call.scope), headers={"Content-Type": METRICS_TYPE})


async def voters(call: Call) -> tuple[VoterView, ...]:
    """List the stores that vote, and those that could."""
    return voter_views(call.node.core)


async def leave(call: Call) -> RecordView:
    """Take this node out of the mesh for good."""
    control: Control = call.node
    if not call.principal.startswith("socket:"):
        raise ProblemError(403, "leave.remote", "only from here", "a node is told to leave on its own machine")
    try:
        return RecordView(await control.leaving.leave(call.body.reason))
    except BusyChainError as error:
        raise _busy(error) from None


async def enrol(call: Call) -> AdmissionView:
    """Let a person in with an invite; the request is signed with the key that is to be admitted."""
    control: Control = call.node
    try:
        papers: JoinPapers = decode(call.body.papers, JoinPapers)
    except DecodeError as error:
        raise unreadable(str(error)) from None
    name = await control.enrolling.enrol(papers, bytes.fromhex(call.principal))
    return AdmissionView(name, control.core.trust.genesis_bytes)


async def mesh(call: Call) -> MeshView:
    """Sum up what the chain decided."""
    return mesh_view(within(call.scope, call.node.core.state), call.node.core)


async def members(call: Call) -> tuple[MemberView, ...]:
    """List every node this one knows of."""
    control: Control = call.node
    return member_views(control.core, control.addresses.texts(), control.clock())


async def tell_addresses(call: Call) -> None:
    """Have this node dial a member elsewhere; with no address, forget that. For whoever owns the machine, and admins."""
    control: Control = call.node
    body: AddressesBody = call.body
    node = PeerId(call.path["node"])
    if not may(call.scope, "admin", Place()):
        raise ProblemError(403, NOT_ALLOWED, "this key may not", "run it on the node's own machine", MORE_RIGHTS)
    if node == control.core.node or node not in {
        *control.core.trust.nodes(),
        *(n.node for n in control.core.state.nodes),
    }:
        raise not_found("other member", node, "freehold mesh members")
    try:
        addresses = tuple(parse_address(text) for text in body.addresses)
    except ValueError as error:
        raise invalid(f"an address is HOST:PORT: {error}") from None
    control.addresses.tell(node, addresses)


async def authorities(call: Call) -> tuple[AuthorityView, ...]:
    """List the certificate authorities of members whose API is served over HTTPS."""
    return authority_views(call.node)


async def genesis(call: Call) -> bytes:
    """Hand out the genesis document, whose digest is the mesh id."""
    data: bytes = call.node.core.trust.genesis_bytes
    return data


async def state(call: Call) -> bytes:
    """Hand out the encoded mesh state at this node's head, as clients compute commands against it."""
    return encode(within(call.scope, call.node.core.state))


async def read(call: Call) -> OutcomeView:
    """Wait until this node holds everything decided before the call."""
    try:
        slot = await call.node.requests.read()
    except BusyChainError as error:
        raise _busy(error) from None
    if slot < 0:
        raise ProblemError(
            503, "chain.no-majority", "no majority", "no majority of voters answers", "freehold mesh members"
        )
    return OutcomeView("read", slot, "", "")


async def submit(call: Call) -> OutcomeView:
    """Have a signed command decided."""
    control: Control = call.node
    body: CommandBody = call.body
    signed = _command(call, body)
    try:
        outcome = await control.requests.submit(body.command, body.material)
    except BusyChainError as error:
        raise _busy(error) from None
    if outcome.rule == DUPLICATE and (slot := control.history.slot_of(signed)):
        return OutcomeView("decided", slot, "", "")  # the retry of one whose answer was lost, with this node's memory
    return OutcomeView(outcome.outcome, outcome.slot, outcome.rule, outcome.detail)


async def reset(call: Call) -> MeshView:
    """Begin a new era with the voters that the admins name: what the lost ones decided alone is abandoned."""
    control: Control = call.node
    body: ResetBody = call.body
    try:
        entry: ResetTo = decode(body.entry, ResetTo, COMMAND_MAX_BYTES)
    except DecodeError as error:
        raise unreadable(str(error)) from None
    answer = control.core.chain.ledger.check_reset(entry)
    if isinstance(answer, Refusal):
        unsigned = answer.rule == "reset.admin-threshold"
        more = "sign with as many admin keys as the mesh's threshold says"
        raise refused(answer, more if unsigned else "freehold mesh reset NODE, computed anew")
    if not await begin_era(control.mesh, body.entry, answer.number):
        refusal = Refusal("chain.reset-refused", "the chain went on meanwhile")
        raise refused(refusal, "freehold mesh reset NODE, computed anew")
    return mesh_view(control.core.state, control.core)


def _busy(error: BusyChainError) -> ProblemError:
    return ProblemError(503, "chain.busy", "the node is busy", str(error), "try again")


def _command(call: Call, body: CommandBody) -> SignedCommand:
    """The signed command in a body; an empty one would be the chain's own no-op, which nobody signs."""
    try:
        signed: SignedCommand = decode(body.command, SignedCommand)
        command: Command = decode(signed.payload, Command, COMMAND_MAX_BYTES)
    except DecodeError as error:
        raise unreadable(str(error)) from None
    if command.project or command.environment:
        require_covered(call, command.project, command.environment)
    return signed


def require_covered(call: Call, project: str, environment: str) -> None:
    """Raise ProblemError 403 unless a grant of the caller lets it write there; whether there is such a place is not said."""
    if not covered(call.scope, Owned((Place(project, environment),)), writing=True):
        raise ProblemError(
            403,
            NOT_ALLOWED,
            "this key may not",
            f"your grants do not cover {project} in {environment}",
            "freehold token list",
        )


async def publish(call: Call) -> RecordView:
    """File a signed paper with every node of the mesh."""
    return await _file_paper(call, call.body)


async def _file_paper(call: Call, body: RecordBody) -> RecordView:
    control: Control = call.node
    try:
        key = make_key(body.kind, body.scope, digest(body.body).hex())
    except ValueError as error:
        raise unreadable(str(error)) from None
    refusal = paper_refusal(control, call.scope, body)
    if refusal is not None:
        raise refused(refusal)
    if control.filing.holds(key):
        return RecordView(key)
    await control.filing.file(key, body.body, payer=call.scope.payer)
    return RecordView(key)


async def carry_approval(call: Call) -> RecordView:
    """File an approval that somebody else signed, as a person's passkey does, which signs no requests."""
    control: Control = call.node
    read = read_approval(control.core.trust.verifier, control.core.trust.mesh, call.body.envelope)
    if isinstance(read, Refusal):
        raise refused(read)
    return await _file_paper(call, RecordBody("approval", read.change.hex(), call.body.envelope))


async def changes(call: Call) -> Page:
    """List proposed changes, newest first."""
    control: Control = call.node
    wanted = call.query.get("project", ""), call.query.get("environment", "")
    proposals = [
        change
        for change in control.core.dossiers.changes.values()
        if (not wanted[0] or change.change.project == wanted[0])
        and (not wanted[1] or change.change.environment == wanted[1])
        and covered(call.scope, place_of(change.change))
    ]

    def key(one: Proposed) -> str:
        return f"{one.change.created_ms:020d}-{one.id.hex()}"

    cut = page(sorted(proposals, key=key, reverse=True), key, call.query)
    return Page(tuple(_change_view(control, item) for item in cut.items), cut.cursor)


async def change(call: Call) -> ChangeView:
    """Show one proposed change and the papers held for it."""
    return _change_view(call.node, change_named(call, call.path["change"]))


async def change_bytes(call: Call) -> bytes:
    """Hand out a change as its author signed it."""
    return encode(change_named(call, call.path["change"]).signed)


async def start(call: Call) -> StartView:
    """Take a signed start; it is submitted once approvals, evidence and prepared nodes are there."""
    control: Control = call.node
    signed = _command(call, call.body)
    try:
        added = control.starter.add(signed)
    except OSError as error:
        raise ProblemError(507, "start.full", "the start is not held", str(error), "freehold doctor") from None
    if isinstance(added, Refusal):
        if added.rule == DUPLICATE and (slot := control.history.slot_of(signed)):
            return StartView(control.history.decision(slot).subject, "started", slot, "", "")
        raise refused(added)
    return start_view(added, control.starter.starts[added])


async def withdraw_start(call: Call) -> None:
    """Forget a start that waits here. One that was submitted may be decided yet; after that only an abort ends it."""
    control: Control = call.node
    change = change_named(call, call.path["change"])
    place = Place(change.change.project, change.change.environment)
    if not may(call.scope, "abort", place):
        detail = f"no grant of yours lets you abort in {place.environment}"
        raise ProblemError(403, NOT_ALLOWED, "this key may not", detail, MORE_RIGHTS)
    try:
        answer = control.starter.withdraw(change.id)
    except OSError as error:
        raise ProblemError(507, "start.full", "the start is still held", str(error), "freehold doctor") from None
    if not answer:
        raise not_found("start", call.path["change"], "freehold status")


async def lanes(call: Call) -> tuple[LaneView, ...]:
    """List every project in every environment."""
    control: Control = call.node
    wanted = call.query.get("project", ""), call.query.get("environment", "")
    shown = {
        (lane.project, lane.environment): lane
        for lane in control.core.state.lanes
        if (not wanted[0] or lane.project == wanted[0])
        and (not wanted[1] or lane.environment == wanted[1])
        and covered(call.scope, place_of(lane))
    }
    aborts = _last_aborts(control, shown)
    return tuple(lane_view(control, lane, aborts[name]) for name, lane in shown.items())


async def lane(call: Call) -> LaneView:
    """Show one project in one environment."""
    control: Control = call.node
    found_lane = control.core.state.lane(call.path["project"], call.path["environment"])
    if found_lane is None:
        raise not_found("lane", f"{call.path['project']} in {call.path['environment']}", "freehold status")
    name = (found_lane.project, found_lane.environment)
    return lane_view(control, found_lane, _last_aborts(control, [name])[name])


async def statements(call: Call) -> web.Response:
    """Hand out the signed verdicts of an open stage, for the exhibits of a principal's promote."""
    control: Control = call.node
    found_lane = control.core.state.lane(call.path["project"], call.path["environment"])
    rollout = found_lane.rollout if found_lane is not None else None
    items = control.core.agent.conductor.statements(rollout.id, rollout.opened) if rollout is not None else ()
    return web.Response(body=encode(items), content_type="application/octet-stream")


async def decisions(call: Call) -> Page:
    """List decisions, newest first, with the numbers that decided them."""
    query, limit = call.query, call.query.get("limit", PAGE_ITEMS)
    before = query.get("cursor", "")
    if before and not before.isdecimal():
        raise invalid("the cursor is none of this list's")
    control: Control = call.node
    found_decisions = control.history.recent(
        query.get("project", ""), query.get("environment", ""), limit + 1, before=int(before) if before else None,
        wanted=lambda view: covered(call.scope, of_decision(view)),
    )  # fmt: skip
    names = KeyNames(control.core, control.clock().wall_ms)
    return Page(
        tuple(_with_names(names, decision) for decision in found_decisions[:limit]),
        str(found_decisions[limit - 1].slot) if len(found_decisions) > limit else "",
    )


def _with_names(names: KeyNames, one: DecisionView) -> DecisionView:
    return msgspec.structs.replace(one, names=tuple(names.of(bytes.fromhex(key)) for key in one.signers))


def _change_view(control: Control, proposed: Proposed) -> ChangeView:
    workloads, core = control.workloads, control.core
    return change_view(
        core, proposed, control.starter.starts.get(proposed.id), workloads.failures.get(proposed.id, ""),
        tries_again=workloads.tries_again(proposed.id),
        fate=control.fates.of(proposed.id.hex(), core.chain.position.slot),
    )  # fmt: skip


def _last_aborts(control: Control, lanes: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Why each lane's newest rollout was aborted, where it was, in one pass over the decisions, newest first."""
    open_lanes, table = set(lanes), dict.fromkeys(lanes, "")
    for slot in range(control.core.chain.position.slot, 0, -1):
        if not open_lanes:
            break
        view = control.history.decision(slot)
        lane = (view.project, view.environment)
        if lane not in open_lanes or view.action not in {"abort", "start", "promote"}:
            continue
        open_lanes.discard(lane)
        if view.action == "abort":
            table[lane] = abort_words(view)
    return table


def _path(name: str, schema: dict[str, str]) -> Parameter:
    return Parameter(name, schema, f"the {name}", "path")


_LANE = (_path("project", _NAME), _path("environment", _NAME))

OPERATIONS: tuple[Operation, ...] = (
    Operation("health", "GET", "/healthz", "Is the process up?", health, "open", status=204),
    Operation("ready", "GET", "/readyz", "Does this node follow and serve?", ready, status=204),
    Operation("node", "GET", "/v1/node", "This node", node, answer=NodeView),
    Operation(
        "peer", "GET", "/v1/nodes/{node}", "Another node, in its own words", peer, answer=NodeView,
        parameters=(_path("node", _PEER),),
    ),
    Operation("metrics", "GET", "/metrics", "Metrics in the Prometheus text format", metrics, media="text/plain"),
    Operation("leave", "POST", "/v1/leave", "Take this node out of the mesh for good", leave, "write", LeaveBody,
              answer=RecordView, final=True),
    Operation(
        "enrol", "POST", "/v1/admissions", "Let a person in with an invite", enrol, "signed", AdmissionBody,
        body_max_bytes=64 * 1024, answer=AdmissionView,
    ),
    Operation("voters", "GET", "/v1/voters", "Stores that vote or could", voters, answer=tuple[VoterView, ...]),
    Operation("mesh", "GET", "/v1/mesh", "What the chain decided, summed up", mesh, answer=MeshView),
    Operation("genesis", "GET", "/v1/genesis", "The genesis document", genesis, answer=bytes),
    Operation("state", "GET", "/v1/state", "The encoded mesh state", state, answer=bytes),
    Operation("read", "GET", "/v1/read", "A linearizable read", read, answer=OutcomeView),
    Operation(
        "authorities", "GET", "/v1/authorities", "Certificate authorities of the members' APIs", authorities,
        answer=tuple[AuthorityView, ...],
    ),
    Operation(
        "tell_addresses", "PUT", "/v1/members/{node}/addresses", "Say where a member is dialled", tell_addresses,
        "write", AddressesBody, status=204, parameters=(_path("node", _PEER),),
    ),
    Operation("members", "GET", "/v1/members", "Every known node", members, answer=tuple[MemberView, ...]),
    Operation(
        "decisions", "GET", "/v1/decisions", "Decisions, newest first", decisions, answer=tuple[DecisionView, ...],
        parameters=(_PROJECT, _ENVIRONMENT), paged=True,
    ),
    Operation(
        "lanes", "GET", "/v1/lanes", "Every project in every environment", lanes, answer=tuple[LaneView, ...],
        parameters=(_PROJECT, _ENVIRONMENT),
    ),
    Operation(
        "lane", "GET", "/v1/lanes/{project}/{environment}", "One project in one environment", lane,
        answer=LaneView, parameters=_LANE,
    ),
    Operation(
        "statements", "GET", "/v1/lanes/{project}/{environment}/statements", "Signed verdicts of the open stage",
        statements, answer=bytes, parameters=_LANE,
    ),
    Operation(
        "changes", "GET", "/v1/changes", "Proposed changes, newest first", changes, answer=tuple[ChangeView, ...],
        parameters=(_PROJECT, _ENVIRONMENT), paged=True,
    ),
    Operation(
        "change", "GET", "/v1/changes/{change}", "One change and its papers", change, answer=ChangeView,
        parameters=(_path("change", _DIGEST),),
    ),
    Operation(
        "change_bytes", "GET", "/v1/changes/{change}/signed", "A change as signed", change_bytes, answer=bytes,
        parameters=(_path("change", _DIGEST),),
    ),
    Operation(
        "submit", "POST", "/v1/commands", "Have a signed command decided", submit, "write", CommandBody,
        body_max_bytes=PAPERS_MAX_BYTES, answer=OutcomeView,
    ),
    Operation(
        "reset", "POST", "/v1/resets", "Begin a new era after a majority of voters is lost for good", reset, "write",
        ResetBody, answer=MeshView,
    ),
    Operation(
        "start", "POST", "/v1/starts", "Hand over a signed start", start, "write", CommandBody, answer=StartView
    ),
    Operation(
        "withdraw_start", "DELETE", "/v1/starts/{change}", "Forget a start that waits on this node", withdraw_start,
        "write", status=204, parameters=(_path("change", _DIGEST),),
    ),
    Operation(
        "publish", "POST", "/v1/records", "File a signed paper", publish, "write", RecordBody, answer=RecordView
    ),
    Operation(
        "carry_approval", "POST", "/v1/approvals", "File an approval, as signed; whoever may look may bring it", carry_approval,
        "write", ApprovalBody, answer=RecordView, carried=True,
    ),
    *ARTIFACT_OPERATIONS,
    *FOLLOWING_OPERATIONS,
    *PAPER_OPERATIONS,
    *DRAFT_OPERATIONS,
    *SECRET_OPERATIONS,
    *DATA_OPERATIONS,
    *UPGRADE_OPERATIONS,
    *MAINTENANCE_OPERATIONS,
    *NAME_OPERATIONS,
    *AUDIT_OPERATIONS,
    *HOOK_OPERATIONS,
    *TRUST_OPERATIONS,
    *MCP_OPERATIONS,
)  # fmt: skip
