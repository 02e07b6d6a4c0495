"""A fleet of three nodes with rollout agents and one conductor each, under virtual time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from protocols.chain.decision import Voter
from protocols.changes.change import Plan
from protocols.changes.statements import Counts
from protocols.envelope import digest
from protocols.machine import (
    Broadcast,
    Digest,
    Effect,
    Notify,
    Now,
    Persist,
    Received,
    Send,
    Tick,
)
from protocols.refusal import Refusal
from protocols.rollout.agent import LATCH_TABLE, RolloutAgent
from protocols.rollout.conductor import SubmitStep
from protocols.rollout.orders import (
    PreparationDone,
    PrepareRelease,
    ReplaySmoke,
    Run,
    SmokeReplayed,
    StateDecided,
    Stop,
    WorkObserved,
)
from protocols.state.apply import apply, read_command
from protocols.state.model import MeshState
from tests.support.protocols.mesh_world import PLAN, MeshWorld, node_id, signer
from tests.support.protocols.trust_world import VERIFIER


@dataclass
class Node:
    """One agent with a supervisor that obeys: what runs is ready, unless `sick`; smoke passes, unless said."""

    name: str
    agent: RolloutAgent
    sick: bool = False
    broken: bool = False
    smoke: Any = "passed"
    crashes: int = 0
    counts: Counts = field(default_factory=Counts)
    up: bool = True
    orders: list[Any] = field(default_factory=list)
    disk: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def runs(self) -> Run | None:
        last = next((order for order in reversed(self.orders) if isinstance(order, Run | Stop)), None)
        return last if isinstance(last, Run) else None


class Fleet:
    """Agents over one shared chain: a proposal is applied at once, and every node that is up hears of it."""

    def __init__(self, world: MeshWorld, *, cut: Iterable[str] = (), voters: int = 1) -> None:
        self.w = world
        self.mono_ms = 0
        self.cut = set(cut)
        new_voters = tuple(Voter(node_id(name), bytes([n]) * 16) for n, name in enumerate(world.nodes[:voters]))
        world.state = replace(world.state, voters=tuple(sorted(new_voters)))
        self.refusals: list[Refusal] = []
        self.nodes = {name: Node(name, self._agent(name)) for name in world.nodes}
        self.decided()

    def _agent(self, name: str, latched: dict[bytes, bytes] | None = None) -> RolloutAgent:
        return RolloutAgent(node_id(name), self.w.mesh, signer(name), VERIFIER, latched=latched)

    @property
    def now(self) -> Now:
        return Now(self.mono_ms, self.w.at_ms)

    def voter(self, name: str) -> Voter | None:
        return next((voter for voter in self.w.state.voters if voter.node == node_id(name)), None)

    def decided(self) -> None:
        for name in self.nodes:
            self.tell(name, StateDecided(self.w.state, self.voter(name)))

    def reboot(self, name: str) -> None:
        node = self.nodes[name]
        self.nodes[name] = Node(name, self._agent(name, dict(node.disk)), disk=node.disk, sick=node.sick)
        self.tell(name, StateDecided(self.w.state, self.voter(name)))

    def tell(self, name: str, event: Any) -> None:
        node = self.nodes[name]
        if node.up and not (name in self.cut and isinstance(event, StateDecided) and node.orders):
            self.perform(node, node.agent.handle(event, self.now))

    def perform(self, node: Node, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Notify(SubmitStep(command, material, _)):
                    self.propose(command, material)
                case Notify(PrepareRelease(change)):
                    node.orders.append(effect.event)
                    self.tell(node.name, PreparationDone(change, not node.broken, "passed", "no space"))
                case Notify(ReplaySmoke(project, environment, change)):
                    node.orders.append(effect.event)
                    if node.smoke != "late":
                        self.tell(node.name, SmokeReplayed(project, environment, change, node.smoke))
                case Notify(order):
                    node.orders.append(order)
                case Broadcast(message, exclude):
                    for other in self.w.nodes:
                        if other != node.name and node_id(other) not in exclude:
                            self.deliver(node.name, other, message)
                case Send(peer, message):
                    self.deliver(node.name, next(n for n in self.w.nodes if node_id(n) == peer), message)
                case Persist(_, writes):
                    for write in writes:
                        assert write.table == LATCH_TABLE
                        if write.value is None:
                            node.disk.pop(write.key, None)
                        else:
                            node.disk[write.key] = write.value
                case _:
                    raise AssertionError(effect)

    def deliver(self, source: str, target: str, message: Any) -> None:
        if source not in self.cut and target not in self.cut:
            self.tell(target, Received(node_id(source), message))

    def propose(self, command: bytes, material: tuple[bytes, ...]) -> None:
        signed = read_command(command)
        assert not isinstance(signed, Refusal)
        by_digest = {digest(item): item for item in material}
        answer = apply(self.w.state, signed, by_digest, self.w.at_ms, self.w.rules)
        if isinstance(answer, Refusal):
            self.refusals.append(answer)
        else:
            self.w.state = answer
            self.decided()

    def do(self, answer: MeshState | Refusal) -> None:
        assert isinstance(answer, MeshState), answer
        self.decided()

    def start(self, number: int, plan: Plan = PLAN) -> None:
        self.w.started(number, plan=plan)
        self.decided()

    def run_for(self, seconds: int) -> None:
        for _ in range(seconds):
            self.mono_ms += 1000
            self.w.at_ms += 1000
            for name, node in self.nodes.items():
                run = node.runs
                if run is not None and node.up:
                    crashes, node.crashes = node.crashes, 0
                    self.tell(name, self.observation(node, run, crashes))
                due = node.agent.deadline_ms()
                if due is not None and due <= self.mono_ms:
                    self.tell(name, Tick())

    def observation(self, node: Node, run: Run, crashes: int) -> WorkObserved:
        ready = not (node.sick and run.role == "candidate")
        change = run.deployed.change
        return WorkObserved(run.project, run.environment, change, ready, crashes, node.counts, node.counts)

    def serving(self) -> set[Digest | None]:
        return {node.runs.deployed.change if node.runs else None for node in self.nodes.values()}


def fleet(plan: Plan = PLAN, **fields: Any) -> Fleet:
    """Three nodes that serve release 1 and have just started release 2."""
    w = MeshWorld().furnish().deployed(1)
    new_fleet = Fleet(w, **fields)
    new_fleet.start(2, plan)
    return new_fleet


def canary(made: Fleet) -> Node:
    return made.nodes[made.w.names(made.w.rollout.order[:1])[0]]


def others(made: Fleet) -> list[Node]:
    return [node for node in made.nodes.values() if node is not canary(made)]
