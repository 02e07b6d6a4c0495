"""The conductor: collects what nodes say about a rollout and proposes what it forces.

Every node keeps the newest statements of the stages now open; a voter also assesses them, proposes the promotion, pause
or abort that they force, and says so when a stage makes no progress or a node that took the candidate vanished. Such
commands need no principal: each voter judges the same exhibits again (rollout.py). Proposers take turns by rendezvous,
the next one a step later.

A node tells its word to everybody it is connected to and names the confirmed nodes that it is not; whoever is connected
to one of those passes it on. So a full mesh carries each word once, and no overlay is assumed. Whoever passes words on
can keep one back, but not for others: who was told counts for each node from what it sent and received itself. Not
here: the node's own work and verdict (agent.py), and how a proposal is decided.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from protocols.chain.decision import Voter
from protocols.changes.statements import (
    HealthVerdict,
    Prepared,
    Said,
    Statement,
    TimeoutVote,
    Vanished,
    open_statement,
    state_it,
)
from protocols.envelope import Signed, decode, digest, encode
from protocols.invariants import ensure
from protocols.machine import Broadcast, Digest, Effect, Notify, Now, PeerId, Reject, Send, Signer, Verifier
from protocols.records.gossip import TokenBucket
from protocols.refusal import Refusal
from protocols.rollout.orders import ID_BYTES, NodePrepared, RolloutStatement, StatementsHeld
from protocols.state.analysis import Assessment, StageOutcome, assess, left
from protocols.state.commands import Abort, Command, Exhibits, LaneAction, Pause, Promote, SignedCommand
from protocols.state.model import NODES_MAX, Lane, MeshState, Rollout
from protocols.state.placement import rendezvous

CHANGES_MAX = 64
"""Changes whose preparation is remembered: more are not waiting for a start at once."""

REPEATED_MAX = 64
"""Statements in one answer to StatementsHeld: what else is lacking follows when records are compared again."""
HELD_MAX_BYTES = ID_BYTES * CHANGES_MAX * NODES_MAX

ANSWERS_PER_S = 0.5
ANSWERS_BURST = 4
"""Of a peer's StatementsHeld: it asks when it connects and when records were compared, which is every half minute."""

OPENED_MAX = 512
"""Verified statements remembered, of at most 2 KiB each."""


class _Heard(msgspec.Struct):
    """A statement that verified, and the peers that need not be told of it by this node. Mutable: `told` grows."""

    said: Said
    told: set[PeerId]


@dataclass(frozen=True, slots=True)
class SubmitStep:
    """Ask the chain to decide an encoded SignedCommand with its material; nobody's signature is needed."""

    command: bytes
    material: tuple[bytes, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class ConductorConfig:
    """Times in ms: between the proposals of the first and the next in turn, and before one proposes again."""

    step_ms: int = 2_000
    again_ms: int = 10_000


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Times in ms: the pulse while a rollout is under way, the probing window, the probes of voters."""

    beat_ms: int = 1_000
    window_ms: int = 10_000
    probe_ms: int = 60_000
    conductor: ConductorConfig = field(default_factory=ConductorConfig)


@dataclass(slots=True)
class _Stage:
    """What was said of one open stage; `progress_ms` and `forced_ms` are local monotonic times."""

    progress_ms: int
    verdicts: dict[PeerId, tuple[HealthVerdict, bytes]] = field(default_factory=dict)
    timeouts: dict[PeerId, bytes] = field(default_factory=dict)
    vanished: dict[PeerId, dict[PeerId, bytes]] = field(default_factory=dict)
    forced: str = ""
    forced_ms: int = 0
    proposed_ms: int | None = None

    def votes(self) -> tuple[dict[PeerId, bytes], ...]:
        """Return what voters said once of the stage, by kind: that it times out, that each node vanished."""
        return (self.timeouts, *(said for _, said in sorted(self.vanished.items())))


def nobody(_node: PeerId) -> bool:
    """Return that the node is not revoked, where nothing is known."""
    return False


class Conductor:
    """Holds the statements of open stages; see the module. `voter` is this node with its store, if it has one."""

    def __init__(
        self,
        me: PeerId,
        mesh: Digest,
        signer: Signer,
        verifier: Verifier,
        *,
        revoked: Callable[[PeerId], bool] = nobody,
        config: ConductorConfig | None = None,
    ) -> None:
        """Start with nothing heard; what nodes that are `revoked` say is not shown to anybody."""
        self._me, self._mesh, self._signer, self._verifier = me, mesh, signer, verifier
        self._revoked = revoked
        self._config = config or ConductorConfig()
        self._state: MeshState | None = None
        self._stages: dict[tuple[Digest, int], _Stage] = {}
        self._prepared: dict[bytes, dict[PeerId, tuple[Prepared, bytes]]] = {}
        self._down_ms: dict[PeerId, int] = {}
        self._peers: dict[PeerId, None] = {}
        self._answers: dict[PeerId, TokenBucket] = {}
        """What each peer may still ask: a question of 28 bytes draws 16 KB."""
        self._opened: dict[Signed, _Heard] = {}
        """What verified lately: a statement may come from several peers, and its signature is checked once."""
        self.has_news = False
        """Whether something was decided or said since the open stages were judged."""

    def believe_down(self, down: tuple[PeerId, ...], now: Now) -> None:
        """Take this node's belief who is down; remember since when."""
        self._down_ms = {node: self._down_ms.get(node, now.mono_ms) for node in down}

    def connected(self, peer: PeerId) -> None:
        """Count a peer among those that hear what this node says."""
        self._peers[peer] = None

    def disconnected(self, peer: PeerId) -> None:
        """Count a peer among those that others must tell."""
        self._peers.pop(peer, None)
        self._answers.pop(peer, None)

    def decided(self, state: MeshState, now: Now) -> None:
        """Follow the chain: keep the stages that are open in `state`, forget the others."""
        self._state = state
        open_now = {(r.id, r.opened) for lane in state.lanes if (r := lane.rollout) is not None}
        stages = {key: stage for key, stage in self._stages.items() if key in open_now}
        for lane in state.lanes:
            if (rollout := lane.rollout) is not None and (rollout.id, rollout.opened) not in stages:
                stages[rollout.id, rollout.opened] = _Stage(now.mono_ms, self._goodbyes(state, rollout))
        self._stages = stages
        self.has_news = bool(stages)

    def _goodbyes(self, state: MeshState, rollout: Rollout) -> dict[PeerId, tuple[HealthVerdict, bytes]]:
        """Return the goodbyes said in earlier stages of a rollout, which hold until their nodes speak again."""
        said = [item for (of, _), stage in self._stages.items() if of == rollout.id for item in stage.verdicts.items()]
        return {node: held for node, held in said if left(held[0], state.rules_version)}

    def prepared(self, change: bytes, nodes: Collection[PeerId] | None = None) -> tuple[bytes, ...]:
        """Return the encoded Signed statements of who (of `nodes`, if given) prepared `change`, for a start."""
        held = sorted(self._prepared.get(change, {}).items())
        chosen = [(node, data) for node, (_, data) in held if nodes is None or node in nodes]
        return tuple(data for node, data in chosen if not self._revoked(node))

    def prepared_nodes(self, change: bytes) -> tuple[PeerId, ...]:
        """Return who said that it prepared `change`, ascending."""
        return tuple(sorted(self._prepared.get(change, {})))

    def own_prepared(self, change: bytes) -> tuple[RolloutStatement, ...]:
        """Return this node's own word on `change`, to repeat it to a peer that was away."""
        own = self._prepared.get(change, {}).get(self._me)
        return (self._addressed(decode(own[1], Signed)),) if own else ()

    def own_votes(self) -> tuple[RolloutStatement, ...]:
        """Return what this voter said once of open stages, to repeat it to a peer that was away: timeouts, losses."""
        votes = [said for stage in self._stages.values() for said in stage.votes()]
        return tuple(self._addressed(decode(said[self._me], Signed)) for said in votes if self._me in said)

    def holding(self, changes: Sequence[bytes]) -> StatementsHeld:
        """Return what to ask a peer with for what this node lacks of what is said once, on these changes and all stages."""
        ids = b"".join(digest(data)[:ID_BYTES] for data in self._said_once(changes))
        return StatementsHeld(ids[:HELD_MAX_BYTES])

    def answer(self, peer: PeerId, held: StatementsHeld, changes: Sequence[bytes], now: Now) -> list[Effect]:
        """Send a peer what it lacks, as often as an honest one asks."""
        if peer not in self._answers:
            self._answers[peer] = TokenBucket(ANSWERS_PER_S, ANSWERS_BURST, ANSWERS_BURST, now.mono_ms)
        if not self._answers[peer].take(1, now.mono_ms):
            return [Reject(peer, "statement.rate", "asked for statements more often than records are compared")]
        return [Send(peer, rollout_statement) for rollout_statement in self.lacking(held, changes)]

    def lacking(self, held: StatementsHeld, changes: Sequence[bytes]) -> list[RolloutStatement]:
        """Return what the sender of `held` lacks."""
        ids = {held.ids[start : start + ID_BYTES] for start in range(0, min(len(held.ids), HELD_MAX_BYTES), ID_BYTES)}
        lacks = [data for data in self._said_once(changes) if digest(data)[:ID_BYTES] not in ids]
        return [RolloutStatement(decode(data, Signed)) for data in lacks[:REPEATED_MAX]]

    def _said_once(self, changes: Sequence[bytes]) -> list[bytes]:
        """Return every statement held that its author does not repeat by itself, newest changes first."""
        said = [data for stage in self._stages.values() for votes in stage.votes() for _, data in sorted(votes.items())]
        said += [data for change in reversed(changes) for data in self.prepared(change)]
        return said

    def statements(self, rollout: bytes, opened: int) -> tuple[bytes, ...]:
        """Return the encoded Signed statements of a stage, for the exhibits of a promote or abort."""
        stage = self._stages.get((Digest(rollout), opened))
        if stage is None:
            return ()
        statements = [data for node, (_, data) in sorted(stage.verdicts.items()) if not self._revoked(node)]
        for votes in stage.votes():
            statements += [data for node, data in sorted(votes.items()) if not self._revoked(node)]
        return tuple(statements)

    def verdicts(self, rollout: bytes, opened: int) -> Mapping[PeerId, HealthVerdict]:
        """Return the newest verdict of each node for that stage (freshness.View)."""
        stage = self._stages.get((Digest(rollout), opened))
        if stage is None:
            return {}
        return {node: said for node, (said, _) in sorted(stage.verdicts.items()) if not self._revoked(node)}

    # --- hearing

    def say(self, statement: Statement, now: Now) -> list[Effect]:
        """Sign this node's own statement, take it in, and tell everybody."""
        signed = state_it(self._signer, self._mesh, statement)
        news = self._take(self._me, statement, encode(signed), now)
        return [Broadcast(self._addressed(signed)), *_told(statement, news)]

    def _addressed(self, signed: Signed) -> RolloutStatement:
        """Return an own statement on its way to the peers, with whom they must tell."""
        confirmed = self._state.nodes if self._state is not None else ()
        untold = (
            confirmed_node.node
            for confirmed_node in confirmed
            if confirmed_node.node != self._me and confirmed_node.node not in self._peers
        )
        return RolloutStatement(signed, tuple(untold))

    def hear(self, peer: PeerId, message: RolloutStatement, now: Now) -> list[Effect]:
        """Take in a statement from the network; pass it on to those that its sender could not tell."""
        heard = self._opened.get(message.signed)
        if heard is None:
            opened = open_statement(self._verifier, self._mesh, message.signed)
            if isinstance(opened, Refusal):
                return [Reject(peer, opened.rule, opened.detail)]
            if len(self._opened) >= OPENED_MAX:
                del self._opened[next(iter(self._opened))]
            heard = self._opened[message.signed] = _Heard(opened, {self._me, opened.node})
        if len(message.untold) > NODES_MAX:
            return [Reject(peer, "statement.untold", f"a mesh has at most {NODES_MAX} nodes")]
        node, statement = heard.said.node, heard.said.statement
        heard.told.add(peer)
        data = encode(message.signed)
        # Preparations carry no sequence: the author's own word stands, or two of them would chase each other.
        settled = peer != node and isinstance(statement, Prepared) and self._held(node, statement) is not None
        news = not settled and self._take(node, statement, data, now)
        if self._held(node, statement) != data:
            return []
        targets = [peer_id for peer_id in message.untold if peer_id in self._peers and peer_id not in heard.told]
        heard.told.update(targets)
        onward = RolloutStatement(
            message.signed, tuple(peer_id for peer_id in message.untold if peer_id not in heard.told)
        )
        return [*(Send(target, onward) for target in targets), *_told(statement, news)]

    def _held(self, node: PeerId, said: Statement) -> bytes | None:
        """Return what is held of a node in the place of that statement, encoded."""
        if isinstance(said, Prepared):
            prepared = self._prepared.get(said.change, {}).get(node)
            return prepared[1] if prepared is not None else None
        stage = self._stages.get((Digest(said.rollout), said.opened))
        if stage is None:
            return None
        match said:
            case HealthVerdict():
                verdict = stage.verdicts.get(node)
                return verdict[1] if verdict is not None else None
            case TimeoutVote():
                return stage.timeouts.get(node)
            case Vanished():
                return stage.vanished.get(said.node, {}).get(node)

    def _take(self, node: PeerId, said: Statement, data: bytes, now: Now) -> bool:
        """Keep a statement if it counts; return whether it is news."""
        match said:
            case Prepared(change):
                return self._take_prepared(node, said, change, data)
            case HealthVerdict():
                return self._take_verdict(node, said, data, now)
            case TimeoutVote(_, rollout, opened, voter) | Vanished(_, rollout, opened, voter):
                stage = self._stages.get((Digest(rollout), opened))
                known = self._state is not None and voter in self._state.voters and voter.node == node
                if stage is None or not known or said.era != self._era:
                    return False
                pinned = self._rollout(rollout)
                if isinstance(said, Vanished) and (pinned is None or said.node not in pinned.cohort):
                    return False
                into = stage.timeouts if isinstance(said, TimeoutVote) else stage.vanished.setdefault(said.node, {})
                if node in into:
                    return False
                into[node] = data
                self.has_news = True
                return True

    def _take_prepared(self, node: PeerId, said: Prepared, change: bytes, data: bytes) -> bool:
        if self._state is None or not any(confirmed_node.node == node for confirmed_node in self._state.nodes):
            return False
        if change not in self._prepared and len(self._prepared) >= CHANGES_MAX:
            del self._prepared[next(iter(self._prepared))]
        holders = self._prepared.setdefault(change, {})
        if node in holders and holders[node][0] == said:
            return False
        confirmed = {node.node for node in self._state.nodes}
        self._prepared[change] = {peer_id: holder for peer_id, holder in holders.items() if peer_id in confirmed}
        self._prepared[change][node] = (said, data)
        ensure(len(self._prepared[change]) <= NODES_MAX, "only confirmed nodes are kept")
        return True

    def _take_verdict(self, node: PeerId, said: HealthVerdict, data: bytes, now: Now) -> bool:
        stage = self._stages.get((Digest(said.rollout), said.opened))
        rollout = self._rollout(said.rollout)
        if stage is None or rollout is None or node not in rollout.order or said.era != self._era:
            return False
        held = stage.verdicts.get(node)
        if held is not None and (said.sequence <= held[0].sequence or held[0].verdict == "fail"):
            return False
        stage.verdicts[node] = (said, data)
        self.has_news = True
        turned = held is None or held[0].verdict != said.verdict or held[0].smoke_runs != said.smoke_runs
        if turned and said.verdict == "pass":
            stage.progress_ms = now.mono_ms
        return True

    # --- judging

    def beat(self, now: Now, voter: Voter | None) -> list[Effect]:
        """Assess every open stage: sign timeouts, and propose what is forced once it is this voter's turn."""
        self.has_news = False
        if self._state is None or voter is None or voter not in self._state.voters:
            return []
        effects: list[Effect] = []
        for lane in self._state.lanes:
            rollout = lane.rollout
            if rollout is not None:
                effects += self._beat_stage(self._state, lane, rollout, now, voter)
        return effects

    def _beat_stage(self, state: MeshState, lane: Lane, rollout: Rollout, now: Now, voter: Voter) -> list[Effect]:
        stage = self._stages[(rollout.id, rollout.opened)]
        majority = len(state.voters) // 2 + 1
        timed_out = self._count(stage.timeouts) >= majority
        vanished = [node for node, votes in sorted(stage.vanished.items()) if self._count(votes) >= majority]
        verdicts = self.verdicts(rollout.id, rollout.opened)
        assessed = assess(
            rollout, verdicts, now.wall_ms, timed_out=timed_out, vanished=vanished, rules=state.rules_version
        )
        effects = self._timeout(rollout, stage, assessed, now, voter)
        effects += self._vanish(rollout, stage, now, voter)
        action = forced_action(rollout, assessed, now.wall_ms)
        if isinstance(action, Promote) and lane.frozen:
            action = None
        name = type(action).__name__ if action is not None else ""
        if name != stage.forced:
            stage.forced, stage.forced_ms, stage.proposed_ms = name, now.mono_ms, None
        if action is None:
            return effects
        turn = rendezvous(f"{rollout.id.hex()}/{rollout.opened}", tuple(voter.node for voter in state.voters))
        due = stage.forced_ms + turn.index(voter.node) * self._config.step_ms
        if stage.proposed_ms is not None:
            due = stage.proposed_ms + self._config.again_ms
        if now.mono_ms < due:
            return effects
        stage.proposed_ms = now.mono_ms
        items = self.statements(rollout.id, rollout.opened)
        effects.append(Notify(_proposal(lane, rollout, action, items, assessed.reason)))
        return effects

    def _timeout(self, rollout: Rollout, stage: _Stage, assessed: Assessment, now: Now, voter: Voter) -> list[Effect]:
        waited_ms = now.mono_ms - stage.progress_ms
        waiting = assessed.outcome is StageOutcome.PENDING and not rollout.paused
        if not waiting or waited_ms < rollout.plan.progress_deadline_ms or self._me in stage.timeouts:
            return []
        return self.say(TimeoutVote(self._era, rollout.id, rollout.opened, voter), now)

    def _vanish(self, rollout: Rollout, stage: _Stage, now: Now, voter: Voter) -> list[Effect]:
        effects: list[Effect] = []
        for node in rollout.cohort:
            down_ms = self._down_ms.get(node)
            taken = node in stage.verdicts and self._me not in stage.vanished.get(node, {})
            if down_ms is None or not taken or now.mono_ms - down_ms < rollout.plan.healthy_deadline_ms:
                continue
            effects += self.say(Vanished(self._era, rollout.id, rollout.opened, voter, node), now)
        return effects

    def _count(self, votes: Mapping[PeerId, bytes]) -> int:
        return sum(not self._revoked(node) for node in votes)

    @property
    def _era(self) -> bytes:
        return self._state.era if self._state is not None else b""

    def _rollout(self, rollout_id: bytes) -> Rollout | None:
        lanes = self._state.lanes if self._state is not None else ()
        return next((lane.rollout for lane in lanes if lane.rollout and lane.rollout.id == rollout_id), None)


def _told(statement: Statement, news: bool) -> list[Effect]:
    """What this node's own services hear of a statement: that somebody prepared a change."""
    return [Notify(NodePrepared(Digest(statement.change)))] if news and isinstance(statement, Prepared) else []


def forced_action(rollout: Rollout, assessed: Assessment, wall_ms: int) -> LaneAction | None:
    """Return the command that the assessment forces without a person, or None; rollout.py judges the same way."""
    plan, stage = rollout.plan, rollout.stages[rollout.stage]
    match assessed.outcome:
        case StageOutcome.PENDING:
            return None
        case StageOutcome.FAIL:
            if plan.auto_revert and not plan.irreversible:
                return Abort(rollout.id, assessed.reason)
            return None if rollout.paused else Pause(rollout.id)
        case StageOutcome.INCONCLUSIVE:
            return None if rollout.paused else Pause(rollout.id)
        case StageOutcome.PASS:
            if rollout.paused or rollout.candidate.withdrawn:
                return None
            if stage.approve:
                return Pause(rollout.id)
            ready = plan.auto_promote and wall_ms >= rollout.stage_at_ms + stage.pause_ms
            return Promote(rollout.id, rollout.stage) if ready else None


def _proposal(lane: Lane, rollout: Rollout, action: LaneAction, items: tuple[bytes, ...], reason: str) -> SubmitStep:
    """Return the unsigned command; its id is the same whoever proposes it, so that it is decided once."""
    identity = digest(encode((rollout.id, rollout.opened, type(action).__name__)))[:16]
    command = Command(identity, action, lane.project, lane.environment, lane.sequence)
    exhibits = Exhibits(statements=tuple(bytes(digest(item)) for item in items))
    return SubmitStep(encode(SignedCommand(encode(command), (), exhibits)), items, reason)
