"""Judges of whole nodes: what runs where, how stages rise, who is let in; from disks, orders and the network alone.

A host's highest durable decision is read from its disk and applied from the genesis again, once per decision in the
world. What a promotion rests on is counted here a second time, from the statements under its decision, with rules of
this file's own. Not here: the chain's own invariants (checkers.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from protocols.chain.decision import NOOP, Decided, Decision, Entry, ResetTo, Voter, material_of
from protocols.chain.ledger import CHAIN_TABLE, slot_key
from protocols.chain.messages import EntryStored
from protocols.changes.approvals import Approval, read_approval
from protocols.changes.statements import STATEMENT_DOMAIN, HealthVerdict, Statement
from protocols.envelope import DecodeError, Signed, decode, digest, encode
from protocols.keys import peer_id
from protocols.liveness import Belief
from protocols.machine import Digest, PeerId, Store, Verifier
from protocols.refusal import Refusal
from protocols.rollout.agent import RolloutAgent
from protocols.rollout.orders import Reverted, RolloutStatement, Run, Stop
from protocols.state.apply import MeshMachine
from protocols.state.commands import Command, Promote, SignedCommand, Start
from protocols.state.model import Lane, MeshState, Rollout
from simulation.chain.checkers import Violation
from simulation.world.world import Host, World

FRESH_MS = 2_000
"""Slack for what was on its way."""

LaneKey = tuple[str, str, str]


class MeshChecker:
    """Watches orders to nodes, and every decision the first time it is stored."""

    def __init__(self, world: World, mesh: Digest, machine: MeshMachine, verifier: Verifier) -> None:
        self._world = world
        self._mesh = mesh
        self._machine = machine
        self._verifier = verifier
        self._states: dict[bytes, MeshState] = {bytes(mesh): machine.genesis()}
        self.ill: dict[Digest, tuple[tuple[str, ...], int]] = {}
        """Changes made to fail: on which hosts (() for all), and how long a host may serve them as candidate."""
        self.running: dict[LaneKey, tuple[Digest, str, int]] = {}
        """What each host serves per lane: change, role, since when (in this rollout)."""
        self._rollouts: dict[LaneKey, bytes] = {}
        self._known: dict[tuple[Digest, int], list[tuple[int, int]]] = {}
        """Of the one node of a first stage: when a majority of voters first held which word, and its sequence."""
        self.proposed_ms: Callable[[Decision, bytes], int] = lambda decision, whole: world.now_ms
        self.views: Callable[[], Sequence[tuple[Voter, RolloutAgent, MeshState]]] = list
        self.started = 0
        self.promoted = 0
        self._leaving: set[str] = set()
        """Hosts that said goodbye and are about to stop."""
        world.observers.append(self._ordered)
        world.network.send_watchers.append(self._told)

    # --- states -------------------------------------------------------------------------------------------------------

    def state_of(self, host: Host) -> MeshState | None:
        """Return the state of a host's highest durable decision; None behind a reset, which is not replayed here."""
        rows = host.disk.stores[Store.VOTE].tables.get(CHAIN_TABLE, {})
        head = len(rows)
        missing: list[tuple[bytes, Decided]] = []
        state: MeshState | None = None
        while head:
            entry: Entry = decode(rows[slot_key(head)], Entry)
            if isinstance(entry, ResetTo):
                return None
            whole = bytes(digest(entry.decision))
            state = self._states.get(whole)
            if state is not None:
                break
            missing.append((whole, entry))
            head -= 1
        state = state or self._states[bytes(self._mesh)]
        for whole, entry in reversed(missing):
            state = self._next(state, entry)
            self._states[whole] = state
        return state

    def _next(self, state: MeshState, entry: Decided) -> MeshState:
        decision: Decision = decode(entry.decision, Decision)
        if decision.command == NOOP:
            return state
        material = material_of(entry.material)
        after = self._machine.apply(state, decision.command, material, decision.at_ms)
        if isinstance(after, Refusal):
            raise Violation("Replay", f"slot {decision.slot} is not allowed: {after.rule} {after.detail}")
        signed: SignedCommand = decode(decision.command, SignedCommand)
        command: Command = decode(signed.payload, Command)
        self._judge_step(state, after, command, material)
        if isinstance(command.action, Promote):
            self._judge_freshness(state, command, material, self.proposed_ms(decision, entry.decision))
        return after

    # --- decisions ----------------------------------------------------------------------------------------------------

    def _judge_step(self, before: MeshState, after: MeshState, command: Command, material: dict[Digest, bytes]) -> None:
        where = (command.project, command.environment)
        old, new = before.lane(*where), after.lane(*where)
        self._judge_stage(old, new)
        match command.action:
            case Start(change, _, _, glass) if not glass:
                self.started += 1
                self._judge_start(before, new, Digest(change), material)
            case Promote():
                self.promoted += 1
                assert old is not None
                assert old.rollout is not None
                self._judge_promotion(before, old.rollout, material)
            case _:
                pass

    def _judge_stage(self, old: Lane | None, new: Lane | None) -> None:
        then = old.rollout if old is not None else None
        now = new.rollout if new is not None else None
        if now is None:
            return
        if then is None or then.id != now.id:
            if now.stage != 0:
                raise Violation("StageStep", "a rollout began behind its first stage")
        elif now.stage not in (then.stage, then.stage + 1) or (now.stage > then.stage and now.opened <= then.opened):
            raise Violation("StageStep", f"the stage went from {then.stage} to {now.stage}")

    def _judge_start(self, before: MeshState, lane: Lane | None, change: Digest, material: dict[Digest, bytes]) -> None:
        assert lane is not None
        assert lane.rollout is not None
        author = lane.rollout.candidate
        wanted = before.policy.demands.approvals
        approvers = set()
        for data in material.values():
            approval = read_approval(self._verifier, self._mesh, data) if data[:1] == b"{" else None
            if isinstance(approval, Approval) and approval.change == change:
                approvers.add(approval.key)
        if len(approvers) < wanted:
            raise Violation(
                "AuthorizedRun", f"{author.change.hex()[:8]} started with {len(approvers)} of {wanted} approvals"
            )

    def _judge_promotion(self, before: MeshState, rollout: Rollout, material: dict[Digest, bytes]) -> None:
        """Count the verdicts of this very stage over the pinned cohort, whoever is alive."""
        words: dict[PeerId, str] = {}
        for data in material.values():
            said = self._verdict(data)
            if said is None:
                continue
            node, verdict = said
            if (verdict.era, verdict.rollout, verdict.opened) == (before.era, rollout.id, rollout.opened):
                words[node] = verdict.verdict
        cohort = rollout.cohort
        passed = sum(words.get(node) == "pass" for node in cohort)
        failed = sum(words.get(node) == "fail" for node in cohort)
        silent = 0 if rollout.stage == 0 or len(cohort) < 3 else max(1, len(cohort) // 10)
        if failed > (0 if rollout.stage == 0 else rollout.plan.analysis.failure_limit):
            raise Violation("StageStep", f"promoted with {failed} failed nodes of {len(cohort)}")
        if passed < len(cohort) - silent - failed:
            raise Violation("StageStep", f"promoted with {passed} of {len(cohort)} nodes passed")

    def _judge_freshness(self, before: MeshState, command: Command, shown: Mapping[Digest, bytes], at_ms: int) -> None:
        """Nobody promotes on a pass when most voters hold a newer word that is none: one of them had to vote."""
        lane = before.lane(command.project, command.environment)
        assert lane is not None
        assert lane.rollout is not None
        rollout = lane.rollout
        if rollout.stage or len(rollout.cohort) != 1:
            return
        said = [pair[1].sequence for data in shown.values() if (pair := self._verdict(data))]
        self.note_verdicts()
        heard = self._known.get((rollout.id, rollout.opened), [])
        known = [entry for entry in heard if entry[0] <= at_ms]
        # What most heard only since the last look may have come before the proposal: then nothing is known for sure.
        if known and said and known[-1] == heard[-1]:
            since_ms, sequence = known[-1]
            if since_ms + FRESH_MS < at_ms and sequence > max(said):
                raise Violation("StageStep", f"promoted {at_ms - since_ms} ms after most voters knew better")

    def note_verdicts(self) -> None:
        """Look at what nodes hold of first stages of one node: the newest doubt that a majority of voters has."""
        views = self.views()
        for _, _, state in views:
            for lane in state.lanes:
                rollout = lane.rollout
                if rollout is None or rollout.stage or len(rollout.cohort) != 1:
                    continue
                voters = state.voters
                key, node = (rollout.id, rollout.opened), rollout.cohort[0]
                held = [agent.conductor.verdicts(*key).get(node) for voter, agent, _ in views if voter in voters]
                # Whose own newest word is a pass may vote for one, whatever came before it (seed 440).
                doubts = sorted(
                    (
                        health_verdict.sequence
                        for health_verdict in held
                        if health_verdict is not None and health_verdict.verdict != "pass"
                    ),
                    reverse=True,
                )
                # Words are kept in memory: voters that restarted may leave no majority that knows any (seed 5020).
                sequence = doubts[len(voters) // 2] if 2 * len(doubts) > len(voters) else -1
                events = self._known.setdefault(key, [])
                if not events or events[-1][1] != sequence:
                    events.append((self._world.now_ms, sequence))

    def check_zombies(self, hosts: Sequence[Host]) -> None:
        """What a host serves as candidate must still be under way by its own highest decision."""
        for (name, project, environment), (change, role, since_ms) in self.running.items():
            host = next(host for host in hosts if host.name == name)
            state = self.state_of(host) if host.up and not host.busy else None
            if state is None or role != "candidate" or self._world.now_ms - since_ms < FRESH_MS:
                continue
            lane = state.lane(project, environment)
            rollout = lane.rollout if lane is not None else None
            if rollout is None or rollout.candidate.change != change:
                raise Violation("NoZombie", f"{name} still serves a candidate of {project} whose rollout is over")

    def _verdict(self, data: bytes) -> tuple[PeerId, HealthVerdict] | None:
        try:
            signed: Signed = decode(data, Signed)
            statement: Statement = decode(signed.payload, Statement)
        except DecodeError:
            return None
        message = _signed_bytes(self._mesh, signed.payload)
        if not isinstance(statement, HealthVerdict) or not self._verifier.verify(signed.key, message, signed.signature):
            return None
        return peer_id(signed.key), statement

    # --- goodbyes -----------------------------------------------------------------------------------------------------

    def leaves(self, name: str) -> None:
        """A host was told to say goodbye; it stops soon."""
        self._leaving.add(name)

    def check_heard(self, peer: PeerId, hearers: Sequence[tuple[str, Belief | None]]) -> None:
        """Who had a sound link to a node that said goodbye must believe it down; None: it is no member there."""
        for name, belief in hearers:
            if belief in (Belief.ALIVE, Belief.SUSPECT):
                raise Violation("Goodbye", f"{name} believes {peer[-6:]} {belief.value}, which said that it stops")

    def _told(self, near: PeerId, far: PeerId, message: Any) -> None:
        """Whoever says that it leaves before it took the candidate must not serve it."""
        if not isinstance(message, RolloutStatement):
            return
        pair = self._verdict(encode(message.signed))
        if pair is None or pair[0] != near or not pair[1].leaving or pair[1].taken:
            return
        name = self._world.host_of(near).name
        for (host, project, environment), (_, role, _) in self.running.items():
            if host == name and role == "candidate" and self._rollouts[host, project, environment] == pair[1].rollout:
                raise Violation("Goodbye", f"{name} says that it has not taken a candidate of {project} that it serves")

    # --- orders -------------------------------------------------------------------------------------------------------

    def _ordered(self, host: Host, event: Any) -> None:
        match event:
            case Run(project, environment, deployed, role, _):
                self._judge_run(host, project, environment, deployed.change, role)
            case EntryStored():
                self._note_rollouts(host)
            case Stop(project, environment):
                self.running.pop((host.name, project, environment), None)
            case Reverted():
                self._world.counts["local reverts"] += 1
            case _:
                pass

    def _judge_run(self, host: Host, project: str, environment: str, change: Digest, role: str) -> None:
        key = (host.name, project, environment)
        state = self.state_of(host)
        lane = state.lane(project, environment) if state is not None else None
        if state is not None:
            base = lane.base.change if lane is not None and lane.base is not None else None
            rollout = lane.rollout if lane is not None else None
            allowed = change == base if role == "base" else (
                rollout is not None and rollout.candidate.change == change and host.peer in rollout.cohort
            )  # fmt: skip
            if not allowed:
                raise Violation("AuthorizedRun", f"{host.name} runs {change.hex()[:8]} as {role} of {project}")
        held = self.running.get(key)
        if role == "candidate" and host.name in self._leaving and (held is None or held[:2] != (change, role)):
            raise Violation("Goodbye", f"{host.name} takes a candidate of {project} after it said goodbye")
        if held is None or held[:2] != (change, role):
            self.running[key] = (change, role, self._world.now_ms)
            self._rollouts[key] = self._rollout_of(host, project, environment)

    def _rollout_of(self, host: Host, project: str, environment: str) -> bytes:
        state = self.state_of(host)
        lane = state.lane(project, environment) if state is not None else None
        return lane.rollout.id if lane is not None and lane.rollout is not None else b""

    def _note_rollouts(self, host: Host) -> None:
        """A candidate that a new rollout takes over while it serves is watched anew."""
        for key, (change, role, _) in list(self.running.items()):
            name, project, environment = key
            if name != host.name:
                continue
            rollout = self._rollout_of(host, project, environment)
            if rollout != self._rollouts.get(key):
                self._rollouts[key] = rollout
                self.running[key] = (change, role, self._world.now_ms)

    def host_down(self, name: str) -> None:
        """A host stopped: it serves nothing."""
        self._leaving.discard(name)
        for key in [key for key in self.running if key[0] == name]:
            del self.running[key]

    def check_local_safety(self, hosts: Sequence[Host]) -> None:
        """No host may go on serving a candidate that fails there for longer than its deadline."""
        for host in hosts:
            if not host.up:
                self.host_down(host.name)
        for (name, project, _), (change, role, since_ms) in self.running.items():
            ill_on, bound_ms = self.ill.get(change, (("none",), 0))
            sick = not ill_on or name in ill_on
            if role == "candidate" and sick and self._world.now_ms - since_ms > bound_ms:
                raise Violation("LocalSafety", f"{name} has served a failing candidate of {project} for too long")


def _signed_bytes(mesh: bytes, payload: bytes) -> bytes:
    tag = STATEMENT_DOMAIN.encode("ascii")
    return bytes((len(tag),)) + tag + bytes((len(mesh),)) + mesh + payload
