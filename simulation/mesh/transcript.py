"""What a fleet did, in lines a reviewer can compare: each node's notices as short sentences, equal ones on one line.

Digests, keys and peer ids never appear; hosts, principals and changes have the names that the scenario gave them. Left
out is what says nothing about a scenario: periodic syncs, certificates on their way, what may be collected. Not here:
who does what (scenarios.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocols.chain.decision import NOOP, Decided, Decision, Reset, Voter
from protocols.chain.messages import EntryStored, EraChanged, Lied, Outcome, Quarantined, Stalled
from protocols.envelope import decode
from protocols.liveness import BeliefChanged
from protocols.machine import Digest, PeerId
from protocols.records.gossip import Equivocated, PublishRefused, RecordsForgotten, RecordsMerged, RecordsVoided
from protocols.rollout.conductor import SubmitStep
from protocols.rollout.orders import PrepareRelease, ReplaySmoke, Reverted, Run, Stop
from protocols.state.commands import (
    Abort,
    Action,
    ClaimRoutes,
    Command,
    ConfirmNode,
    CreateEnvironment,
    CreateProject,
    Pause,
    Promote,
    Reconfigure,
    Resume,
    Rollback,
    SignedCommand,
    Start,
)
from protocols.trust.hello import Admitted, Invited, RefusedBy
from protocols.trust.invites import Admission
from protocols.trust.joining import Joined

CLIENT_PREFIX = b"request-"
TOLD_RECORDS = ("change", "approval", "grant", "revocation", "address", "equivocation")
"""Records that scenarios are about; the rest is the machines' own housekeeping."""

REPEATED = "proposes to"
"""A proposal that nobody can hear is made again and again: one line, with the number of times."""


class TranscriptNames:
    """Gives names to peers, stores and changes."""

    def __init__(self, name_of: Mapping[PeerId, str], changes: Mapping[Digest, str]) -> None:
        """Take the names of hosts and of changes; stores are named when they are first seen voting."""
        self._name_of, self._changes = name_of, changes
        self._stores: dict[bytes, str] = {}

    def peer(self, peer: str) -> str:
        """The host's name, or "a stranger"."""
        return self._name_of.get(PeerId(peer), "a stranger")

    def change(self, change: bytes) -> str:
        """The change's name in the scenario."""
        return self._changes.get(Digest(change), "an unknown change")

    def voter(self, voter: Voter) -> str:
        """The node and which of its stores this is: n1, and after a lost disk n1'."""
        stores = [store for store, node in self._stores.items() if node == voter.node]
        if voter.store_id not in self._stores:
            self._stores[voter.store_id] = voter.node
            stores.append(voter.store_id)
        return self.peer(voter.node) + "'" * stores.index(voter.store_id)

    def voters(self, voters: tuple[Voter, ...]) -> str:
        """All of them, by name."""
        return " ".join(sorted(self.voter(voter) for voter in voters))


class Telling:
    """Collects the lines of one command's reply."""

    def __init__(self, names: TranscriptNames) -> None:
        self._names = names
        self._lines: list[tuple[str, list[tuple[int, str]]]] = []

    def hear(self, at_ms: int, host: str, event: Any) -> None:
        """Take in one notice of one host."""
        text = self._text(event)
        if not text:
            return
        for told, who in reversed(self._lines):
            if told == text:
                if all(name != host for _, name in who) or text.startswith(REPEATED):
                    who.append((at_ms, host))
                    return
                break
        self._lines.append((text, [(at_ms, host)]))

    def take(self) -> list[str]:
        """Return the lines so far, in order of time, and start anew."""
        lines, self._lines = self._lines, []
        return [_line(text, who) for text, who in lines]

    def _text(self, event: Any) -> str:
        match event:
            case EntryStored(slot, entry):
                return f"stores slot {slot}: {self._entry(entry)}"
            case Outcome(request_id, outcome, slot, rule, detail):
                if not request_id.startswith(CLIENT_PREFIX):
                    return ""
                return f"answers: {outcome}" + (f" in slot {slot}" if slot else "") + _why(rule, detail)
            case Quarantined(reason, _):
                return f"gives up its store: {reason}"
            case Lied(proof):
                return f"holds proof of a lie: {proof.rule}"
            case Stalled(slot, reason):
                return f"cannot follow slot {slot}: {reason}"
            case EraChanged(_, kept_slot):
                return f"is in a new era; slots after {kept_slot} of the old one are abandoned"
            case _:
                return self._mesh_text(event) or self._work_text(event)

    def _mesh_text(self, event: Any) -> str:
        names = self._names
        match event:
            case Admitted(peer, standing):
                return f"admits {names.peer(peer)} as {standing.value}"
            case Invited(peer, _, bundle):
                admission: Admission = decode(bundle.admission.payload, Admission)
                return f"lets {names.peer(peer)} in by invite, use {admission.use_index}"
            case Joined(admitted_by=peer):
                return f"was let in by {names.peer(peer)}"
            case RefusedBy(peer, rule, detail):
                return f"is refused by {names.peer(peer)}{_why(rule, detail)}"
            case BeliefChanged(node, belief):
                return f"believes {names.peer(node)} {belief.value}"
            case RecordsMerged(entries):
                return self._records("merges", entries)
            case RecordsForgotten(entries):
                return self._records("forgets", entries)
            case RecordsVoided(entries):
                return self._records("voids", entries)
            case Equivocated(author):
                return f"caught {names.peer(author)} signing two records as one"
            case PublishRefused(_, refusal):
                return f"does not publish: {refusal.rule}: {refusal.detail}"
            case _:
                return ""

    def _work_text(self, event: Any) -> str:
        names = self._names
        match event:
            case PrepareRelease(change):
                return f"prepares {names.change(change)}"
            case Run(project, environment, deployed, role, _):
                return f"runs {names.change(deployed.change)} in {project}/{environment} as {role}"
            case Stop(project, environment):
                return f"stops {project}/{environment}"
            case Reverted(project, environment, _, reason):
                return f"leaves the candidate of {project}/{environment}: {reason}"
            case ReplaySmoke(_, _, change):
                return f"replays the smoke checks of {names.change(change)}"
            case SubmitStep(command, _, reason):
                signed: SignedCommand = decode(command, SignedCommand)
                opened: Command = decode(signed.payload, Command)
                action = self._action(opened.action)
                return f"proposes to {action}" + (f" ({reason})" if reason not in action else "")
            case _:
                return ""

    def _records(self, verb: str, entries: Any) -> str:
        told = [
            entry.parsed.rule.prefix + (" tombstone" if entry.record.tombstone else "")
            for entry in entries
            if entry.parsed.rule.prefix in TOLD_RECORDS
        ]
        return f"{verb} {', '.join(f'{told.count(entry)} {entry}' for entry in dict.fromkeys(told))}" if told else ""

    def _entry(self, entry: Any) -> str:
        if not isinstance(entry, Decided):
            reset: Reset = decode(entry.reset, Reset)
            return f"reset {reset.number} by the admins, voters {self._names.voters(reset.voters)}"
        decision: Decision = decode(entry.decision, Decision)
        if decision.command == NOOP:
            return "no-op"
        signed: SignedCommand = decode(decision.command, SignedCommand)
        command: Command = decode(signed.payload, Command)
        where = f" in {command.project}/{command.environment}" if command.project else ""
        return self._action(command.action) + where

    def _action(self, action: Action) -> str:
        names = self._names
        match action:
            case ConfirmNode(node):
                return f"confirm {names.peer(node)}"
            case CreateProject(name):
                return f"create project {name}"
            case CreateEnvironment(name):
                return f"create environment {name}"
            case Reconfigure(voters):
                return f"voters {names.voters(voters)}"
            case Start(change, nodes):
                return f"start {names.change(change)} on {len(nodes)} nodes"
            case Rollback(change, reason):
                return f"roll back to {names.change(change)} ({reason})"
            case Promote(_, stage):
                return f"promote from stage {stage}"
            case Abort(_, reason) | Pause(_, reason):
                return type(action).__name__.lower() + (f" ({reason})" if reason else "")
            case Resume():
                return "resume"
            case ClaimRoutes(routes):
                return "claim " + " ".join(route.host + route.path for route in routes)
            case _:
                return type(action).__name__


def _why(rule: str, detail: str) -> str:
    return f", {rule}: {detail}" if rule else ""


def _line(text: str, who: list[tuple[int, str]]) -> str:
    first_ms, first = who[0]
    notes = [f"{name} +{(at_ms - first_ms) / 1000:.2f}" for at_ms, name in who[1:] if name != first]
    count = sum(name == first for _, name in who)
    if count > 1:
        notes.append(f"{count} times until {who[-1][0] / 1000:.2f}")
    return f"{first_ms / 1000:10.2f}  {first} {text}" + (f"  ({', '.join(notes)})" if notes else "")
