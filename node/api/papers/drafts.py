"""Drafts: a change or a command in JSON goes in, the bytes to sign and their review come out, a signature takes effect.

The node encodes, the client's key decides: a draft is nothing until its author's signature covers its bytes, which say
everything and which the client may check. A token cannot sign, so a change that it drafts is signed in its name by the node
it was shown to; a command never is. Drafts live in this process, for an hour. Not here: judging (the voters), and building.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator

from node.api.callers.objects import of_artifact, of_change
from node.api.callers.scope import Owned, covered, place_of
from node.api.operations import Call, Operation, Parameter
from node.api.papers.draft_models import (
    ChangeDraft,
    Draft,
    DraftPlan,
    DraftView,
    ProposedView,
    RollbackDraft,
    RoutesDraft,
    SignatureBody,
    SignedDraft,
    StartDraft,
)
from node.api.papers.papers import missing_of
from node.api.problems import NOT_ALLOWED, ProblemError, not_found, refused, unreadable
from node.control import Control
from node.decisions.drafts import LIFE_MS, HeldDraft
from node.decisions.start_queue import DUPLICATE
from node.mesh.core_requests import BusyChainError
from node.store.artifacts import ArtifactError
from protocols.api_models import MissingView, OutcomeView
from protocols.changes.change import (
    CHANGE_DOMAIN,
    RELEASE_MAX_BYTES,
    Analysis,
    Change,
    Component,
    Plan,
    Release,
    SecretVersion,
    Stage,
    change_problem,
    release_problem,
    route_of,
    route_problem,
)
from protocols.changes.differences import Side, differences
from protocols.changes.effective import (
    EFFECTIVE_MAX_BYTES,
    Effective,
    SmokeCheck,
    decode_effective,
    effective_app,
    effective_problem,
)
from protocols.core import NodeCore
from protocols.envelope import DecodeError, Signed, decode, digest, encode, signing_bytes, verify
from protocols.keys import Ed25519Verifier
from protocols.liveness import Belief
from protocols.machine import Digest, PeerId
from protocols.records.key_table import BODY_MAX_BYTES, make_key
from protocols.refusal import Refusal
from protocols.rollout.dossiers import Proposed
from protocols.state.commands import (
    COMMAND_DOMAIN,
    ClaimRoutes,
    Command,
    Exhibits,
    LaneAction,
    Rollback,
    Signature,
    SignedCommand,
    Start,
)
from protocols.state.gate import gate_of
from protocols.state.model import Lane, MeshState
from protocols.state.placement import eligible, pinned_size, rendezvous
from protocols.trust.grants import Rights
from runtime.engine.interface import split_import
from runtime.outbound.destinations import address_inside
from runtime.sandbox.component import ComponentError, inspect

BODY_MAX = 256 * 1024
_VERIFIER = Ed25519Verifier()
_DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


Made = tuple[HeldDraft, DraftView]


async def draft(call: Call) -> DraftView:
    """Make the bytes of a change or a command."""
    control: Control = call.node
    body: Draft = call.body
    if not covered(call.scope, _drafted(control, body)):
        raise ProblemError(403, NOT_ALLOWED, "this key may not", "your grants do not cover it", "freehold token list")
    match body:
        case ChangeDraft():
            held_draft, view = await _draft_change(control, call, body)
        case RoutesDraft():
            held_draft, view = _draft_routes(control, call, body)
        case StartDraft():
            held_draft, view = _draft_start(control, call, body)
        case RollbackDraft():
            lane = _lane(control.core.state, body.project, body.environment)
            if all(deployed.change.hex() != body.change for deployed in lane.retained):
                raise not_found("retained change", body.change, "freehold releases")
            held_draft, view = _draft_command(control, call, lane, Rollback(bytes.fromhex(body.change), body.reason))
    control.drafts.keep(held_draft)
    return view


def _drafted(control: Control, body: Draft) -> Owned:
    """What a draft is about."""
    return of_change(control, bytes.fromhex(body.change)) if isinstance(body, StartDraft) else place_of(body)


# --- changes ----------------------------------------------------------------------------------------------------------


async def _draft_change(control: Control, call: Call, body: ChangeDraft) -> Made:
    core, state, wall_ms = control.core, control.core.state, control.clock().wall_ms
    author = _author(call, body.author)
    lane = _lane(state, body.project, body.environment)
    _check_author(core, body, author, wall_ms)
    release, effective = _new_release(call, body, author) if body.apps else _held_release(call, body)
    release_bytes, effective_bytes = encode(release), encode(effective)
    change = Change(
        project=body.project,
        environment=body.environment,
        request=body.request,
        release=digest(release_bytes),
        base=lane.base.release if lane.base is not None else b"",
        configuration=digest(effective_bytes),
        policy=gate_of(state, body.environment, release).digest,
        author=author,
        created_ms=wall_ms,
        plan=_plan(body.plan, effective),
        routes=effective.routes,
        schedules=tuple(app.name for app in effective.apps if app.schedule),
        secrets=_secrets(control, effective),
        replicas=body.replicas if not effective.keeps_data else 0,
        data=effective.keeps_data,
    )
    payload = encode(change)
    if (problem := _problem_of(release, effective, change, len(payload))) is not None:
        raise unreadable(problem, "correct the draft")
    for data in (release_bytes, effective_bytes):
        await _store(control, data)
        control.belongings.uploaded(call.principal, digest(data))
    named = digest(payload)
    after = Side.of(release, effective, change)
    before = _before(call, lane)
    imports = await _imports(control, before, after)
    proposed = Proposed(named, change, Signed(payload, author, b""))
    missing = (
        MissingView("signature.author", f"the signature of {author.hex()[:12]} over to_sign: POST /v1/changes"),
        *missing_of(control, proposed),
    )
    held_draft = HeldDraft(
        call.principal, named, payload, signing_bytes(CHANGE_DOMAIN, core.trust.mesh, payload), wall_ms + LIFE_MS,
        change,
    )  # fmt: skip
    view = DraftView(
        kind="change",
        digest=named.hex(),
        payload=payload,
        to_sign=held_draft.to_sign,
        project=body.project,
        environment=body.environment,
        expires_ms=held_draft.expires_ms,
        author=author.hex(),
        release=change.release.hex(),
        configuration=change.configuration.hex(),
        base=change.base.hex(),
        differences=differences(before, after, imports),
        nodes=_able(control, body.environment),
        missing=missing,
    )
    return held_draft, view


def _check_author(core: NodeCore, body: ChangeDraft, author: bytes, wall_ms: int) -> None:
    """Refuse a draft whose author may not propose it."""
    rights = core.dossiers.rights(author, wall_ms)
    if isinstance(rights, Refusal):
        raise refused(rights, "freehold token list")
    if not rights.allows("propose", body.project, body.environment):
        may_not = f"{rights.name} may not propose {body.project} in {body.environment}"
        raise refused(Refusal("change.author", may_not), "freehold token list")


def _problem_of(release: Release, effective: Effective, change: Change, size_bytes: int) -> str | None:
    """Return what is wrong with the parts of a draft, or None."""
    problem = release_problem(release) or effective_problem(effective) or change_problem(change)
    problem = problem or next((text for route in change.routes if (text := route_problem(route))), None)
    if problem is None:
        hosts = ((host, app.networks) for app in effective.apps for host in app.allow_hosts)
        inside = next((host for host, networks in hosts if address_inside(host, networks)), "")
        if inside:
            also = "a public address, or one of the app's private_networks"
            problem = f"{inside[:80]} is an address that no node connects to; name a host, {also}"
    if problem is None and size_bytes > BODY_MAX_BYTES - 256:
        return "the change is too large for a record: shorten the request"
    return problem


def _author(call: Call, named: str) -> bytes:
    """The key that will sign: the named one, or the caller's."""
    if call.bearer is not None and named and named != call.principal:
        raise unreadable("a token drafts in its own name only: leave author out", "")
    if not named and call.principal.startswith("socket:"):
        raise unreadable("who calls on the socket has no key: name the author's", "author: the public key in hex")
    return bytes.fromhex(named or call.principal)


def _new_release(call: Call, body: ChangeDraft, author: bytes) -> tuple[Release, Effective]:
    control: Control = call.node
    if body.release or body.configuration:
        raise unreadable("apps make a new release: leave release and configuration out")
    digests = {app.component: bytes.fromhex(app.component) for app in body.apps}
    absent = [
        named for named, raw in digests.items()
        if not control.artifacts.has(raw) or not covered(call.scope, of_artifact(control, raw))
    ]  # fmt: skip
    if absent:
        raise unreadable(f"component {absent[0][:12]} is not here", f"PUT /v1/artifacts/{absent[0]}, then draft again")
    by_name = sorted(body.apps, key=lambda app: app.name)
    components = tuple(
        Component(
            app.name, digests[app.component], control.artifacts.path(digests[app.component]).stat().st_size,
            app.toolchain,
        )
        for app in by_name
    )  # fmt: skip
    release = Release(body.project, components, body.project_file.encode(), body.source_commit, author)
    apps = tuple(effective_app(app, digests[app.component], app.kind) for app in by_name)
    smoke = tuple(
        SmokeCheck(draft_smoke.app, draft_smoke.path, draft_smoke.status, draft_smoke.contains)
        for draft_smoke in body.smoke
    )
    return release, Effective(body.project, body.environment, apps, smoke)


def _held_release(call: Call, body: ChangeDraft) -> tuple[Release, Effective]:
    control: Control = call.node
    if not body.release:
        raise unreadable("a change needs apps, or the digest of a release", "GET /v1/changes lists releases")
    configuration = body.configuration or _configuration_of(control, body)
    if not configuration:
        raise unreadable(
            f"release {body.release[:12]} was never proposed in {body.environment}: name its configuration, or send apps",
            "GET /v1/changes",
        )  # fmt: skip
    try:
        release: Release = decode(_read(call, body.release, RELEASE_MAX_BYTES), Release, RELEASE_MAX_BYTES)
        effective = decode_effective(_read(call, configuration, EFFECTIVE_MAX_BYTES))
    except DecodeError as error:
        raise unreadable(f"no release with its configuration: {error}") from None
    if release.project != body.project or (effective.project, effective.environment) != (
        body.project,
        body.environment,
    ):
        raise not_found("release", body.release, f"GET /v1/changes?project={body.project}")
    return release, effective


def _configuration_of(control: Control, body: ChangeDraft) -> str:
    wanted = bytes.fromhex(body.release)
    changes = [
        change.change
        for change in control.core.dossiers.changes.values()
        if (change.change.project, change.change.environment, change.change.release)
        == (body.project, body.environment, wanted)
    ]
    return max(changes, key=lambda one: one.created_ms).configuration.hex() if changes else ""


def _read(call: Call, named: str, max_bytes: int) -> bytes:
    control: Control = call.node
    wanted = bytes.fromhex(named)
    if not control.artifacts.has(wanted) or not covered(call.scope, of_artifact(control, wanted)):
        raise not_found("artifact", named, f"PUT /v1/artifacts/{named}")
    return control.artifacts.read(wanted, max_bytes)


def _plan(said: DraftPlan | None, effective: Effective) -> Plan:
    plan = said or DraftPlan()
    return Plan(
        stages=tuple(Stage(stage.nodes, stage.min_healthy_ms, stage.pause_ms, stage.approve) for stage in plan.stages),
        healthy_deadline_ms=plan.healthy_deadline_ms,
        progress_deadline_ms=plan.progress_deadline_ms,
        auto_promote=plan.auto_promote,
        auto_revert=plan.auto_revert,
        analysis=Analysis(plan.max_error_ppm, plan.max_latency_p99_ms, plan.failure_limit),
        probe_only=not any(app.routes for app in effective.apps),
    )


def _secrets(control: Control, effective: Effective) -> tuple[SecretVersion, ...]:
    """The newest good version of every secret the apps name."""
    newest: dict[str, SecretVersion] = {}
    for version in control.secrets.versions():
        place = version.secret.project, version.secret.environment
        if place == (effective.project, effective.environment) and not control.secrets.problem(version):
            newest.setdefault(
                version.secret.name, SecretVersion(version.secret.name, version.secret.version, version.id)
            )
    names = sorted({name for app in effective.apps for name in app.secrets})
    lacking = [name for name in names if name not in newest]
    if lacking:
        raise unreadable(
            f"no value is set in {effective.environment} for secret {lacking[0]}",
            f"freehold secret set {lacking[0]} --env {effective.environment}",
        )
    return tuple(newest[name] for name in names)


async def _store(control: Control, data: bytes) -> None:
    async def once() -> AsyncIterator[bytes]:
        yield data

    try:
        await control.artifacts.receive(digest(data), once())
    except ArtifactError as error:
        raise ProblemError(507, "artifact.full", "cannot be stored", str(error), "freehold doctor") from None


def _before(call: Call, lane: Lane) -> Side | None:
    """What runs now, as far as this node holds it."""
    if lane.base is None:
        return None
    try:
        release: Release = decode(_read(call, lane.base.release.hex(), RELEASE_MAX_BYTES), Release, RELEASE_MAX_BYTES)
        effective = decode_effective(_read(call, lane.base.configuration.hex(), EFFECTIVE_MAX_BYTES))
    except DecodeError as error:
        raise unreadable(f"what runs cannot be compared: {error}") from None
    known = call.node.core.dossiers.changes.get(Digest(lane.base.change))
    plan = known.change.plan if known is not None else None
    return Side(release, effective, lane.base.secrets, lane.base.routes, plan, lane.base.replicas)


async def _imports(control: Control, before: Side | None, after: Side) -> dict[bytes, tuple[str, ...]]:
    known = control.drafts.imports
    sides = [side for side in (before, after) if side is not None]
    wanted = {component.digest for side in sides for component in side.release.components}
    for named in wanted - set(known):
        if control.artifacts.has(named):
            control.drafts.keep_imports(named, await asyncio.to_thread(_imports_of, control, named))
    return {named: known[named] for named in wanted if named in known}


def _imports_of(control: Control, named: bytes) -> tuple[str, ...]:
    try:
        return tuple(sorted({split_import(name)[0] for name in inspect(control.artifacts.path(named)).imports}))
    except (ComponentError, OSError):
        return ()


# --- commands ---------------------------------------------------------------------------------------------------------


def _draft_routes(control: Control, call: Call, body: RoutesDraft) -> Made:
    state = control.core.state
    lane = _lane(state, body.project, body.environment)
    mine = {
        route.route for route in state.routes if (route.project, route.environment) == (lane.project, lane.environment)
    }
    wanted = tuple(sorted({*mine, *(route_of(text) for text in body.routes)}))
    problem = next((answer for route in wanted if (answer := route_problem(route))), None)
    if problem is not None:
        raise unreadable(problem, "correct the routes")
    return _draft_command(control, call, lane, ClaimRoutes(wanted))


def _draft_start(control: Control, call: Call, body: StartDraft) -> Made:
    core = control.core
    proposed = core.dossiers.changes.get(Digest(bytes.fromhex(body.change)))
    if proposed is None:
        raise not_found("change", body.change, "GET /v1/changes")
    change = proposed.change
    lane = _lane(core.state, change.project, change.environment)
    able = _able(control, change.environment)
    if not able:
        detail = f"no node that is up serves {change.environment}"
        raise ProblemError(409, "start.no-nodes", "nowhere to start", detail, "freehold mesh members")
    count = pinned_size(change.replicas, change.data, able)
    if change.data and lane.data_node:
        nodes: tuple[PeerId, ...] = (lane.data_node,)
    elif count is not None:
        nodes = tuple(sorted(rendezvous(f"{lane.project}/{lane.environment}", able)[:count]))
    else:
        nodes = able
    return _draft_command(control, call, lane, Start(bytes(proposed.id), nodes, body.supersede), nodes)


def _draft_command(
    control: Control, call: Call, lane: Lane, action: LaneAction, nodes: tuple[PeerId, ...] = ()
) -> Made:
    if call.bearer is not None:
        raise ProblemError(
            403, "caller.bearer", "a token may not", "a token drafts changes; a command takes a key's signature",
            "sign the request with a key (RFC 9421): freehold token create NAME",
        )  # fmt: skip
    command = Command(secrets.token_bytes(16), action, lane.project, lane.environment, lane.sequence)
    payload = encode(command)
    held_draft = HeldDraft(
        call.principal, digest(payload), payload, signing_bytes(COMMAND_DOMAIN, control.core.trust.mesh, payload),
        control.clock().wall_ms + LIFE_MS, command,
    )  # fmt: skip
    view = DraftView(
        str(action.__struct_config__.tag), held_draft.digest.hex(), payload, held_draft.to_sign, lane.project, lane.environment,
        held_draft.expires_ms, nodes=nodes,
        missing=(MissingView("signature.command", "a signature over to_sign: POST /v1/drafts/{digest}/signature"),),
    )  # fmt: skip
    return held_draft, view


def _find(control: Control, call: Call, named: str) -> HeldDraft:
    held_draft = control.drafts.find(bytes.fromhex(named), call.principal, control.clock().wall_ms)
    if held_draft is None:
        raise not_found("draft", named, "make it again: POST /v1/drafts")
    return held_draft


def _lane(state: MeshState, project: str, environment: str) -> Lane:
    if not any(entry.name == environment for entry in state.environments):
        raise not_found("environment", environment, f"an admin makes it: freehold env create {environment}")
    lane = state.lane(project, environment)
    if lane is None:
        raise not_found("project", project, f"an admin makes it: freehold project create {project}")
    return lane


def _able(control: Control, environment: str) -> tuple[PeerId, ...]:
    """The nodes of an environment that are not believed down, ascending."""
    liveness = control.core.liveness
    return tuple(
        sorted(
            peer_id
            for peer_id in eligible(control.core.state, environment)
            if liveness.belief(peer_id) is not Belief.DOWN
        )
    )


# --- signatures -------------------------------------------------------------------------------------------------------


async def propose(call: Call) -> ProposedView:
    """File a drafted change with its author's signature, or in the name of the token that drafted it."""
    control: Control = call.node
    body: SignedDraft = call.body
    held_draft = _find(control, call, body.digest)
    if not isinstance(held_draft.what, Change):
        raise unreadable("that draft is a command", f"POST /v1/drafts/{body.digest}/signature")
    change = held_draft.what
    signed = _signed_change(control, call, held_draft, change, body)
    proposed = Proposed(held_draft.digest, change, signed)
    encoded = encode(signed)
    key = make_key("change", change.project, digest(encoded).hex())
    if not control.filing.holds(key):
        rights = control.core.dossiers.rights(signed.key, control.clock().wall_ms)
        if not isinstance(rights, Rights):
            raise refused(rights)
        await control.filing.file(key, encoded, payer=call.scope.payer)
    missing = missing_of(control, proposed)
    through = control.core.node if call.bearer is not None else ""
    step = "a person approves it: freehold approve" if any(entry.rule.startswith("approval") for entry in missing) else (
        "a deployer starts it: POST /v1/drafts with kind start"
    )  # fmt: skip
    return ProposedView(proposed.id.hex(), through, missing, step)


def _signed_change(control: Control, call: Call, made: HeldDraft, change: Change, body: SignedDraft) -> Signed:
    if call.bearer is not None:
        if body.signature or body.key:
            raise unreadable("a token sends no signature: leave key and signature out")
        return Signed(made.payload, call.bearer.public_key, call.bearer.sign(made.to_sign))
    if body.key not in {"", change.author.hex()}:
        raise unreadable("the draft names another author", "draft it again with author")
    signed = Signed(made.payload, change.author, base64.b64decode(body.signature))
    if not verify(_VERIFIER, CHANGE_DOMAIN, control.core.trust.mesh, signed):
        raise unreadable(
            "the signature does not verify over to_sign under the author's key", "sign to_sign with Ed25519"
        )
    return signed


async def sign_draft(call: Call) -> OutcomeView:
    """Have a drafted command decided with its signature; a start waits for approvals like any other."""
    control: Control = call.node
    body: SignatureBody = call.body
    held_draft = _find(control, call, call.path["draft"])
    if not isinstance(held_draft.what, Command):
        raise unreadable("that draft is a change", "POST /v1/changes")
    key, raw = bytes.fromhex(body.key), base64.b64decode(body.signature)
    if not _VERIFIER.verify(key, held_draft.to_sign, raw):
        raise unreadable("the signature does not verify over to_sign under that key", "sign to_sign with Ed25519")
    signature = Signature(key, raw)
    if isinstance(held_draft.what.action, Start):
        return _started(control, SignedCommand(held_draft.payload, (signature,)))
    chains = [encode(chain) for chain in control.core.dossiers.chains(key)]
    grants = tuple(bytes(digest(chain)) for chain in chains)
    signed = SignedCommand(held_draft.payload, (signature,), Exhibits(grants=grants))
    try:
        outcome = await control.requests.submit(encode(signed), tuple(chains))
    except BusyChainError as error:
        raise ProblemError(503, "chain.busy", "the node is busy", str(error), "try again") from None
    if outcome.rule == DUPLICATE and (slot := control.history.slot_of(signed)):
        return OutcomeView("decided", slot, "", "")
    return OutcomeView(outcome.outcome, outcome.slot, outcome.rule, outcome.detail)


def _started(control: Control, signed: SignedCommand) -> OutcomeView:
    try:
        added = control.starter.add(signed)
    except OSError as error:
        raise ProblemError(507, "start.full", "the start is not held", str(error), "freehold doctor") from None
    if isinstance(added, Refusal):
        if added.rule == DUPLICATE and (slot := control.history.slot_of(signed)):
            return OutcomeView("started", slot, "", "")
        raise refused(added)
    waiting = control.starter.starts[added]
    return OutcomeView(waiting.outcome, waiting.slot, waiting.refusal.rule, waiting.refusal.detail)


DRAFT_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "draft", "POST", "/v1/drafts", "The bytes of a change or a command, to be signed, with its review", draft,
        body=Draft, body_max_bytes=BODY_MAX, answer=DraftView, statuses=(507,),
    ),
    Operation(
        "propose", "POST", "/v1/changes", "File a drafted change with its signature", propose, "write", SignedDraft,
        answer=ProposedView, bearer=True,
    ),
    Operation(
        "sign_draft", "POST", "/v1/drafts/{draft}/signature", "Have a drafted command decided", sign_draft, "write",
        SignatureBody, answer=OutcomeView, parameters=(Parameter("draft", _DIGEST, "the draft's digest", "path"),),
    ),
)  # fmt: skip
