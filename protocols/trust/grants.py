"""Grants: what a principal may do, signed by an admin and attenuated link by link to sub-keys.

A principal is a person or an agent, named by an Ed25519 key. A chain of grants starts with one signed by an admin key;
every further link is signed by the holder of the link before it, names that link's digest as its parent, and is never
broader: fewer or equal roles, verbs, projects, environments, and no later expiry. Nothing below an agent is a person,
and no agent ever holds `approve` or `admin`. Not here: revocations and invites, which depend on what a node has heard
(trust.py), and the question which approvals a change needs (policy.py). Source: the attenuation idea of macaroons
(Birgisson et al., NDSS 2014), with signatures in place of shared secrets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from protocols.envelope import PUBLIC_KEY_BYTES, DecodeError, Signed, decode, digest, verify
from protocols.machine import Digest, Verifier
from protocols.refusal import Refusal

Role = Literal["viewer", "proposer", "deployer", "approver", "admin"]
Verb = Literal[
    "view",
    "attest",
    "propose",
    "start",
    "promote",
    "pause",
    "resume",
    "abort",
    "rollback",
    "secret",
    "approve",
    "admin",
]
PrincipalKind = Literal["person", "agent"]

VERBS_OF_ROLE: dict[Role, tuple[Verb, ...]] = {
    "viewer": ("view",),
    "proposer": ("view", "attest", "propose"),
    "deployer": ("view", "attest", "propose", "start", "promote", "pause", "resume", "abort", "rollback", "secret"),
    "approver": ("view", "approve"),
    "admin": (
        "view", "attest", "propose", "start", "promote", "pause", "resume", "abort", "rollback", "secret", "approve",
        "admin",
    ),
}  # fmt: skip
"""What each role may do. `admin` covers projects, environments, policy, freezes, certificates and revocations."""

ALL_ROLES: tuple[Role, ...] = ("viewer", "proposer", "deployer", "approver", "admin")


def holders_of(verb: Verb) -> str:
    """Say which roles may do `verb`, for refusals: whoever lacks a right should know whom to ask."""
    return " or ".join(role for role in ALL_ROLES if verb in VERBS_OF_ROLE[role])


ROLES_NEVER_FOR_AGENTS: frozenset[Role] = frozenset({"approver", "admin"})
ANY = "*"
"""In `projects` and `environments`: all of them, also future ones."""

GRANT_DOMAIN = "freehold/grant/1"
GRANT_MAX_BYTES = 4 * 1024
CHAIN_LINKS_MAX = 5
"""Admin to person to laptop to agent to sub-agent: longer chains are a sign of a loop, and each link costs a check."""

SCOPES_MAX = 64
"""Names in one grant; a principal with more projects than that gets a second grant."""


class Grant(msgspec.Struct, frozen=True, tag="grant"):
    """One link: `key` (32 bytes) may act with `roles`, narrowed to `verbs` unless that is empty.

    `projects` and `environments` are names or `ANY`; an empty tuple grants none. `expires_ms` is wall time, exclusive.
    `parent` is the digest of the parent link's payload, empty in the first link. `invite_uses` above 0 marks a grant to
    an invite's ephemeral key: it gives no right by itself, only to keys admitted with it. `same_person`, read in the first
    link, says that the admin who signs it gives it to themselves: an everyday key beside a sealed one. The mesh is bound
    by the signature, as everywhere.
    """

    key: bytes
    kind: PrincipalKind
    name: str
    roles: tuple[Role, ...]
    projects: tuple[str, ...]
    environments: tuple[str, ...]
    expires_ms: int
    nonce: bytes
    parent: bytes = b""
    verbs: tuple[Verb, ...] = ()
    invite_uses: int = 0
    same_person: bool = False

    def effective_verbs(self) -> tuple[Verb, ...]:
        """Return the verbs of the roles, narrowed by `verbs`, in the order of the admin role."""
        allowed = {verb for role in self.roles for verb in VERBS_OF_ROLE[role]}
        if self.verbs:
            allowed &= set(self.verbs)
        return tuple(verb for verb in VERBS_OF_ROLE["admin"] if verb in allowed)


GrantChain = Sequence[Signed]
"""Signed grants, the admin's first."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What a verified chain allows its last key to do, until `expires_ms`.

    `lineage` holds every key from the person's first to the acting one: all of them are the same person's doing, so an
    author's lineage never counts as someone else's approval. It begins with the admin's key where an admin gave the first
    link to themselves or to an agent, and leaves out an invite's, which several people may have used. `principal` is the
    first key that was granted and is not an invite's. `grants` holds the digest of every link, for revocations.

    `beside` is what further grants give the same key (`united`): each stands alone, so that the verb of one grant never
    meets the project of another. All other fields are of this one chain.
    """

    key: bytes
    principal: bytes
    kind: PrincipalKind
    name: str
    roles: tuple[Role, ...]
    verbs: tuple[Verb, ...]
    projects: tuple[str, ...]
    environments: tuple[str, ...]
    expires_ms: int
    lineage: tuple[bytes, ...]
    grants: tuple[Digest, ...]
    invite_key: bytes = b""
    beside: tuple[Rights, ...] = ()

    @property
    def each(self) -> tuple[Rights, ...]:
        """The rights of every grant, one by one."""
        return (self, *self.beside)

    @property
    def behind(self) -> tuple[bytes, ...]:
        """Every key of any grant's lineage: whose doing this key's acts may be."""
        return tuple(dict.fromkeys(key for rights in self.each for key in rights.lineage))

    def allows(self, verb: Verb, project: str, environment: str) -> bool:
        """Return whether one grant covers the verb there; `ANY` asks for the right everywhere."""
        return bool(self.allowing(verb, project, environment))

    def allowing(self, verb: Verb, project: str, environment: str) -> tuple[Rights, ...]:
        """Return the rights of each grant that by itself covers the verb there."""
        return tuple(
            rights
            for rights in self.each
            if verb in rights.verbs and covers(rights.projects, project) and covers(rights.environments, environment)
        )


def payer_of(rights: Rights) -> bytes:
    """Return the principal that pays for what a key costs: the first that was granted, whose agents and laptops it may be.

    A key makes others as it likes, so nothing that has a limit is counted by key alone.
    """
    return min(entry.principal for entry in rights.each)


NO_GRANT = Refusal("grant.none", "the key is not an admin of this mesh and shows no grant")
NEVER_EXPIRES_MS = 1 << 62
BEFORE_EXPIRY_MS = 0
"""A moment at which no grant has expired: for asking whose a key is, or what a grant once gave."""


def admin_rights(key: bytes) -> Rights:
    """Return the rights of an admin key of the mesh, which needs no grant."""
    verbs = VERBS_OF_ROLE["admin"]
    return Rights(key, key, "person", "admin", ALL_ROLES, verbs, (ANY,), (ANY,), NEVER_EXPIRES_MS, (key,), ())


def united(found: Sequence[Rights]) -> Rights:
    """Return the rights that several grants give one key, at least one; the first is shown where only one can be."""
    first, *more = found
    return replace(first, beside=tuple(more)) if more else first


def covers(scope: Sequence[str], name: str) -> bool:
    """Return whether `scope` names `name` or all."""
    return ANY in scope or name in scope


def verify_grants(
    verifier: Verifier, mesh: bytes, admins: Sequence[bytes], chain: GrantChain, at_ms: int
) -> Rights | Refusal:
    """Return the rights of the chain's last key at `at_ms` (wall time), or the first rule that is broken.

    Pure and deterministic: every node that is given the same arguments answers the same. Knows nothing of revocations;
    `TrustStore.rights` adds those.
    """
    if not 0 < len(chain) <= CHAIN_LINKS_MAX:
        return Refusal("grant.chain-length", f"a chain has 1 to {CHAIN_LINKS_MAX} grants, not {len(chain)}")
    parent: Grant | None = None
    parent_id = Digest(b"")
    grants: list[Grant] = []
    ids: list[Digest] = []
    for signed in chain:
        grant = _open_link(verifier, mesh, admins, signed, parent)
        if isinstance(grant, Refusal):
            return grant
        problem = _link_problem(grant, parent, parent_id, at_ms)
        if problem is not None:
            return problem
        grants.append(grant)
        parent, parent_id = grant, digest(signed.payload)
        ids.append(parent_id)
    assert parent is not None
    if parent.invite_uses:
        return Refusal("grant.invite-not-used", "an invite's own key has no rights until a joiner was admitted")
    first = grants[0]
    held = [grant.key for grant in grants if not grant.invite_uses]
    admins_own = first.same_person or first.kind == "agent"
    return Rights(
        key=parent.key,
        principal=held[0],
        kind=parent.kind,
        name=parent.name,
        roles=parent.roles,
        verbs=parent.effective_verbs(),
        projects=parent.projects,
        environments=parent.environments,
        expires_ms=parent.expires_ms,
        lineage=(chain[0].key, *held) if admins_own else tuple(held),
        grants=tuple(ids),
        invite_key=first.key if first.invite_uses else b"",
    )


def rights_of(
    verifier: Verifier, mesh: bytes, admins: Sequence[bytes], key: bytes, *, chain: GrantChain, at_ms: int
) -> Rights | Refusal:
    """Return the rights of `key`: an admin key with an empty chain has all, any other key what its chain proves."""
    if not chain:
        if key in admins:
            return admin_rights(key)
        return NO_GRANT
    rights = verify_grants(verifier, mesh, admins, chain, at_ms)
    if isinstance(rights, Rights) and rights.key != key:
        return Refusal("grant.other-key", "the grant is for another key than the one that signed")
    return rights


def rights_of_any(
    verifier: Verifier, mesh: bytes, admins: Sequence[bytes], key: bytes, *, chains: Sequence[GrantChain], at_ms: int
) -> Rights | Refusal:
    """Return what `key` may do by itself or by any of its chains that holds at `at_ms`; if none does, why the last not."""
    tried = ((), *chains) if key in admins or not chains else tuple(chains)
    entries = [rights_of(verifier, mesh, admins, key, chain=chain, at_ms=at_ms) for chain in tried]
    good = [rights for rights in entries if isinstance(rights, Rights)]
    return united(good) if good else entries[-1]


def _open_link(
    verifier: Verifier, mesh: bytes, admins: Sequence[bytes], signed: Signed, parent: Grant | None
) -> Grant | Refusal:
    if parent is None and signed.key not in admins:
        return Refusal("grant.not-by-admin", "the first grant of the chain is not signed by an admin of this mesh")
    if parent is not None and signed.key != parent.key:
        return Refusal("grant.not-by-holder", "a grant is not signed by the holder of the one before it")
    if not verify(verifier, GRANT_DOMAIN, mesh, signed):
        return Refusal("grant.signature", "a grant's signature does not verify in this mesh")
    try:
        grant: Grant = decode(signed.payload, Grant, GRANT_MAX_BYTES)
    except DecodeError as error:
        return Refusal("grant.malformed", str(error))
    if len(grant.key) != PUBLIC_KEY_BYTES:
        return Refusal("grant.malformed", f"a grant's key is not {PUBLIC_KEY_BYTES} bytes")
    if len(grant.projects) > SCOPES_MAX or len(grant.environments) > SCOPES_MAX:
        return Refusal("grant.malformed", f"a grant names more than {SCOPES_MAX} projects or environments")
    return grant


def _link_problem(grant: Grant, parent: Grant | None, parent_id: bytes, at_ms: int) -> Refusal | None:
    if at_ms >= grant.expires_ms:
        return Refusal("grant.expired", f"the grant to {grant.name!r} has expired")
    verbs = grant.effective_verbs()
    if grant.kind == "agent" and not ROLES_NEVER_FOR_AGENTS.isdisjoint(grant.roles):
        return Refusal("grant.agent-may-not", "an agent may never approve or administer")
    if grant.parent != parent_id:
        return Refusal("grant.parent", "a grant names another parent than the one before it")
    if parent is None:
        return None
    if grant.invite_uses:
        return Refusal("grant.invite-nested", "only an admin makes an invite's grant")
    if parent.kind == "agent" and grant.kind != "agent":
        return Refusal("grant.agent-made-person", "an agent may only delegate to agents")
    broader = (
        grant.expires_ms > parent.expires_ms
        or not set(grant.roles) <= set(parent.roles)
        or not set(verbs) <= set(parent.effective_verbs())
        or not _within(grant.projects, parent.projects)
        or not _within(grant.environments, parent.environments)
    )
    if broader:
        return Refusal("grant.broader-than-parent", f"the grant to {grant.name!r} is broader than its parent")
    return None


def _within(inner: Sequence[str], outer: Sequence[str]) -> bool:
    return ANY in outer or (ANY not in inner and set(inner) <= set(outer))
