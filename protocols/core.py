"""One node's machines as one: what arrives is checked against its sender's standing, then handed on.

    transport ──> hello ──(admitted)──> liveness, renewal, records, chain ──(decided)──> rollout agent
                    │                                      │         │  ^                    │
                    └────────────── trust store <──────────┴─────────┘  └── what health forces

A message from a peer that was not admitted can only be a hello message; after that its family must be allowed at the
peer's standing (hello.ALLOWED). Broadcasts become sends to the admitted peers that may read them. Reading the chain is
for everybody who belongs, so that an invited node can see itself confirmed; taking part is for members. No machine here
assumes a full mesh. Not here: any protocol of its own, the wire (libp2p/), disk and clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never, get_args

from protocols.chain.chain import Chain
from protocols.chain.context import ChainSetup, Stored
from protocols.chain.decision import Voter
from protocols.chain.messages import (
    Booted,
    ChainMessage,
    Commit,
    Entries,
    EntryStored,
    Fetch,
    Head,
    Mute,
    Read,
    Submit,
    SubmitReset,
)
from protocols.chain.pacing import ChainTimes
from protocols.changes.statements import HealthVerdict
from protocols.envelope import DecodeError, decode, digest, encode
from protocols.keys import peer_id, public_key_of
from protocols.liveness import (
    Belief,
    BeliefChanged,
    Leave,
    LivenessConfig,
    LivenessMachine,
    LivenessMessage,
    MembersChanged,
    RedialFailed,
)
from protocols.machine import (
    Broadcast,
    Effect,
    Entropy,
    Machine,
    Notify,
    Now,
    PeerConnected,
    PeerDisconnected,
    PeerId,
    Received,
    Reject,
    Send,
    Signer,
    Tick,
    Verifier,
)
from protocols.records.credentials import admission_record, certificate_record
from protocols.records.gossip import (
    RECORD_TABLE,
    Publish,
    RecordMachine,
    RecordMessage,
    RecordsConfig,
    RecordsForgotten,
    RecordsMerged,
    RecordsVoided,
)
from protocols.records.sync import AnsweredEqual, SyncConfig, Synced, SyncMachine, SyncMessage, SyncRecords
from protocols.rollout.agent import LATCH_TABLE, RolloutAgent
from protocols.rollout.conductor import AgentConfig, SubmitStep
from protocols.rollout.dossiers import Dossiers, Proposed
from protocols.rollout.orders import (
    AgentMessage,
    ChangeProposed,
    PeerCompared,
    PeersDown,
    PreparationDone,
    SmokeReplayed,
    StateDecided,
    WorkObserved,
)
from protocols.state.apply import MeshMachine, MeshState
from protocols.state.commands import Command, ConfirmNode, Exhibits, SignedCommand
from protocols.state.exhibits import Rules
from protocols.state.freshness import View
from protocols.state.pins import pins_of
from protocols.trust.certificates import Certificate, open_certificate
from protocols.trust.hello import ALLOWED, Admitted, ChainHead, Family, HelloMachine, HelloMessage, Invited
from protocols.trust.renewal import RenewalMachine, RenewalMessage, Renewed
from protocols.trust.store import Credentials, Standing, TrustChanged, TrustStore

_CHAIN_READING = (Head, Fetch, Entries, Commit)

CoreMessage = (
    HelloMessage | LivenessMessage | RenewalMessage | RecordMessage | SyncMessage | ChainMessage | AgentMessage
)
"""Everything one node may send another on the control stream."""


def _families() -> dict[type, Family]:
    families: dict[type, Family] = {}
    families.update(dict.fromkeys(get_args(HelloMessage), "hello"))
    families.update(dict.fromkeys(get_args(LivenessMessage), "sync"))
    families.update(dict.fromkeys(get_args(RenewalMessage), "renewal"))
    families.update(dict.fromkeys(get_args(ChainMessage), "chain"))
    families.update(dict.fromkeys(_CHAIN_READING, "sync"))
    families.update(dict.fromkeys(get_args(SyncMessage), "sync"))
    families.update(dict.fromkeys((*get_args(RecordMessage), SyncRecords), "records"))
    families.update(dict.fromkeys(get_args(AgentMessage), "chain"))
    return families


FAMILY_OF = _families()

MACHINE_OF: dict[type, str] = {
    kind: machine
    for machine, messages in (
        ("liveness", LivenessMessage),
        ("renewal", RenewalMessage),
        ("records", RecordMessage),
        ("sync", SyncMessage),
        ("chain", ChainMessage),
        ("agent", AgentMessage),
    )
    for kind in get_args(messages)
}
"""Which of the machines behind hello a message is for; `isinstance` of a large union would be asked for every one."""


def decode_message(data: bytes) -> CoreMessage:
    """Decode one frame of the control stream. Raises DecodeError; the caller names the peer and drops the frame."""
    message: CoreMessage = decode(data, CoreMessage)
    return message


@dataclass(frozen=True)
class CoreSetup:
    """What a node is made with. `boot_nonce` is 8 random bytes, new for every start of the process."""

    genesis: bytes
    signer: Signer
    verifier: Verifier
    entropy: Entropy
    boot_nonce: bytes
    liveness: LivenessConfig = field(default_factory=LivenessConfig)
    chain: ChainTimes = field(default_factory=ChainTimes)
    records: RecordsConfig = field(default_factory=RecordsConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)


@dataclass(frozen=True)
class CoreStored:
    """What the disk held: the chain's stores, the tables of `state.db`, the credentials this node was let in with."""

    chain: Stored = field(default_factory=Stored)
    state: Mapping[str, Mapping[bytes, bytes]] = field(default_factory=dict)
    credentials: tuple[Credentials, ...] = ()


WorkEvent = PreparationDone | WorkObserved | SmokeReplayed
ChainRequest = Mute | Submit | Read | SubmitReset
CoreEvent = (
    Booted
    | ChainRequest
    | Publish
    | WorkEvent
    | PeerConnected
    | PeerDisconnected
    | Received[CoreMessage]
    | RedialFailed
    | Leave
    | Tick
)


class NodeCore:
    """The composed machine. Handle `Booted` first."""

    def __init__(self, setup: CoreSetup, stored: CoreStored, now: Now) -> None:
        """Load what the disk held. Raises DecodeError if the genesis is malformed."""
        self.node = peer_id(setup.signer.public_key)
        self.trust = TrustStore(setup.verifier, setup.genesis)
        self._untimely = [
            credential for credential in stored.credentials if self.trust.learn_credentials(credential, now.wall_ms)
        ]
        """Own papers that this clock does not believe yet: a machine without a battery starts in the past."""
        self.hello = HelloMachine(self.trust, setup.signer, setup.verifier, setup.entropy, boot_nonce=setup.boot_nonce)
        self.liveness = LivenessMachine(self.trust.mesh, setup.signer, setup.verifier, setup.entropy, setup.liveness)
        self.renewal = RenewalMachine(self.trust, setup.signer, setup.entropy)
        machine = MeshMachine(self.trust.genesis, Rules(setup.verifier, self.trust.mesh), _View(self))
        self.chain = Chain(
            ChainSetup(
                self.trust.mesh,
                self.node,
                setup.boot_nonce,
                setup.signer,
                setup.verifier,
                setup.entropy,
                machine,
                lambda node: self.trust.key_revoked(public_key_of(node)),
                setup.chain,
            ),
            stored.chain,
        )
        state = self.state
        self.trust.chain_decided(state.admins, state.threshold, tuple(node.node for node in state.nodes))
        self.records = RecordMachine(self.trust, setup.signer, setup.entropy, setup.records)
        self.records.store.court.pins = pins_of(state)
        self._restored = self.records.restore(sorted(stored.state.get(RECORD_TABLE, {}).items()), now)
        self.sync = SyncMachine(self.records, self.trust, setup.signer, setup.entropy, setup.sync)
        self.dossiers = Dossiers(setup.verifier, self.trust.mesh, self.trust.rights)
        self.agent = RolloutAgent(
            self.node,
            self.trust.mesh,
            setup.signer,
            setup.verifier,
            latched=stored.state.get(LATCH_TABLE),
            revoked=lambda node: self.trust.key_revoked(public_key_of(node)),
            config=setup.agent,
        )
        self._by_name: dict[str, Machine[Any, Effect]] = {
            "liveness": self.liveness,
            "renewal": self.renewal,
            "records": self.records,
            "sync": self.sync,
            "chain": self.chain,
            "agent": self.agent,
        }
        self._machines: tuple[Machine[Any, Effect], ...] = (self.hello, *self._by_name.values())
        self._moved: dict[Machine[Any, Effect], None] = dict.fromkeys(self._machines)
        """Machines that did something since their deadlines were asked for."""
        self._dues_ms: dict[Machine[Any, Effect], int | None] = {}
        self._due_ms: int | None = None
        self._judged_version = -1
        self._own_families = self._may_speak(now)
        self._linked: dict[PeerId, bytes] = {}
        """Peers that the machines behind hello were told of, with their boot nonces, in the order they were admitted."""

    # --- the face -----------------------------------------------------------------------------------------------------

    def handle(self, event: CoreEvent, now: Now) -> list[Effect]:
        """Consume one event; return the effects to perform, in order."""
        out: list[Effect] = []
        match event:
            case Received():
                self._received(event, now, out)
            case Tick():
                self._tick(now, out)
            case PeerConnected():
                self._give(self.hello, event, now, out)
            case PeerDisconnected(peer, _):
                self._give(self.hello, event, now, out)
                self._unlink(peer, event, now, out)
            case RedialFailed():
                self._give(self.liveness, event, now, out)
            case Booted():
                self._start(event, now, out)
            case Mute() | Submit() | Read() | SubmitReset():
                self._give(self.chain, event, now, out)
            case Publish():
                self._give(self.records, event, now, out)
            case Leave():
                self._give(self.agent, event, now, out)
                self._give(self.liveness, event, now, out)
            case PreparationDone() | WorkObserved() | SmokeReplayed():
                self._give(self.agent, event, now, out)
            case _:
                assert_never(event)
        if self.trust.version != self._judged_version:
            self._trust_changed(now, out)
        return out

    def deadline_ms(self) -> int | None:
        """When `Tick` is next due (monotonic ms), or None for never."""
        if self._moved:
            for machine in self._moved:
                self._dues_ms[machine] = machine.deadline_ms()
            self._moved.clear()
            self._due_ms = None
            for due_ms in self._dues_ms.values():
                if due_ms is not None and (self._due_ms is None or due_ms < self._due_ms):
                    self._due_ms = due_ms
        return self._due_ms

    @property
    def linked(self) -> tuple[PeerId, ...]:
        """The admitted peers that the machines behind hello were told of."""
        return tuple(self._linked)

    @property
    def state(self) -> MeshState:
        """What the chain decided, at the head this node holds."""
        state: MeshState = self.chain.state
        return state

    # --- events -------------------------------------------------------------------------------------------------------

    def _start(self, event: Booted, now: Now, out: list[Effect]) -> None:
        self._take(self._restored, now, out)
        self._restored = []
        self._publish_credentials(now, out)
        proposed = self.dossiers.merged(self.records.store.entries.values())
        self._give(self.chain, event, now, out)
        self._decided(now, out)
        self._propose_to_agent(proposed, now, out)

    def _received(self, event: Received[CoreMessage], now: Now, out: list[Effect]) -> None:
        peer, message = event.peer, event.message
        family = FAMILY_OF.get(type(message))
        standing = self.hello.standing(peer)
        if family is None:
            out.append(Reject(peer, "core.unknown-message"))
        elif family == "hello" or standing is None:
            self._give(self.hello, event, now, out)
        elif family not in ALLOWED[standing]:
            out.append(Reject(peer, "core.not-allowed", f"{family} messages at standing {standing.value}"))
        else:
            machine = self._by_name[MACHINE_OF[type(message)]]
            self._give(machine, event, now, out)
            if machine is self.liveness:
                self.chain.expect_rtt(self.liveness.rtt_high_ms())
                self._moved[self.chain] = None

    def _tick(self, now: Now, out: list[Effect]) -> None:
        if self._untimely:
            self._untimely = [
                credentials for credentials in self._untimely if self.trust.learn_credentials(credentials, now.wall_ms)
            ]
        for machine in self._machines:
            due_ms = machine.deadline_ms()
            if due_ms is not None and due_ms <= now.mono_ms:
                self._give(machine, Tick(), now, out)

    def _give(self, machine: Machine[Any, Effect], event: Any, now: Now, out: list[Effect]) -> None:
        """Let a machine consume an event, and pass its effects on."""
        self._moved[machine] = None
        if machine is self.sync:
            self._moved[self.records] = None  # whose records it merges
        self._take(machine.handle(event, now), now, out)

    def _take(self, effects: Sequence[Effect], now: Now, out: list[Effect]) -> None:
        """Pass effects on, in order; act on what one machine says that others must hear."""
        decided = False
        for effect in effects:
            match effect:
                case Send(peer, message):
                    if self._may_send(peer, FAMILY_OF[type(message)]):
                        out.append(effect)
                case Broadcast(message, exclude):
                    out.extend(Send(peer, message) for peer in self._readers(message) if peer not in exclude)
                case Notify(Admitted() as admitted):
                    out.append(effect)
                    self._link(admitted, now, out)
                case Notify(event):
                    decided = decided or isinstance(event, EntryStored)
                    self._heard(event, effect, now, out)
                case _:
                    out.append(effect)
        if decided:
            # Once, behind every entry of this step: the state is that of the last, and must be durable to be acted on.
            self._decided(now, out)

    def _heard(self, event: Any, effect: Notify, now: Now, out: list[Effect]) -> None:
        """Pass on what one machine told the node, and tell the other machines what concerns them."""
        match event:
            case Invited(node, certificate, bundle):
                self._publish(certificate_record(node, certificate), now, out)
                self._publish(admission_record(bundle), now, out)
                self._confirm(node, now, out)
            case Renewed(node, certificate):
                self._publish(certificate_record(node, certificate), now, out)
            case SubmitStep(command, material, _):
                request_id = b"health/" + digest(command)[:16]
                self._give(self.chain, Submit(request_id, command, material), now, out)
            case _:
                pass
        out.append(effect)
        match event:
            case RecordsMerged(entries):
                self._propose_to_agent(self.dossiers.merged(entries), now, out)
            case RecordsVoided(entries) | RecordsForgotten(entries):
                self.dossiers.voided(entries)
            case Synced(peer, True) | AnsweredEqual(peer):
                self._give(self.agent, PeerCompared(peer), now, out)
            case BeliefChanged():
                down = tuple(node.node for node in self.state.nodes if self.liveness.belief(node.node) is Belief.DOWN)
                self._give(self.agent, PeersDown(down), now, out)
            case _:
                pass

    def _publish(self, record: tuple[str, bytes], now: Now, out: list[Effect]) -> None:
        self._give(self.records, Publish(*record), now, out)

    def _publish_credentials(self, now: Now, out: list[Effect]) -> None:
        """Let everybody have what this node was let in with: a founder and a joiner bring it as files."""
        if self.trust.standing(self.node, now.wall_ms) in {Standing.JOINED, Standing.MEMBER}:
            held = self.trust.credentials(self.node)
            for signed in held.certificates:
                certificate = open_certificate(self.trust.verifier, self.trust.mesh, signed)
                if isinstance(certificate, Certificate):
                    self._publish(certificate_record(certificate.node, signed), now, out)
            for bundle in held.bundles:
                self._publish(admission_record(bundle), now, out)

    def _propose_to_agent(self, proposed: Sequence[Proposed], now: Now, out: list[Effect]) -> None:
        for entry in proposed:
            change = entry.change
            event = ChangeProposed(change.project, change.environment, entry.id, change.base)
            self._give(self.agent, event, now, out)

    # --- what machines must hear of each other ------------------------------------------------------------------------

    def _may_speak(self, now: Now) -> tuple[Family, ...]:
        """Return what others take from this node: less while it is invited or contested, as far as it knows."""
        own = self.trust.standing(self.node, now.wall_ms)
        return ALLOWED[own if own in {Standing.LIMITED, Standing.JOINED} else Standing.MEMBER]

    def _may_send(self, peer: PeerId, family: Family) -> bool:
        """Return whether a message may leave: to a peer that is not admitted only hello, else it would hang up."""
        return family == "hello" or (family in self._own_families and self.hello.standing(peer) is not None)

    def _readers(self, message: Any) -> list[PeerId]:
        family = FAMILY_OF[type(message)]
        readers: list[PeerId] = []
        if family not in self._own_families:
            return readers
        for peer in self._linked:
            standing = self.hello.standing(peer)
            if standing is not None and family in ALLOWED[standing]:
                readers.append(peer)
        return readers

    def _link(self, admitted: Admitted, now: Now, out: list[Effect]) -> None:
        peer = admitted.peer
        if "sync" not in ALLOWED[admitted.standing]:
            self._unlink(peer, PeerDisconnected(peer, admitted.standing.value), now, out)
            return
        self._set_issuers(now)
        known = self._linked.get(peer)
        connected = PeerConnected(peer, False, admitted.boot_nonce)
        if known == admitted.boot_nonce:
            if admitted.standing is Standing.MEMBER:
                # Only now may it read what the agent says, some of which is said once.
                self._give(self.agent, connected, now, out)
            return
        if known is not None:
            # It restarted before its old connection was missed: what it was told before, it knows no more.
            self._unlink(peer, PeerDisconnected(peer, "restarted"), now, out)
        self._linked[peer] = admitted.boot_nonce
        if admitted.standing is Standing.JOINED:
            self._confirm(peer, now, out)
        for machine in (self.liveness, self.records, self.sync, self.chain, self.agent):
            self._give(machine, connected, now, out)

    def _confirm(self, node: PeerId, now: Now, out: list[Effect]) -> None:
        """Ask the chain to confirm a node that an invite let in; its admission is all the authority that takes."""
        bundle = self.trust.bundle_for(public_key_of(node))
        certificate = self.trust.certificate(node)
        if bundle is None or certificate is None:
            return
        admission = encode(bundle)
        command = Command(digest(admission)[:16], ConfirmNode(node, certificate.labels, certificate.roles))
        signed = SignedCommand(encode(command), (), Exhibits(admission=(bytes(digest(admission)),)))
        submit = Submit(b"confirm/" + command.id, encode(signed), (admission,))
        self._give(self.chain, submit, now, out)

    def _unlink(self, peer: PeerId, event: PeerDisconnected, now: Now, out: list[Effect]) -> None:
        if peer not in self._linked:
            return
        del self._linked[peer]
        self._set_issuers(now)
        for machine in (self.liveness, self.records, self.sync, self.chain, self.agent):
            self._give(machine, event, now, out)

    def _decided(self, now: Now, out: list[Effect]) -> None:
        state = self.state
        self.trust.chain_decided(state.admins, state.threshold, tuple(node.node for node in state.nodes))
        position = self.chain.position
        self.hello.head = ChainHead(state.resets, position.slot, position.digest)
        mine = Voter(self.node, self.chain.store_id)
        decided = StateDecided(state, mine if mine in self.chain.voters else None)
        self._give(self.agent, decided, now, out)
        self._moved[self.records] = None
        self._take(self.records.pin(pins_of(state), now), now, out)

    def _trust_changed(self, now: Now, out: list[Effect]) -> None:
        self._judged_version = self.trust.version
        self._own_families = self._may_speak(now)
        members = tuple(
            sorted(
                peer
                for peer in {*self.trust.nodes(), self.node}
                if self.trust.standing(peer, now.wall_ms) not in {Standing.REVOKED, Standing.STRANGER}
            )
        )
        self._give(self.liveness, MembersChanged(members), now, out)
        self._give(self.hello, TrustChanged(), now, out)
        self._give(self.records, TrustChanged(), now, out)
        self._set_issuers(now)

    def _set_issuers(self, now: Now) -> None:
        self.renewal.connected_issuers = tuple(
            peer for peer in self._linked if self.trust.has_role(peer, "issuer", now.wall_ms)
        )


class _View(View):
    """What this voter knows beyond the chain."""

    def __init__(self, core: NodeCore) -> None:
        self._core = core

    def revoked(self, key: bytes) -> bool:
        """Return whether a key or grant is known to be revoked."""
        return self._core.trust.key_revoked(key) or self._core.trust.grant_revoked(key)

    def admitted(self, principal: bytes, invite_key: bytes) -> bool:
        """Return whether a known admission let the key in with that invite, for a use that no other key took."""
        return self._core.trust.admission_problem(principal, invite_key) is None

    def alive(self, node: PeerId) -> bool:
        """Return whether the node is this one or believed to be up."""
        return node == self._core.node or self._core.liveness.belief(node) in {Belief.ALIVE, Belief.SUSPECT}

    def verdicts(self, rollout: bytes, opened: int) -> Mapping[PeerId, HealthVerdict]:
        """Return the newest verdict held of each node for a stage."""
        return self._core.agent.conductor.verdicts(rollout, opened)


__all__ = ["CoreMessage", "CoreSetup", "CoreStored", "DecodeError", "NodeCore", "decode_message"]
