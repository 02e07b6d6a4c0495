"""The trust store: what this node believes about peers and principals, from what it has been shown.

It learns certificates, admissions and revocations, in any order and from anybody, because each is signed; what cannot
be proven yet waits, bounded, until its issuer is known. It answers three questions: what standing a peer has, whether a
record of an author counts, and what rights a principal has. Expiry and revocation are judged when asked, by the clock
that is passed in. It holds no file: node and simulator rebuild it from the stored records. Not here: the decision chain
(`chain_decided` brings its news), hello, replication.

Rules, in the order they are applied:
  - revoked beats everything, and revocations only grow; what a revoked principal revokes does not count;
  - a node may pass on only roles that an admin gave: through an earlier certificate, or the invite of an admission;
  - an issuer signs for others while its own certificate runs; for itself also after that;
  - two keys admitted for one use of one invite are both limited until an admin revokes one of them;
  - a node may revoke itself, which is how it leaves;
  - a former admin's certificates count for nodes the chain has confirmed, and its revocations always.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

import msgspec

from protocols import keys
from protocols.envelope import PUBLIC_KEY_BYTES, Signed, digest
from protocols.keys import public_key_of
from protocols.machine import Digest, PeerId, Verifier
from protocols.refusal import Refusal
from protocols.trust.certificates import WARN_BEFORE_MS, Certificate, NodeRole, open_certificate
from protocols.trust.genesis import decode_genesis, mesh_id
from protocols.trust.grants import BEFORE_EXPIRY_MS, GrantChain, Rights, rights_of, verify_grants
from protocols.trust.invites import Bundle, OpenedBundle, open_bundle
from protocols.trust.revocations import (
    BY_REVOKED,
    Resting,
    Revocation,
    RevocationStatement,
    open_revocation,
    statement_id,
    void_among,
)

CLOCK_SKEW_MS = 120_000
"""How far another honest clock may be ahead of ours, as for records."""

UNPROVEN_MAX = 256
"""Certificates and admissions that wait for an issuer we have not heard of; a full mesh of newcomers fits."""

CERTIFICATES_PER_NODE_MAX = 16
"""Kept so that what an issuer signed in the past can still be checked: four years of renewals."""


CREDENTIALS_MAX = 12
"""Certificates one hello may carry: an issuer's issuer's issuer, each with a renewal, in about 4 KiB."""


_BY_REVOKED = Refusal(
    BY_REVOKED, "a key or grant that the revocation rests on was revoked; somebody who still may makes it again"
)

peer_id = lru_cache(1_024)(keys.peer_id)
"""Standing is asked for on every record; base58 is slow."""


class Credentials(msgspec.Struct, frozen=True, array_like=True):
    """The certificates and admissions that prove one node's standing from the genesis alone."""

    certificates: tuple[Signed, ...] = ()
    bundles: tuple[Bundle, ...] = ()


class Standing(Enum):
    """What a peer may do, weakest first."""

    REVOKED = "revoked"
    STRANGER = "stranger"
    EXPIRED = "expired"
    """Was a member, unrevoked: may connect to renew, and keeps its certified release."""
    LIMITED = "limited"
    """One of two keys admitted for the same use of an invite: hello and sync only."""
    JOINED = "joined"
    """Admitted by invite, not yet confirmed by the chain: no vote, workload or secret."""
    MEMBER = "member"

    __hash__ = object.__hash__  # as for machine.Store: looked up for every message


@dataclass(frozen=True, slots=True)
class HeldCertificate:
    """One believed certificate with its signed form and whether an admin signed it."""

    certificate: Certificate
    signed: Signed
    by_admin: bool


@dataclass(frozen=True, slots=True)
class Cutoff:
    """The last record sequence and certificate serial of a revoked node that are still believed."""

    last_seq: int
    last_serial: int


@dataclass(frozen=True, slots=True)
class TrustChanged:
    """Event for other machines: the trust store learnt something, judge again what rested on it."""


@dataclass(frozen=True, slots=True)
class Expiring:
    """A warning: this node's certificate runs out at `expires_ms` (or has)."""

    node: PeerId
    expires_ms: int
    expired: bool


class TrustStore:
    """What this node believes; every `learn_*` returns what was learnt, or why it was not."""

    def __init__(self, verifier: Verifier, genesis_bytes: bytes) -> None:
        """Start from the genesis alone. Raises DecodeError if it is malformed."""
        self.genesis = decode_genesis(genesis_bytes)
        self.genesis_bytes = genesis_bytes
        self.mesh = mesh_id(genesis_bytes)
        self.admins: tuple[bytes, ...] = self.genesis.admins
        self.threshold = self.genesis.threshold
        self._former_admins: tuple[bytes, ...] = ()
        self.verifier = verifier
        self._grant_verifier = keys.RememberingVerifier(verifier)
        self._confirmed = frozenset({self.genesis.voter_node})
        self._held: dict[PeerId, list[HeldCertificate]] = {}
        self._bundles: dict[Digest, tuple[Bundle, OpenedBundle]] = {}
        self._bundle_of: dict[bytes, Digest] = {}
        self._uses: dict[tuple[Digest, int], list[bytes]] = {}
        self._said: dict[Digest, Resting] = {}
        """Every revocation whose signer was entitled, by statement_id; the three below are what counts of them."""
        self._void: frozenset[Digest] = frozenset()
        self._nodes_revoked: dict[PeerId, Cutoff] = {}
        self._principals_revoked: set[bytes] = set()
        self._grants_revoked: set[bytes] = set()
        self._unproven: dict[Digest, Signed | Bundle] = {}
        self.version = 0
        """Rises whenever a belief changes; hello rechecks its connections by it."""

    # --- what others tell us ------------------------------------------------------------------------------------------

    def chain_decided(self, admins: tuple[bytes, ...], threshold: int, confirmed: Sequence[PeerId]) -> None:
        """Take over what the decision chain says now: admin keys, their threshold, the confirmed nodes."""
        before = (self.admins, self.threshold, self._confirmed)
        former = {key: None for key in (*self._former_admins, *self.admins) if key not in admins}
        self._former_admins = tuple(former)
        self.admins, self.threshold = admins, threshold
        self._confirmed = frozenset((self.genesis.voter_node, *confirmed))
        if (self.admins, self.threshold, self._confirmed) != before:
            self.version += 1
            self._judge_again()

    def learn_certificate(self, signed: Signed, wall_ms: int) -> Certificate | Refusal:
        """Believe a certificate if its issuer may issue it; otherwise remember it for later, bounded."""
        certificate = open_certificate(self.verifier, self.mesh, signed)
        if isinstance(certificate, Refusal):
            return certificate
        if certificate.issued_ms > wall_ms + CLOCK_SKEW_MS:
            return Refusal(
                "certificate.from-the-future",
                "the certificate was issued later than our clock shows; see which is wrong",
            )
        problem = self._hold_certificate(certificate, signed)
        if problem is not None:
            return problem
        self._retry()
        return certificate

    def learn_bundle(self, bundle: Bundle) -> OpenedBundle | Refusal:
        """Believe an admission that a member of ours countersigned; otherwise remember it for later, bounded."""
        opened = open_bundle(self.verifier, self.mesh, self.every_admin(), bundle)
        if isinstance(opened, Refusal):
            return opened
        if opened.invite.kind == "principal":
            chain, at_ms = bundle_grants(opened), opened.admission.at_ms
            rights = verify_grants(self.verifier, self.mesh, self.every_admin(), chain, at_ms)
            if isinstance(rights, Refusal):
                return rights
        problem = self._hold_bundle(bundle, opened)
        if problem is not None:
            return problem
        self._retry()
        return opened

    def learn_credentials(self, credentials: Credentials, wall_ms: int) -> Refusal | None:
        """Learn what a peer shows of itself; return why the last of its papers is still not believed, if one is not.

        What stays unproven is forgotten: a stranger cannot push out what waits for its issuer.
        """
        waiting = dict(self._unproven)
        problems: dict[Digest, Refusal] = {}
        for signed in credentials.certificates:
            certificate = self.learn_certificate(signed, wall_ms)
            if isinstance(certificate, Refusal):
                problems[_paper_id(signed)] = certificate
        for bundle in credentials.bundles:
            opened = self.learn_bundle(bundle)
            if isinstance(opened, Refusal):
                problems[_paper_id(bundle.admission)] = opened
        learnt = {_paper_id(item.signed) for held in self._held.values() for item in held} | set(self._bundles)
        self._unproven = waiting
        self._retry()
        return next((problems[paper] for paper in reversed(problems) if paper not in learnt), None)

    def learn_revocation(self, statement: RevocationStatement) -> Revocation | Refusal:
        """Believe a revocation whose signer may make it; the lowest cutoffs win, only a void one gives back.

        One that is void is remembered as well (BY_REVOKED): what voids it may turn out to be void itself.
        """
        resting = self._resting(statement)
        if isinstance(resting, Refusal):
            return resting
        name = statement_id(statement.signed)
        if name not in self._said:
            self._said[name] = resting
            self._weigh()
            self.version += 1
        return _BY_REVOKED if name in self._void else resting.revocation

    def void_revocation(self, statement: RevocationStatement) -> Refusal | None:
        """Return why a revocation would not count if it were made now; learns nothing."""
        resting = self._resting(statement)
        if isinstance(resting, Refusal):
            return resting
        name = statement_id(statement.signed)
        return _BY_REVOKED if name in void_among({**self._said, name: resting}) else None

    # --- questions about nodes ----------------------------------------------------------------------------------------

    def standing(self, peer: PeerId, wall_ms: int) -> Standing:
        """Return what `peer` may do at this wall time."""
        if peer in self._nodes_revoked:
            return Standing.REVOKED
        certificate = self.certificate(peer)
        if certificate is None:
            return Standing.STRANGER
        if certificate.expired(wall_ms):
            return Standing.EXPIRED
        if self.contested(public_key_of(peer)):
            return Standing.LIMITED
        return Standing.MEMBER if peer in self._confirmed else Standing.JOINED

    def certificate(self, peer: PeerId) -> Certificate | None:
        """Return the newest believed certificate of `peer`, expired or not."""
        held = self._held.get(peer)
        return held[-1].certificate if held else None

    def has_role(self, peer: PeerId, role: NodeRole, wall_ms: int) -> bool:
        """Return whether `peer` is a confirmed member with this role and a running certificate."""
        certificate = self.certificate(peer)
        return certificate is not None and role in certificate.roles and self.standing(peer, wall_ms) is Standing.MEMBER

    def confirmed(self, peer: PeerId) -> bool:
        """Return whether the chain has confirmed this node, whatever its certificate's age."""
        return peer in self._confirmed

    def nodes(self) -> tuple[PeerId, ...]:
        """Return every unrevoked node with a believed certificate, in ascending order."""
        return tuple(sorted(peer for peer, held in self._held.items() if held and peer not in self._nodes_revoked))

    def key_revoked(self, key: bytes) -> bool:
        """Return whether this key was revoked, as a principal or as a node; what is no key was not."""
        if key in self._principals_revoked:
            return True
        return len(key) == PUBLIC_KEY_BYTES and peer_id(key) in self._nodes_revoked

    def grant_revoked(self, grant: bytes) -> bool:
        """Return whether the grant with this digest was revoked by itself; its holder's key may be good elsewhere."""
        return grant in self._grants_revoked

    def cutoff(self, peer: PeerId) -> Cutoff | None:
        """Return the cutoffs of a revoked node, None for one that is not revoked."""
        return self._nodes_revoked.get(peer)

    def revoked_nodes(self) -> tuple[PeerId, ...]:
        """Return the revoked nodes in ascending order."""
        return tuple(sorted(self._nodes_revoked))

    def credentials(self, peer: PeerId) -> Credentials:
        """Return what proves `peer`'s newest certificate to somebody who knows only the genesis.

        At most CREDENTIALS_MAX certificates and as many bundles; empty for a stranger.
        """
        certificates: list[Signed] = []
        bundles: list[Bundle] = []
        wanted = [(peer, item) for item in self._held.get(peer, [])[-1:]]
        while wanted and len(certificates) < CREDENTIALS_MAX:
            subject, item = wanted.pop()
            if item.signed in certificates:
                continue
            certificates.append(item.signed)
            if item.by_admin:
                continue
            issuer = peer_id(item.signed.key)
            wanted += [(issuer, entitling) for entitling in self._entitling(issuer, item.certificate)[:1]]
            wanted += [(subject, first) for first in self._held[subject][:1]]
            bundle = self._bundles.get(self._bundle_of.get(public_key_of(subject), Digest(b"")))
            if bundle is not None and bundle[0] not in bundles:
                bundles.append(bundle[0])
        return Credentials(tuple(reversed(certificates)), tuple(reversed(bundles)))

    def expiring(self, wall_ms: int) -> tuple[Expiring, ...]:
        """Return a warning for each unrevoked node whose certificate runs out within 14 days, soonest first."""
        warnings = [
            Expiring(peer, held[-1].certificate.expires_ms, held[-1].certificate.expired(wall_ms))
            for peer, held in self._held.items()
            if peer not in self._nodes_revoked and held[-1].certificate.expires_ms - wall_ms <= WARN_BEFORE_MS
        ]
        return tuple(sorted(warnings, key=lambda warning: (warning.expires_ms, warning.node)))

    # --- questions about invites and principals -----------------------------------------------------------------------

    def contested(self, key: bytes) -> bool:
        """Return whether `key` shares a use of its invite with another unrevoked key."""
        bundle_id = self._bundle_of.get(key)
        if bundle_id is None:
            return False
        opened = self._bundles[bundle_id][1]
        users = self._uses[(opened.invite_id, opened.admission.use_index)]
        return sum(not self.key_revoked(user) for user in users) > 1

    def admission_of(self, key: bytes) -> OpenedBundle | None:
        """Return the admission that let this key in, if any."""
        bundle_id = self._bundle_of.get(key)
        return self._bundles[bundle_id][1] if bundle_id is not None else None

    def free_use(self, invite_id: Digest, uses: int) -> int | None:
        """Return the lowest use of an invite that is not known to be spent, or None."""
        return next((index for index in range(uses) if (invite_id, index) not in self._uses), None)

    def bundle_for(self, key: bytes) -> Bundle | None:
        """Return the signed trail of the admission that let this key in, if any."""
        bundle_id = self._bundle_of.get(key)
        return self._bundles[bundle_id][0] if bundle_id is not None else None

    def next_serial(self, key: bytes) -> int:
        """Return a serial above all that the issuer `key` is known to have used."""
        signed = [item.certificate.serial for held in self._held.values() for item in held if item.signed.key == key]
        signed += [opened.admission.serial for _, opened in self._bundles.values() if opened.admitted_by == key]
        return max(signed, default=0) + 1

    def check_grants(self, chain: GrantChain) -> Rights | Refusal:
        """Return the rights a chain would give before its expiry, also if a former admin signed it."""
        return verify_grants(self._grant_verifier, self.mesh, self.every_admin(), chain, BEFORE_EXPIRY_MS)

    def rights(self, key: bytes, chain: GrantChain, at_ms: int) -> Rights | Refusal:
        """Return what `key` may do at `at_ms`, with revocations and admissions as this node knows them.

        Unlike `verify_grants` the answer depends on what was heard so far, so it is for fresh requests, never for
        judging a decision that was already accepted.
        """
        rights = rights_of(self._grant_verifier, self.mesh, self.admins, key, chain=chain, at_ms=at_ms)
        if isinstance(rights, Refusal):
            # What was revoked stays so when its admin goes or its time is over: else it seems to have merely ended.
            return self._revoked_link(key, chain) or rights
        holders = (holder for holder in (rights.invite_key, *rights.lineage) if holder not in self.admins)
        if any(holder in self._principals_revoked for holder in holders):
            return Refusal("grant.revoked", "a principal in the chain of grants was revoked")
        if any(grant in self._grants_revoked for grant in rights.grants):
            return Refusal("grant.revoked", "a grant in the chain was revoked")
        if rights.invite_key:
            return self.admission_problem(rights.principal, rights.invite_key) or rights
        return rights

    def _revoked_link(self, key: bytes, chain: GrantChain) -> Refusal | None:
        holders = {key, *(link.key for link in chain[1:])}.difference(self.admins)
        if not self._principals_revoked.isdisjoint(holders) and chain:
            return Refusal("grant.revoked", "a principal in the chain of grants was revoked")
        if any(digest(link.payload) in self._grants_revoked for link in chain):
            return Refusal("grant.revoked", "a grant in the chain was revoked")
        return None

    def admission_problem(self, principal: bytes, invite_key: bytes) -> Refusal | None:
        """Return why a principal that an invite's key signed for does not count as let in by it, or None."""
        opened = self.admission_of(principal)
        if opened is None or opened.invite.invite_key != invite_key:
            return Refusal("grant.not-admitted", "no member has admitted this principal with its invite")
        if self.contested(principal):
            return Refusal("grant.contested", "another key was admitted for the same use of the invite")
        return None

    # --- inside -------------------------------------------------------------------------------------------------------

    def every_admin(self) -> tuple[bytes, ...]:
        """Return the admin keys of now and before: what they signed then still stands."""
        return (*self.admins, *self._former_admins)

    def _hold_certificate(self, certificate: Certificate, signed: Signed) -> Refusal | None:
        held = self._held.get(certificate.node, [])
        if any(item.signed == signed for item in held):
            return None
        problem = self._issue_problem(certificate, signed.key)
        if problem is not None:
            if problem.rule != "certificate.issuer-revoked":
                self._remember(_paper_id(signed), signed)
            return problem
        ordered = sorted([*held, HeldCertificate(certificate, signed, signed.key in self.every_admin())], key=_by_issue)
        if len(ordered) > CERTIFICATES_PER_NODE_MAX:
            # The first one, and what admins signed, prove where the roles came from; the last one is in use.
            del ordered[next((index for index, item in enumerate(ordered[1:-1], 1) if not item.by_admin), 1)]
        self._held[certificate.node] = ordered
        self.version += 1
        return None

    def _issue_problem(self, certificate: Certificate, key: bytes) -> Refusal | None:
        if key in self.admins or (key in self._former_admins and certificate.node in self._confirmed):
            return None
        issuer = peer_id(key)
        if not self._before_cutoff(issuer, certificate.serial):
            return Refusal("certificate.issuer-revoked", "the issuer was revoked before it signed this")
        if not self._entitling(issuer, certificate):
            return Refusal("certificate.not-an-issuer", "the signer is no admin and no issuer that we know of")
        texts = {role for item in self._held.get(certificate.node, []) for role in item.certificate.roles}
        opened = self.admission_of(public_key_of(certificate.node))
        if opened is not None and opened.invite.kind == "node":
            texts.update(opened.invite.roles)
        elif certificate.node not in self._held:
            return Refusal("certificate.not-invited", "an issuer certified a node that no admin or invite let in")
        if not set(certificate.roles) <= texts:
            return Refusal("certificate.roles", "an issuer gave a role that no admin had given")
        return None

    def _entitling(self, issuer: PeerId, certificate: Certificate) -> list[HeldCertificate]:
        """Return the issuer's certificates that let it sign this one; its own renewal may come after expiry."""
        itself = issuer == certificate.node
        return [
            item
            for item in self._held.get(issuer, [])
            if "issuer" in item.certificate.roles
            and item.certificate.issued_ms <= certificate.issued_ms
            and (itself or not item.certificate.expired(certificate.issued_ms))
        ]

    def _before_cutoff(self, issuer: PeerId, serial: int) -> bool:
        cutoff = self._nodes_revoked.get(issuer)
        return cutoff is None or serial <= cutoff.last_serial

    def _hold_bundle(self, bundle: Bundle, opened: OpenedBundle) -> Refusal | None:
        bundle_id = _paper_id(bundle.admission)
        if bundle_id in self._bundles:
            return None
        admission = opened.admission
        admitter = peer_id(opened.admitted_by)
        may_admit = self._before_cutoff(admitter, admission.serial) and any(
            "issuer" in item.certificate.roles
            and item.certificate.issued_ms <= admission.at_ms < item.certificate.expires_ms
            for item in self._held.get(admitter, [])
        )
        if not may_admit:
            self._remember(bundle_id, bundle)
            return Refusal("invite.not-by-member", "the admission is not countersigned by a member that may admit")
        self._bundles[bundle_id] = (bundle, opened)
        self._bundle_of.setdefault(admission.key, bundle_id)
        users = self._uses.setdefault((opened.invite_id, admission.use_index), [])
        if admission.key not in users:
            users.append(admission.key)
        self.version += 1
        return None

    def _weigh(self) -> None:
        """Work out again what counts of all that was said."""
        self._void = void_among(self._said)
        cutoffs: dict[PeerId, Cutoff] = {}
        subjects: dict[str, set[bytes]] = {"principal": set(), "grant": set()}
        for entry, resting in self._said.items():
            said = resting.revocation
            if entry in self._void:
                continue
            if said.kind != "node":
                subjects[said.kind].add(said.subject)
                continue
            peer = peer_id(said.subject)
            old = cutoffs.get(peer) or Cutoff(said.last_seq, said.last_serial)
            cutoffs[peer] = Cutoff(min(old.last_seq, said.last_seq), min(old.last_serial, said.last_serial))
        self._principals_revoked, self._grants_revoked = subjects["principal"], subjects["grant"]
        if cutoffs != self._nodes_revoked:
            self._nodes_revoked = cutoffs
            self._judge_again()

    def _resting(self, statement: RevocationStatement) -> Resting | Refusal:
        """Check a revocation and its signer; return it with what entitles that, whether or not this was revoked."""
        revocation = open_revocation(self.verifier, self.mesh, statement)
        if isinstance(revocation, Refusal):
            return revocation
        key = statement.signed.key
        if revocation.kind == "principal" and revocation.subject in self.admins:
            return Refusal("revocation.admin-key", "an admin key is removed by a decision, not by a revocation")
        if key in self.admins or key in self._former_admins:
            return Resting(revocation)
        if revocation.kind == "node" and key == revocation.subject and peer_id(key) in self._held:
            return Resting(revocation)
        if not statement.chain:
            return Refusal("revocation.not-entitled", "the signer is no admin and shows no grant")
        rights = verify_grants(self.verifier, self.mesh, self.every_admin(), statement.chain, revocation.at_ms)
        if isinstance(rights, Refusal):
            return rights
        problem = self.admission_problem(rights.principal, rights.invite_key) if rights.invite_key else None
        if problem is not None:
            return problem
        rests_on = (rights.invite_key, *rights.lineage, *rights.grants)
        if revocation.kind == "grant" and rights.grants[-1] == revocation.subject and key in rights.lineage:
            return Resting(revocation, rests_on)
        if rights.key == key and rights.allows("admin", "*", "*"):
            return Resting(revocation, rests_on)
        return Refusal("revocation.not-entitled", "the signer's grant does not cover revocations")

    def _judge_again(self) -> None:
        """Forget and re-learn everything: a revoked issuer takes along whatever rested on its void signatures."""
        held, bundles = self._held, self._bundles
        self._held, self._bundles, self._bundle_of, self._uses = {}, {}, {}, {}
        for bundle_id, (bundle, _) in bundles.items():
            self._unproven[bundle_id] = bundle
        for items in held.values():
            for item in items:
                self._unproven[_paper_id(item.signed)] = item.signed
        self._retry()

    def _remember(self, item_id: Digest, item: Signed | Bundle) -> None:
        self._unproven[item_id] = item
        if len(self._unproven) > UNPROVEN_MAX:
            del self._unproven[next(iter(self._unproven))]

    def _retry(self) -> None:
        """Learn what waits, again and again while that teaches something; signatures were checked on arrival."""
        learnt = bool(self._unproven)
        while learnt:
            waiting, self._unproven = self._unproven, {}
            learnt = False
            for item_id in sorted(waiting):
                item = waiting[item_id]
                if isinstance(item, Bundle):
                    opened = open_bundle(_Trusting(), self.mesh, self.every_admin(), item)
                    problem = opened if isinstance(opened, Refusal) else self._hold_bundle(item, opened)
                else:
                    certificate = open_certificate(_Trusting(), self.mesh, item)
                    assert isinstance(certificate, Certificate)
                    problem = self._hold_certificate(certificate, item)
                learnt = learnt or problem is None


class _Trusting:
    """A verifier for bytes whose signatures were already checked when they arrived."""

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        return True

    def verify_es256(self, point: bytes, message: bytes, signature: bytes) -> bool:
        return True


def bundle_grants(opened: OpenedBundle) -> tuple[Signed, ...]:
    """Return the chain of grants a principal was admitted with; empty for a node."""
    if opened.invite.grant is None or opened.join.grant is None:
        return ()
    return (opened.invite.grant, opened.join.grant)


def _paper_id(signed: Signed) -> Digest:
    return digest(signed.payload + signed.signature)


def _by_issue(item: HeldCertificate) -> tuple[int, int, bytes]:
    return (item.certificate.issued_ms, item.certificate.serial, item.signed.signature)
