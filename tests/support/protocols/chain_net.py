"""A few chains wired together in memory, with virtual time and messages that a test may drop, hold or alter."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from protocols.chain.acceptor import founding_effects
from protocols.chain.chain import Chain
from protocols.chain.context import ChainSetup, Stored
from protocols.chain.decision import Voter
from protocols.chain.fence import FENCE_TABLE, is_same_boot
from protocols.chain.messages import Booted, Outcome, Read, ReadDone, Submit
from protocols.chain.pacing import ChainTimes
from protocols.envelope import digest, encode
from protocols.keys import peer_id
from protocols.machine import (
    Broadcast,
    Effect,
    Notify,
    Now,
    PeerConnected,
    PeerDisconnected,
    PeerId,
    Persist,
    Received,
    Reject,
    Send,
    Store,
    Tick,
)
from simulation.chain.toy_state import Add, CounterMachine
from simulation.world.disk import Disk
from simulation.world.entropy import KeyRing, SeededEntropy, stream

WALL_MS = 1_800_000_000_000


@dataclass
class Node:
    name: str
    peer: PeerId
    disk: Disk
    machine: CounterMachine
    chain: Chain | None = None
    runtime_copy: bytes = b""
    boots: int = 0
    wall_offset_ms: int = 0
    notices: list[Any] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)


class ChainNet:
    """`count` nodes of which the first `voters` found the chain; everybody is connected to everybody."""

    def __init__(self, count: int, voters: int = 1, target: int = 1, times: ChainTimes | None = None) -> None:
        self.ring = KeyRing()
        self.mesh = bytes(digest(b"unit"))
        self.times = times or ChainTimes()
        self.signers = {f"n{index}": self.ring.signer(f"n{index}") for index in range(count)}
        self.admin = self.ring.signer("admin")
        peers = {name: peer_id(signer.public_key) for name, signer in self.signers.items()}
        self.founders = tuple(sorted(Voter(peers[f"n{index}"], b"store-%010d" % index) for index in range(voters)))
        self.candidates = tuple(sorted(peers.values()))
        self.target = target
        self.revoked: set[PeerId] = set()
        self.now_ms = 1_000
        self.added = 0
        self.queue: deque[tuple[PeerId, PeerId, Any]] = deque()
        self.keep: Callable[[PeerId, PeerId, Any], bool] = lambda near, far, message: True
        self.sent: list[tuple[PeerId, PeerId, Any]] = []
        self.cut: set[PeerId] = set()
        self.nodes = {name: Node(name, peers[name], Disk(), self.state_machine()) for name in self.signers}
        self.by_peer = {node.peer: node for node in self.nodes.values()}
        for voter in self.founders:
            self._write(self.by_peer[voter.node], founding_effects(voter.store_id))
        for name in self.nodes:
            self.start(name)
        self.connect_all()
        self.run()

    def state_machine(self, rules_version: int = 1) -> CounterMachine:
        return CounterMachine(
            self.mesh, self.founders, self.ring, candidates=self.candidates, admins=(self.admin.public_key,),
            target=self.target, rules_version=rules_version,
        )  # fmt: skip

    def __getitem__(self, name: str) -> Chain:
        chain = self.nodes[name].chain
        assert chain is not None
        return chain

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self, name: str, same_boot: bool | None = None, rules_version: int = 1) -> Chain:
        node = self.nodes[name]
        node.boots += 1
        node.machine = self.state_machine(rules_version)
        fence = node.disk.load(Store.FENCE)
        slots = (fence or {}).get(FENCE_TABLE, {})
        same = is_same_boot(node.runtime_copy, slots) if same_boot is None else same_boot
        setup = ChainSetup(
            self.mesh, node.peer, b"boot%04d" % node.boots, self.signers[name], self.ring,
            SeededEntropy(stream(node.boots, name)), node.machine, self.revoked.__contains__, self.times,
        )  # fmt: skip
        node.chain = Chain(setup, Stored(node.disk.load(Store.VOTE), fence, same))
        self.give(name, Booted())
        return node.chain

    def stop(self, name: str) -> None:
        node = self.nodes[name]
        node.chain = None
        self.queue = deque(item for item in self.queue if node.peer not in item[:2])
        for other in self.nodes.values():
            if other.chain is not None:
                self.give(other.name, PeerDisconnected(node.peer))

    def connect_all(self) -> None:
        for near in self.nodes.values():
            self.connect(near.name)

    def connect(self, name: str) -> None:
        """Tell one node of everybody and everybody of it, as far as they are up and do not know."""
        near = self.nodes[name]
        for far in self.nodes.values():
            if far is near or far.chain is None or near.chain is None:
                continue
            for here, there in ((near, far), (far, near)):
                if there.peer not in self[here.name]._at.peers:
                    self.give(here.name, PeerConnected(there.peer, False, b"boot%04d" % there.boots))

    # --- time and messages --------------------------------------------------------------------------------------------

    def give(self, name: str, event: Any) -> list[Effect]:
        """Hand one event to a node and perform its effects; messages wait in the queue."""
        node = self.nodes[name]
        assert node.chain is not None
        effects = node.chain.handle(event, Now(self.now_ms, WALL_MS + self.now_ms + node.wall_offset_ms))
        node.effects = effects
        self._write(node, effects)
        return effects

    def _write(self, node: Node, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Persist(store, writes):
                    node.disk.apply(store, writes)
                    if store is Store.FENCE:
                        node.runtime_copy = writes[0].value or b""
                case Send(peer, message):
                    self._queue(node.peer, peer, message)
                case Broadcast(message, exclude):
                    for other in self.nodes.values():
                        if other.peer != node.peer and other.peer not in exclude:
                            self._queue(node.peer, other.peer, message)
                case Notify(event):
                    node.notices.append(event)
                case Reject():
                    node.rejects.append(effect)

    def _queue(self, near: PeerId, far: PeerId, message: Any) -> None:
        self.sent.append((near, far, message))
        if near not in self.cut and far not in self.cut and self.keep(near, far, message):
            self.queue.append((near, far, message))

    def deliver(self) -> None:
        """Deliver what waits, and what that causes."""
        for _ in range(20_000):
            if not self.queue:
                return
            near, far, message = self.queue.popleft()
            node = self.by_peer[far]
            if node.chain is not None:
                self.give(node.name, Received(near, message))
        raise AssertionError("messages without end")

    def run(self, duration_ms: int = 0, step_ms: int = 50) -> None:
        """Let time pass; every node ticks when it wants to."""
        end_ms = self.now_ms + duration_ms
        self.deliver()
        while self.now_ms < end_ms:
            self.now_ms = min(self.now_ms + step_ms, end_ms)
            for node in list(self.nodes.values()):
                if node.chain is None:
                    continue
                for _ in range(100):
                    due_ms = node.chain.deadline_ms()
                    if due_ms is None or due_ms > self.now_ms:
                        break
                    self.give(node.name, Tick())
            self.deliver()

    # --- clients ------------------------------------------------------------------------------------------------------

    def submit(self, name: str, command: bytes, material: tuple[bytes, ...] = (), wait_ms: int = 40_000) -> Outcome:
        """Submit through a node and wait for the outcome."""
        request_id = b"request-%d" % len(self.nodes[name].notices)
        self.give(name, Submit(request_id, command, material))
        return self.outcome(name, request_id, wait_ms)

    def add(self, name: str, amount: int = 1, counter: str = "a", expect: int = -1) -> Outcome:
        self.added += 1
        identifier = b"added %d" % self.added
        return self.submit(name, encode(Add(identifier, counter, amount, expect)))

    def outcome(self, name: str, request_id: bytes, wait_ms: int = 40_000) -> Outcome:
        end_ms = self.now_ms + wait_ms
        self.deliver()
        while True:
            for notice in self.nodes[name].notices:
                if isinstance(notice, Outcome) and notice.request_id == request_id:
                    return notice
            assert self.now_ms < end_ms, "no outcome in time"
            self.run(50)

    def read(self, name: str, wait_ms: int = 40_000) -> int:
        """Read through a node and return the slot it was good for."""
        request_id = b"read-%d" % len(self.nodes[name].notices)
        self.give(name, Read(request_id))
        end_ms = self.now_ms + wait_ms
        self.deliver()
        while True:
            for notice in self.nodes[name].notices:
                if isinstance(notice, ReadDone) and notice.request_id == request_id:
                    return notice.slot
            assert self.now_ms < end_ms, "no read in time"
            self.run(50)

    def heads(self) -> set[tuple[int, bytes]]:
        return {
            (node.chain.position.slot, node.chain.position.digest)
            for node in self.nodes.values()
            if node.chain is not None
        }

    def notices(self, name: str, kind: type) -> list[Any]:
        return [notice for notice in self.nodes[name].notices if isinstance(notice, kind)]
