"""History: each decision of the chain as one line a person can read, with the numbers that decided it.

Everything is read from the stored entries: the command, who signed it, and the health verdicts in its material.
Nothing is kept beside the chain. Not here: judging any of it again (the ledger did), and how it is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocols.api_models import DecisionView, Numbers
from protocols.chain.decision import NOOP, Decided, Decision, Entry
from protocols.changes.statements import HealthVerdict, Statement
from protocols.core import NodeCore
from protocols.envelope import PUBLIC_KEY_BYTES, DecodeError, Signed, decode
from protocols.keys import peer_id
from protocols.state.commands import Command, SignedCommand

REASON_MAX = 500
NOOP_ACTION = "noop"
"""What a slot says that decided nothing."""
SLOTS_SEARCHED_MAX = 1_000
"""How far back a retried command is looked for: a retry comes within minutes, and a few decisions are made a day."""


def view_of(slot: int, entry: Entry) -> DecisionView:
    """Return what an entry of the chain decided."""
    if not isinstance(entry, Decided):
        return DecisionView(slot, 0, "reset", "", "", (), (), "", "admins began a new era", ())
    decision: Decision = decode(entry.decision, Decision)
    voters = tuple(vote.node for vote in entry.certificate.votes)
    if decision.command == NOOP:
        return DecisionView(slot, decision.at_ms, NOOP_ACTION, "", "", (), voters, "", "", ())
    signed: SignedCommand = decode(decision.command, SignedCommand)
    command: Command = decode(signed.payload, Command)
    action = command.action
    return DecisionView(
        slot=slot,
        at_ms=decision.at_ms,
        action=str(type(action).__struct_config__.tag),
        project=command.project,
        environment=command.environment,
        signers=tuple(signature.key.hex() for signature in signed.signatures),
        voters=voters,
        subject=_subject(action),
        reason=str(getattr(action, "reason", "") or getattr(action, "break_glass", ""))[:REASON_MAX],
        numbers=_numbers(entry),
    )


class History:
    """The decisions that this node holds."""

    def __init__(self, core: NodeCore) -> None:
        """Take the core to read."""
        self._core = core

    def decision(self, slot: int) -> DecisionView:
        """What the chain decided at a slot this node holds."""
        return view_of(slot, self._core.chain.ledger.entry(slot))

    def digest_at(self, slot: int) -> bytes:
        """What names the chain up to a slot."""
        return self._core.chain.ledger.digest_at(slot)

    def slot_of(self, signed: SignedCommand) -> int:
        """Where this very command was decided, of the newest slots; 0 if nowhere."""
        newest = self._core.chain.position.slot
        for slot in range(newest, max(0, newest - SLOTS_SEARCHED_MAX), -1):
            if payload_of(self._core.chain.ledger.entry(slot)) == signed.payload:
                return slot
        return 0

    def recent(
        self,
        project: str,
        environment: str,
        limit: int,
        *,
        before: int | None = None,
        wanted: Callable[[DecisionView], bool] = lambda _view: True,
    ) -> list[DecisionView]:
        """The newest wanted decisions, newest first, or the newest `before` a slot; empty names match everything."""
        decisions: list[DecisionView] = []
        newest = self._core.chain.position.slot
        for slot in range(newest if before is None else min(newest, before - 1), 0, -1):
            view = self.decision(slot)
            here = (not project or view.project == project) and (not environment or view.environment == environment)
            if here and view.action != NOOP_ACTION and wanted(view):
                decisions.append(view)
            if len(decisions) >= limit:
                break
        return decisions


def payload_of(entry: Entry) -> bytes:
    """The signed bytes of what an entry decided; empty for a no-op and a reset."""
    if not isinstance(entry, Decided):
        return b""
    decision: Decision = decode(entry.decision, Decision)
    return b"" if decision.command == NOOP else bytes(decode(decision.command, SignedCommand).payload)


def _subject(action: Any) -> str:
    """What the action is about: a digest in hex, a name or a node."""
    for name in ("change", "rollout", "name", "node"):
        value = getattr(action, name, None)
        if value:
            return value.hex() if isinstance(value, bytes) else str(value)
    return ""


def _numbers(entry: Decided) -> tuple[Numbers, ...]:
    table: dict[str, Numbers] = {}
    for data in entry.material:
        try:
            signed: Signed = decode(data, Signed)
            said: Statement = decode(signed.payload, Statement)
        except DecodeError:
            continue
        if isinstance(said, HealthVerdict) and len(signed.key) == PUBLIC_KEY_BYTES:
            node = peer_id(signed.key)
            counts = said.candidate
            table[node] = Numbers(
                node, said.verdict, counts.requests, counts.errors, said.healthy_ms, said.smoke_runs, said.reason
            )
    return tuple(table[node] for node in sorted(table))
