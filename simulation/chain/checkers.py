"""Judges outside the nodes: the invariants of the decision chain, checked against disks, messages and client histories.

They see what hosts make durable, what they send and what they tell their clients, never the inside of a machine. Each
violation names its invariant (docs/concepts/protocol.md, section 6). Not here: liveness (run.py), and the order of
reads and writes as a whole (linearizability.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from protocols.chain.acceptor import ACCEPTOR_TABLE, RECORD_KEY, AcceptorRecord
from protocols.chain.ballots import NO_BALLOT, Ballot, statement_holds
from protocols.chain.decision import (
    CLOCK_TOLERANCE_MS,
    NOOP,
    AnyStateMachine,
    Decided,
    Decision,
    Entry,
    Reset,
    ResetTo,
    Voter,
    material_of,
)
from protocols.chain.fence import FENCE_TABLE, newest_fence
from protocols.chain.ledger import CHAIN_TABLE, slot_key
from protocols.chain.messages import Commit, EntryStored, Promised, Propose, Voted
from protocols.envelope import decode, digest, digest_of
from protocols.machine import PeerId, Persist, Store, Verifier
from protocols.refusal import Refusal
from simulation.chain.linearizability import HistoryRead, HistoryWrite, problem
from simulation.world.clock import WALL_START_MS
from simulation.world.world import Host, World

REMEMBERED = 256
"""Rows decoded lately: every host stores the same ones, and each is looked at again by what follows it."""
JUDGED = {Promised, Voted, Propose, Commit}
"""The messages that claim something of the sender's disk."""


@lru_cache(REMEMBERED)
def _entry(data: bytes) -> Entry:
    entry: Entry = decode(data, Entry)
    return entry


@lru_cache(REMEMBERED)
def _decision(data: bytes) -> Decision:
    decision: Decision = decode(data, Decision)
    return decision


@lru_cache(REMEMBERED)
def _record(data: bytes) -> AcceptorRecord:
    record: AcceptorRecord = decode(data, AcceptorRecord)
    return record


class Violation(AssertionError):  # noqa: N818
    """An invariant was broken; the run ends here."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant
        self.detail = detail


class ChainChecker:
    """Watches every chain of one world."""

    def __init__(self, world: World, mesh: bytes, machine: AnyStateMachine, verifier: Verifier) -> None:
        self._world = world
        self._mesh = mesh
        self._machine = machine
        self._verifier = verifier
        self.decided: dict[tuple[bytes, int], bytes] = {}
        """The decision of each (era, slot), from the first host that stored it."""
        self._untold: dict[tuple[bytes, int], Host] = {}
        """Decisions that only one host ever stored, and whose fence is not written: it cannot have told them yet."""
        self.on_reset: list[Callable[[int], None]] = []
        self._votes: dict[tuple[Any, ...], bytes] = {}
        self._proposals: dict[tuple[Any, ...], bytes] = {}
        self._proposed_ms: dict[tuple[Any, ...], int] = {}
        self.first_proposed_ms: dict[bytes, int] = {}
        self._records: dict[str, AcceptorRecord] = {}
        self._unfenced: dict[str, AcceptorRecord] = {}
        self.excused: set[PeerId] = set()
        """Nodes made to lie: what they say is no violation of the protocol."""
        self.revoked: dict[PeerId, int] = {}
        self.fork_excused = False
        self.forked = False
        self._newest_at_ms = 0
        self.decisions = 0
        self.commands: dict[bytes, int] = {}
        world.persist_watchers.append(self._persisted)
        world.network.send_watchers.append(self._sent)
        world.observers.append(self._noticed)

    # --- disks --------------------------------------------------------------------------------------------------------

    def disk_fault(self, host: Host) -> None:
        """A disk went back in time or was lost: what it once promised is no measure for it any more."""
        self._records.pop(host.name, None)
        self._unfenced.pop(host.name, None)

    def _persisted(self, host: Host, effect: Persist) -> None:
        if effect.store is Store.FENCE:
            for era, slot in [key for key, teller in self._untold.items() if teller is host]:
                self._known(era, slot)
                self._untold.pop((era, slot), None)
            if host.name in self._unfenced:
                self._records[host.name] = self._unfenced.pop(host.name)
        if effect.store is not Store.VOTE:
            return
        for write in effect.writes:
            if write.table == CHAIN_TABLE and write.value is not None:
                self._entry_stored(host, int.from_bytes(write.key, "big"), _entry(write.value))
            elif write.table == ACCEPTOR_TABLE and write.key == RECORD_KEY and write.value is not None:
                self._record_stored(host, _record(write.value))

    def _record_stored(self, host: Host, record: AcceptorRecord) -> None:
        """Compare with the last record that reached the fence: what did not was never said and may be forgotten."""
        before = self._records.get(host.name)
        self._unfenced[host.name] = record
        if before is None or before.store_id != record.store_id:
            return
        if (before.era, before.slot) == (record.era, record.slot) and record.promised < before.promised:
            raise Violation("PromiseMonotone", f"{host.name} fell from {before.promised} to {record.promised}")
        if record.counter < before.counter:
            raise Violation("PromiseMonotone", f"{host.name} counts {record.counter} after {before.counter}")

    def _entry_stored(self, host: Host, slot: int, entry: Entry) -> None:
        match entry:
            case Decided():
                self._decided(host, slot, entry)
            case ResetTo():
                era = digest(entry.reset)
                if (era, slot) not in self.decided:
                    self.decided[era, slot] = era
                    self.commands = {command: index for command, index in self.commands.items() if index < slot}
                    for hear in self.on_reset:
                        hear(slot - 1)
        self._check_prefix(host, slot)

    def _decided(self, host: Host, slot: int, entry: Decided) -> None:
        decision = _decision(entry.decision)
        whole = digest(entry.decision)
        known = self._known(decision.era, slot)
        if known is not None and known != whole and self.fork_excused:
            self.forked = True
            return
        if known is not None and known != whole:
            raise Violation("UniqueDecision", f"{host.name} stored a second decision at slot {slot}")
        if decision.slot != slot:
            raise Violation("ChainPrefix", f"{host.name} stored slot {decision.slot} as {slot}")
        if known is None:
            self._first_sight(host, decision, whole, entry)
        elif self._untold.get((decision.era, slot)) is not host:
            self._untold.pop((decision.era, slot), None)

    def _known(self, era: bytes, slot: int) -> bytes | None:
        """Return what was decided at a slot; nothing if the only disk that ever held it lost it before it was told."""
        teller = self._untold.get((era, slot))
        if teller is not None:
            data = teller.disk.stores[Store.VOTE].tables.get(CHAIN_TABLE, {}).get(slot_key(slot))
            entry: Entry | None = None if data is None else _entry(data)
            held = digest(entry.decision) if isinstance(entry, Decided) else None
            if held != self.decided[era, slot]:
                del self._untold[era, slot], self.decided[era, slot]
                self.commands = {command: index for command, index in self.commands.items() if index != slot}
        return self.decided.get((era, slot))

    def _first_sight(self, host: Host, decision: Decision, whole: bytes, entry: Decided) -> None:
        """Check a decision when the first host stores it: its certificate, against the voters of its slot."""
        voters = self._voters_of(host, decision.slot)
        problem = self._certificate_problem(voters, entry)
        if problem:
            raise Violation("OneConfig", f"{host.name} stored slot {decision.slot}: {problem}")
        proposed_ms = self._proposed_ms.get((decision.era, decision.slot, entry.certificate.ballot), -1)
        for vote in entry.certificate.votes:
            if 0 <= self.revoked.get(vote.node, proposed_ms + 1) <= proposed_ms:
                raise Violation("Revoked", f"{host.name} counted a revoked voter in slot {decision.slot}")
        self._check_clock(host, decision)
        self.decided[decision.era, decision.slot] = whole
        if host.peer == entry.certificate.ballot.node:
            self._untold[decision.era, decision.slot] = host
        self.decisions += 1
        if decision.command != NOOP:
            command = digest(decision.command)
            if command in self.commands and not self.forked:
                raise Violation("Idempotent", f"slot {decision.slot} repeats the command of {self.commands[command]}")
            self.commands[command] = decision.slot

    def _certificate_problem(self, voters: tuple[Voter, ...], entry: Decided) -> str:
        """Judge a certificate apart from the code under test: its own idea of a majority, signatures one by one."""
        certificate = entry.certificate
        signers = {(vote.node, vote.store_id) for vote in certificate.votes}
        if certificate.digest != digest(entry.decision):
            return "the certificate is for another decision"
        if len(signers) != len(certificate.votes) or not signers <= {(v.node, v.store_id) for v in voters}:
            return "the signers are not distinct voters of the slot"
        if 2 * len(signers) <= len(voters):
            return f"{len(signers)} of {len(voters)} voters signed"
        if not all(statement_holds(self._verifier, self._mesh, vote) for vote in certificate.statements()):
            return "a signature does not verify"
        return ""

    def _check_clock(self, host: Host, decision: Decision) -> None:
        """One wrong clock among several voters dates no decision; more may be a majority of some quorum's."""
        now_ms = WALL_START_MS + self._world.now_ms
        few = sum(other.clock.was_wrong for other in self._world.hosts) <= 1 < len(self._voters_of(host, decision.slot))
        if few and decision.at_ms > max(now_ms + 2 * CLOCK_TOLERANCE_MS, self._newest_at_ms):
            raise Violation(
                "Clock", f"{host.name} stored slot {decision.slot}, dated {decision.at_ms - now_ms} ms ahead"
            )
        self._newest_at_ms = max(self._newest_at_ms, decision.at_ms)

    def _voters_of(self, host: Host, slot: int) -> tuple[Voter, ...]:
        """Return who votes on `slot`, by the decision stored before it on that host's disk."""
        rows = host.disk.stores[Store.VOTE].tables.get(CHAIN_TABLE, {})
        if slot == 1:
            return self._machine.voters(self._machine.genesis())
        entry = _entry(rows[slot_key(slot - 1)])
        match entry:
            case Decided():
                decision = _decision(entry.decision)
                return decision.voters
            case ResetTo():
                reset: Reset = decode(entry.reset, Reset)
                return reset.voters

    def _check_prefix(self, host: Host, slot: int) -> None:
        rows = host.disk.stores[Store.VOTE].tables.get(CHAIN_TABLE, {})
        if slot > 1 and slot_key(slot - 1) not in rows:
            raise Violation("ChainPrefix", f"{host.name} stored slot {slot} without slot {slot - 1}")
        entry = _entry(rows[slot_key(slot)])
        if isinstance(entry, Decided) and slot > 1:
            decision = _decision(entry.decision)
            before = _entry(rows[slot_key(slot - 1)])
            expected = digest(before.decision if isinstance(before, Decided) else before.reset)
            if decision.prev != expected:
                raise Violation("ChainPrefix", f"{host.name} stored slot {slot} behind another entry than its own")

    # --- messages -----------------------------------------------------------------------------------------------------

    def _sent(self, near: PeerId, far: PeerId, message: Any) -> None:
        del far
        if type(message) not in JUDGED or near in self.excused:
            return
        match message:
            case Promised():
                promise = message.promise
                self._durable(near, promise.ballot, promise.slot, promise.accepted_ballot, promise.counter)
            case Voted():
                vote = message.vote
                self._once(self._votes, (vote.node, vote.store_id, vote.era, vote.slot, vote.ballot), vote.digest)
                self._durable(near, vote.ballot, vote.slot, vote.ballot, vote.counter)
            case Propose():
                proposal = message.proposal
                key = (proposal.era, proposal.slot, proposal.ballot)
                self._proposed_ms.setdefault(key, self._world.now_ms)
                self.first_proposed_ms.setdefault(proposal.digest, self._world.now_ms)
                self._once(self._proposals, key, proposal.digest)
                # Others' promises may be enough: the ballot is unique by its process's nonce, not by the disk.
                self._durable(near, NO_BALLOT, proposal.slot, NO_BALLOT, -1)
            case Commit():
                host = self._world.host_of(near)
                rows = host.disk.stores[Store.VOTE].tables.get(CHAIN_TABLE, {})
                if slot_key(message.slot) not in rows:
                    raise Violation("DurableBeforeSpeak", f"{host.name} told slot {message.slot} before storing it")
            case _:
                pass

    def _once(self, seen: dict[tuple[Any, ...], bytes], key: tuple[Any, ...], said: bytes) -> None:
        if seen.setdefault(key, said) != said:
            raise Violation("BallotOnce", f"two digests at {key}")

    def _durable(self, near: PeerId, ballot: Ballot, slot: int, accepted: Ballot, counter: int) -> None:
        host = self._world.host_of(near)
        data = host.disk.stores[Store.VOTE].tables.get(ACCEPTOR_TABLE, {}).get(RECORD_KEY)
        record: AcceptorRecord | None = None if data is None else _record(data)
        if record is None or record.slot < slot:
            raise Violation("DurableBeforeSpeak", f"{host.name} spoke in slot {slot} without a record of it")
        if record.slot > slot:
            return
        if record.promised < ballot or record.accepted_ballot < accepted or record.counter < counter:
            raise Violation("DurableBeforeSpeak", f"{host.name} said in slot {slot} what its disk does not hold")
        fence = newest_fence(host.disk.stores[Store.FENCE].tables.get(FENCE_TABLE, {}))
        if counter >= 0 and (fence is None or fence.store_id != record.store_id or fence.counter < counter):
            raise Violation("DurableBeforeSpeak", f"{host.name} spoke in slot {slot} ahead of its fence")

    # --- notices ------------------------------------------------------------------------------------------------------

    def _noticed(self, host: Host, event: Any) -> None:
        if isinstance(event, EntryStored):
            rows = host.disk.stores[Store.VOTE].tables.get(CHAIN_TABLE, {})
            if slot_key(event.slot) not in rows:
                raise Violation("DurableBeforeSpeak", f"{host.name} acts on slot {event.slot} before storing it")

    # --- the end ------------------------------------------------------------------------------------------------------

    def check_replay(self) -> None:
        """Apply every host's chain from the genesis: each state hash must come out again.

        What hosts hold alike is applied once: an entry names the one before it by digest.
        """
        after: dict[bytes, Any] = {}
        for host in self._world.hosts:
            rows = host.disk.stores[Store.VOTE].tables.get(CHAIN_TABLE, {})
            state = self._machine.genesis()
            for slot in range(1, len(rows) + 1):
                row = rows[slot_key(slot)]
                if row in after:
                    state = after[row]
                    continue
                entry = _entry(row)
                if isinstance(entry, ResetTo):
                    break
                decision = _decision(entry.decision)
                if decision.command != NOOP:
                    state = self._machine.apply(state, decision.command, material_of(entry.material), decision.at_ms)
                if isinstance(state, Refusal) or digest_of(state) != decision.state_hash:
                    raise Violation("Replay", f"{host.name} cannot reproduce slot {slot}")
                after[row] = state


@dataclass
class ClientOperation:
    """One client operation, as the client saw it."""

    id: bytes
    kind: str
    host: str
    invoked_ms: int
    floor_slot: int
    command: bytes = b""
    outcome: str = ""
    slot: int = -1
    returned_ms: int = -1
    name: str = ""
    amount: int = 0
    value: int | None = None
    value_slot: int = -1
    retry: bool = False
    """The same command was submitted before: it may have been decided before this operation began."""


class ClientChecker:
    """Collects client histories and checks RealTime as they return."""

    def __init__(self, in_chain: Callable[[bytes], bool]) -> None:
        self.in_chain = in_chain
        self.excused = False
        """A voter lies in this run: what clients are told may be of either side of a fork."""
        self._resets = 0
        self.operations: list[ClientOperation] = []
        self._open: dict[bytes, ClientOperation] = {}
        self._highest_returned = -1

    def invoke(self, operation: ClientOperation) -> None:
        """An operation begins: it must land above everything that has returned by now."""
        operation.floor_slot = self._highest_returned
        self.operations.append(operation)
        self._open[operation.id] = operation

    def take(self, operation_id: bytes) -> ClientOperation | None:
        """Return an operation that is still open, and close it."""
        return self._open.pop(operation_id, None)

    def era_changed(self, kept_slot: int) -> None:
        """A reset abandoned what came after `kept_slot`."""
        self._resets += 1
        self._highest_returned = min(self._highest_returned, kept_slot)
        for operation in self._open.values():
            operation.floor_slot = min(operation.floor_slot, kept_slot)
        for operation in self.operations:
            if operation.slot > kept_slot:
                operation.outcome = "abandoned"

    def returned(self, operation: ClientOperation, now_ms: int, outcome: str, slot: int) -> None:
        """An operation returned to its client."""
        operation.outcome, operation.slot, operation.returned_ms = outcome, slot, now_ms
        if outcome not in ("decided", "read"):
            return
        floor = operation.floor_slot
        if operation.retry or self.excused:
            return
        if self._resets and outcome == "decided" and not self.in_chain(operation.command):
            operation.outcome = "abandoned"  # a voter that had not heard of the reset decided it in the era before
            return
        if slot < floor or (outcome == "decided" and slot == floor):
            raise Violation(
                "RealTime", f"{operation.kind} returned slot {slot}, slot {floor} had returned before it began"
            )
        self._highest_returned = max(self._highest_returned, slot)

    def _retried(self, operation: ClientOperation) -> bool:
        return sum(other.command == operation.command for other in self.operations) > 1

    def check_history(self, commands: dict[bytes, int]) -> None:
        """Judge the whole history at once, with the slots as the witness; a reset leaves none to judge."""
        if self._resets:
            return
        first: dict[bytes, ClientOperation] = {}
        for operation in self.operations:
            if operation.kind == "write" and digest(operation.command) in commands:
                first.setdefault(operation.command, operation)
        writes = [
            HistoryWrite(
                client_operation.name,
                client_operation.amount,
                commands[digest(client_operation.command)],
                client_operation.invoked_ms,
                client_operation.returned_ms if told else -1,
            )
            for client_operation in first.values()
            for told in (client_operation.outcome == "decided",)
        ]
        reads = [
            HistoryRead(
                operation.name, operation.value, operation.value_slot, operation.invoked_ms, operation.returned_ms
            )
            for operation in self.operations
            if operation.kind == "read" and operation.value is not None
        ]
        text = problem(writes, reads)
        if text:
            raise Violation("RealTime", text)

    def check_refusals(self, commands: dict[bytes, int]) -> None:
        """What was refused must not be in the chain; what was decided must be, in its slot."""
        for operation in self.operations:
            slot = commands.get(digest(operation.command)) if operation.kind == "write" else None
            if operation.outcome in ("refused", "superseded") and slot is not None and not self._retried(operation):
                raise Violation("Outcome", f"a {operation.outcome} command is in slot {slot}")
            if operation.outcome == "decided" and operation.kind == "write" and slot != operation.slot:
                raise Violation("Outcome", f"a command said to be in slot {operation.slot} is in {slot}")
