"""The acceptor of one store: what it promised and accepted in the open slot, durable before it is said.

Holds the store's identity, its statement counter, and the floors under other stores' counters. Every promise and vote
comes back with its barriers in order: the vote database, then the fence; the caller sends the statement behind them.
Not here: whether a proposal may be accepted (chain.py, ledger.py), and comparing database and fence at start.

Source: L. Lamport, "Paxos Made Simple" (2001), section 2.2; docs/concepts/protocol.md section 4, "Fence".
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from protocols.chain.ballots import NO_BALLOT, Ballot, Grounds, Promise, Proposal, Vote, sign_statement, statement_bytes
from protocols.chain.decision import Voter
from protocols.chain.fence import Fence, advance_fence, renew_fence
from protocols.chain.messages import Accepted, Position
from protocols.envelope import DIGEST_BYTES, DecodeError, decode, digest, encode
from protocols.invariants import ensure
from protocols.machine import Digest, Effect, PeerId, Persist, Signer, Store, Write

ACCEPTOR_TABLE = "acceptor"
RECORD_KEY = b"record"
ACCEPTED_KEY = b"accepted"
ACCEPTED_MAX_BYTES = 1 << 20
FLOORS_MAX = 16
"""Floors are kept for the newest stores that asked for one: twice the voters, so that a change of voters loses none."""


class AcceptorRecord(msgspec.Struct, frozen=True, array_like=True):
    """What the vote database holds of one store.

    `said` is the digest of the last statement, number `counter`. `recovering` is True while a boot read must still
    precede the next slot. `floors` pairs store ids with the counter below which nothing of theirs counts.
    """

    store_id: bytes
    counter: int
    said: bytes
    era: bytes
    slot: int
    promised: Ballot
    accepted_ballot: Ballot
    accepted_digest: bytes
    recovering: bool = False
    floors: tuple[tuple[bytes, int], ...] = ()


def fresh_record(store_id: bytes) -> AcceptorRecord:
    """Return the record of a new store, which has said nothing."""
    return AcceptorRecord(store_id, 0, bytes(DIGEST_BYTES), b"", 0, NO_BALLOT, NO_BALLOT, b"")


def founding_effects(store_id: bytes) -> list[Effect]:
    """Return the writes that make a new store: an empty acceptor, and its fence in both slots."""
    record = fresh_record(store_id)
    return [
        Persist(
            Store.VOTE,
            (Write(ACCEPTOR_TABLE, RECORD_KEY, encode(record)), Write(ACCEPTOR_TABLE, ACCEPTED_KEY, None)),
        ),
        renew_fence(Fence(store_id, 0, record.said)),
    ]


def load_acceptor(tables: Mapping[str, Mapping[bytes, bytes]]) -> tuple[AcceptorRecord, Accepted | None] | None:
    """Return the stored record and accepted decision, or None if there is none. Raises DecodeError on damage."""
    rows = tables.get(ACCEPTOR_TABLE, {})
    data = rows.get(RECORD_KEY)
    if data is None:
        return None
    record: AcceptorRecord = decode(data, AcceptorRecord)
    if record.accepted_ballot == NO_BALLOT:
        return record, None
    accepted: Accepted = decode(rows.get(ACCEPTED_KEY, b""), Accepted, ACCEPTED_MAX_BYTES)
    if digest(accepted.decision) != record.accepted_digest or accepted.ballot != record.accepted_ballot:
        raise DecodeError("the accepted decision is not the one the record names")
    return record, accepted


class Acceptor:
    """One store's acceptor, for the slot after the chain's head."""

    def __init__(self, mesh: bytes, node: PeerId, signer: Signer, record: AcceptorRecord, accepted: Accepted | None):
        self._mesh = mesh
        self._node = node
        self._signer = signer
        self.record = record
        self.accepted = accepted

    @property
    def voter(self) -> Voter:
        """This node with this store."""
        return Voter(self._node, self.record.store_id)

    @property
    def promised(self) -> Ballot:
        """The highest ballot promised in the open slot."""
        return self.record.promised

    def floor_of(self, store_id: bytes) -> int:
        """Return the counter below which nothing that store said counts here."""
        return next((floor for known, floor in self.record.floors if known == store_id), 0)

    def open(self, head: Position) -> tuple[Write, ...]:
        """Move to the slot after `head`; return the writes that belong into the same batch as the head itself."""
        slot = head.slot + 1
        if self.record.slot == slot and self.record.era == head.era:
            return ()
        self.record = msgspec.structs.replace(
            self.record, era=head.era, slot=slot, promised=NO_BALLOT, accepted_ballot=NO_BALLOT, accepted_digest=b""
        )
        self.accepted = None
        return (Write(ACCEPTOR_TABLE, RECORD_KEY, encode(self.record)), Write(ACCEPTOR_TABLE, ACCEPTED_KEY, None))

    def promise(self, ballot: Ballot) -> tuple[list[Effect], Promise]:
        """Promise a ballot above all promised before; the statement may be sent behind the effects."""
        record = self.record
        ensure(ballot > record.promised, "a promise never falls")
        promise = sign_statement(
            self._signer,
            self._mesh,
            Promise(
                self._node, record.store_id, record.counter + 1, record.era, record.slot, ballot,
                record.accepted_ballot, record.accepted_digest,
            ),
        )  # fmt: skip
        said = digest(statement_bytes(self._mesh, promise))
        return self._say(msgspec.structs.replace(record, promised=ballot, said=said), ()), promise

    def accept(
        self, proposal: Proposal, decision: bytes, material: tuple[bytes, ...], grounds: Grounds, voters: Digest
    ) -> tuple[list[Effect], Vote]:
        """Accept a proposal at or above the promise; the vote may be sent behind the effects."""
        record = self.record
        ballot = proposal.ballot
        ensure(ballot >= record.promised, "nothing is accepted below a promise")
        ensure(ballot > record.accepted_ballot, "one decision per ballot")
        vote = sign_statement(
            self._signer,
            self._mesh,
            Vote(
                self._node, record.store_id, record.counter + 1, record.era, record.slot, ballot, proposal.digest,
                voters,
            ),
        )  # fmt: skip
        self.accepted = Accepted(ballot, decision, material, proposal.signature, grounds)
        changed = msgspec.structs.replace(
            record,
            promised=ballot,
            accepted_ballot=ballot,
            accepted_digest=proposal.digest,
            said=digest(statement_bytes(self._mesh, vote)),
        )
        return self._say(changed, (Write(ACCEPTOR_TABLE, ACCEPTED_KEY, encode(self.accepted)),)), vote

    def suspect(self) -> list[Effect]:
        """This store may be an old copy: a boot read must precede its next word, even if the process ends before it."""
        self.record = msgspec.structs.replace(self.record, recovering=True)
        return [Persist(Store.VOTE, (Write(ACCEPTOR_TABLE, RECORD_KEY, encode(self.record)),))]

    def bow(self, ballot: Ballot, store_id: bytes, floor: int) -> list[Effect]:
        """Answer a boot read: promise its ballot, and count nothing of that store below `floor` from now on."""
        ensure(ballot > self.record.promised, "a promise never falls")
        floors = self._raised(((store_id, floor),))
        said = digest(encode((ballot, floors)))
        return self._say(msgspec.structs.replace(self.record, promised=ballot, floors=floors, said=said), ())

    def _raised(self, more: tuple[tuple[bytes, int], ...]) -> tuple[tuple[bytes, int], ...]:
        floors = dict(self.record.floors)
        for store_id, floor in more:
            floors[store_id] = max(floor, floors.pop(store_id, 0))
        return tuple(floors.items())[-FLOORS_MAX:]

    def recover(
        self, ballot: Ballot, floor: int, found: Accepted | None, floors: tuple[tuple[bytes, int], ...]
    ) -> list[Effect]:
        """End a boot read: stand at its ballot with the highest decision found, and count statements from `floor`.

        The floors that others hold were perhaps promised by the forgotten life too.

        Something found means the life before may have spoken in the next slot too: that slot needs another boot read.
        """
        if found is not None and found.ballot > self.record.accepted_ballot:
            self.accepted = found
        own = self.accepted
        changed = msgspec.structs.replace(
            self.record,
            counter=floor,
            promised=max(ballot, self.record.promised),
            accepted_ballot=NO_BALLOT if own is None else own.ballot,
            accepted_digest=b"" if own is None else digest(own.decision),
            recovering=own is not None,
            floors=self._raised(floors),
            said=digest(encode((ballot, floor))),
        )
        writes = (Write(ACCEPTOR_TABLE, ACCEPTED_KEY, None if own is None else encode(own)),)
        return self._say(changed, writes)

    def _say(self, changed: AcceptorRecord, writes: tuple[Write, ...]) -> list[Effect]:
        """Return the barriers of one statement: database, then fence."""
        self.record = record = msgspec.structs.replace(changed, counter=changed.counter + 1)
        return [
            Persist(Store.VOTE, (Write(ACCEPTOR_TABLE, RECORD_KEY, encode(record)), *writes)),
            advance_fence(Fence(record.store_id, record.counter, record.said)),
        ]
