"""Papers of people: who signed what a record carries, whether that key may say so, and who may end it.

A change, an approval, evidence or a secret belongs to the key whose signature is inside, not to the node that carries
it. `PaperCourt.verify` is the one check that gossip and the API make before such a paper is kept. Its answer depends on
the paper, the grants and the chain, not on who brought it. Not here: whether policy is satisfied (state/gate.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from protocols.changes.approvals import read_approval
from protocols.changes.change import CHANGE_DOMAIN, CHANGE_MAX_BYTES, Change, change_problem
from protocols.changes.evidence import read_evidence
from protocols.changes.secrets import PAPER_DOMAIN, Resealed, SealedSecret, SecretRemoval, open_paper
from protocols.envelope import DecodeError, Signed, decode, digest, encode, open_signed, sign
from protocols.keys import peer_id
from protocols.machine import Signer, Verifier
from protocols.records.hlc import AHEAD_MAX_MS
from protocols.records.key_table import BODY_MAX_BYTES, RULE_OF_PREFIX, TOMBSTONE_MAX_BYTES
from protocols.records.record import Entry
from protocols.refusal import Refusal
from protocols.trust.grants import Rights, Verb
from protocols.trust.store import TrustStore

ENDING_DOMAIN = "freehold/ending/1"
REASON_MAX = 300
PAPERS = ("change", "approval", "evidence", "secret")
"""Kinds that a principal signs, and whose life is a function of what is signed and of the chain."""

CHECKED = (*PAPERS, "resealed", "release", "decision")
"""Kinds whose bodies the court judges; the others judge themselves (trust), or are a node's own words."""


class Ending(msgspec.Struct, frozen=True, tag="ending"):
    """The author takes back the paper under the record key `key`; `at_ms` is its wall clock, for people."""

    key: str
    at_ms: int
    reason: str = ""


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """The body of a tombstone: the paper's whole body, which its key names by digest, and who ended it.

    `statement` is a signed `Ending`; of a secret also a signed `SecretRemoval`. The paper is there so that whoever never
    held it can tell that its author speaks.
    """

    paper: bytes
    statement: Signed


@dataclass(frozen=True, slots=True)
class Paper:
    """A paper that verified: the key that signed it, what it needed a right for and where, when (wall ms) its life ends.

    `ends_ms` 0: it has no end of its own. `pins` are the digests by which a decision keeps it. `by_node` tells evidence
    that a node may sign without a grant.
    """

    author: bytes
    verb: Verb
    project: str
    environment: str
    signed_ms: int
    ends_ms: int
    pins: tuple[bytes, ...]
    by_node: bool = False


def end_paper(signer: Signer, mesh: bytes, ending: Ending, paper: bytes) -> bytes:
    """Return the body of the tombstone by which its author ends `paper` (the record's body)."""
    return encode(Ended(paper, sign(signer, ENDING_DOMAIN, mesh, ending)))


def read_paper(verifier: Verifier, mesh: bytes, prefix: str, parts: Sequence[str], body: bytes) -> Paper | Refusal:
    """Verify form, size and signature of a paper, and that it belongs under this key; nothing about rights.

    `parts` are those of the record's key, as its row in the key table names them.
    """
    if not 0 < len(body) <= BODY_MAX_BYTES:
        return Refusal("paper.too-large", f"a paper has 1 to {BODY_MAX_BYTES} bytes")
    if digest(body).hex() != parts[-1]:
        return _misplaced(prefix)
    try:
        match prefix:
            case "change":
                return _read_change(verifier, mesh, parts, body)
            case "approval":
                return _read_approval(verifier, mesh, parts, body)
            case "evidence":
                return _read_evidence(verifier, mesh, parts, body)
            case "secret":
                return _read_secret(verifier, mesh, parts, body)
            case _:
                return Refusal("paper.kind", f"a {prefix} record is not a paper that a principal signs")
    except DecodeError as error:
        return Refusal(f"{prefix}.malformed", str(error))


def _read_change(verifier: Verifier, mesh: bytes, parts: Sequence[str], body: bytes) -> Paper | Refusal:
    signed: Signed = decode(body, Signed, BODY_MAX_BYTES)
    change: Change = open_signed(verifier, CHANGE_DOMAIN, mesh, signed, Change)
    problem = change_problem(change)
    if problem or len(signed.payload) > CHANGE_MAX_BYTES:
        return Refusal("change.malformed", problem or "the change is too long")
    if change.author != signed.key:
        return Refusal("change.author", "the change is not signed by the author it names")
    if change.project != parts[0]:
        return _misplaced("change")
    at_ms, pins = change.created_ms, (bytes(digest(signed.payload)),)
    return Paper(signed.key, "propose", change.project, change.environment, at_ms, _life("change", at_ms), pins)


def _read_approval(verifier: Verifier, mesh: bytes, parts: Sequence[str], body: bytes) -> Paper | Refusal:
    said = read_approval(verifier, mesh, body)
    if isinstance(said, Refusal):
        return said
    if said.change.hex() != parts[0]:
        return _misplaced("approval")
    at_ms, ends_ms = said.approved_ms, min(said.expires_ms, _life("approval", said.approved_ms))
    return Paper(said.key, "approve", said.project, said.environment, at_ms, ends_ms, (bytes(said.change),))


def _read_evidence(verifier: Verifier, mesh: bytes, parts: Sequence[str], body: bytes) -> Paper | Refusal:
    said = read_evidence(verifier, mesh, body)
    if isinstance(said, Refusal):
        return said
    if parts[0] not in {component.hex() for component in said.components}:
        return _misplaced("evidence")
    at_ms, pins = said.finished_ms, tuple(bytes(configuration) for configuration in said.configurations)
    return Paper(said.key, "attest", "", "", at_ms, _life("evidence", at_ms), pins, by_node=True)


def _read_secret(verifier: Verifier, mesh: bytes, parts: Sequence[str], body: bytes) -> Paper | Refusal:
    signed: Signed = decode(body, Signed, BODY_MAX_BYTES)
    paper = open_paper(verifier, mesh, signed)
    if not isinstance(paper, SealedSecret):
        return Refusal("secret.malformed", "this is not a version of a secret")
    if (paper.project, paper.environment, paper.name) != tuple(parts[:3]):
        return _misplaced("secret")
    pins = (bytes.fromhex(parts[-1]),)
    return Paper(signed.key, "secret", paper.project, paper.environment, paper.created_ms, 0, pins)


def _life(prefix: str, signed_ms: int) -> int:
    return signed_ms + RULE_OF_PREFIX[prefix].life_ms


def _misplaced(prefix: str) -> Refusal:
    return Refusal("records.key", f"the key names another subject than the {prefix}")


class PaperCourt:
    """What one node knows that judging papers takes: whose grants it holds, and what the chain pins."""

    def __init__(self, trust: TrustStore) -> None:
        """Take the node's beliefs; `pins` follows the chain (state/pins.py)."""
        self._trust = trust
        self._chains: dict[bytes, dict[str, Rights]] = {}
        self.pins: frozenset[bytes] = frozenset()

    # --- what is known ------------------------------------------------------------------------------------------------

    def learn_grant(self, entry: Entry) -> None:
        """Take in a grant record that the trust store believes."""
        try:
            chain: tuple[Signed, ...] = decode(entry.record.body, tuple[Signed, ...], BODY_MAX_BYTES)
        except DecodeError:
            return
        rights = self._trust.check_grants(chain)
        if isinstance(rights, Rights):
            self._chains.setdefault(rights.key, {})[entry.record.key] = rights

    def forget_grant(self, entry: Entry) -> None:
        """Forget a grant record."""
        for chains in self._chains.values():
            chains.pop(entry.record.key, None)

    def family(self, key: bytes) -> frozenset[bytes]:
        """Return the keys of which some grant comes from a principal that some grant of this key comes from."""
        mine = {rights.principal for rights in self._chains.get(key, {}).values()}
        return frozenset(
            other for other, held in self._chains.items() if any(rights.principal in mine for rights in held.values())
        )

    # --- judging ------------------------------------------------------------------------------------------------------

    def verify(self, prefix: str, parts: Sequence[str], body: bytes, wall_ms: int) -> Paper | Refusal:
        """Return the paper if it may be kept at `wall_ms`: signature, key, its author's right there, size and life."""
        paper = read_paper(self._trust.verifier, self._trust.mesh, prefix, parts, body)
        if isinstance(paper, Refusal):
            return paper
        return self.standing(paper) or self.over(paper, wall_ms) or paper

    def standing(self, paper: Paper) -> Refusal | None:
        """Return why the paper's author counts for nothing there, or None; whatever is pinned stays."""
        if self.pinned(paper):
            return None
        trust = self._trust
        if paper.author in trust.every_admin():
            return None
        if paper.by_node and trust.certificate(peer_id(paper.author)) is not None:
            if trust.key_revoked(paper.author):
                return Refusal("paper.author-revoked", "the node that signed this was revoked")
            return None
        allowing = [rights for rights in self._chains.get(paper.author, {}).values() if _covers(rights, paper)]
        if not allowing:
            where = f"{paper.project} in {paper.environment}" if paper.project else "this mesh"
            return Refusal("paper.not-allowed", f"no grant lets the key that signed this {paper.verb} in {where}")
        if all(self._revoked(rights) for rights in allowing):
            return Refusal("paper.author-revoked", "the key that signed this, or a grant behind it, was revoked")
        return None

    def over(self, paper: Paper, wall_ms: int) -> Refusal | None:
        """Return why a paper's life is over, or has not begun, or None."""
        if paper.signed_ms > wall_ms + AHEAD_MAX_MS:
            return Refusal("paper.ahead", "the paper is dated later than this node's clock shows")
        if paper.ends_ms and paper.ends_ms <= wall_ms and not self.pinned(paper):
            return Refusal("records.expired", "the paper's life is over and no release that is kept names it")
        return None

    def pinned(self, paper: Paper) -> bool:
        """Whether a base, a rollout or a retained release names the paper."""
        return not self.pins.isdisjoint(paper.pins)

    def check(self, entry: Entry, wall_ms: int) -> Refusal | None:
        """Judge the body of a record of CHECKED, or a tombstone of one; who carries it is not asked."""
        prefix, parts, body = entry.parsed.rule.prefix, entry.parsed.parts, entry.record.body
        if entry.record.tombstone:
            return self.ending_problem(entry)
        if prefix in {"release", "decision"}:
            return Refusal(
                "records.unused", f"no release writes {prefix} records: the chain and the artifacts hold them"
            )
        if prefix == "resealed":
            return _resealed_problem(parts, body)
        paper = self.verify(prefix, parts, body, wall_ms)
        return paper if isinstance(paper, Refusal) else None

    def ending_problem(self, entry: Entry) -> Refusal | None:
        """Return why a tombstone of a paper does not end it, or None."""
        prefix, parts = entry.parsed.rule.prefix, entry.parsed.parts
        trust = self._trust
        try:
            ended: Ended = decode(entry.record.body, Ended, TOMBSTONE_MAX_BYTES)
        except DecodeError as error:
            return Refusal("records.ending", f"a tombstone holds the paper and its author's statement: {error}")
        paper = read_paper(trust.verifier, trust.mesh, prefix, parts, ended.paper)
        if isinstance(paper, Refusal):
            return paper
        if ended.statement.key != paper.author:
            return Refusal("records.not-author", f"only who signed a {prefix} may end it; a carrier may not")
        if self.pinned(paper):
            return Refusal("records.pinned", f"a release that runs or is kept for rollback names this {prefix}")
        return _statement_problem(trust.verifier, trust.mesh, entry, ended.statement) or self.standing(paper)

    def paper_of(self, entry: Entry) -> Paper | None:
        """Return what is known of a held record's paper, of one that was verified before; None if it has none."""
        prefix, parts, body = entry.parsed.rule.prefix, entry.parsed.parts, entry.record.body
        if prefix not in PAPERS:
            return None
        try:
            held = decode(body, Ended, TOMBSTONE_MAX_BYTES).paper if entry.record.tombstone else body
        except DecodeError:
            return None
        paper = read_paper(_TRUSTING, self._trust.mesh, prefix, parts, held)
        return None if isinstance(paper, Refusal) else paper

    def _revoked(self, rights: Rights) -> bool:
        trust = self._trust
        holders = (holder for holder in (rights.invite_key, *rights.lineage) if holder not in trust.admins)
        return any(trust.key_revoked(holder) for holder in holders) or any(map(trust.grant_revoked, rights.grants))


def _covers(rights: Rights, paper: Paper) -> bool:
    if not paper.project:
        return paper.verb in rights.verbs
    return rights.allows(paper.verb, paper.project, paper.environment)


def _statement_problem(verifier: Verifier, mesh: bytes, entry: Entry, statement: Signed) -> Refusal | None:
    """Return why a statement does not end the paper under this record's key; its signer is the caller's question."""
    if entry.parsed.rule.prefix == "secret":
        try:
            removal: SecretRemoval = open_signed(verifier, PAPER_DOMAIN, mesh, statement, SecretRemoval)
        except DecodeError:
            pass
        else:
            place = (removal.project, removal.environment, removal.name)
            if place == entry.parsed.parts[:3] and bytes.fromhex(entry.parsed.parts[-1]) in removal.versions:
                return None
            return Refusal("records.ending", "the removal names another secret or other versions")
    try:
        ending: Ending = open_signed(verifier, ENDING_DOMAIN, mesh, statement, Ending)
    except DecodeError as error:
        return Refusal("records.ending", f"the statement does not verify: {error}")
    if ending.key != entry.record.key or len(ending.reason) > REASON_MAX:
        return Refusal("records.ending", "the statement ends another paper, or its reason is too long")
    return None


def _resealed_problem(parts: Sequence[str], body: bytes) -> Refusal | None:
    try:
        said: Resealed = decode(body, Resealed, BODY_MAX_BYTES)
    except DecodeError as error:
        return Refusal("resealed.malformed", str(error))
    fits = (said.secret.hex(), str(said.box.node)) == (parts[0], parts[1])
    sound = len(said.box.ephemeral) == 32 and len(said.box.wrapped) == 48
    return None if fits and sound else Refusal("resealed.malformed", "the box is not one for the node in the key")


class _Trusting:
    """A verifier for bytes whose signatures were checked when they were merged."""

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        return True

    def verify_es256(self, point: bytes, message: bytes, signature: bytes) -> bool:
        return True


_TRUSTING = _Trusting()
