"""A store that knows three members and some principals, and papers of each kind that they sign. Not a test."""

from __future__ import annotations

from typing import Any

from protocols.changes.approvals import Approval, sign_approval
from protocols.changes.change import CHANGE_DOMAIN
from protocols.changes.evidence import EvidenceRun, attest
from protocols.changes.secrets import Box, SealedSecret, sign_paper
from protocols.envelope import Signed, digest, encode, sign
from protocols.keys import peer_id
from protocols.machine import Signer
from protocols.records.credentials import grant_record
from protocols.records.key_table import make_key
from protocols.records.record import Record, sign_record
from protocols.records.store import OfferOutcome, OfferResult, RecordStore
from protocols.trust.certificates import issue
from protocols.trust.grants import GRANT_DOMAIN, Grant, Role
from protocols.trust.revocations import Revocation, sign_revocation
from protocols.trust.store import TrustStore
from tests.support.protocols.mesh_world import MeshWorld
from tests.support.protocols.trust_world import DAY_MS, VERIFIER, WALL_MS, signer

W = MeshWorld().furnish()
MESH = W.mesh


def world() -> RecordStore:
    """A store that knows three members, and the grants of the principals below."""
    trust = TrustStore(VERIFIER, encode(W.genesis))
    admin = signer("admin")
    for number, name in enumerate(("n1", "n2", "n3"), 1):
        trust.learn_certificate(
            issue(admin, MESH, peer_id(signer(name).public_key), roles=("worker",), labels=(), serial=number,
                  wall_ms=WALL_MS), WALL_MS,
        )  # fmt: skip
    trust.chain_decided(trust.admins, 1, [peer_id(signer(name).public_key) for name in ("n1", "n2", "n3")])
    held = RecordStore(trust)
    for name, role, project, environment in (
        ("author", "deployer", "shop", "prod"),
        ("approver", "approver", "shop", "prod"),
        ("beside", "deployer", "shop", "prod"),
        ("staging", "deployer", "shop", "staging"),
        ("other", "deployer", "blog", "prod"),
        ("viewer", "viewer", "shop", "prod"),
    ):
        key, body = grant_record(signer(name).public_key, (granted(name, role, project, environment),))
        assert held.offer(carried("n1", key, body), WALL_MS).outcome is OfferOutcome.MERGED
    return held


def granted(name: str, role: Role, project: str, environment: str, *, by: str = "admin", **more: Any) -> Signed:
    expires_ms = WALL_MS + 1000 * DAY_MS
    grant = Grant(
        signer(name).public_key, "person", name, (role,), (project,), (environment,), expires_ms, b"n" * 16, **more
    )
    return sign(signer(by), GRANT_DOMAIN, MESH, grant)


def carried(by: str, key: str, body: bytes, *, tombstone: bool = False, at_ms: int = WALL_MS, seq: int = 1) -> Signed:
    return sign_record(signer(by), MESH, Record(key, "immutable", seq, at_ms << 16, body=body, tombstone=tombstone))


def paper(kind: str, by: Signer, number: int = 1, at_ms: int = WALL_MS) -> tuple[str, bytes]:
    """Key and body of a paper of a kind about shop in prod."""
    if kind == "change":
        entry = replace_struct(W.change(W.release(number), "admin"), author=by.public_key, created_ms=at_ms)
        body = encode(sign(by, CHANGE_DOMAIN, MESH, entry))
        return make_key("change", entry.project, digest(body).hex()), body
    if kind == "approval":
        named = digest(b"change %d" % number)
        body = sign_approval(by, MESH, Approval(b"", named, "shop", "prod", at_ms, at_ms + DAY_MS))
        return make_key("approval", named.hex(), digest(body).hex()), body
    if kind == "evidence":
        component = digest(b"component %d" % number)
        run = EvidenceRun(MESH.hex(), "test", "host", at_ms)
        body = attest(by, run, passed=True, components=(("web", component),), configuration=digest(b"configuration"))
        return make_key("evidence", component.hex(), digest(body).hex()), body
    box = Box(peer_id(signer("n1").public_key), b"e" * 32, b"w" * 48)
    secret = SealedSecret("shop", "prod", "db", number, at_ms, b"sealed", (box,))
    body = encode(sign_paper(by, MESH, secret))
    return make_key("secret", "shop", "prod", "db", digest(body).hex()), body


def replace_struct(value: Any, **fields: Any) -> Any:
    return type(value)(**{name: getattr(value, name) for name in value.__struct_fields__} | fields)


def author_of(kind: str) -> Signer:
    return signer("approver" if kind == "approval" else "author")


def rule(offered: OfferResult) -> str:
    return offered.refusal.rule if offered.refusal is not None else offered.outcome.value


def revoked(kind: Any, subject: bytes) -> Any:
    return sign_revocation(signer("admin"), MESH, Revocation(kind, subject, 0, 0, "lost", WALL_MS))
