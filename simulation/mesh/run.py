"""One run of whole nodes: principals change things through different nodes while faults happen; then liveness.

Every host runs the composed `NodeCore` over the real mesh state: admission, liveness, records, chain, rollouts. The
chain's own judges watch beside those of rollouts (checkers.py). Slower than chains alone (simulation/chain/run.py), and
wider. Not here: a stranger's certificate that would be good, which no fault can make.
"""

from __future__ import annotations

import random
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from protocols.chain.decision import CLOCK_TOLERANCE_MS, Voter
from protocols.chain.pacing import ChainTimes
from protocols.chain.quorum import majority
from protocols.changes.change import Plan, Stage
from protocols.changes.demands import SOLO, TEAM
from protocols.changes.statements import HealthVerdict
from protocols.core import NodeCore
from protocols.envelope import digest
from protocols.liveness import Leave
from protocols.machine import Digest, PeerId
from protocols.records.gossip import PublishRefused
from protocols.state.analysis import GOODBYE_RULES
from protocols.state.apply import MeshMachine
from protocols.state.commands import Abort, CreateEnvironment, CreateProject, Pause, Promote, Resume, Rollback, SetRules
from protocols.state.exhibits import Rules
from protocols.state.freshness import View
from protocols.trust.genesis import decode_genesis
from protocols.trust.hello import Admitted
from protocols.trust.store import Standing
from simulation.chain.checkers import ChainChecker, Violation
from simulation.chain.run import Result, Verdict
from simulation.mesh.checkers import MeshChecker
from simulation.mesh.fleet import Fleet, FleetConfig
from simulation.mesh.workshop import Script
from simulation.world.clock import WALL_START_MS
from simulation.world.entropy import stream
from simulation.world.faults import Fault, Faults, draw
from simulation.world.network import LinkFaults
from simulation.world.world import Host

TIMES = ChainTimes(retry_max_ms=4_000, submit_ms=8_000, gossip_ms=2_000, ready_ms=2_000, growth_ms=3_000)
SETUP_MS = 14_000
"""Founding, confirming and growing to the target, before anything goes wrong."""
SETTLE_MS = 15_000
LIVE_BOUND_MS = 60_000
CONVERGE_BOUND_MS = 90_000
"""Anti-entropy goes round every 30 s."""
ILL_BOUND_MS = 60_000
"""A candidate that is never ready fails by its healthy deadline of 15 s, or three windows of 10 s; the rest is slack."""
CRASH_BOUND_MS = 5_000
"""Beside the three crashes of a loop themselves."""
KINDS = (
    "crash", "reboot", "barrier", "barrier", "partition", "partition", "one_way", "isolate", "isolate", "clog",
    "disk_loss", "rollback_database", "disk_full", "slow_fsync", "clock_jump", "drift", "revoke",
)  # fmt: skip
PLAN = Plan((Stage("1", min_healthy_ms=2_000), Stage("50%", min_healthy_ms=2_000), Stage("100%", min_healthy_ms=2_000)))
LATE_CRASH_MS = 5_000
SCRIPTS = (
    Script(), Script(), Script(), Script(crash_ms=1_000), Script(crash_ms=LATE_CRASH_MS),
    Script(crash_ms=LATE_CRASH_MS), Script(error_ppm=400_000),
    Script(ready_ms=1 << 30),
)  # fmt: skip
LEAVE_MS = 500
"""From the goodbye of a node to the end of its process."""
LEAVE_SPREAD_MS = 3_000
"""By when who had a sound link to it knows, slow disks included."""
CUTS = ("partition", "isolate", "one_way", "rift", "clog")
HLC_COUNTER_BITS = 16
LONG_CUTS = ("partition", "isolate", "one_way")
STRANGER = "x9"


@dataclass(frozen=True)
class MeshPlan:
    """One run, as data."""

    seed: int
    host_count: int
    team: bool
    client_count: int
    pause_max_ms: int
    safety_ms: int
    delay_max_ms: int
    loss: float
    faults: tuple[Fault, ...]


def mesh_plan(seed: int, kinds: tuple[str, ...] = KINDS, faults_max: int = 10) -> MeshPlan:
    """Draw the run of a seed."""
    source = stream(seed, "mesh plan")
    host_count = source.choice((1, 3, 3, 4, 5))
    safety_ms = source.randrange(20_000, 60_000)
    faults = draw(source, host_count, safety_ms, source.randint(0, faults_max), kinds)
    # From a stream of their own, so that the other faults of a seed stay what they were.
    leaves = stream(seed, "leaves")
    faults += draw(leaves, host_count, safety_ms, leaves.choice((0, 0, 0, 1, 2)), ("leave",))
    patience = source.choice((1, 1, 3, 5))
    return MeshPlan(
        seed=seed,
        host_count=host_count,
        team=source.random() < 0.5,
        client_count=source.randint(1, 3),
        pause_max_ms=source.choice((600, 2_000, 5_000)),
        safety_ms=safety_ms,
        delay_max_ms=source.choice((10, 30, 100)),
        loss=source.choice((0.0, 0.0, 0.02, 0.1)),
        faults=tuple(
            replace(fault, duration_ms=patience * fault.duration_ms) if fault.kind in LONG_CUTS else fault
            for fault in faults
        ),
    )


class _NoView(View):
    """The checkers' state machine has no view of its own."""

    def revoked(self, key: bytes) -> bool:
        return False

    def admitted(self, principal: bytes, invite_key: bytes) -> bool:
        return True

    def alive(self, node: PeerId) -> bool:
        return True

    def verdicts(self, rollout: bytes, opened: int) -> Mapping[PeerId, HealthVerdict]:
        return {}


class MeshRun(Fleet):
    """A fleet with a random workload, faults and judges."""

    def __init__(self, plan: MeshPlan, keep_trace: bool = False) -> None:
        names = [f"n{index + 1}" for index in range(plan.host_count)]
        config = FleetConfig(policy=TEAM if plan.team else SOLO, chain=TIMES)
        config = replace(config, policy=_with_target(config.policy, plan.host_count))
        super().__init__([*names, STRANGER], plan.seed, config, LinkFaults(5, plan.delay_max_ms))
        self.plan = plan
        self.world.trace.keep = keep_trace
        self.names = names
        self.revoked: set[str] = set()
        genesis = decode_genesis(self.genesis, self.mesh)
        machine = MeshMachine(genesis, Rules(self.world.keys, self.mesh), _NoView())
        self.chain_checker = ChainChecker(self.world, self.mesh, machine, self.world.keys)
        self.checker = MeshChecker(self.world, self.mesh, machine, self.world.keys)
        self.checker.views = lambda: [
            (Voter(core.node, core.chain.store_id), core.agent, core.state) for _, core in self._members()
        ]
        first = self.chain_checker.first_proposed_ms
        self.checker.proposed_ms = lambda decision, data: first.get(digest(data), 0)
        self.world.observers.append(self._watch_admissions)
        self.faults = Faults(self.world, {"revoke": self._revoke_host, "leave": self._leave_host})
        self._source = stream(plan.seed, "mesh run")
        self._releases_made = 0
        self._heard: dict[tuple[Digest, int], tuple[bytes, ...]] = {}
        self._stop_ms = 0

    # --- phases -------------------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Found the mesh, let every host in, and let it grow; the stranger holds papers of another admin."""
        for name in self.names:
            self.certify(name)
            self.hosts[name].start()
        self._forge_papers()
        self.world.run_until(2_000)
        first = self.names[0]
        for name in self.names[1:]:
            self.confirm(name, first)
        self.world.run_until(3_000)
        for name, roles in (("bob", ("proposer", "deployer")), ("ann", ("approver", "proposer", "deployer"))):
            self.grant(name, roles, first)  # type: ignore[arg-type]
        self.submit(first, CreateProject("shop"), "admin", expect=None)
        self.world.run_until(4_000)
        for action in (CreateProject("shop"), CreateProject("blog"), CreateEnvironment("prod")):
            self.outcome(self.submit(first, action, "admin"), 5_000)
        if any(fault.kind == "leave" for fault in self.plan.faults):
            self.outcome(self.submit(first, SetRules(GOODBYE_RULES), "admin"), 5_000)
        self.world.run_until(SETUP_MS)

    def safety(self) -> None:
        """Clients work while faults happen."""
        plan = self.plan
        self.world.network.faults.loss = plan.loss
        self._stop_ms = SETUP_MS + plan.safety_ms
        for fault in plan.faults:
            self.world.at(SETUP_MS + fault.at_ms, self.faults.perform, fault)
        for index in range(plan.client_count):
            source = stream(plan.seed, f"mesh client/{index}")
            self.world.at(SETUP_MS + source.randrange(500), self._client_step, source)
        while self.world.now_ms < self._stop_ms:
            self.world.run_until(min(self.world.now_ms + 500, self._stop_ms))
            self._look()

    def _look(self) -> None:
        self.checker.check_local_safety(self.world.hosts)
        self.checker.check_zombies(self.world.hosts)
        self.checker.note_verdicts()

    def liveness(self) -> None:
        """Heal, and demand that every host gets a command decided and that all become equal."""
        self.faults.heal()
        world = self.world
        for name in self.names:
            if not self.hosts[name].up:
                world.after(1, self.hosts[name].start)
        world.run_until(world.now_ms + SETTLE_MS)
        self._revoke_again()
        served: dict[str, bytes] = {}
        end_ms = world.now_ms + LIVE_BOUND_MS
        waiting = [name for name in self.names if name not in self.revoked]
        was_reset = False
        while waiting:
            # A store whose database went back behind a boot read that was begun learns that only when it speaks (2520).
            if not was_reset and self._majority_lost():
                was_reset = True
                self.reset_to_newest()
                world.run_until(world.now_ms + SETTLE_MS)
                end_ms = world.now_ms + LIVE_BOUND_MS
            if world.now_ms >= end_ms:
                raise Violation("Live", f"{', '.join(waiting)} got no command decided in {LIVE_BOUND_MS} ms")
            waiting = [name for name in waiting if not self._served(name, served)]
            world.run_until(world.now_ms + 500)
            self._look()
        if not world.run_while(lambda: not self._converged(), world.now_ms + CONVERGE_BOUND_MS, 500):
            raise Violation("Converge", f"heads or records differ {CONVERGE_BOUND_MS} ms after all was well")
        self._check_admission()

    # --- clients ------------------------------------------------------------------------------------------------------

    def _client_step(self, source: random.Random) -> None:
        if self.world.now_ms >= self._stop_ms:
            return
        via = source.choice(self.names)
        if self.hosts[via].up:
            try:
                self._act(source, via)
            except LookupError:
                self.world.counts["not possible"] += 1
        self.world.after(source.randint(100, self.plan.pause_max_ms), self._client_step, source)

    def _listen(self, via: str) -> None:
        """Remember what a host first shows of a stage once a node passed it."""
        core = self.core(via)
        for lane in core.state.lanes:
            if lane.rollout is not None:
                key = lane.rollout.id, lane.rollout.opened
                if any(said.verdict == "pass" for said in core.agent.conductor.verdicts(*key).values()):
                    self._heard.setdefault(key, core.agent.conductor.statements(*key))

    def _act(self, source: random.Random, via: str) -> None:
        self._listen(via)
        lane = (source.choice(("shop", "shop", "blog")), "prod")
        by = source.choice(("bob", "ann", "admin"))
        kind = source.random()
        watched = self.core(via).state.lane(*lane)
        if watched is not None and watched.rollout is not None and not watched.rollout.plan.auto_promote:
            kind = max(kind, source.random())
        if kind < 0.3 or not self.releases:
            self._propose(source, via, by, lane)
        elif kind < 0.75:
            change = source.choice(list(self.releases)[-4:])
            if kind < 0.4:
                self.approve(change, source.choice(("ann", "admin", "bob")), via)
            else:
                self.world.counts["starts tried"] += 1
                self.start(change, by, via, supersede=source.random() < 0.2)
        else:
            self._command(source, via, by, lane)

    def _propose(self, source: random.Random, via: str, by: str, lane: tuple[str, str]) -> None:
        if not self.core(via).state.environments:
            raise LookupError(f"{via} has not heard of the environment yet")
        self._releases_made += 1
        script = source.choice(SCRIPTS)
        if script != Script() and script.crash_ms != LATE_CRASH_MS and source.random() < 0.5:
            script = replace(script, ill_on=(source.choice(self.names),))
        # What fails late is watched by hand: an operator may act on what was true a moment ago.
        late = script.crash_ms == LATE_CRASH_MS
        plan = msgspec.structs.replace(
            PLAN,
            auto_promote=not late and source.random() < 0.7,
            auto_revert=not late and source.random() < 0.8,
            healthy_deadline_ms=15_000,
            progress_deadline_ms=30_000,
        )
        change = self.propose(f"release {self._releases_made}", by, via, lane, script, plan)
        if script.crash_ms or script.ready_ms > ILL_BOUND_MS:
            bound_ms = CRASH_BOUND_MS + 3 * script.crash_ms if script.crash_ms else ILL_BOUND_MS
            self.checker.ill[change] = script.ill_on, bound_ms
        if self.plan.team and source.random() < 0.7:
            self.approve(change, "ann" if by != "ann" else "admin", via)

    def _command(self, source: random.Random, via: str, by: str, lane: tuple[str, str]) -> None:
        found_lane = self.core(via).state.lane(*lane)
        if found_lane is None:
            return
        rollout = found_lane.rollout
        if rollout is None:
            if found_lane.retained:
                self.submit(via, Rollback(source.choice(found_lane.retained).change, "it was better"), by, lane=lane)
            return
        kind = source.randrange(4)
        if kind == 0:
            self.submit(via, Abort(rollout.id, "changed my mind"), by, lane=lane)
        elif kind == 1:
            self.submit(via, Resume(rollout.id) if rollout.paused else Pause(rollout.id, "wait"), by, lane=lane)
        else:
            statements = self.core(via).agent.conductor.statements(rollout.id, rollout.opened)
            # A careless client shows what it was once told: of this stage before a node failed, or of another one.
            if source.random() < 0.6:
                earlier = self._heard.get((rollout.id, rollout.opened), statements)
                statements = (
                    earlier if source.random() < 0.7 else source.choice(list(self._heard.values()) or [statements])
                )
            action = Promote(rollout.id, rollout.stage)
            self.submit(via, action, by, lane=lane, shown=self.exhibit(statements))

    # --- faults of whole nodes ----------------------------------------------------------------------------------------

    def _make(self, boot: Any) -> Any:
        self.checker.host_down(boot.host.name)
        return super()._make(boot)

    def _forge_papers(self) -> None:
        """Give the stranger a certificate of an admin that this mesh does not have."""
        real, self.admin = self.admin, self.world.keys.signer("another admin")
        self.certify(STRANGER)
        self.admin = real
        self.hosts[STRANGER].start()

    def _revoke_host(self, fault: Fault) -> None:
        name = self.names[fault.hosts[0]]
        via = next((other for other in self.names if other != name and self.hosts[other].up), None)
        if via is None or self.revoked or len(self.names) < 4 or name == self.names[0]:
            return
        self.revoked.add(name)
        self.revoke("node", self.signers[name].public_key, via)

    def _leave_host(self, fault: Fault) -> None:
        """Let a node say goodbye and stop, as an orderly stop of its daemon does; it comes back after a while."""
        host, counts = self.world.hosts[fault.hosts[0]], self.world.counts
        core = host.machine
        if not isinstance(core, NodeCore) or host.name in self.revoked:
            return
        cuts = sum(counts[f"fault {kind}"] for kind in CUTS)
        sound = not (self.world.network.cut or self.world.network.faults.loss or host.busy or cuts)
        hearers = [
            (name, self.hosts[name].boot_count)
            for name, other in self._members()
            if sound and core.node in other.linked and other.node in core.linked
        ]
        self.checker.leaves(host.name)
        host.receive(Leave())
        self.world.after(LEAVE_MS, self._stop_host, host, host.boot_count, fault.duration_ms)
        self.world.after(LEAVE_SPREAD_MS, self._check_goodbye, host, host.boot_count, hearers)

    def _stop_host(self, host: Host, boot_count: int, duration_ms: int) -> None:
        if host.up and host.boot_count == boot_count:
            host.crash("it said goodbye")
            self.world.after(max(duration_ms, LEAVE_SPREAD_MS), host.start)

    def _check_goodbye(self, host: Host, boot_count: int, hearers: Sequence[tuple[str, int]]) -> None:
        if (
            self.faults.healed
            or host.boot_count != boot_count
            or any(self.world.counts[f"fault {kind}"] for kind in CUTS)
        ):
            return
        cores = {name: core for name, core in self._members() if (name, self.hosts[name].boot_count) in hearers}
        beliefs = [(name, core.liveness.belief(host.peer)) for name, core in cores.items() if not self.hosts[name].busy]
        self.checker.check_heard(host.peer, beliefs)

    def _revoke_again(self) -> None:
        """Let the admin repeat a revocation that nobody holds: the host it was told to died before it was durable (9940)."""
        members = self._members()
        for name in sorted(self.revoked):
            key = self.signers[name].public_key
            if not any(core.trust.key_revoked(key) for _, core in members):
                self.revoke("node", key, members[0][0])

    # --- the end ------------------------------------------------------------------------------------------------------

    def _watch_admissions(self, host: Host, event: Any) -> None:
        if isinstance(event, PublishRefused) and event.key.startswith("/revocation/"):
            self.revoked.clear()  # the operator was told: a node whose clock jumped back dates nothing
        if isinstance(event, Admitted) and event.peer == self.peers[STRANGER] and host.name != STRANGER:
            raise Violation("Admission", f"{host.name} let a stranger in")

    def _check_admission(self) -> None:
        for name, core in self.cores():
            if name in self.revoked or name == STRANGER:
                continue
            for other in (*self.revoked, STRANGER):
                standing = core.hello.standing(self.peers[other])
                if standing not in (None, Standing.REVOKED):
                    raise Violation("Admission", f"{name} still takes {other} for {standing}")
                if any(entry.author == self.peers[STRANGER] for entry in core.records.store.entries.values()):
                    raise Violation("Admission", f"{name} holds a stranger's record")

    def _served(self, name: str, served: dict[str, bytes]) -> bool:
        request = served.get(name)
        outcome = self.outcomes.get(request) if request is not None else None
        if outcome is not None and outcome.outcome == "decided":
            return True
        if (request is None or outcome is not None) and self.hosts[name].up:
            served[name] = self.submit(name, CreateProject(f"live-{name}-{self._ids}"), "admin")
        return False

    def _members(self) -> list[tuple[str, NodeCore]]:
        return [(name, core) for name, core in self.cores() if name not in self.revoked and name != STRANGER]

    def _converged(self) -> bool:
        members = self._members()
        heads = {(core.chain.position.era, core.chain.position.slot, core.chain.position.digest) for _, core in members}
        ahead = {key for _, core in members for key in self._dated_ahead(core)}
        roots = {
            tuple(sorted(bytes(entry.digest) for key, entry in core.records.store.entries.items() if key not in ahead))
            for _, core in members
        }
        return len(members) == len(self.names) - len(self.revoked) and len(heads) == len(roots) == 1

    def _dated_ahead(self, core: NodeCore) -> list[str]:
        """Keys whose record a wrong clock dated ahead: the others park it by rule until their clocks are there."""
        latest = (WALL_START_MS + self.world.now_ms + CLOCK_TOLERANCE_MS) << HLC_COUNTER_BITS
        return [key for key, entry in core.records.store.entries.items() if entry.record.hlc > latest]

    def _majority_lost(self) -> bool:
        chains = [(core.node, core.chain) for _, core in self._members()]
        newest = max((chain for _, chain in chains), key=lambda chain: (chain.position.resets, chain.position.slot))
        alive = [
            chain
            for node, chain in chains
            if Voter(node, chain.store_id) in newest.voters and not chain.record.recovering
        ]
        return len(alive) < majority(len(newest.voters))

    def reset_to_newest(self) -> None:
        """Let the admin begin a new era from the newest head."""
        members = self._members()
        newest = max(members, key=lambda one: (one[1].chain.position.resets, one[1].chain.position.slot))
        names = [name for name, _ in members]
        self.world.counts["resets"] += 1
        self.reset(newest[0], names[:3] if len(names) >= 3 else [newest[0]])


def _with_target(policy: Any, host_count: int) -> Any:
    target = max(count for count in (1, 3, 5) if count <= host_count)
    return msgspec.structs.replace(policy, voters_target=target)


def mesh_run(plan: MeshPlan, keep_trace: bool = False) -> Result:
    """Run one plan to its end, or to the first violation."""
    fleet = MeshRun(plan, keep_trace)
    result = Result(plan.seed, Verdict.CLEAN)
    phases: tuple[Callable[[], None], ...] = (
        fleet.set_up,
        fleet.safety,
        fleet.liveness,
        fleet.chain_checker.check_replay,
    )
    try:
        for phase in phases:
            phase()
    except Violation as violation:
        result.verdict = Verdict.LIVENESS if violation.invariant in ("Live", "Converge") else Verdict.SAFETY
        result.invariant, result.detail = violation.invariant, violation.detail
    except Exception:
        result.verdict = Verdict.CRASH
        result.invariant, result.detail = "crash", traceback.format_exc()
    world = fleet.world
    result.virtual_ms, result.digest, result.events = world.now_ms, world.trace.digest(), world.trace.event_count
    result.decisions = fleet.chain_checker.decisions
    more = Counter({"rollouts started": fleet.checker.started, "promotions": fleet.checker.promoted})
    result.counts = world.counts + world.network.counts + more
    result.lines = world.trace.lines
    return result
