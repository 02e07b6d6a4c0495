"""The mesh's own commands: nodes, admins, policy, projects, environments, route claims and voters.

Pure functions from state to state. What changes who may decide (admins, policy, feature level) needs the threshold of
admin signatures; the rest an admin's, or, for an admitted node and for the growth of the voters that policy wants, the
exhibits alone. Not here: rollouts (rollout.py).
"""

from __future__ import annotations

from itertools import pairwise
from typing import assert_never

from msgspec.structs import replace

from protocols.chain.decision import VOTER_COUNTS, VOTER_READY_DOMAIN, Voter, VoterReady
from protocols.changes.change import ROUTES_MAX, Route, route_problem, valid_name
from protocols.changes.demands import PASSKEY_RULES, Policy, policy_problem
from protocols.changes.networks import networks_problem
from protocols.envelope import PUBLIC_KEY_BYTES, DecodeError, Signed, open_signed
from protocols.keys import peer_id, public_key_of
from protocols.machine import PeerId
from protocols.refusal import Refusal
from protocols.state.commands import (
    ClaimRoutes,
    ConfirmNode,
    CreateEnvironment,
    CreateProject,
    DrainNode,
    MeshAction,
    Reconfigure,
    RemoveNode,
    SetAdmins,
    SetNetworks,
    SetPolicy,
    SetRules,
    admin_keys,
    recovery_keys,
)
from protocols.state.exhibits import Case
from protocols.state.model import (
    ENVIRONMENTS_MAX,
    NODES_MAX,
    OWNERS_MAX,
    PROJECTS_MAX,
    ROUTES_TOTAL_MAX,
    ConfirmedNode,
    Environment,
    Lane,
    MeshState,
    Project,
    RouteClaim,
    guarded,
)
from protocols.trust.certificates import NODE_ROLES, valid_labels
from protocols.trust.genesis import ADMINS_MAX, STORE_ID_BYTES
from protocols.trust.grants import ANY
from protocols.trust.invites import BUNDLE_MAX_BYTES, Bundle, open_bundle

RULES_VERSION = 4
"""The highest feature level this build can apply; what each brings stands in docs/guides/operations.md."""
RECOVERY_RULES = 4
"""The feature level from which a key may be kept for recovery alone."""
NETWORK_RULES = 4
"""The feature level from which an environment may allow private networks."""

OWNER_MAX = 64
VOTER_ROLE = "voter"
SIGNED_MAX_BYTES = 2048

ORDERED = (SetAdmins, SetPolicy, SetRules, Reconfigure, CreateEnvironment, SetNetworks, RemoveNode)
"""Commands whose order matters: they carry `expect` (a new environment need not), and raise the mesh's sequence."""


def govern(state: MeshState, case: Case, action: MeshAction) -> MeshState | Refusal:
    """Return the state after a command on the mesh, or the first rule it breaks; sequence and ids are the caller's."""
    match action:
        case ConfirmNode():
            return _confirm(state, case, action)
        case DrainNode():
            return _drain(state, case, action)
        case RemoveNode():
            return _remove(state, case, action)
        case SetAdmins():
            return _set_admins_refusal(state, case) or _set_admins(state, action)
        case SetPolicy():
            return case.admin_threshold(state.threshold) or _set_policy(state, action)
        case SetRules(rules_version):
            return case.admin_threshold(state.threshold) or _set_rules(state, rules_version)
        case CreateProject():
            return _admin(case, action.name) or _create_project(state, action)
        case CreateEnvironment():
            return _create_environment(state, case, action)
        case SetNetworks():
            return case.admin_threshold(state.threshold) or _set_networks(state, action)
        case Reconfigure():
            return _reconfigure(state, case, action)
        case _:
            assert_never(action)


def growth_candidates(state: MeshState) -> tuple[PeerId, ...]:
    """Return the nodes that may become voters without asking anyone: confirmed, staying, with the voter role."""
    return tuple(node.node for node in state.nodes if VOTER_ROLE in node.roles and not node.draining)


def grows(state: MeshState, voters: tuple[Voter, ...]) -> bool:
    """Return whether `voters` only add candidates to those of the state, up to the policy's target."""
    able = growth_candidates(state)
    added = [voter for voter in voters if voter not in state.voters]
    return (
        all(voter in voters for voter in state.voters)
        and len(state.voters) < len(voters) <= state.policy.voters_target
        and all(voter.node in able for voter in added)
    )


# --- nodes ------------------------------------------------------------------------------------------------------------


def _confirm(state: MeshState, case: Case, action: ConfirmNode) -> MeshState | Refusal:
    try:
        key = public_key_of(action.node)
    except ValueError as error:
        return Refusal("node.malformed", str(error))
    if not valid_labels(action.labels) or any(role not in NODE_ROLES for role in action.roles):
        return Refusal("node.malformed", "labels or roles are not those of a certificate")
    if len(set(action.roles)) != len(action.roles):
        return Refusal("node.malformed", "a role is named twice")
    node = ConfirmedNode(action.node, action.labels, action.roles, state.applied + 1)
    known = next((node for node in state.nodes if node.node == action.node), None)
    if known is not None and case.signers:
        return _admin(case) or _with_node(state, replace(known, labels=action.labels, roles=action.roles))
    if known is not None:
        return Refusal("node.confirmed", "the node is confirmed already; an admin may change its labels and roles")
    if state.policy.mode == "dev":
        return Refusal("node.development", "the mesh of freehold dev stays alone; found another: freehold mesh create")
    if len(state.nodes) >= NODES_MAX:
        return Refusal("node.limit", f"this release carries {NODES_MAX} nodes; larger meshes come later")
    if case.signers:
        return _admin(case) or _with_node(state, node)
    admitted = _admission(state, case, action, key)
    if isinstance(admitted, Refusal):
        return admitted
    invite, use = admitted
    if any((node.invite, node.invite_use) == (invite, use) for node in state.nodes):
        return Refusal("node.invite-used", "another node took this use of the invite; an admin must choose")
    return _with_node(state, replace(node, invite=invite, invite_use=use))


def _admission(state: MeshState, case: Case, action: ConfirmNode, key: bytes) -> tuple[bytes, int] | Refusal:
    named = case.exhibits.exhibits.admission
    if len(named) != 1:
        return Refusal("node.admission", "an admin signs, or one admission is shown")
    bundle = case.read(named[0], Bundle, BUNDLE_MAX_BYTES, "admission")
    if isinstance(bundle, Refusal):
        return bundle
    opened = open_bundle(case.rules.verifier, case.rules.mesh, state.admins, bundle)
    if isinstance(opened, Refusal):
        return opened
    if opened.invite.kind != "node" or opened.join.key != key:
        return Refusal("node.admission", "the admission is not this node's")
    if (opened.invite.labels, opened.invite.roles) != (action.labels, action.roles):
        return Refusal("node.admission", "labels and roles are not those of the invite")
    members = {node.node for node in state.nodes} | {voter.node for voter in state.voters}
    if opened.admitted_by not in state.admins and peer_id(opened.admitted_by) not in members:
        return Refusal("node.admission", "the admission is not countersigned by a confirmed node")
    return opened.invite_id, opened.admission.use_index


def _with_node(state: MeshState, node: ConfirmedNode) -> MeshState:
    others = (confirmed_node for confirmed_node in state.nodes if confirmed_node.node != node.node)
    return replace(state, nodes=tuple(sorted((*others, node), key=lambda one: one.node)))


def _drain(state: MeshState, case: Case, action: DrainNode) -> MeshState | Refusal:
    own = any(peer_id(key) == action.node for key in case.signers)
    refusal = None if own and action.draining else _admin(case)
    if refusal is not None:
        return refusal
    if not any(node.node == action.node for node in state.nodes):
        return Refusal("node.unknown", "no confirmed node has that id")
    nodes = tuple(replace(n, draining=action.draining) if n.node == action.node else n for n in state.nodes)
    return replace(state, nodes=nodes)


def _remove(state: MeshState, case: Case, action: RemoveNode) -> MeshState | Refusal:
    refusal = _admin(case)
    if refusal is not None:
        return refusal
    if not any(node.node == action.node for node in state.nodes):
        return Refusal("node.unknown", "no confirmed node has that id")
    if any(voter.node == action.node for voter in state.voters):
        return Refusal("node.votes", "the node is a voter; replace it first: freehold mesh voters")
    return replace(state, nodes=tuple(node for node in state.nodes if node.node != action.node))


# --- who decides ------------------------------------------------------------------------------------------------------


def _set_admins_refusal(state: MeshState, case: Case) -> Refusal | None:
    """Return why too few signed a new set of admins, or None: for this alone, a recovery key counts like an admin's."""
    return case.admin_threshold(state.threshold, (*admin_keys(state.admins), *recovery_keys(state.admins)))


def _set_admins(state: MeshState, action: SetAdmins) -> MeshState | Refusal:
    keys = action.admins
    own, recovery = admin_keys(keys), recovery_keys(keys)
    if not own or len(keys) > ADMINS_MAX or len(own) + len(recovery) != len(keys):
        return Refusal("admins.malformed", f"there are 1 to {ADMINS_MAX} admin keys of {PUBLIC_KEY_BYTES} bytes")
    if recovery and state.rules_version < RECOVERY_RULES:
        step = "an admin: freehold mesh rules --raise"
        return Refusal("rules.recovery", f"a recovery key needs rules {RECOVERY_RULES}; {step}")
    if any(first >= second for first, second in pairwise(keys)) or not set(own).isdisjoint(recovery):
        return Refusal("admins.malformed", "admin keys are not distinct and ascending")
    if not 0 < action.threshold <= len(own):
        return Refusal("admins.malformed", "the threshold is between 1 and the number of admin keys")
    return replace(state, admins=keys, threshold=action.threshold)


def _set_policy(state: MeshState, action: SetPolicy) -> MeshState | Refusal:
    refusal = _policy_refusal(state, action.policy)
    if refusal is not None:
        return refusal
    if not action.environment:
        if action.policy is None:
            return Refusal("policy.malformed", "a mesh has a policy; name an environment to return it to the mesh's")
        if "dev" in {state.policy.mode, action.policy.mode} and action.policy.mode != state.policy.mode:
            return Refusal("policy.development", "a mesh is of freehold dev from its genesis or never")
        return replace(state, policy=action.policy)
    if not any(environment.name == action.environment for environment in state.environments):
        return Refusal("environment.unknown", f"there is no environment {action.environment[:63]!r}")
    environments = tuple(
        replace(environment, policy=action.policy) if environment.name == action.environment else environment
        for environment in state.environments
    )
    return replace(state, environments=environments)


def _policy_refusal(state: MeshState, policy: Policy | None) -> Refusal | None:
    if policy is not None and policy.demands.by_passkey and state.rules_version < PASSKEY_RULES:
        step = "an admin: freehold mesh rules --raise"
        return Refusal("rules.passkey", f"approval by passkey needs rules {PASSKEY_RULES}; {step}")
    problem = policy_problem(policy) if policy is not None else None
    return Refusal("policy.malformed", problem) if problem else None


def _set_networks(state: MeshState, action: SetNetworks) -> MeshState | Refusal:
    if state.rules_version < NETWORK_RULES:
        step = "an admin: freehold mesh rules --raise"
        return Refusal("rules.networks", f"private networks need rules {NETWORK_RULES}; {step}")
    problem = networks_problem(action.networks)
    if problem or list(action.networks) != sorted(action.networks):
        return Refusal("networks.malformed", problem or "private networks are in ascending order")
    found_environment = next(
        (environment for environment in state.environments if environment.name == action.environment), None
    )
    if found_environment is None:
        return Refusal("environment.unknown", f"there is no environment {action.environment[:63]!r}")
    new_environment = replace(found_environment, guard=guarded(found_environment.protected, action.networks))
    return replace(
        state,
        environments=tuple(
            new_environment if environment is found_environment else environment for environment in state.environments
        ),
    )


def _set_rules(state: MeshState, rules_version: int) -> MeshState | Refusal:
    if not state.rules_version < rules_version <= RULES_VERSION:
        return Refusal("rules.version", f"this build applies rules up to {RULES_VERSION}; versions only rise")
    return replace(state, rules_version=rules_version)


# --- names ------------------------------------------------------------------------------------------------------------


def _create_project(state: MeshState, action: CreateProject) -> MeshState | Refusal:
    if not valid_name(action.name):
        return Refusal("project.name", "a name is 1 to 63 of a-z, 0-9 and dash")
    if any(project.name == action.name for project in state.projects):
        return Refusal("project.exists", f"there is a project {action.name} already")
    if len(state.projects) >= PROJECTS_MAX:
        return Refusal("project.limit", f"a mesh has at most {PROJECTS_MAX} projects")
    if len(action.owners) > OWNERS_MAX or any(not 0 < len(owner) <= OWNER_MAX for owner in action.owners):
        return Refusal("project.owners", f"at most {OWNERS_MAX} owners of 1 to {OWNER_MAX} characters")
    projects = (*state.projects, Project(action.name, action.owners))
    return replace(state, projects=tuple(sorted(projects, key=lambda one: one.name)))


def _create_environment(state: MeshState, case: Case, action: CreateEnvironment) -> MeshState | Refusal:
    if action.policy is not None or action.replace:
        refusal = case.admin_threshold(state.threshold) or _policy_refusal(state, action.policy)
    else:
        refusal = _admin(case)
    if refusal is not None:
        return refusal
    if not valid_name(action.name) or not valid_labels(action.selector):
        return Refusal("environment.malformed", "the name is 1 to 63 of a-z, 0-9 and dash; labels are sorted pairs")
    others = tuple(environment for environment in state.environments if environment.name != action.name)
    if (len(others) < len(state.environments)) != action.replace:
        return Refusal("environment.exists", "`create` makes a new environment, `set` changes one there is")
    if len(others) >= ENVIRONMENTS_MAX:
        return Refusal("environment.limit", f"a mesh has at most {ENVIRONMENTS_MAX} environments")
    texts = next((environment.networks for environment in state.environments if environment.name == action.name), ())
    new_environment = Environment(action.name, action.selector, action.policy, guarded(action.protected, texts))
    return replace(state, environments=tuple(sorted((*others, new_environment), key=lambda one: one.name)))


def claim(state: MeshState, lane: Lane, case: Case, action: ClaimRoutes) -> MeshState | Refusal:
    """Return the state in which the lane holds exactly the claimed routes; a route in use is not released."""
    rights = case.signer("start", lane.project, lane.environment)
    if isinstance(rights, Refusal):
        return rights
    if len(action.routes) > ROUTES_MAX or len(set(action.routes)) != len(action.routes):
        return Refusal("route.malformed", f"at most {ROUTES_MAX} distinct routes")
    problem = next((text for route in action.routes if (text := route_problem(route))), None)
    if problem:
        return Refusal("route.malformed", problem)
    candidate = lane.rollout.candidate if lane.rollout is not None else None
    used = [deployed for deployed in (lane.base, candidate, *lane.retained) if deployed is not None]
    if any(route not in action.routes for deployed in used for route in deployed.routes):
        return Refusal("route.in-use", "a release that runs or is kept for rollback serves a route you would release")
    mine = (lane.project, lane.environment)
    others = tuple(route for route in state.routes if (route.project, route.environment) != mine)
    for route_claim in others:
        if any(conflicts(route_claim.route, route) and _strangers(route_claim, lane, route) for route in action.routes):
            return Refusal(
                "route.taken", f"{route_claim.route.host}{route_claim.route.path} belongs to {route_claim.project}"
            )
    route_claims = tuple(sorted((*others, *(RouteClaim(route, *mine) for route in action.routes))))
    if len(route_claims) > ROUTES_TOTAL_MAX:
        return Refusal("route.limit", f"a mesh has at most {ROUTES_TOTAL_MAX} routes")
    return replace(state, routes=route_claims)


def conflicts(first: Route, second: Route) -> bool:
    """Return whether two routes on one host are the same or one lies below the other; "/" leaves what is below free."""
    if first.host != second.host:
        return False
    if first.path == second.path:
        return True
    short, long = sorted((first.path, second.path), key=len)
    return short != "/" and long.startswith(short + "/")


def _strangers(claimed: RouteClaim, lane: Lane, route: Route) -> bool:
    return claimed.project != lane.project or claimed.route == route


# --- voters -----------------------------------------------------------------------------------------------------------


def _reconfigure(state: MeshState, case: Case, action: Reconfigure) -> MeshState | Refusal:
    voters = action.voters
    if len(voters) not in VOTER_COUNTS or any(a >= b for a, b in pairwise(voters)):
        return Refusal("voters.malformed", f"voters are distinct, ascending, and {VOTER_COUNTS} in number")
    if len({voter.node for voter in voters}) != len(voters) or any(len(v.store_id) != STORE_ID_BYTES for v in voters):
        return Refusal("voters.malformed", "each voter is another node with a store id of 16 bytes")
    if voters == state.voters:
        return Refusal("voters.same", "these are the voters already")
    confirmed = {node.node for node in state.nodes} | {voter.node for voter in state.voters}
    if any(voter.node not in confirmed for voter in voters):
        return Refusal("voters.unconfirmed", "a node votes only after the chain confirmed it")
    if not grows(state, voters):
        refusal = _admin(case)
        if refusal is not None:
            return refusal
    ready = _ready(state, case)
    if isinstance(ready, Refusal):
        return ready
    count = sum(voter in ready for voter in voters)
    if count <= len(voters) // 2:
        return Refusal(
            "voters.not-ready", f"{count} of {len(voters)} new voters said they are ready; more than half must"
        )
    return replace(state, voters=voters)


def _ready(state: MeshState, case: Case) -> tuple[Voter, ...] | Refusal:
    ready = []
    for named in case.exhibits.exhibits.statements:
        signed = case.read(named, Signed, SIGNED_MAX_BYTES, "statement")
        if isinstance(signed, Refusal):
            return signed
        try:
            said: VoterReady = open_signed(case.rules.verifier, VOTER_READY_DOMAIN, case.rules.mesh, signed, VoterReady)
        except DecodeError as error:
            return Refusal("voters.statement", str(error))
        if peer_id(signed.key) != said.node or said.era != state.era:
            return Refusal("voters.statement", "a readiness is not signed by its node, or is of another era")
        ready.append(Voter(said.node, said.store_id))
    return tuple(ready)


def _admin(case: Case, project: str = ANY) -> Refusal | None:
    rights = case.signer("admin", project, ANY)
    return rights if isinstance(rights, Refusal) else None
