"""Liveness in small fleets under virtual time, and one machine facing odd statements."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.envelope import Signed, sign
from protocols.liveness import (
    ALIVE_DOMAIN,
    INCARNATION_MAX,
    OPENED_MAX,
    PINGS_PENDING_MAX,
    SUSPICION_DOMAIN,
    Aliveness,
    Belief,
    BeliefChanged,
    Leave,
    LivenessConfig,
    LivenessMachine,
    LivePing,
    LivePong,
    MembersChanged,
    RedialFailed,
    StillAlive,
    Suspected,
    Suspicion,
)
from protocols.machine import (
    Broadcast,
    Effect,
    Notify,
    Now,
    PeerConnected,
    PeerDisconnected,
    PeerId,
    Received,
    Reject,
    Send,
    Tick,
)
from protocols.observers import observers_of
from tests.support.protocols.trust_world import VERIFIER, SeededEntropy, node_id, now, signer

MESH = b"m" * 32
signer_of = cache(signer)
id_of = cache(node_id)


class Fleet:
    """N machines on a lossy network; `links` limits who is connected to whom."""

    def __init__(self, count: int, seed: int = 0, loss: float = 0.0, links: int | None = None) -> None:
        self.random = random.Random(seed)
        self.loss = loss
        self.names = [f"n{index}" for index in range(count)]
        self.ids = {id_of(name): name for name in self.names}
        self.dead: set[PeerId] = set()
        self.cut: set[frozenset[PeerId]] = set()
        self.counter = itertools.count()
        self.queue: list[tuple[int, int, PeerId, PeerId, object]] = []
        self.now_ms = 0
        self.events: list[tuple[int, PeerId, BeliefChanged]] = []
        self.messages = 0
        self.neighbours: dict[PeerId, list[PeerId]] = {}
        order = list(self.ids)
        for index, peer in enumerate(order):
            if links is None:
                self.neighbours[peer] = [other for other in order if other != peer]
            else:
                near = [order[(index + step) % count] for step in (*range(1, links + 1), *range(-links, 0))]
                self.neighbours[peer] = sorted(set(near) - {peer})
        self.machines: dict[PeerId, LivenessMachine] = {}
        for index, peer in enumerate(order):
            self.start(peer, seed * 100 + index)

    def start(self, peer: PeerId, seed: int) -> None:
        machine = LivenessMachine(MESH, signer_of(self.ids[peer]), VERIFIER, SeededEntropy(seed))
        self.machines[peer] = machine
        self.perform(peer, machine.handle(MembersChanged(tuple(self.ids)), self.now))
        for other in self.neighbours[peer]:
            self.perform(peer, machine.handle(PeerConnected(other, inbound=False), self.now))

    @property
    def now(self) -> Now:
        return now(self.now_ms)

    def perform(self, peer: PeerId, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self.send(peer, effect.peer, effect.message)
                case Broadcast():
                    for other in self.neighbours[peer]:
                        self.send(peer, other, effect.message)
                case Notify():
                    self.events.append((self.now_ms, peer, effect.event))
                case _:
                    raise AssertionError(effect)

    def send(self, source: PeerId, target: PeerId, message: object) -> None:
        assert target in self.neighbours[source]
        self.messages += 1
        lost = self.random.random() < self.loss or frozenset((source, target)) in self.cut
        if not lost:
            delay = self.random.randint(5, 50)
            heapq.heappush(self.queue, (self.now_ms + delay, next(self.counter), target, source, message))

    def run(self, until_ms: int) -> None:
        while self.now_ms < until_ms:
            due = [
                deadline for peer, machine in self.machines.items()
                if peer not in self.dead and (deadline := machine.deadline_ms()) is not None
            ]  # fmt: skip
            next_ms = min([until_ms, *due, *(entry[0] for entry in self.queue[:1])])
            self.now_ms = max(self.now_ms, next_ms)
            while self.queue and self.queue[0][0] <= self.now_ms:
                _, _, target, source, message = heapq.heappop(self.queue)
                if target not in self.dead:
                    self.perform(target, self.machines[target].handle(Received(source, message), self.now))
            for peer, machine in self.machines.items():
                deadline = machine.deadline_ms()
                if peer not in self.dead and deadline is not None and deadline <= self.now_ms:
                    self.perform(peer, machine.handle(Tick(), self.now))
                    later = machine.deadline_ms()
                    assert later is None or later > self.now_ms, "a tick must move the deadline"

    def beliefs(self, subject: PeerId) -> set[Belief | None]:
        return {m.belief(subject) for peer, m in self.machines.items() if peer not in self.dead and peer != subject}

    def downs(self) -> list[PeerId]:
        return [event.peer for _, _, event in self.events if event.belief is Belief.DOWN]


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_a_dead_node_is_believed_down_by_all_within_10_to_25_seconds(count: int) -> None:
    fleet = Fleet(count, seed=count)
    fleet.run(20_000)
    assert fleet.events == []
    victim = id_of("n1")
    fleet.dead.add(victim)
    fleet.run(20_000 + 25_000)
    assert fleet.beliefs(victim) == {Belief.DOWN}
    first = min(index for index, _, event in fleet.events if event.belief is Belief.DOWN)
    assert first - 20_000 >= 8_000
    assert set(fleet.downs()) == {victim}


def test_at_20_percent_loss_the_dead_are_found_and_nobody_else_is_believed_down() -> None:
    fleet = Fleet(12, seed=3, loss=0.2)
    fleet.run(180_000)
    assert fleet.downs() == []
    assert any(event.belief is Belief.SUSPECT for _, _, event in fleet.events), "the loss was felt"
    victim = id_of("n4")
    fleet.dead.add(victim)
    fleet.run(180_000 + 25_000)
    assert fleet.beliefs(victim) == {Belief.DOWN}
    fleet.run(260_000)
    assert set(fleet.downs()) == {victim}


def test_a_partial_overlay_spreads_a_death_to_nodes_without_a_link_to_it() -> None:
    fleet = Fleet(16, seed=5, links=2)
    for peer, machine in fleet.machines.items():
        for other in machine.observing():
            for here, there in ((peer, other), (other, peer)):
                if there not in fleet.neighbours[here]:
                    fleet.neighbours[here].append(there)
                    fleet.machines[here].handle(PeerConnected(there, inbound=False), fleet.now)
    victim = id_of("n0")
    assert len(fleet.neighbours[victim]) < 15
    fleet.run(10_000)
    assert fleet.events == []
    fleet.dead.add(victim)
    fleet.run(35_000)
    assert fleet.beliefs(victim) == {Belief.DOWN}


def test_two_nodes_that_cannot_hear_each_other_are_not_down_while_other_observers_hear_them() -> None:
    fleet = Fleet(6, seed=7)
    fleet.cut.add(frozenset((id_of("n0"), id_of("n1"))))
    fleet.run(120_000)
    assert fleet.downs() == []
    assert max(fleet.machines[peer].incarnation(peer) for peer in fleet.machines) >= 1, "the suspicion was refuted"


def test_a_minority_suspects_but_never_declares_the_majority_down() -> None:
    fleet = Fleet(5, seed=9)
    lonely = id_of("n0")
    for peer in fleet.ids:
        fleet.cut.add(frozenset((lonely, peer)))
    fleet.run(60_000)
    assert {fleet.machines[lonely].belief(peer) for peer in fleet.ids if peer != lonely} == {Belief.SUSPECT}
    assert fleet.machines[lonely].health == 8
    assert fleet.beliefs(lonely) >= {Belief.DOWN}


def test_a_returned_node_refutes_its_death_also_after_it_forgot_its_incarnation() -> None:
    fleet = Fleet(5, seed=11)
    victim = id_of("n2")
    for round_number in (1, 2):
        fleet.dead.add(victim)
        fleet.run(fleet.now_ms + 30_000)
        assert fleet.beliefs(victim) == {Belief.DOWN}
        fleet.dead.discard(victim)
        fleet.start(victim, 99 + round_number)
        for peer in fleet.neighbours[victim]:
            fleet.perform(peer, fleet.machines[peer].handle(PeerConnected(victim, inbound=True), fleet.now))
        fleet.run(fleet.now_ms + 5_000)
        assert fleet.beliefs(victim) == {Belief.ALIVE}
        assert fleet.machines[victim].incarnation(victim) == round_number


def leave(fleet: Fleet, peer: PeerId) -> None:
    """Have a node say goodbye, and end once its words are out."""
    fleet.perform(peer, fleet.machines[peer].handle(Leave(), fleet.now))
    fleet.run(fleet.now_ms + 300)
    fleet.dead.add(peer)


def come_back(fleet: Fleet, peer: PeerId, seed: int) -> None:
    fleet.dead.discard(peer)
    fleet.start(peer, seed)
    for other in fleet.neighbours[peer]:
        fleet.perform(other, fleet.machines[other].handle(PeerConnected(peer, inbound=True), fleet.now))


@pytest.mark.parametrize("links", [None, 2])
def test_a_goodbye_is_believed_at_once_by_all_and_ends_with_the_next_start(links: int | None) -> None:
    fleet = Fleet(9, seed=21, links=links)
    fleet.run(10_000)
    leaver = id_of("n4")
    for seed in (1, 2):
        leave(fleet, leaver)
        assert fleet.beliefs(leaver) == {Belief.DOWN}
        assert all(m.said_goodbye(leaver) for peer, m in fleet.machines.items() if peer != leaver)
        assert not any(m.said_goodbye(id_of("n5")) for m in fleet.machines.values())
        fleet.run(fleet.now_ms + 20_000)
        assert fleet.beliefs(leaver) == {Belief.DOWN}
        come_back(fleet, leaver, seed)
        fleet.run(fleet.now_ms + 5_000)
        assert fleet.beliefs(leaver) == {Belief.ALIVE}
    assert set(fleet.downs()) == {leaver}


def test_a_goodbye_counts_though_the_process_forgot_what_it_refuted_in_an_earlier_life() -> None:
    fleet = Fleet(4, seed=22)
    leaver = id_of("n2")
    leave(fleet, leaver)
    come_back(fleet, leaver, 1)
    fleet.run(fleet.now_ms + 2_000)
    come_back(fleet, leaver, 2)  # killed: nobody suspects it, and its count is forgotten
    fleet.run(fleet.now_ms + 2_000)
    assert fleet.machines[leaver].incarnation(leaver) == 0
    leave(fleet, leaver)
    assert fleet.beliefs(leaver) == {Belief.DOWN}


def test_nobody_says_goodbye_for_another() -> None:
    machine, (_, peer_id, two) = lone()
    for message in (suspicion("n1", two), suspicion("eve", two)):
        machine.handle(Received(two, message), now())
        assert not machine.said_goodbye(two)
    assert machine.belief(two) is Belief.SUSPECT
    machine.handle(Received(peer_id, suspicion("n2", two)), now())
    assert machine.said_goodbye(two)
    assert machine.belief(two) is Belief.DOWN
    assert not machine.said_goodbye(peer_id)


def test_who_leaves_refutes_nothing() -> None:
    machine, (me, peer_id, _) = lone()
    assert machine.handle(Leave(), now()) == [Broadcast(suspicion("n0", me, 0))]
    assert machine.handle(Received(peer_id, suspicion("n0", me, 0)), now()) == []
    assert machine.handle(Received(peer_id, suspicion("n1", me, 0)), now()) == []
    assert machine.handle(Received(peer_id, alive("n0", me, 3)), now()) == [Broadcast(suspicion("n0", me, 3))]
    assert machine.handle(PeerConnected(peer_id, inbound=True), now()) == []


def test_a_lost_connection_and_a_failed_redial_raise_a_suspicion_at_once() -> None:
    fleet = Fleet(2)
    here, there = id_of("n0"), id_of("n1")
    machine = fleet.machines[here]
    assert machine.handle(RedialFailed(there), now()) == [], "still connected"
    machine.handle(PeerDisconnected(there), now())
    effects = machine.handle(RedialFailed(there), now())
    assert isinstance(effects[0], Broadcast)
    assert machine.belief(there) is Belief.SUSPECT
    assert machine.handle(RedialFailed(id_of("nobody")), now()) == []
    machine.handle(PeerDisconnected(id_of("nobody")), now())


def test_round_trips_are_estimated() -> None:
    fleet = Fleet(3, seed=1)
    fleet.run(60_000)
    here = fleet.machines[id_of("n0")]
    rtt = here.rtt_ms(id_of("n1"))
    assert rtt is not None
    assert 20 < rtt < 90
    assert rtt <= here.rtt_high_ms() < 300
    assert here.rtt_ms(id_of("nobody")) is None
    assert here.belief(id_of("n0")) is Belief.ALIVE
    assert here.belief(id_of("nobody")) is None


def lone(count: int = 3) -> tuple[LivenessMachine, list[PeerId]]:
    machine = LivenessMachine(MESH, signer_of("n0"), VERIFIER, SeededEntropy())
    ids = [id_of(f"n{index}") for index in range(count)]
    machine.handle(MembersChanged(tuple(ids)), now())
    for peer in ids[1:]:
        machine.handle(PeerConnected(peer, inbound=True), now())
    return machine, ids


def suspicion(by: str, node: PeerId, incarnation: int = 0) -> Suspected:
    return Suspected(sign(signer_of(by), SUSPICION_DOMAIN, MESH, Suspicion(node, incarnation)))


def alive(by: str, node: PeerId, incarnation: int) -> StillAlive:
    return StillAlive(sign(signer_of(by), ALIVE_DOMAIN, MESH, Aliveness(node, incarnation)))


def test_statements_that_are_forged_impossible_or_foreign_are_rejected() -> None:
    machine, (_, peer_id, two) = lone()
    bad: list[object] = [
        Suspected(Signed(b"", b"", b"")),
        suspicion("n1", two, INCARNATION_MAX),
        suspicion("n1", two, -1),
        Suspected(alive("n1", peer_id, 1).signed),
        Suspected(sign(signer_of("n1"), SUSPICION_DOMAIN, b"x" * 32, Suspicion(two, 0))),
        alive("n1", two, 1),
        StillAlive(suspicion("n1", two).signed),
        alive("n2", two, INCARNATION_MAX),
        MembersChanged(()),
    ]
    for message in bad:
        effects = machine.handle(Received(peer_id, message), now())
        assert [type(effect) for effect in effects] == [Reject], message
    assert machine.belief(two) is Belief.ALIVE


def test_the_word_of_a_stranger_or_about_a_stranger_changes_nothing() -> None:
    machine, (_, peer_id, two) = lone()
    for message in (suspicion("eve", two), suspicion("n1", id_of("eve")), alive("eve", id_of("eve"), 3)):
        assert machine.handle(Received(peer_id, message), now()) == []
    assert machine.handle(Received(id_of("eve"), LivePong(1)), now()) == []
    assert machine.belief(two) is Belief.ALIVE


def test_only_an_observers_word_counts() -> None:
    machine, ids = lone(9)
    subject = ids[1]
    observers = observers_of(subject, ids, 5)
    bystander = next(name for name in ("n2", "n3", "n4", "n5", "n6", "n7", "n8") if id_of(name) not in observers)
    assert machine.handle(Received(id_of(bystander), suspicion(bystander, subject)), now()) == []
    observer = next(name for name in ("n2", "n3", "n4", "n5", "n6", "n7", "n8") if id_of(name) in observers)
    effects = machine.handle(Received(id_of(observer), suspicion(observer, subject)), now())
    assert machine.belief(subject) is Belief.SUSPECT
    relayed = [effect.peer for effect in effects if isinstance(effect, Send)]
    assert relayed[0] == subject, "the suspect itself hears of it first"
    assert len(relayed) == 3
    assert id_of(observer) not in relayed
    assert machine.handle(Received(id_of(observer), suspicion(observer, subject)), now()) == [], "heard already"


def test_a_suspicion_older_than_the_refutation_is_answered_with_it() -> None:
    machine, (_, peer_id, two) = lone()
    machine.handle(Received(two, alive("n2", two, 4)), now())
    effects = machine.handle(Received(peer_id, suspicion("n1", two, 3)), now())
    assert effects == [Send(peer_id, alive("n2", two, 4))]
    assert machine.handle(Received(peer_id, alive("n2", two, 4)), now()) == []
    assert machine.incarnation(two) == 4


def test_a_node_refutes_once_to_all_and_then_to_whoever_has_not_heard() -> None:
    machine, (me, peer_id, _) = lone()
    first = machine.handle(Received(peer_id, suspicion("n1", me, 0)), now())
    assert first == [Broadcast(alive("n0", me, 1))]
    assert machine.handle(Received(peer_id, suspicion("n1", me, 0)), now()) == [Send(peer_id, alive("n0", me, 1))]
    assert machine.health == 1
    assert machine.handle(PeerConnected(peer_id, inbound=True), now()) == [Send(peer_id, alive("n0", me, 1))]
    past = machine.handle(Received(peer_id, alive("n0", me, 6)), now())
    assert past == [Broadcast(alive("n0", me, 7))]
    assert machine.handle(Received(peer_id, alive("n0", me, 7)), now()) == []


def test_an_answer_that_comes_too_late_does_not_count() -> None:
    machine, (_, peer_id) = lone(2)
    sent: list[LivePing] = []
    position = 0
    while len(sent) < 2:
        position = machine.deadline_ms() or 0
        effects = machine.handle(Tick(), now(position))
        sent += [effect.message for effect in effects if isinstance(effect, Send)]
    machine.handle(Received(peer_id, LivePong(sent[0].number)), now(position))
    assert machine.rtt_ms(peer_id) is None
    machine.handle(Received(peer_id, LivePong(sent[1].number)), now(position + 30))
    assert machine.rtt_ms(peer_id) == 30
    assert machine.handle(Received(peer_id, LivePing(9)), now(position)) == [Send(peer_id, LivePong(9))]


def test_a_member_that_leaves_is_forgotten_and_observation_stops() -> None:
    machine, ids = lone(3)
    machine.handle(Tick(), now(5_000))
    effects = machine.handle(MembersChanged((ids[0], ids[1])), now(6_000))
    assert effects == []
    assert machine.belief(ids[2]) is None
    many = tuple(id_of(f"n{index}") for index in range(12))
    machine.handle(MembersChanged(many), now(6_000))
    unobserved = [peer for peer in many if ids[0] not in observers_of(peer, many, 5) and peer != ids[0]]
    assert unobserved
    assert not any(machine._members[peer].pings for peer in unobserved)
    alone = LivenessMachine(MESH, signer_of("n0"), VERIFIER, SeededEntropy())
    assert alone.deadline_ms() is None
    assert alone.rtt_high_ms() == 0.0


def test_open_pings_and_remembered_statements_are_bounded() -> None:
    config = LivenessConfig(ping_interval_ms=10, ping_timeout_min_ms=10_000)
    machine = LivenessMachine(MESH, signer_of("n0"), VERIFIER, SeededEntropy(), config)
    peer_id = id_of("n1")
    machine.handle(MembersChanged((id_of("n0"), peer_id)), now())
    machine.handle(PeerConnected(peer_id, inbound=True), now())
    for start in range(0, 500, 10):
        machine.handle(Tick(), now(start))
    assert len(machine._members[peer_id].pings) == PINGS_PENDING_MAX
    for incarnation in range(OPENED_MAX + 5):
        machine.handle(Received(peer_id, alive("n1", peer_id, incarnation)), now())
    assert len(machine._opened) == OPENED_MAX


@given(st.binary(max_size=100), st.binary(max_size=64))
def test_random_statements_are_rejected(payload: bytes, signature: bytes) -> None:
    machine, (_, peer_id, _) = lone()
    junk = Signed(payload, signer_of("n1").public_key, signature.ljust(64, b"\0"))
    for message in (Suspected(junk), StillAlive(junk)):
        assert [type(effect) for effect in machine.handle(Received(peer_id, message), now())] == [Reject]
