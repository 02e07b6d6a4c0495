"""Named ways to break trust, records, sync, placement, secrets and analysis; the hostile member must notice each.

Hunted by hostile runs (hostile.py), not by fleets. Not here: mutants of the chain and of rollouts.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from protocols.changes import approvals, evidence, passkeys
from protocols.changes.demands import Demands
from protocols.envelope import decode
from protocols.machine import Reject
from protocols.records import gossip, papers, record, sync
from protocols.records.papers import PaperCourt
from protocols.records.quotas import Quotas
from protocols.records.store import RecordStore
from protocols.refusal import Refusal
from protocols.rollout import conductor
from protocols.state import analysis, placement, policy
from protocols.trust import grants, invites
from protocols.trust.revocations import Resting, open_revocation
from protocols.trust.store import TrustStore
from simulation.chain.mutants import Mutant, Patch
from simulation.world.entropy import KeyRing


class _Trusting:
    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        return True

    def verify_es256(self, point: bytes, message: bytes, signature: bytes) -> bool:
        return True


def _forgives(owner: Any, name: str, *rules: str) -> Callable[[], Sequence[Patch]]:
    """The check goes on, but these rules refuse nothing any more."""

    def patches() -> Sequence[Patch]:
        check = getattr(owner, name)

        def forgiving(*args: Any, **rest: Any) -> Any:
            entry = check(*args, **rest)
            return None if isinstance(entry, Refusal) and entry.rule in rules else entry

        return [(owner, name, forgiving)]

    return patches


def _words_unweighed() -> Sequence[Patch]:
    most = Quotas.most

    def count_only(self: Quotas, budget: Any) -> tuple[int, int]:
        return (most(self, budget)[0], 0) if budget == "words" else most(self, budget)

    return [(Quotas, "most", count_only)]


def _announced_unmetered() -> Sequence[Patch]:
    return [(gossip.RecordMachine, "_bucket", lambda self, author, now: gossip.TokenBucket(1e9, 1e9, 1e9, now.mono_ms))]


def _sets(owner: Any, name: str, value: Any) -> Callable[[], Sequence[Patch]]:
    return lambda: [(owner, name, value)]


def _unverified() -> Sequence[Patch]:
    read = papers.read_paper
    return [(papers, "read_paper", lambda verifier, *rest: read(_Trusting(), *rest))]


def _anywhere() -> Sequence[Patch]:
    """A paper is kept under whatever key of its kind."""
    read = papers._read_change
    return [(papers, "_read_change", lambda v, mesh, parts, body: read(v, mesh, ("shop", *parts[1:]), body))]


def _upper_forgotten() -> Sequence[Patch]:
    """Only the last link of a chain of grants can be revoked, and only its own key."""

    def last(self: PaperCourt, rights: Any) -> bool:
        return self._trust.key_revoked(rights.key) or self._trust.grant_revoked(rights.grants[-1])

    return [(PaperCourt, "_revoked", last)]


def _anybody_revokes() -> Sequence[Patch]:
    resting = TrustStore._resting

    def lenient(self: TrustStore, statement: Any) -> Any:
        answer = resting(self, statement)
        opened = open_revocation(self.verifier, self.mesh, statement)
        return Resting(opened) if isinstance(answer, Refusal) and not isinstance(opened, Refusal) else answer

    return [(TrustStore, "_resting", lenient)]


def _takes_unasked() -> Sequence[Patch]:
    def take(self: Any, peer: Any, message: Any, now: Any) -> Any:
        return self._records.learn(peer, message.records, now)

    return [(sync.SyncMachine, "_take", take)]


def _counted_only() -> Sequence[Patch]:
    """As many records as were asked for, whichever they are: as the first release did."""

    def take(self: Any, peer: Any, message: Any, now: Any) -> Any:
        if len(message.records) > len(self._expected.get(peer, ())):
            return [Reject(peer, "sync.unasked", "")]
        return self._records.learn(peer, message.records, now)

    return [(sync.SyncMachine, "_take", take)]


def _one_label() -> Sequence[Patch]:
    def selects(environment: Any, node: Any) -> bool:
        chosen = any(label in node.labels for label in environment.selector)
        return not node.draining and "worker" in node.roles and (not environment.selector or chosen)

    return [(placement, "selects", selects)]


def _drained_chosen() -> Sequence[Patch]:
    return [
        (placement, "selects", lambda environment, node: all(entry in node.labels for entry in environment.selector))
    ]


def _pooled_group() -> Sequence[Patch]:
    """The base group is pooled with its extremes in."""

    def compared(said: Any, outside: Any) -> Any:
        base = analysis.pooled(list(outside) or [entry.base for entry in said])
        return base, base

    return [(analysis, "_compared", compared)]


def _arrival_decides() -> Sequence[Patch]:
    """A tombstone is taken only by who holds the paper, so that what is held depends on what came first."""
    offer = RecordStore.offer

    def late(self: RecordStore, signed: Any, wall_ms: int, not_before_ms: int = 0) -> Any:
        entry = record.read_record(signed)
        if not isinstance(entry, Refusal) and not entry.record.tombstone:
            holder = self.entries.get(entry.record.key)
            if holder is not None and holder.record.tombstone:
                self.remove(holder)
        return offer(self, signed, wall_ms, not_before_ms)

    return [(RecordStore, "offer", late)]


def _passkey(*rules: str) -> Callable[[], Sequence[Patch]]:
    """One check of what browser, authenticator and description say is left out; the others go on."""
    owners = {
        "passkey.type": "client_data_problem", "passkey.challenge": "client_data_problem",
        "passkey.framed": "client_data_problem", "passkey.person": "authenticator_data_problem",
    }  # fmt: skip

    def patches() -> Sequence[Patch]:
        return [patch for rule in rules for patch in _forgives(passkeys, owners[rule], rule)()]

    return patches


def _any_origin() -> Sequence[Patch]:
    check = passkeys.client_data_problem

    def lenient(passkey: Any, data: bytes, challenge: bytes) -> Any:
        said = msgspec.json.decode(data)
        return check(msgspec.structs.replace(passkey, origins=(said.get("origin"),)), data, challenge)

    return [(passkeys, "client_data_problem", lenient)]


def _any_relying_party() -> Sequence[Patch]:
    check = passkeys.authenticator_data_problem

    def lenient(passkey: Any, data: bytes) -> Any:
        own = hashlib.sha256(passkey.rp_id.encode()).digest()
        return check(passkey, own + data[32:])

    return [(passkeys, "authenticator_data_problem", lenient)]


def _any_passkey() -> Sequence[Patch]:
    """The description need not be the one that was granted."""
    check = passkeys.open_assertion

    def lenient(verifier: Any, key: bytes, statement: bytes, said: Any, signature: bytes) -> Any:
        return check(verifier, passkeys.passkey_id(base64.b64decode(said.passkey)), statement, said, signature)

    return [(evidence, "open_assertion", lenient)]


def _any_curve() -> Sequence[Patch]:
    check = passkeys.read_passkey

    def lenient(description: bytes) -> Any:
        answer = check(description)
        if isinstance(answer, Refusal) and answer.rule == "passkey.curve":
            passkey = msgspec.json.decode(description, type=passkeys.Passkey)
            return passkey, base64.b64decode(passkey.point)
        return answer

    return [(passkeys, "read_passkey", lenient)]


def _host_only() -> Sequence[Patch]:
    check = passkeys.client_data_problem

    def lenient(passkey: Any, data: bytes, challenge: bytes) -> Any:
        origin = msgspec.json.decode(data).get("origin")
        own = {urlsplit(origin).hostname for origin in passkey.origins}
        origins = (origin,) if urlsplit(origin).hostname in own else ()
        return check(msgspec.structs.replace(passkey, origins=origins), data, challenge)

    return [(passkeys, "client_data_problem", lenient)]


def _any_mesh() -> Sequence[Patch]:
    read = approvals.read_approval

    def lenient(verifier: Any, mesh: bytes, data: bytes) -> Any:
        answer = read(verifier, mesh, data)
        if isinstance(answer, Refusal) and answer.rule == "approval.other-mesh":
            opened = evidence.open_envelope(verifier, data)
            assert not isinstance(opened, Refusal)
            said = msgspec.json.decode(bytes(opened.statement.predicate))
            return read(verifier, bytes.fromhex(said["mesh"]), data)
        return answer

    return [(papers, "read_approval", lenient)]


def _key_files_touch() -> Sequence[Patch]:
    return [(Demands, "by_passkey", False)]


def _anybodys_passkey() -> Sequence[Patch]:
    approving = policy._approving

    def lenient(found: Any, change: Any) -> Any:
        return approving(policy.Vouched(dataclasses.replace(found.approval, person=b""), found.rights), change)

    return [(policy, "_approving", lenient)]


def _mutant(name: str, says: str, patches: Callable[[], Sequence[Patch]]) -> Mutant:
    return Mutant(name, says, patches, hostile=True)


HOSTILE_MUTANTS = (
    _mutant(
        "carrier-ends",
        "whoever carries a paper may end it",
        _forgives(PaperCourt, "ending_problem", "records.not-author"),
    ),
    _mutant("ending-unread", "a tombstone need not show why", _sets(PaperCourt, "ending_problem", lambda *rest: None)),
    _mutant(
        "ending-of-another",
        "a statement ends whichever paper it is shown with",
        _sets(papers, "_statement_problem", lambda *rest: None),
    ),
    _mutant("pins-ignored", "what a decision names can be ended", _sets(PaperCourt, "pinned", lambda *rest: False)),
    _mutant(
        "form-of-tombstones",
        "audit and approvals take tombstones",
        _forgives(record, "_content_problem", "records.tombstone"),
    ),
    _mutant("rights-unasked", "a paper needs no grant", _forgives(PaperCourt, "standing", "paper.not-allowed")),
    _mutant(
        "scope-unasked",
        "a grant for another place is enough",
        _sets(papers, "_covers", lambda rights, paper: paper.verb in rights.verbs),
    ),
    _mutant(
        "verb-unasked",
        "a grant for another verb is enough",
        _sets(
            papers,
            "_covers",
            lambda rights, paper: not paper.project or ("shop" in rights.projects and "prod" in rights.environments),
        ),
    ),
    _mutant(
        "revocation-forgotten", "a revoked author's papers stay", _sets(PaperCourt, "_revoked", lambda *rest: False)
    ),
    _mutant("upper-link-forgotten", "revoking an upper grant leaves what rests on it", _upper_forgotten),
    _mutant("signature-unchecked", "a paper need not be signed", _unverified),
    _mutant("misplaced-papers", "a paper is kept under another subject's key", _anywhere),
    _mutant("future-papers", "a paper may be dated later than now", _forgives(PaperCourt, "over", "paper.ahead")),
    _mutant("endless-papers", "a paper's life never ends", _forgives(PaperCourt, "over", "records.expired")),
    _mutant(
        "never-swept", "papers that ended stay where they are", _sets(RecordStore, "remove_ended", lambda *rest: [])
    ),
    _mutant("unused-kinds", "records that nothing reads are kept", _forgives(PaperCourt, "check", "records.unused")),
    _mutant("unread-papers", "bodies are not looked at", _sets(PaperCourt, "check", lambda *rest: None)),
    _mutant(
        "foreign-boxes", "a resealed key need not fit its node", _sets(papers, "_resealed_problem", lambda *rest: None)
    ),
    _mutant("arrival-decides", "a tombstone gives way to what comes later", _arrival_decides),
    _mutant(
        "owner-unasked",
        "any member writes what a node says of itself",
        _forgives(RecordStore, "_author_problem", "records.not-owner"),
    ),
    _mutant(
        "grants-by-anybody",
        "a grant need not begin with an admin",
        _sets(grants, "_open_link", lambda v, mesh, admins, signed, parent: decode(signed.payload, grants.Grant)),
    ),
    _mutant(
        "broader-grants",
        "a grant may give more than its giver has",
        _forgives(grants, "_link_problem", "grant.broader-than-parent"),
    ),
    _mutant("agents-approve", "an agent may approve", _forgives(grants, "_link_problem", "grant.agent-may-not")),
    _mutant("anybody-revokes", "whoever signs a revocation is believed", _anybody_revokes),
    _mutant("passkey-any-type", "a registration is an approval", _passkey("passkey.type")),
    _mutant("passkey-any-challenge", "a touch for one statement is one for all", _passkey("passkey.challenge")),
    _mutant("passkey-any-origin", "any page may ask for the touch", _any_origin),
    _mutant("passkey-origin-host", "of an origin only the host is compared", _host_only),
    _mutant("passkey-framed", "a page inside another may ask", _passkey("passkey.framed")),
    _mutant("passkey-any-rp", "the relying party is not looked at", _any_relying_party),
    _mutant("passkey-unverified", "nobody need be present or verified", _passkey("passkey.person")),
    _mutant("passkey-any-curve", "a key of another curve is a passkey", _any_curve),
    _mutant("passkey-other-mesh", "an approval of another mesh counts", _any_mesh),
    _mutant("passkey-unsigned", "a passkey need not sign", _sets(KeyRing, "verify_es256", lambda *rest: True)),
    _mutant("passkey-undescribed", "the description need not be the granted one", _any_passkey),
    _mutant(
        "passkey-foreign-pages",
        "a passkey may be granted for others' pages",
        _sets(passkeys, "_serves", lambda *rest: True),
    ),
    _mutant("passkey-not-asked", "a key file does where policy asks for a passkey", _key_files_touch),
    _mutant("passkey-anybodys", "whoever grants a passkey has it", _anybodys_passkey),
    _mutant("long-invites", "an invite is good for a year", _sets(invites, "INVITE_LIFETIME_MAX_MS", 365 * 86_400_000)),
    _mutant("one-label-suffices", "one label of a selector is enough", _one_label),
    _mutant("drained-chosen", "work goes to nodes that leave", _drained_chosen),
    _mutant("weights-uncapped", "a node counts for as much as it says", _sets(analysis, "capped", list)),
    _mutant("group-untrimmed", "one node of the base group turns it", _pooled_group),
    _mutant("own-past-unread", "a node is not compared with itself", _sets(analysis, "_worse_alone", lambda *rest: {})),
    _mutant("old-analysis", "the feature level is not looked at", _sets(analysis, "ROBUST_RULES", 99)),
    _mutant("takes-unasked", "records nobody asked for are merged", _takes_unasked),
    _mutant("counts-unasked", "any record counts as the one asked for", _counted_only),
    _mutant("other-leaves", "an answer may hold any leaf's records", _sets(sync, "leaf_of", lambda key: 0)),
    _mutant("keys-unmetered", "a key files papers without end", _sets(Quotas, "giving_way", lambda *rest: [])),
    _mutant("nodes-unmetered", "a node writes without end", _sets(Quotas, "node_problem", lambda *rest: None)),
    _mutant("words-unweighed", "a node's words are counted, not weighed", _words_unweighed),
    _mutant("announced-unmetered", "what is announced is fetched at any pace", _announced_unmetered),
    _mutant("no-reserve", "a full store takes no audit", _sets(Quotas, "reserved", lambda *rest: False)),
    _mutant("all-reserve", "a full store takes everything", _sets(Quotas, "reserved", lambda *rest: True)),
    _mutant("held-unmetered", "a peer draws as many statements as it likes", _sets(conductor, "ANSWERS_BURST", 10**9)),
)
