"""The stored chain: verified entries in order, the state they lead to, and what a peer behind us needs.

Everything here follows from the genesis and the entries. A certificate is verified once, before its entry is stored;
at start only the hash chain is checked again. Not here: how decisions are reached, and who is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from protocols.chain.decision import (
    COMMAND_MAX_BYTES,
    NOOP,
    RESET_DOMAIN,
    RESET_SIGNATURES_MAX,
    Admins,
    AnyStateMachine,
    Decided,
    Decision,
    Entry,
    Reset,
    ResetTo,
    Voter,
    evidence_root,
    material_fits,
    material_of,
)
from protocols.chain.grounds import grounds_problem
from protocols.chain.messages import BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, Entries, Position
from protocols.chain.quorum import certificate_problem, valid_voters
from protocols.envelope import DecodeError, decode, digest, digest_of, encode, verify
from protocols.invariants import ensure
from protocols.machine import Digest, Verifier, Write
from protocols.refusal import Refusal

CHAIN_TABLE = "chain"
STATE_TABLE = "state"
STATE_KEY = b"state"
STATE_EVERY_SLOTS = 16
"""The state is written this seldom: a start replays at most so many entries, a decision need not write the state."""
ENTRY_MAX_BYTES = 1 << 20
RULES_UNSUPPORTED = "chain.rules-unsupported"
"""The one refusal that is this build's fault and nobody else's."""
DECISION_MAX_BYTES = 2 * COMMAND_MAX_BYTES
STATE_MAX_BYTES = 16 << 20
DECIDED_COMMANDS_MAX = 4096
"""So many decided commands are remembered by digest, to answer a retry with the slot of the first."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A decision that passed every deterministic check, and the state after it."""

    decision: Decision
    digest: Digest
    state: Any


def slot_key(slot: int) -> bytes:
    """Return the row key of a slot; keys sort as slots do."""
    return slot.to_bytes(8, "big")


def entry_problem(verifier: Verifier, mesh: bytes, voters: tuple[Voter, ...], entry: Decided) -> str:
    """Return why `voters` did not decide an entry, or did so without grounds; "" when it is proven."""
    certificate, decided = entry.certificate, digest(entry.decision)
    attempt = certificate.era, certificate.slot, certificate.ballot
    return certificate_problem(verifier, mesh, voters, certificate, decided) or grounds_problem(
        verifier, mesh, voters, entry.grounds, attempt, decided
    )


class Ledger:
    """The chain one node holds."""

    def __init__(self, mesh: bytes, machine: AnyStateMachine, verifier: Verifier) -> None:
        self.mesh = mesh
        self._machine = machine
        self._verifier = verifier
        self._entries: list[Entry] = []
        self._digests: list[bytes] = []
        self._resets: list[int] = []
        """Slots of the resets, oldest first."""
        self._command_slots: dict[bytes, int] = {}
        self._judged: tuple[bytes, Digest, Judged | Refusal] | None = None
        self.state: Any = machine.genesis()
        self.position = Position(mesh, 0, 0, mesh)
        self.at_ms = 0
        self.voters: tuple[Voter, ...] = machine.voters(self.state)
        self.newer_rules = ""
        """What stands in the way of a chain that is sound and goes on under rules this build does not know, or ""."""
        self.voters_changed_at = 0
        """The slot whose decision named the present voters; 0 for the genesis."""

    # --- what is held -------------------------------------------------------------------------------------------------

    def entry(self, slot: int) -> Entry:
        """Return the entry at a slot from 1 to the head's."""
        return self._entries[slot - 1]

    def digest_at(self, slot: int) -> bytes:
        """Return the digest of the entry at a slot; slot 0 is the mesh id."""
        return self._digests[slot - 1] if slot else self.mesh

    @property
    def era_slot(self) -> int:
        """The slot of the reset that began this era; 0 for the first one."""
        return self._resets[-1] if self._resets else 0

    def position_at(self, slot: int) -> Position:
        """Return where a chain that ends at `slot`, of this era, would stand."""
        return Position(self.position.era, self.position.resets, slot, self.digest_at(slot))

    def voters_at(self, slot: int) -> tuple[Voter, ...]:
        """Return who voted on a slot from 1 to the open one."""
        if slot == self.position.slot + 1:
            return self.voters
        if slot == 1:
            return self._machine.voters(self._machine.genesis())
        before = self.entry(slot - 1)
        if isinstance(before, ResetTo):
            reset: Reset = decode(before.reset, Reset)
            return reset.voters
        decision: Decision = decode(before.decision, Decision)
        return decision.voters

    def slot_of(self, command: Digest) -> int | None:
        """Return the slot that decided a command (by its digest), if that is remembered."""
        return self._command_slots.get(command)

    # --- judging ------------------------------------------------------------------------------------------------------

    def judge(self, data: bytes, items: tuple[bytes, ...]) -> Judged | Refusal:
        """Apply every check of a decision for the open slot that all nodes must agree on; the last result is kept."""
        whole = digest(data)
        material = material_of(items) if material_fits(items) else {}
        root = evidence_root(list(material))
        judged = self._judged
        if judged is not None and judged[0] == whole and judged[1] == root:
            return judged[2]
        result = self._judge(data, whole, material, root) if material_fits(items) else Refusal("chain.material-size")
        self._judged = (whole, root, result)
        return result

    def _judge(self, data: bytes, whole: Digest, material: Mapping[Digest, bytes], root: Digest) -> Judged | Refusal:
        try:
            decision: Decision = decode(data, Decision, DECISION_MAX_BYTES)
        except DecodeError as error:
            return Refusal("chain.decision-malformed", str(error))
        head = self.position
        if (decision.mesh, decision.era, decision.slot) != (self.mesh, head.era, head.slot + 1):
            return Refusal("chain.decision-elsewhere", "the decision is for another mesh, era or slot")
        if decision.prev != head.digest:
            return Refusal("chain.decision-prev", "the decision does not follow the head")
        if decision.at_ms < self.at_ms:
            return Refusal("chain.decision-time", "the decision is older than the one before")
        if decision.evidence_root != root:
            return Refusal("chain.material", "the evidence is not what the decision names")
        if decision.rules_version != self._machine.rules_version_of(self.state):
            return Refusal("chain.rules-version", "the decision is made under other rules")
        if decision.rules_version > self._machine.rules_version:
            return Refusal(RULES_UNSUPPORTED, f"rules {decision.rules_version} need a newer release")
        state = self.after(decision.command, material, decision.at_ms)
        if isinstance(state, Refusal):
            return state
        if decision.state_hash != digest_of(state):
            return Refusal("chain.state-hash", "the command leads to another state than the decision says")
        if decision.voters != self._machine.voters(state) or not valid_voters(decision.voters):
            return Refusal("chain.voters", "the decision names other voters than the state")
        return Judged(decision, whole, state)

    def after(self, command: bytes, material: Mapping[Digest, bytes], at_ms: int) -> Any:
        """Return the state after a command at the head, or a Refusal; a no-op changes nothing."""
        if len(command) > COMMAND_MAX_BYTES:
            return Refusal("chain.command-size", f"a command has at most {COMMAND_MAX_BYTES} bytes")
        if command == NOOP:
            return Refusal("chain.noop-material") if material else self.state
        return self._machine.apply(self.state, command, material, at_ms)

    def draft(self, command: bytes, items: tuple[bytes, ...], at_ms: int) -> bytes | Refusal:
        """Return the encoded decision that would take `command` at the open slot, or why it may not."""
        if not material_fits(items):
            return Refusal("chain.material-size", "there is more evidence than one decision carries")
        material = material_of(items)
        state = self.after(command, material, at_ms)
        if isinstance(state, Refusal):
            return state
        head = self.position
        return encode(
            Decision(
                self.mesh, head.era, head.slot + 1, head.digest, at_ms, self._machine.rules_version_of(self.state),
                command, evidence_root(list(material)), digest_of(state), self._machine.voters(state),
            )
        )  # fmt: skip

    # --- growing ------------------------------------------------------------------------------------------------------

    def check(self, entry: Decided) -> Judged | Refusal:
        """Return the judged decision of an entry for the open slot, if its certificate proves it."""
        certificate = entry.certificate
        if (certificate.era, certificate.slot) != (self.position.era, self.position.slot + 1):
            return Refusal("chain.certificate", "the certificate is for another era or slot")
        problem = entry_problem(self._verifier, self.mesh, self.voters, entry)
        if problem:
            return Refusal("chain.certificate", problem)
        return self.judge(entry.decision, entry.material)

    def append(self, entry: Decided, judged: Judged) -> tuple[Write, ...]:
        """Add a checked entry; return the writes that make it durable."""
        decision = judged.decision
        before = self.voters
        head = Position(decision.era, self.position.resets, decision.slot, judged.digest)
        self._push(entry, head, judged.state, decision.at_ms)
        if before != self.voters:
            self.voters_changed_at = decision.slot
        if decision.command != NOOP:
            self._remember(decision.command, decision.slot)
        writes = [Write(CHAIN_TABLE, slot_key(decision.slot), encode(entry))]
        if decision.slot % STATE_EVERY_SLOTS == 0:
            writes.append(self._state_write())
        return tuple(writes)

    def check_reset(self, entry: ResetTo) -> Reset | Refusal:
        """Return the reset of an entry if it names an entry we hold, beats what we hold after it, and admins signed it.

        Nothing is applied for that: who was an admin at that entry is found without its state. A later reset beats an
        earlier one; of two with one number the higher digest wins, on every node alike.
        """
        try:
            reset: Reset = decode(entry.reset, Reset, COMMAND_MAX_BYTES)
        except DecodeError as error:
            return Refusal("chain.reset-malformed", str(error))
        if reset.mesh != self.mesh or not 1 <= reset.slot <= self.position.slot + 1:
            return Refusal("chain.reset-elsewhere", "the reset follows a head that is not held here")
        if reset.prev != self.digest_at(reset.slot - 1):
            return Refusal("chain.reset-prev", "the reset follows another chain")
        before = sum(slot < reset.slot for slot in self._resets)
        if reset.number != before + 1 or not valid_voters(reset.voters):
            return Refusal("chain.reset-number", "the reset is out of turn, or names no legal set of voters")
        if len(self._resets) > before:
            held = self.digest_at(self._resets[before])
            if held >= digest(entry.reset):
                return Refusal("chain.reset-beaten", "another reset is in force")
        return self._unsigned(entry, self._admins_at(reset.slot - 1)) or reset

    def _unsigned(self, entry: ResetTo, admins: Admins) -> Refusal | None:
        if len(entry.approvals) > RESET_SIGNATURES_MAX:
            return Refusal("reset.admin-threshold", f"a reset has at most {RESET_SIGNATURES_MAX} signatures")
        signers = {
            approval.key
            for approval in entry.approvals
            if approval.payload == entry.reset
            and approval.key in admins.keys
            and verify(self._verifier, RESET_DOMAIN, self.mesh, approval)
        }
        if len(signers) < max(1, admins.threshold):
            return Refusal("reset.admin-threshold", f"{len(signers)} of {admins.threshold} admin signatures")
        return None

    def _admins_at(self, slot: int) -> Admins:
        """Return who were the admins once the entry at a slot was decided."""
        if slot == self.position.slot:
            return self._machine.admins(self.state)
        for entry in reversed(self._entries[:slot]):
            if isinstance(entry, Decided):
                decision: Decision = decode(entry.decision, Decision)
                named = self._machine.admins_named(decision.command)
                if named is not None:
                    return named
        return self._machine.admins(self._machine.genesis())

    def reset(self, entry: ResetTo, reset: Reset) -> tuple[Write, ...]:
        """Cut the chain behind the head that a checked reset keeps and begin its era; return the writes."""
        entries = self._entries[: reset.slot - 1]
        base = Ledger(self.mesh, self._machine, self._verifier)
        for held in entries:
            base.replay(held)
        era = digest(entry.reset)
        state = self._machine.apply_reset(base.state, reset, era)
        cut = tuple(Write(CHAIN_TABLE, slot_key(slot), None) for slot in range(reset.slot, self.position.slot + 1))
        base._begin_era(entry, reset, era, state)
        self.__dict__.update(base.__dict__)
        return (*cut, Write(CHAIN_TABLE, slot_key(reset.slot), encode(entry)), self._state_write())

    def _begin_era(self, entry: ResetTo, reset: Reset, era: Digest, state: Any) -> None:
        self._push(entry, Position(era, reset.number, reset.slot, era), state, reset.at_ms)
        self._resets.append(reset.slot)
        self.voters_changed_at = reset.slot

    def _push(self, entry: Entry, position: Position, state: Any, at_ms: int) -> None:
        ensure(position.slot == len(self._entries) + 1, "the ledger grows by one slot at a time")
        self._entries.append(entry)
        self._digests.append(position.digest)
        self._judged = None
        self.position = position
        self.state = state
        self.at_ms = max(self.at_ms, at_ms)
        self.voters = self._machine.voters(state)

    def _remember(self, command: bytes, slot: int) -> None:
        if len(self._command_slots) >= DECIDED_COMMANDS_MAX:
            del self._command_slots[next(iter(self._command_slots))]
        self._command_slots[digest(command)] = slot

    def _state_write(self) -> Write:
        return Write(STATE_TABLE, STATE_KEY, encode((self.position.slot, encode(self.state))))

    # --- starting -----------------------------------------------------------------------------------------------------

    def replay(self, entry: Entry) -> None:
        """Add an entry whose certificate was verified when it was stored. Raises DecodeError if it does not follow."""
        match entry:
            case Decided():
                judged = self.judge(entry.decision, entry.material)
                if isinstance(judged, Refusal):
                    self.newer_rules = judged.detail if judged.rule == RULES_UNSUPPORTED else ""
                    raise DecodeError(f"slot {self.position.slot + 1}: {judged.rule} {judged.detail}")
                self.append(entry, judged)
            case ResetTo():
                reset = self.check_reset(entry)
                if isinstance(reset, Refusal):
                    raise DecodeError(f"slot {self.position.slot + 1}: the reset does not follow")
                era = digest(entry.reset)
                self._begin_era(entry, reset, era, self._machine.apply_reset(self.state, reset, era))

    def restore(self, tables: Mapping[str, Mapping[bytes, bytes]]) -> str:
        """Load the stored chain; return what was wrong with it, after keeping the prefix that is good."""
        rows = tables.get(CHAIN_TABLE, {})
        state_slot, state = self._load_state(tables, rows)
        for slot in range(1, len(rows) + 1):
            data = rows.get(slot_key(slot))
            if data is None:
                return f"slot {slot} of the chain is missing"
            try:
                entry: Entry = decode(data, Entry, ENTRY_MAX_BYTES)
                if slot <= state_slot and isinstance(entry, Decided):
                    self._link(entry, state if slot == state_slot else None)
                else:
                    self.replay(entry)
            except DecodeError as error:
                return f"slot {slot} of the chain: {error}"
        return ""

    def _load_state(self, tables: Mapping[str, Mapping[bytes, bytes]], rows: Mapping[bytes, bytes]) -> tuple[int, Any]:
        """Return the stored state and its slot if the decision there vouches for it; else slot 0: replay everything.

        A chain with a reset is always replayed: a reset's entry carries no state hash.
        """
        try:
            row = tables.get(STATE_TABLE, {}).get(STATE_KEY, b"")
            stored: tuple[int, bytes] = decode(row, tuple[int, bytes], STATE_MAX_BYTES)
            slot, data = stored
            entry: Entry = decode(rows.get(slot_key(slot), b""), Entry, ENTRY_MAX_BYTES)
            if not isinstance(entry, Decided):
                return 0, None
            decision: Decision = decode(entry.decision, Decision, DECISION_MAX_BYTES)
            if digest(data) == decision.state_hash and decision.era == self.mesh:
                return slot, self._machine.decode_state(data)
        except DecodeError:
            pass
        return 0, None

    def _link(self, entry: Decided, state: Any) -> None:
        """Add an entry below the stored state: it must follow by hash, and need not be applied."""
        decision: Decision = decode(entry.decision, Decision, DECISION_MAX_BYTES)
        head = self.position
        if (decision.mesh, decision.slot, decision.prev) != (self.mesh, head.slot + 1, head.digest):
            raise DecodeError("the decision does not follow")
        before = self.voters
        here = Position(decision.era, head.resets, decision.slot, digest(entry.decision))
        self._push(entry, here, self.state, decision.at_ms)
        self.voters = decision.voters
        if state is not None:
            self.state = state
        if before != self.voters:
            self.voters_changed_at = decision.slot
        if decision.command != NOOP:
            self._remember(decision.command, decision.slot)

    # --- serving ------------------------------------------------------------------------------------------------------

    def batch_after(self, theirs: Position) -> Entries | None:
        """Return the next entries for a chain that ends at `theirs`, or None if it has nothing to learn here."""
        head = self.position
        if theirs.resets > head.resets:
            return None
        first = theirs.slot + 1
        same_era = theirs.resets == 0 or (
            theirs.resets <= len(self._resets) and self.digest_at(self._resets[theirs.resets - 1]) == theirs.era
        )
        if not same_era:
            first = min(first, self._resets[theirs.resets - 1])
        elif theirs.resets < head.resets:
            first = min(first, self._resets[theirs.resets])
        if first > head.slot:
            return None
        batch: list[Entry] = []
        size = 0
        for entry in self._entries[first - 1 : first - 1 + BATCH_ENTRIES_MAX]:
            size += _size(entry)
            if batch and size > BATCH_BYTES_MAX:
                break
            batch.append(entry)
        return Entries(first, tuple(batch), head)


def _size(entry: Entry) -> int:
    match entry:
        case Decided():
            signed = len(entry.certificate.votes) + 2 * sum(map(len, entry.grounds))
            return len(entry.decision) + sum(map(len, entry.material)) + 256 * signed
        case ResetTo():
            return len(entry.reset) + 256 * len(entry.approvals)
