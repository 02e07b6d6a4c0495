"""Dossiers: what this node holds about each proposed change: the change, grants, evidence and approvals.

A dossier is enough to show a change to a person, to prepare it, and to assemble the exhibits of its start. Nothing in
it is believed for being there: the gate judges every exhibit again (state/gate.py). Not here: the records themselves
(records.py), and what nodes say of a rollout (conductor.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from protocols.changes.change import CHANGE_DOMAIN, CHANGE_MAX_BYTES, Change, Release, change_problem
from protocols.envelope import DecodeError, Signed, decode, digest, encode, open_signed
from protocols.machine import Digest, Verifier
from protocols.records.record import Entry
from protocols.refusal import Refusal
from protocols.state.commands import Exhibits
from protocols.trust.grants import BEFORE_EXPIRY_MS, GrantChain, Rights, payer_of, united

GRANTS_SHOWN_MAX = 32
"""Chains in one set of exhibits: the author's, the signer's, and those of approvers and testers."""
WAITING_MAX = 64
"""Changes without a proven author; each costs a signature check whenever a grant or an admission arrives."""

VOID = ("grant.revoked", "grant.not-admitted", "grant.contested")
"""Rules by which a chain gives nothing whatever the moment; shown beside a good one it has voters refuse both."""

RightsOf = Callable[[bytes, GrantChain, int], Rights | Refusal]


@dataclass(frozen=True, slots=True)
class Proposed:
    """A change whose author's signature verified, with its signed form; `id` is the digest of its bytes."""

    id: Digest
    change: Change
    signed: Signed


class Dossiers:
    """An index over the merged records of the change path."""

    def __init__(self, verifier: Verifier, mesh: bytes, rights_of: RightsOf) -> None:
        """Take what verifies signatures, and what judges the rights behind a key and its chain at a moment."""
        self._verifier, self._mesh, self._rights_of = verifier, mesh, rights_of
        self.changes: dict[Digest, Proposed] = {}
        self._chains: dict[bytes, dict[str, GrantChain]] = {}
        self._approvals: dict[str, dict[str, bytes]] = {}
        self._evidence: dict[str, dict[str, bytes]] = {}
        self._waiting: dict[str, bytes] = {}
        """Changes whose author's rights are not proven yet: a grant or an admission may arrive after what rests on it."""

    def merged(self, entries: Iterable[Entry]) -> list[Proposed]:
        """Take in records; return the changes that are new, or newly entitled, and whose author may propose them."""
        tried: dict[str, bytes] = {}
        for entry in entries:
            scope, name = entry.parsed.parts[0], entry.parsed.parts[-1]
            body = entry.record.body
            if entry.record.tombstone:
                self._forget(entry)
                continue
            match entry.parsed.rule.prefix:
                case "grant":
                    self._chains.setdefault(bytes.fromhex(scope), {})[name] = decode(body, tuple[Signed, ...])
                    tried = {**self._waiting, **tried}
                case "admission":
                    tried = {**self._waiting, **tried}
                case "approval":
                    self._approvals.setdefault(scope, {})[name] = body
                case "evidence":
                    self._evidence.setdefault(scope, {})[name] = body
                case "change":
                    tried[name] = body
                case _:
                    pass
        return [proposed for name, body in tried.items() if (proposed := self._propose(name, body)) is not None]

    def voided(self, entries: Iterable[Entry]) -> None:
        """Forget records that no longer count."""
        for entry in entries:
            self._forget(entry)

    def rights(self, key: bytes, at_ms: int) -> Rights | Refusal:
        """Return the rights that the held chains prove for `key` at a moment, all of them, or why none does."""
        held = self._chains.get(key, {})
        entries = [self._rights_of(key, chain, at_ms) for chain in ((), *(held[name] for name in sorted(held)))]
        good = [rights for rights in entries if isinstance(rights, Rights)]
        return united(good) if good else entries[-1]

    def lineage(self, key: bytes) -> tuple[bytes, ...]:
        """Return every key that counts as `key`'s own doing; just itself when no held chain says more."""
        rights = self.rights(key, BEFORE_EXPIRY_MS)
        return rights.behind if isinstance(rights, Rights) else (key,)

    def payer(self, key: bytes) -> bytes:
        """Return the principal that pays for what a key costs; the key itself when no held chain says more."""
        rights = self.rights(key, BEFORE_EXPIRY_MS)
        return payer_of(rights) if isinstance(rights, Rights) else key

    def name_of(self, key: bytes, at_ms: int) -> str:
        """Return what grants call a key now; empty when none counts."""
        rights = self.rights(key, at_ms)
        return rights.name if isinstance(rights, Rights) else ""

    def principals(self) -> tuple[bytes, ...]:
        """Return every key that a held chain of grants ends in, ascending."""
        return tuple(sorted(key for key, chains in self._chains.items() if chains))

    def chains(self, key: bytes) -> tuple[GrantChain, ...]:
        """Return the chains of grants held for a key, in order of their digests; none that is void."""
        held = self._chains.get(key, {})
        return tuple(
            held[name] for name in sorted(held) if not void(self._rights_of(key, held[name], BEFORE_EXPIRY_MS))
        )

    def approvals(self, change: bytes) -> tuple[bytes, ...]:
        """Return the approval envelopes held for a change, in order of their digests."""
        held = self._approvals.get(change.hex(), {})
        return tuple(held[name] for name in sorted(held))

    def evidence(self, release: Release) -> tuple[bytes, ...]:
        """Return the evidence envelopes held for any component of a release, each once, in order of their digests."""
        table: dict[str, bytes] = {}
        for component in release.components:
            table |= self._evidence.get(component.digest.hex(), {})
        return tuple(table[name] for name in sorted(table))

    def exhibits(
        self,
        proposed: Proposed,
        *,
        release: bytes,
        signers: Sequence[bytes],
        speakers: Sequence[bytes],
        envelopes: tuple[tuple[bytes, ...], tuple[bytes, ...]],
        statements: tuple[bytes, ...],
    ) -> tuple[Exhibits, tuple[bytes, ...]]:
        """Return the exhibits of a start and their material.

        `release` is the manifest's bytes, `signers` sign the command, `speakers` signed the `envelopes` (approvals,
        evidence), `statements` are encoded Signed statements of nodes. Each key's chains are shown.
        """
        keys = dict.fromkeys((proposed.change.author, *signers, *speakers))
        chains = [encode(chain) for key in keys for chain in self.chains(key)][:GRANTS_SHOWN_MAX]
        change = encode(proposed.signed)
        approvals, evidence = envelopes
        exhibits = Exhibits(
            change=digest(change),
            release=digest(release),
            grants=_digests(chains),
            approvals=_digests(approvals),
            evidence=_digests(evidence),
            statements=_digests(statements),
        )
        return exhibits, tuple(dict.fromkeys((change, release, *chains, *approvals, *evidence, *statements)))

    def _propose(self, name: str, body: bytes) -> Proposed | None:
        """Hold a change as proposed if it is new and its author is entitled; let one without rights wait for a grant."""
        opened = self._open_change(body)
        self._waiting.pop(name, None)
        if isinstance(opened, Refusal):
            if len(self._waiting) >= WAITING_MAX:
                del self._waiting[next(iter(self._waiting))]
            self._waiting[name] = body
            return None
        if opened is None or opened.id in self.changes:
            return None
        self.changes[opened.id] = opened
        return opened

    def _open_change(self, body: bytes) -> Proposed | Refusal | None:
        """Return the change, why its author may not propose it (yet), or None for what is no change at all."""
        try:
            signed: Signed = decode(body, Signed, CHANGE_MAX_BYTES + 256)
            change: Change = open_signed(self._verifier, CHANGE_DOMAIN, self._mesh, signed, Change)
        except DecodeError:
            return None
        if change_problem(change) or change.author != signed.key:
            return None
        rights = self.rights(change.author, change.created_ms)
        if isinstance(rights, Refusal):
            return rights
        if not rights.allows("propose", change.project, change.environment):
            return Refusal("change.author", f"{rights.name} may not propose in {change.environment}")
        return Proposed(digest(signed.payload), change, signed)

    def _forget(self, entry: Entry) -> None:
        scope, name = entry.parsed.parts[0], entry.parsed.parts[-1]
        match entry.parsed.rule.prefix:
            case "grant":
                self._chains.get(bytes.fromhex(scope), {}).pop(name, None)
            case "approval":
                self._approvals.get(scope, {}).pop(name, None)
            case "evidence":
                self._evidence.get(scope, {}).pop(name, None)
            case "change":
                self._waiting.pop(name, None)
                gone = [key for key, held in self.changes.items() if digest(encode(held.signed)).hex() == name]
                for key in gone:
                    del self.changes[key]
            case _:
                pass


def void(rights: Rights | Refusal) -> bool:
    """Return whether what was found of a key says that a link was revoked, or that its invite did not let it in."""
    return isinstance(rights, Refusal) and rights.rule in VOID


def _digests(items: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(bytes(digest(item)) for item in items))
