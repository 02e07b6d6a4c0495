"""The node's rollout agent: what this node must prepare and run, and its word on the candidate it runs.

Everything it starts follows from the highest decided state it stored: the base, or the candidate while this node is in
the stage's cohort (AuthorizedRun); a state is never followed backwards, so an aborted candidate never comes back
(NoZombie). Whatever the network does, a candidate that fails here, or that has not heard a majority of voters for its
`candidate_ttl`, is reverted here and stays reverted until a later decision (LocalSafety); the latch is durable before
the revert. Everybody's statements are the conductor's (conductor.py). Not here: sandboxes, compilation, routing; the
node performs the orders and reports what it observed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from protocols.chain.decision import Voter
from protocols.changes.statements import COUNT_MAX, HealthVerdict, Prepared, VerdictWord
from protocols.invariants import ensure
from protocols.liveness import Leave
from protocols.machine import (
    Digest,
    Effect,
    Notify,
    Now,
    PeerConnected,
    PeerDisconnected,
    PeerId,
    Persist,
    Received,
    Send,
    Signer,
    Store,
    Tick,
    Verifier,
    Write,
)
from protocols.rollout.conductor import AgentConfig, Conductor, nobody
from protocols.rollout.contact import PROBES_PER_TTL, MajorityContact
from protocols.rollout.health import HealthLimits, Observation, observe, reopened, restarted
from protocols.rollout.orders import (
    AgentEvent,
    AgentMessage,
    ChangeProposed,
    Observe,
    PeerCompared,
    PeersDown,
    PreparationDone,
    PrepareRelease,
    ReplaySmoke,
    Retain,
    Reverted,
    Role,
    RolloutStatement,
    Run,
    SmokeReplayed,
    StateDecided,
    StatementsHeld,
    Stop,
    VoterHere,
    VoterProbe,
    WorkObserved,
)
from protocols.rollout.watch import Watch, ensure_authorized, is_settled, latch_key
from protocols.state.analysis import GOODBYE_RULES
from protocols.state.model import Deployed, Lane, MeshState, Rollout
from protocols.state.placement import eligible, placed

LATCH_TABLE = "latch"
PREPARED_MAX = 64
"""Own preparations remembered: base, candidate and five retained releases of nine lanes, or as many open changes."""

Running = tuple[Digest, Role, bool]
LaneName = tuple[str, str]


class RolloutAgent:
    """The machine; see the module. `latched` are the keys of the latch table as stored."""

    def __init__(
        self,
        me: PeerId,
        mesh: Digest,
        signer: Signer,
        verifier: Verifier,
        *,
        latched: Mapping[bytes, bytes] | None = None,
        revoked: Callable[[PeerId], bool] | None = None,
        config: AgentConfig | None = None,
    ) -> None:
        """Start before any state is known; nothing runs until `StateDecided`. `revoked` is what this node knows."""
        self._me, self._config = me, config or AgentConfig()
        self.conductor = Conductor(me, mesh, signer, verifier, revoked=revoked or nobody, config=self._config.conductor)
        self._latched = dict(latched or {})
        self._state: MeshState | None = None
        self._voter: Voter | None = None
        self._running: dict[LaneName, Running] = {}
        self._watches: dict[Digest, Watch] = {}
        self._prepared: dict[Digest, Literal["passed", "absent"]] = {}
        self._preparing: set[Digest] = set()
        self._broken: dict[Digest, str] = {}
        self._wanted: dict[Digest, ChangeProposed] = {}
        self._said: dict[Digest, None] = {}
        """Wanted changes told of as prepared: once is enough, whatever the conductor still holds."""
        self._retained: tuple[Digest, ...] = ()
        self._down: frozenset[PeerId] = frozenset()
        self._sequence = 0
        self._leaving = False
        self._contact = MajorityContact(me)
        self._beat_ms: int | None = None
        self._deadline_ms: int | None = None
        self._deadline_known = False

    # --- the machine's face

    def deadline_ms(self) -> int | None:
        """When the next beat is due, or a candidate has been healthy for long enough: only while a rollout is under way."""
        if not self._deadline_known:
            self._deadline_known = True
            beat_ms = self._beat_ms
            ripe = () if beat_ms is None else (due_ms for *_, due_ms in self._ripening())
            self._deadline_ms = beat_ms if beat_ms is None else min((beat_ms, *ripe))
        return self._deadline_ms

    def handle(self, event: AgentEvent, now: Now) -> list[Effect]:
        """Consume one event; return the effects to perform, in order."""
        self._deadline_known = False
        if self._leaving:
            return []  # what it said last stands: it takes no candidate any more
        effects = self._consume(event, now)
        if self.conductor.has_news:
            effects += self.conductor.beat(now, self._voter)
        self._check_invariants()
        return effects

    def _check_invariants(self) -> None:
        """Every watch is of an open stage; what is broken is not prepared."""
        if self._state is not None and self._watches:  # a watch that outlives its rollout would latch a dead release
            opened = {lane.rollout.id for lane in self._state.lanes if lane.rollout is not None}
            ensure(self._watches.keys() <= opened, "only a rollout that is under way is watched")
        ensure(not self._preparing & self._broken.keys(), "what is broken here is not prepared again")

    def _consume(self, event: AgentEvent, now: Now) -> list[Effect]:
        match event:
            case StateDecided():
                return self._decided(event, now)
            case ChangeProposed():
                self._want(event)
                return [*self._prepare_wanted(), *self._say_prepared(now)]
            case PreparationDone():
                return self._preparation_done(event, now)
            case WorkObserved():
                return self._observed(event, now)
            case SmokeReplayed():
                return self._replayed(event, now)
            case PeersDown(down):
                self._down = frozenset(down)
                self.conductor.believe_down(down, now)
                return self._follow(now)
            case Received(peer, message):
                return self._received(peer, message, now)
            case PeerConnected(peer):
                self.conductor.connected(peer)
                return [Send(peer, message) for message in self._own_words()]
            case PeerCompared(peer):
                return self._compare(peer)
            case PeerDisconnected(peer):
                self.conductor.disconnected(peer)
                return []
            case Leave():
                return self._leave(now)
            case Tick():
                return self._beat(now)

    def running(self, project: str, environment: str) -> tuple[Digest, Role] | None:
        """Return what was last ordered to run in a lane."""
        pair = self._running.get((project, environment))
        return pair[:2] if pair else None

    # --- following the chain

    def _decided(self, event: StateDecided, now: Now) -> list[Effect]:
        state = event.state
        if self._state is not None and (state.resets, state.applied) < (self._state.resets, self._state.applied):
            return []
        self._state, self._voter = state, event.voter
        self.conductor.decided(state, now)
        effects = self._forget_latches()
        for lane in state.lanes:
            if lane.rollout is not None and self._me in lane.rollout.order:
                self._open_watch(lane.rollout, now)
        current = {lane.rollout.id for lane in state.lanes if lane.rollout is not None}
        self._watches = {key: watch for key, watch in self._watches.items() if key in current}
        effects += self._retain()
        effects += self._prepare_wanted()
        effects += self._follow(now)
        if not current:
            self._beat_ms = None
        elif self._beat_ms is None:
            self._beat_ms = now.mono_ms + self._config.beat_ms
        return effects

    def _open_watch(self, rollout: Rollout, now: Now) -> None:
        watch = self._watches.get(rollout.id)
        if watch is not None and watch.opened == rollout.opened:
            return
        fresh = Watch(rollout.opened, now.mono_ms, patience_ms=now.mono_ms, seen_ms=now.mono_ms)
        if watch is not None and watch.health is not None:
            fresh.health = reopened(watch.health, now.mono_ms)
        if watch is None:
            self._contact.since_ms = now.mono_ms
        fresh.failed = self._latched.get(latch_key(rollout), b"").decode(errors="replace")
        self._broken.pop(rollout.candidate.change, None)
        self._watches[rollout.id] = fresh

    def _forget_latches(self) -> list[Effect]:
        assert self._state is not None
        held = {latch_key(r) for lane in self._state.lanes if (r := lane.rollout) is not None}
        gone = sorted(key for key in self._latched if key not in held)
        for key in gone:
            del self._latched[key]
        writes = tuple(Write(LATCH_TABLE, key, None) for key in gone)
        return [Persist(Store.STATE, writes)] if writes else []

    def _retain(self) -> list[Effect]:
        """Order what must be prepared here and what may be collected."""
        assert self._state is not None
        changes: list[Digest] = []
        for lane in self._state.lanes:
            if self._me in eligible(self._state, lane.environment):
                candidate = (lane.rollout.candidate,) if lane.rollout and self._me in lane.rollout.order else ()
                base = (lane.base,) if lane.base is not None else ()
                changes += [entry.change for entry in (*base, *candidate, *lane.retained)]
        effects = self._prepare(dict.fromkeys(changes))
        retained = tuple(sorted(set(changes)))
        if retained != self._retained:
            self._retained = retained
            effects.append(Notify(Retain(retained)))
        return effects

    def _follow(self, now: Now) -> list[Effect]:
        """Order what every lane should run here now, where that differs from what it runs."""
        if self._state is None:
            return []
        effects: list[Effect] = []
        for lane in self._state.lanes:
            name = (lane.project, lane.environment)
            wanted = self._wanted_run(lane, now)
            current = None if wanted is None else (wanted[0].change, wanted[1], wanted[2])
            if current == self._running.get(name):
                self._watch_on(lane, current, now)
                continue
            if wanted is None or current is None:
                del self._running[name]
                effects.append(Notify(Stop(*name)))
                continue
            self._running[name] = current
            deployed, role, schedules = wanted
            ensure_authorized(self._me, lane, deployed, role)
            effects.append(Notify(Run(*name, deployed, role, schedules)))
            if role == "candidate" and lane.rollout is not None:
                watch = self._watches[lane.rollout.id]
                watch.health = restarted(watch.health, now.mono_ms)
                watch.seen_ms = now.mono_ms
        return effects

    def _watch_on(self, lane: Lane, current: Running | None, now: Now) -> None:
        """Judge a candidate that runs on though its rollout is another one: the same change, started anew."""
        rollout = lane.rollout
        if current is None or current[1] != "candidate" or rollout is None:
            return
        watch = self._watches[rollout.id]
        if watch.health is None:
            watch.health = restarted(None, now.mono_ms)
            watch.seen_ms = now.mono_ms

    def _wanted_run(self, lane: Lane, now: Now) -> tuple[Deployed, Role, bool] | None:
        assert self._state is not None
        rollout = lane.rollout
        if rollout is None and lane.base is None:
            return None
        nodes = eligible(self._state, lane.environment)
        if self._me not in nodes:
            return None
        scheduled = lane.schedule_node == self._me
        if rollout is not None and self._takes_candidate(lane, rollout, now):
            return rollout.candidate, "candidate", scheduled and bool(rollout.candidate.schedules)
        if lane.base is None or self._me not in placed(lane, lane.base, nodes, self._down):
            return None
        return lane.base, "base", scheduled and bool(lane.base.schedules)

    def _takes_candidate(self, lane: Lane, rollout: Rollout, now: Now) -> bool:
        if self._me not in rollout.cohort or latch_key(rollout) in self._latched:
            return False
        if rollout.candidate.change not in self._prepared:
            return False
        current = self._running.get((lane.project, lane.environment))
        if current is not None and current[0] == rollout.candidate.change:
            return True
        return self._turn(rollout, now)

    def _turn(self, rollout: Rollout, now: Now) -> bool:
        """Return whether it is this node's turn: at most `max_parallel` of a stage's new nodes are under way at once.

        A predecessor that stays silent for the healthy deadline does not hold up the others.
        """
        before = rollout.stages[rollout.stage - 1].size if rollout.stage else 0
        new = rollout.cohort[before:]
        if self._me not in new:
            return True
        ahead = new[: new.index(self._me)]
        verdicts = self.conductor.verdicts(rollout.id, rollout.opened)
        settled = sum(is_settled(verdicts.get(node)) for node in ahead)
        watch = self._watches[rollout.id]
        if settled > watch.settled:
            watch.settled, watch.patience_ms = settled, now.mono_ms
        waited_ms = now.mono_ms - watch.patience_ms
        return len(ahead) - settled < rollout.plan.max_parallel or waited_ms >= rollout.plan.healthy_deadline_ms

    # --- preparing

    def _prepare(self, changes: Iterable[Digest]) -> list[Effect]:
        effects: list[Effect] = []
        for change in changes:
            if change not in self._prepared and change not in self._preparing and change not in self._broken:
                self._preparing.add(change)
                effects.append(Notify(PrepareRelease(change)))
        return effects

    def _want(self, event: ChangeProposed) -> None:
        """Remember a proposed change; when there are too many, one that cannot start any more goes first."""
        if event.change not in self._wanted and len(self._wanted) >= PREPARED_MAX:
            stale = (change for change, wanted in self._wanted.items() if not self._may_start(wanted))
            gone = next(stale, next(iter(self._wanted)))
            del self._wanted[gone]
            self._said.pop(gone, None)
        self._wanted[event.change] = event

    def _may_start(self, wanted: ChangeProposed) -> bool:
        """Whether what runs is what the change was computed against; else its start is refused, until that returns."""
        lane = self._state.lane(wanted.project, wanted.environment) if self._state is not None else None
        return lane is not None and wanted.base == (lane.base.release if lane.base is not None else b"")

    def _prepare_wanted(self) -> list[Effect]:
        """Order the preparation of what may start: after a restart the records tell of every change there ever was."""
        fresh = [digest for digest in self._wanted if digest not in self._prepared and digest not in self._preparing]
        return self._prepare([change for change in fresh if self._may_start(self._wanted[change])])

    def _preparation_done(self, event: PreparationDone, now: Now) -> list[Effect]:
        self._preparing.discard(event.change)
        if event.ok:
            self._prepared[event.change] = event.smoke
            self._broken.pop(event.change, None)
        else:
            self._broken[event.change] = event.reason or "could not be prepared"
        self._bound()
        effects = self._say_prepared(now)
        return [*effects, *self._follow(now)]

    def _bound(self) -> None:
        for table in (self._prepared, self._broken):
            for change in [digest for digest in table if digest not in self._retained and digest not in self._wanted]:
                if len(table) <= PREPARED_MAX:
                    break
                del table[change]

    def _say_prepared(self, now: Now) -> list[Effect]:
        """Tell of every proposed change that is prepared here, once its base is too: there must be a way back."""
        effects: list[Effect] = []
        for change, wanted in self._wanted.items():
            smoke = self._prepared.get(change)
            if smoke is None or not self._holds_base(wanted) or change in self._said:
                continue
            self._said[change] = None
            effects += self.conductor.say(Prepared(change, wanted.base, smoke), now)
        return effects

    def _holds_base(self, wanted: ChangeProposed) -> bool:
        if not wanted.base:
            return True
        lane = self._state.lane(wanted.project, wanted.environment) if self._state is not None else None
        base = lane.base if lane is not None else None
        return base is not None and base.release == wanted.base and base.change in self._prepared

    def _waiting(self) -> list[Digest]:
        return [change for change, wanted in self._wanted.items() if self._may_start(wanted)]

    def _own_words(self) -> list[RolloutStatement]:
        """Return what this node says once, for a peer that was away."""
        prepared = [
            rollout_statement for change in self._wanted for rollout_statement in self.conductor.own_prepared(change)
        ]
        return [*prepared, *self.conductor.own_votes()]

    def _compare(self, peer: PeerId) -> list[Effect]:
        """Ask a peer for what is said once and did not come here, while anything waits for it."""
        waiting = self._waiting()
        return [Send(peer, self.conductor.holding(waiting))] if waiting or self._open_stages() else []

    # --- watching

    def _open_stages(self) -> list[tuple[Lane, Rollout, Watch]]:
        lanes = self._state.lanes if self._state is not None else ()
        return [
            (lane, lane.rollout, self._watches[lane.rollout.id])
            for lane in lanes
            if lane.rollout is not None and lane.rollout.id in self._watches
        ]

    def _stage_of(self, project: str, environment: str) -> tuple[Lane, Rollout, Watch] | None:
        for lane, rollout, watch in self._open_stages():
            if (lane.project, lane.environment) == (project, environment):
                return lane, rollout, watch
        return None

    def _observed(self, event: WorkObserved, now: Now) -> list[Effect]:
        stage = self._stage_of(event.project, event.environment)
        if stage is None:
            return []
        lane, rollout, watch = stage
        watch.base = event.base
        current = self._running.get((lane.project, lane.environment))
        serving = current is not None and current[1] == "candidate"
        if not serving or event.change != rollout.candidate.change or watch.health is None:
            return []
        watch.candidate, watch.seen_ms = event.candidate, now.mono_ms
        if watch.failed:
            return []
        return self._judge(lane, rollout, watch, Observation(event.ready, event.crashes), now)

    def _judge(self, lane: Lane, rollout: Rollout, watch: Watch, seen: Observation, now: Now) -> list[Effect]:
        assert watch.health is not None
        watch.health = observe(watch.health, seen, now.mono_ms, self._limits(rollout))
        if watch.health.verdict == "fail":
            return self._fail(lane, rollout, watch, watch.health.reason, now)
        effects: list[Effect] = []
        plan = rollout.plan
        quiet = not plan.probe_only and watch.candidate.requests < plan.analysis.min_requests
        if watch.health.verdict == "pass" and quiet and not watch.smoke_asked:
            watch.smoke_asked = watch.smoke_awaited = True
            effects.append(Notify(ReplaySmoke(lane.project, lane.environment, rollout.candidate.change)))
        word = watch.due_word(rollout)
        if watch.said != word:
            effects += self._say_verdict(rollout, watch, word, now)
        return effects

    def _replayed(self, event: SmokeReplayed, now: Now) -> list[Effect]:
        stage = self._stage_of(event.project, event.environment)
        if stage is None or stage[1].candidate.change != event.change or stage[2].health is None:
            return []
        lane, rollout, watch = stage
        watch.smoke_awaited = False
        if event.result == "failed":
            return self._fail(lane, rollout, watch, "a smoke check failed", now)
        if watch.failed:
            return []
        watch.smoke_runs += event.result == "passed"
        return self._say_verdict(rollout, watch, watch.due_word(rollout), now)

    def _fail(self, lane: Lane, rollout: Rollout, watch: Watch, reason: str, now: Now) -> list[Effect]:
        """Say fail, for good in this stage, and leave the candidate unless there is no way back."""
        if watch.failed:
            return []
        watch.failed = reason
        effects: list[Effect] = []
        if not rollout.plan.irreversible:
            key = latch_key(rollout)
            self._latched[key] = reason.encode()[:200]
            effects.append(Persist(Store.STATE, (Write(LATCH_TABLE, key, self._latched[key]),)))
            effects.append(Notify(Reverted(lane.project, lane.environment, rollout.id, reason)))
            effects += self._follow(now)
        return [*effects, *self._say_verdict(rollout, watch, "fail", now)]

    def _say_verdict(
        self, rollout: Rollout, watch: Watch, word: VerdictWord, now: Now, *, leaving: bool = False
    ) -> list[Effect]:
        assert self._state is not None
        ensure(not watch.failed or word == "fail", "a fail is final for its stage")
        self._sequence = min(max(self._sequence + 1, now.wall_ms), COUNT_MAX)
        watch.said, watch.said_ms = word, now.mono_ms
        said = HealthVerdict(
            era=self._state.era,
            rollout=rollout.id,
            opened=rollout.opened,
            sequence=self._sequence,
            verdict=word,
            healthy_ms=watch.health.healthy_ms(now.mono_ms) if watch.health else 0,
            candidate=watch.candidate,
            base=watch.base,
            smoke_runs=watch.smoke_runs,
            taken=watch.health is not None,
            reason=watch.failed,
            leaving=leaving,
        )
        return self.conductor.say(said, now)

    def _limits(self, rollout: Rollout) -> HealthLimits:
        stage = rollout.stages[rollout.stage]
        return HealthLimits(stage.min_healthy_ms, rollout.plan.healthy_deadline_ms, self._config.window_ms)

    def _leave(self, now: Now) -> list[Effect]:
        """Say of each open stage whether the candidate was taken here, once all voters know what that means."""
        effects: list[Effect] = []
        self._leaving, self._beat_ms = True, None
        if self._state is not None and self._state.rules_version >= GOODBYE_RULES:
            for _, rollout, watch in self._open_stages():
                word: VerdictWord = "fail" if watch.failed else watch.said or "pending"
                effects += self._say_verdict(rollout, watch, word, now, leaving=watch.health is None)
        return effects

    # --- the beat

    def _ripening(self) -> list[tuple[Lane, Rollout, Watch, int]]:
        """Candidates that run here and are not yet healthy for long enough, and when they will have been."""
        pairs = []
        for lane, rollout, watch in self._open_stages():
            due_ms = watch.ripe_ms(rollout)
            current = self._running.get((lane.project, lane.environment))
            if due_ms is not None and current is not None and current[1] == "candidate":
                pairs.append((lane, rollout, watch, due_ms))
        return pairs

    def _ask_ripe(self, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        for lane, rollout, watch, due_ms in self._ripening():
            if due_ms <= now.mono_ms:
                watch.observe_asked_ms = due_ms
                effects.append(Notify(Observe(lane.project, lane.environment, rollout.candidate.change)))
        return effects

    def _beat(self, now: Now) -> list[Effect]:
        if self._beat_ms is None:
            return []
        asked = self._ask_ripe(now)
        if now.mono_ms < self._beat_ms:
            return asked
        self._beat_ms = now.mono_ms + self._config.beat_ms
        effects = [*asked, *self._probe(now)]
        for lane, rollout, watch in self._open_stages():
            effects += self._beat_stage(lane, rollout, watch, now)
        effects += self._follow(now)
        return [*effects, *self.conductor.beat(now, self._voter)]

    def _beat_stage(self, lane: Lane, rollout: Rollout, watch: Watch, now: Now) -> list[Effect]:
        current = self._running.get((lane.project, lane.environment))
        serving = current is not None and current[1] == "candidate"
        effects: list[Effect] = []
        if serving and not watch.failed:
            lonely_ms = now.mono_ms - self._contact.since_ms
            if lonely_ms >= rollout.plan.candidate_ttl_ms and not rollout.plan.irreversible:
                return self._fail(lane, rollout, watch, f"no majority of voters heard for {lonely_ms} ms", now)
            if watch.health is not None:
                silent_ms = now.mono_ms - watch.seen_ms
                ready = watch.health.ready_ms is not None and silent_ms <= self._config.window_ms
                effects += self._judge(lane, rollout, watch, Observation(ready), now)
        broken = self._broken.get(rollout.candidate.change)
        if broken is not None and self._me in rollout.cohort:
            return self._fail(lane, rollout, watch, f"not prepared: {broken}", now)
        if now.mono_ms - max(watch.said_ms, watch.since_ms) >= self._config.window_ms:
            effects += self._say_verdict(rollout, watch, self._word(rollout, watch, serving=serving), now)
        return effects

    def _word(self, rollout: Rollout, watch: Watch, *, serving: bool) -> VerdictWord:
        """Return what to repeat this window: the verdict, or pending while the candidate does not serve here."""
        if watch.failed:
            return "fail"
        return watch.due_word(rollout) if serving and watch.health is not None else "pending"

    def _probe(self, now: Now) -> list[Effect]:
        """Ask the voters whether they are there, while a candidate runs here."""
        assert self._state is not None
        ttls_ms = [
            rollout.plan.candidate_ttl_ms
            for lane, rollout, _ in self._open_stages()
            if (pair := self._running.get((lane.project, lane.environment))) is not None and pair[1] == "candidate"
        ]
        if not ttls_ms:
            return []
        every_ms = min(self._config.probe_ms, min(ttls_ms) // PROBES_PER_TTL)
        return self._contact.ask(self._state.voters, self._voter, every_ms, now)

    def _received(self, peer: PeerId, message: AgentMessage, now: Now) -> list[Effect]:
        match message:
            case RolloutStatement():
                effects = self.conductor.hear(peer, message, now)
                return [*effects, *self._follow(now)] if self.conductor.has_news else effects
            case StatementsHeld():
                return self.conductor.answer(peer, message, self._waiting(), now)
            case VoterProbe(number):
                mine = self._state is not None and self._voter in self._state.voters
                return [Send(peer, VoterHere(number))] if mine else []
            case VoterHere(number):
                if self._state is not None:
                    self._contact.answered(peer, number, self._state.voters, now)
        return []
