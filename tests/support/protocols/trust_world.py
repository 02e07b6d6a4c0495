"""A small world for tests of trust: an admin, a genesis, nodes with real keys, a seeded entropy. No clock, no I/O."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field

from protocols.envelope import Signed, digest, encode, sign
from protocols.keys import Ed25519Signer, Ed25519Verifier, peer_id
from protocols.machine import Now, PeerId
from protocols.trust.admission import JoinPapers
from protocols.trust.certificates import NodeRole, issue
from protocols.trust.genesis import Genesis
from protocols.trust.grants import ALL_ROLES, GRANT_DOMAIN, Grant, PrincipalKind, Role
from protocols.trust.invites import Invite, JoinRequest, make_invite, make_join
from protocols.trust.revocations import Revocation, RevocationStatement, sign_revocation, statement_id
from protocols.trust.store import TrustStore

VERIFIER = Ed25519Verifier()
WALL_MS = 1_700_000_000_000
DAY_MS = 86_400_000


def now(mono_ms: int = 0, wall_ms: int = WALL_MS) -> Now:
    return Now(mono_ms, wall_ms)


def signer(name: str) -> Ed25519Signer:
    return Ed25519Signer(hashlib.sha256(name.encode()).digest())


def node_id(name: str) -> PeerId:
    return peer_id(signer(name).public_key)


class SeededEntropy:
    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def random_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


@dataclass
class World:
    admin: Ed25519Signer = field(default_factory=lambda: signer("admin"))
    founder: Ed25519Signer = field(default_factory=lambda: signer("founder"))

    def __post_init__(self) -> None:
        genesis = Genesis(
            name="home",
            nonce=b"n" * 16,
            admins=(self.admin.public_key,),
            threshold=1,
            voter_node=peer_id(self.founder.public_key),
            voter_store=b"s" * 16,
            policy=b"",
            created_ms=WALL_MS,
        )
        self.genesis_bytes = encode(genesis)
        self.mesh = digest(self.genesis_bytes)

    def trust(self, *certificates: Signed) -> TrustStore:
        store = TrustStore(VERIFIER, self.genesis_bytes)
        for signed in (self.certificate("founder", ("issuer", "voter", "worker")), *certificates):
            store.learn_certificate(signed, WALL_MS)
        return store

    def certificate(
        self,
        name: str,
        roles: tuple[NodeRole, ...] = ("worker",),
        by: Ed25519Signer | None = None,
        serial: int = 1,
        wall_ms: int = WALL_MS,
    ) -> Signed:
        return issue(by or self.admin, self.mesh, node_id(name), roles=roles, labels=(), serial=serial, wall_ms=wall_ms)

    def invite(
        self,
        *,
        uses: int = 1,
        kind: str = "node",
        roles: tuple[NodeRole, ...] = ("worker",),
        wall_ms: int = WALL_MS,
        key: str = "invite",
        by: Ed25519Signer | None = None,
    ) -> Signed:
        grant = None
        if kind == "principal":
            grant = self.grant(key, expires_ms=WALL_MS + 30 * DAY_MS, roles=("proposer",), invite_uses=uses)
        body = Invite(
            mesh=self.mesh,
            invite_key=signer(key).public_key,
            kind=kind,  # type: ignore[arg-type]
            roles=roles if kind == "node" else (),
            labels=(),
            uses=uses,
            issued_ms=wall_ms,
            expires_ms=wall_ms + DAY_MS,
            grant=grant,
        )
        return make_invite(by or self.admin, body)

    def papers(self, name: str, invite: Signed, key: str = "invite", grant: Signed | None = None) -> JoinPapers:
        join = JoinRequest(signer(name).public_key, name, b"n" * 16, grant)
        return JoinPapers(invite, make_join(signer(key), self.mesh, join))

    def grant(
        self,
        name: str,
        *,
        by: str = "admin",
        kind: PrincipalKind = "person",
        roles: tuple[Role, ...] = ALL_ROLES,
        verbs: tuple[str, ...] = (),
        projects: tuple[str, ...] = ("*",),
        environments: tuple[str, ...] = ("*",),
        expires_ms: int = WALL_MS + DAY_MS,
        parent: Signed | None = None,
        invite_uses: int = 0,
        same_person: bool = False,
    ) -> Signed:
        grant = Grant(
            key=signer(name).public_key,
            kind=kind,
            name=name,
            roles=roles,
            projects=projects,
            environments=environments,
            expires_ms=expires_ms,
            nonce=b"n",
            parent=digest(parent.payload) if parent is not None else b"",
            verbs=verbs,  # type: ignore[arg-type]
            invite_uses=invite_uses,
            same_person=same_person,
        )
        return sign(signer(by), GRANT_DOMAIN, self.mesh, grant)

    def revocation(
        self,
        kind: str,
        subject: bytes,
        *,
        last_seq: int = 0,
        last_serial: int = 0,
        by: str = "admin",
        chain: tuple[Signed, ...] = (),
        kept: tuple[RevocationStatement, ...] = (),
    ) -> RevocationStatement:
        names = tuple(bytes(statement_id(revocation_statement.signed)) for revocation_statement in kept)
        body = Revocation(kind, subject, last_seq, last_serial, "lost", WALL_MS, names)  # type: ignore[arg-type]
        return sign_revocation(signer(by), self.mesh, body, chain)
