"""Admitting an invited key: the checks and signatures of the member that lets it in.

Used by hello for nodes and by the node's API for principals. The trust store is told at once, so that a use counts as
spent before anything is sent; the caller publishes the results as records before its answer leaves. Not here: the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from protocols.envelope import Signed, digest
from protocols.keys import peer_id, public_key_of
from protocols.machine import Now, PeerId, Signer, Verifier
from protocols.refusal import Refusal
from protocols.trust.certificates import issue
from protocols.trust.invites import Bundle, countersign, open_invite, open_join
from protocols.trust.store import CLOCK_SKEW_MS, TrustStore


class JoinPapers(msgspec.Struct, frozen=True, array_like=True):
    """A newcomer's signed invite and join request."""

    invite: Signed
    join: Signed


def admit(
    trust: TrustStore,
    signer: Signer,
    verifier: Verifier,
    papers: JoinPapers,
    now: Now,
    *,
    kind: Literal["node", "principal"],
    key: bytes,
) -> Bundle | Refusal:
    """Countersign an admission with the lowest use not known to be spent; the same papers get the same answer again.

    `key` is the one that the asker has proven to hold, by its connection or its signed request. Refuses expired, spent
    and malformed invites, other keys and kinds, revoked keys, and everything if this node may not issue.
    """
    me = peer_id(signer.public_key)
    if not trust.has_role(me, "issuer", now.wall_ms):
        return Refusal("invite.not-an-issuer", f"this node may not admit; ask one of: {_issuers(trust, now.wall_ms)}")
    invite = open_invite(verifier, trust.mesh, trust.admins, papers.invite)
    if isinstance(invite, Refusal):
        return invite
    join = open_join(verifier, trust.mesh, invite, papers.join)
    if isinstance(join, Refusal):
        return join
    if invite.kind != kind:
        return Refusal("invite.kind", f"the invite is for a {invite.kind}")
    if join.key != key:
        return Refusal("invite.join-key", "the join request is for another key than the asker's")
    if trust.key_revoked(join.key):
        return Refusal("invite.key-revoked", "this key was revoked; make a new one")
    invite_id = digest(papers.invite.payload)
    known = trust.bundle_for(join.key)
    if known is not None:
        if digest(known.invite.payload) == invite_id:
            return known
        return Refusal("invite.other", "this key was already admitted with another invite")
    if not invite.issued_ms - CLOCK_SKEW_MS <= now.wall_ms < invite.expires_ms:
        return Refusal("invite.expired", "the invite has expired or is not valid yet; ask for a new one")
    use_index = trust.free_use(invite_id, invite.uses)
    if use_index is None:
        return Refusal("invite.spent", "every use of the invite is spent; ask for a new one")
    serial = trust.next_serial(signer.public_key)
    bundle = countersign(
        signer, trust.mesh, papers.invite, papers.join,
        key=join.key, use_index=use_index, serial=serial, wall_ms=now.wall_ms,
    )  # fmt: skip
    learnt = trust.learn_bundle(bundle)
    return learnt if isinstance(learnt, Refusal) else bundle


def certify(trust: TrustStore, signer: Signer, node: PeerId, now: Now) -> Signed | Refusal:
    """Sign a certificate for an admitted or known node: the roles and labels it has, or those of its invite.

    Refuses strangers, the revoked and the contested, and everything if this node may not issue. An issuer whose own
    certificate has run out may still certify itself.
    """
    me = peer_id(signer.public_key)
    key = public_key_of(node)
    if trust.key_revoked(key) or trust.contested(key):
        return Refusal("certificate.not-renewable", "the node was revoked, or its invite's use is contested")
    current = trust.certificate(node)
    opened = trust.admission_of(key)
    if node != me and not trust.has_role(me, "issuer", now.wall_ms):
        return Refusal("certificate.not-an-issuer", f"ask one of: {_issuers(trust, now.wall_ms)}")
    if current is not None:
        roles, labels = current.roles, current.labels
    elif opened is not None and opened.invite.kind == "node":
        roles, labels = opened.invite.roles, opened.invite.labels
    else:
        return Refusal("certificate.not-invited", "no admin and no invite let this node in")
    serial = trust.next_serial(signer.public_key)
    signed = issue(signer, trust.mesh, node, roles=roles, labels=labels, serial=serial, wall_ms=now.wall_ms)
    learnt = trust.learn_certificate(signed, now.wall_ms)
    return learnt if isinstance(learnt, Refusal) else signed


def issuers(trust: TrustStore, wall_ms: int) -> Sequence[PeerId]:
    """Return the confirmed nodes that may admit and renew now, in ascending order."""
    return [peer for peer in trust.nodes() if trust.has_role(peer, "issuer", wall_ms)]


def _issuers(trust: TrustStore, wall_ms: int) -> str:
    return ", ".join(issuers(trust, wall_ms)) or "an admin (no issuer node is left)"
