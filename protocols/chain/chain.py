"""The decision chain of one node: a machine that decides, follows and repairs, made of parts that each do one thing.

| part | owns |
|---|---|
| ledger | verified entries, the state they lead to |
| acceptor, fence | one store's promises and votes, durable before they are said |
| voting, proposer, pacing | the two phases of a slot, and when to try again |
| follower | catch-up, heads, commits, resets |
| recovery | the boot read after a reboot or restore |
| clients, reads | commands and linearizable reads on their way |
| growth, clones, witness | voters that come, doubles, lies |

Only the open slot (head + 1) is ever undecided; with a certificate for it, the next one opens, and its voters are those
the decision named. There is no leader, no log to cut and no idle traffic but a head told now and then. Not here: what
commands mean (an injected StateMachine), who is admitted (the core hands over admitted peers only), and the wire.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_never

from protocols.chain.acceptor import Acceptor, AcceptorRecord, founding_effects, fresh_record, load_acceptor
from protocols.chain.ballots import NO_BALLOT, STORE_ID_BYTES
from protocols.chain.boot_read import Recovery
from protocols.chain.clients import Clients
from protocols.chain.clones import Clones
from protocols.chain.context import PROOF_TABLE, ChainContext, ChainSetup, Stored
from protocols.chain.decision import NOOP, ResetTo, Voter, VoterReady
from protocols.chain.fence import FENCE_TABLE, Fence, advance_fence, distrust_of, newest_fence
from protocols.chain.follower import Follower
from protocols.chain.growth import Growing
from protocols.chain.ledger import Ledger
from protocols.chain.messages import (
    Accepted,
    Answer,
    BootAnswer,
    Booted,
    BootRead,
    ChainMessage,
    Cloned,
    Commit,
    Contradiction,
    Declined,
    Entries,
    Fetch,
    Forgotten,
    Forward,
    Head,
    IAm,
    Mute,
    Nack,
    Position,
    Prepare,
    Probe,
    Probed,
    Promised,
    Propose,
    Read,
    Ready,
    Submit,
    SubmitReset,
    Voted,
    WhoAreYou,
)
from protocols.chain.quorum import boot_quorum, voter_of
from protocols.chain.reads import Reads
from protocols.chain.voting import Voting
from protocols.chain.witness import proof_holds
from protocols.envelope import DecodeError, Signed, decode, digest
from protocols.invariants import ensure
from protocols.machine import Effect, Now, PeerConnected, PeerDisconnected, PeerId, Received, Tick

PEERS_MAX = 1024
"""Connections whose heads are remembered: the size of the largest mesh planned."""

ChainInput = (
    Booted | Mute | Submit | Read | SubmitReset | Tick | PeerConnected | PeerDisconnected | Received[ChainMessage]
)


class Chain:
    """The machine. Hand over only peers that were admitted."""

    def __init__(self, setup: ChainSetup, stored: Stored) -> None:
        """Load what the disk held; nothing is written or sent before the first event."""
        self._setup = setup
        ledger = Ledger(setup.mesh, setup.machine, setup.verifier)
        self._damage = ledger.restore(stored.vote) if stored.vote is not None else ""
        record, accepted, self._distrust = _load_store(stored)
        self._fence_behind = not self._distrust and not self._damage and _fence_behind(stored, record)
        acceptor = Acceptor(setup.mesh, setup.node, setup.signer, record, accepted)
        self._at = ChainContext(setup, ledger, acceptor)
        self._needs_boot_read = not stored.same_boot
        self._started = False
        self._deadline_known = False
        self._due_ms: int | None = None
        self._load_proofs(stored)
        self._clients = Clients(self._at)
        self._reads = Reads(self._at)
        self._follower = Follower(self._at)
        self._recovery = Recovery(self._at)
        self._growing = Growing(self._at)
        self._clones = Clones(self._at)
        self._voting = Voting(self._at, self._follower, self._clients)
        self._on_message = self._dispatch_table()
        self._at.on_grown += [
            self._voting.on_grown, self._recovery.on_grown, self._clients.on_grown, self._reads.on_grown,
        ]  # fmt: skip
        self._at.on_silenced.append(self._voting.on_silenced)

    # --- the machine's face -------------------------------------------------------------------------------------------

    def handle(self, event: ChainInput, now: Now) -> list[Effect]:
        """Consume one event; return the effects to perform, in order."""
        context = self._at
        context.now = now
        context.out = []
        self._deadline_known = False
        if not self._started:
            # Whatever comes first: no word before this store is known to remember its last one.
            self._start()
        match event:
            case Received(peer, message):
                self._receive(peer, message)
            case Tick():
                self._tick()
            case Submit(request_id, command, material):
                self._clients.submit(None, request_id, command, material)
            case Read(request_id):
                self._reads.start(request_id)
            case PeerConnected(peer, _, boot_nonce):
                self._connect(peer, boot_nonce)
            case PeerDisconnected(peer, _):
                self._disconnect(peer)
            case SubmitReset(entry):
                self._submit_reset(entry)
            case Mute(reason):
                self._mute(reason)
            case Booted():
                pass
            case _:
                assert_never(event)
        self._voting.tick()
        self._check_invariants()
        return context.out

    def _check_invariants(self) -> None:
        """The acceptor speaks of the slot behind the head, and never against its own promise."""
        record, head = self._at.acceptor.record, self._at.ledger.position
        ensure(record.accepted_ballot <= record.promised, "what is accepted was promised")
        ensure((record.slot, record.era) == (head.slot + 1, head.era), "only the slot after the head is open")
        ensure(
            (self._at.acceptor.accepted is None) == (record.accepted_ballot == NO_BALLOT), "a vote keeps its decision"
        )

    def deadline_ms(self) -> int | None:
        """When `Tick` is next due (monotonic ms), or None for never; only an event or `expect_rtt` moves it."""
        if self._deadline_known:
            return self._due_ms
        due = [
            self._voting.start_due_ms(),
            self._recovery.deadline_ms(),
            self._clients.deadline_ms(),
            self._reads.deadline_ms(),
            self._follower.deadline_ms(),
            self._growing.deadline_ms(),
        ]
        self._due_ms = min((at_ms for at_ms in due if at_ms is not None), default=None)
        self._deadline_known = True
        return self._due_ms

    def expect_rtt(self, rtt_ms: float) -> None:
        """Pace attempts for a network this slow, as measured beside the chain (liveness), before it has own samples."""
        if int(rtt_ms) != self._at.pacer.network_ms:
            self._at.pacer.network_ms = int(rtt_ms)
            self._deadline_known = False

    # --- what the node may look at ------------------------------------------------------------------------------------

    @property
    def state(self) -> Any:
        """The state at the head; replaced, never changed."""
        return self._at.ledger.state

    @property
    def position(self) -> Position:
        """Where the chain ends here."""
        return self._at.ledger.position

    @property
    def ledger(self) -> Ledger:
        """The stored chain, to read."""
        return self._at.ledger

    @property
    def voters(self) -> tuple[Voter, ...]:
        """The voters of the open slot."""
        return self._at.ledger.voters

    @property
    def node(self) -> PeerId:
        """This node."""
        return self._setup.node

    @property
    def store_id(self) -> bytes:
        """The id of this node's store."""
        return self._at.acceptor.record.store_id

    @property
    def record(self) -> AcceptorRecord:
        """What this node's store has promised and accepted, to read."""
        return self._at.acceptor.record

    @property
    def promise_holder(self) -> PeerId | None:
        """The other voter that holds this one's promise for the open slot, if there is one."""
        return self._at.promise_holder

    @property
    def speaking(self) -> bool:
        """Whether this node promises and votes now."""
        return self._at.speaking

    @property
    def boot_answers_needed(self) -> int:
        """How many *other* voters must answer before this one, which may have forgotten what it said, votes; 0: none."""
        context = self._at
        return boot_quorum(len(context.ledger.voters)) if context.is_voter and not context.recovered else 0

    @property
    def muted(self) -> str:
        """Why this node says nothing as a voter for now, or ""."""
        return self._at.muted

    @property
    def stalled(self) -> str:
        """Why this node cannot follow the chain, or ""."""
        return self._at.stalled

    @property
    def liars(self) -> dict[bytes, Contradiction]:
        """Stores, by id, proven to have contradicted themselves, and the proofs."""
        return dict(self._at.liars)

    def ready_stores(self) -> tuple[tuple[VoterReady, Signed], ...]:
        """Stores that could vote, with their nodes' signatures: evidence for a reconfiguration by hand."""
        return self._growing.candidates()

    # --- events -------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        context = self._at
        self._started = True
        if self._distrust:
            context.give_up_store(self._distrust)
        elif not self.record.store_id:
            context.acceptor.record = fresh_record(context.setup.entropy.random_bytes(STORE_ID_BYTES))
            context.out += founding_effects(self.store_id)
        elif self._damage and not context.ledger.newer_rules:
            context.give_up_store(self._damage)
        elif self._needs_boot_read:
            context.out += context.acceptor.suspect()
        if self._fence_behind:
            # The process ended between the two barriers: what the database kept may be told from now on.
            context.out.append(advance_fence(Fence(self.record.store_id, self.record.counter, self.record.said)))
        if context.ledger.newer_rules:
            # An older build than the one that stored the chain: nothing is lost, and nothing is said until it is updated.
            context.stall(context.open_slot, context.ledger.newer_rules)
        context.acceptor.open(context.ledger.position)
        context.pacer.open_slot(context.now.mono_ms, context.my_rank)
        self._recovery.tick()

    def _mute(self, reason: str) -> None:
        self._at.mute(reason)
        self._clients.on_muted()

    def _tick(self) -> None:
        self._clients.tick()
        self._reads.tick()
        self._follower.tick()
        self._recovery.tick()
        planned = self._growing.tick()
        if planned is not None:
            command, material = planned
            request_id = b"voters/" + digest(command)[:16]
            self._clients.submit(None, request_id, command, material)

    def _connect(self, peer: PeerId, boot_nonce: bytes) -> None:
        context = self._at
        if len(context.peers) >= PEERS_MAX and peer not in context.peers:
            return
        self._clones.on_connected(peer, boot_nonce)
        context.peers[peer] = boot_nonce
        self._follower.on_connected(peer)
        self._growing.on_connected(peer)
        for proof in context.liars.values():
            context.send(peer, proof)
        if voter_of(context.ledger.voters, peer) is not None:
            context.pacer.hurry(context.now.mono_ms, context.my_rank)

    def _disconnect(self, peer: PeerId) -> None:
        self._at.peers.pop(peer, None)
        self._clones.on_disconnected(peer)
        self._follower.on_disconnected(peer)
        self._growing.on_disconnected(peer)

    def _submit_reset(self, data: bytes) -> None:
        try:
            entry: ResetTo = decode(data, ResetTo)
        except DecodeError as error:
            self._at.reject(self._setup.node, "chain.reset-malformed", str(error))
            return
        self._follower.take_reset(None, entry)

    # --- messages -----------------------------------------------------------------------------------------------------

    def _receive(self, peer: PeerId, message: ChainMessage) -> None:
        self._on_message[type(message)](peer, message)

    def _dispatch_table(self) -> dict[type, Callable[[PeerId, Any], None]]:
        return {
            Head: self._follower.on_head,
            Fetch: self._follower.on_fetch,
            Entries: self._follower.on_entries,
            Commit: self._follower.on_commit,
            Prepare: self._voting.on_prepare,
            Promised: self._voting.on_promised,
            Nack: self._voting.on_nack,
            Propose: self._voting.on_propose,
            Voted: self._voting.on_voted,
            Declined: self._voting.on_declined,
            BootRead: self._voting.on_boot_read,
            BootAnswer: self._recovery.on_answer,
            Forgotten: self._forgotten,
            Forward: self._forwarded,
            Answer: self._clients.on_answer,
            Probe: self._probed,
            Probed: self._on_probed,
            Ready: self._growing.on_ready,
            Contradiction: self._accused,
            WhoAreYou: self._clones.on_who,
            IAm: self._clones.on_life,
            Cloned: self._cloned,
        }

    def _on_probed(self, peer: PeerId, message: Probed) -> None:
        self._follower.level_with(peer, message.position)
        self._reads.on_probed(peer, message)

    def _cloned(self, peer: PeerId, message: Cloned) -> None:
        if self._clones.proven(message):
            self._at.give_up_store("another live process has this node's identity")
        else:
            self._at.reject(peer, "chain.no-clone")

    def _forgotten(self, peer: PeerId, message: Forgotten) -> None:
        """Another life of this node read the chain and fenced this one: both must not vote, so this one does not."""
        context = self._at
        if voter_of(context.ledger.voters, peer) is None:
            context.reject(peer, "chain.not-a-voter")
        elif (
            context.is_voter
            and context.recovered
            and message.store_id == self.store_id
            and message.floor > self.record.counter
        ):
            context.give_up_store("another life of this node has spoken for its store")

    def _forwarded(self, peer: PeerId, message: Forward) -> None:
        if message.command == NOOP:
            self._at.completion_slot = self._at.open_slot
        else:
            self._clients.submit(peer, message.request_id, message.command, message.material, message.wait_ms)

    def _probed(self, peer: PeerId, message: Probe) -> None:
        context = self._at
        self._follower.level_with(peer, message.position)
        if context.speaking:
            context.send(peer, Probed(message.nonce, context.ledger.position, context.acceptor.accepted is not None))

    def _accused(self, peer: PeerId, proof: Contradiction) -> None:
        context = self._at
        statements = proof.statements()
        if statements and statements[0].store_id in context.liars:
            return
        if proof_holds(context.setup.verifier, context.setup.mesh, proof):
            context.accuse(proof)
        else:
            context.reject(peer, "chain.no-contradiction")

    def _load_proofs(self, stored: Stored) -> None:
        for key, data in sorted(((stored.vote or {}).get(PROOF_TABLE, {})).items()):
            try:
                self._at.liars[key] = decode(data, Contradiction)
            except DecodeError:
                continue


def _load_store(stored: Stored) -> tuple[AcceptorRecord, Accepted | None, str]:
    """Return the acceptor on disk and why it must not be trusted, or an empty record for a first start."""
    empty = fresh_record(b"")
    slots = None if stored.fence is None else stored.fence.get(FENCE_TABLE, {})
    fence = None if slots is None else newest_fence(slots)
    if stored.vote is None:
        return empty, None, distrust_of(None, fence)
    try:
        loaded = load_acceptor(stored.vote)
    except DecodeError as error:
        return empty, None, f"the acceptor's record is damaged: {error}"
    if loaded is None:
        # A fence without a database is a lost disk; nothing at all is a first start, unless the fence is unreadable.
        return empty, None, "the vote database is gone" if slots is None or slots else ""
    record, accepted = loaded
    return record, accepted, distrust_of(Fence(record.store_id, record.counter, record.said), fence)


def _fence_behind(stored: Stored, record: AcceptorRecord) -> bool:
    """Return whether the database holds a statement that the fence does not."""
    fence = newest_fence((stored.fence or {}).get(FENCE_TABLE, {}))
    return fence is not None and fence.store_id == record.store_id and fence.counter < record.counter
