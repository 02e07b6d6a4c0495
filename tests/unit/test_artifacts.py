"""Fetching artifacts: from several peers, across restarts, and in spite of liars."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.artifacts import (
    CHUNK_BYTES,
    HELD_MAX,
    IN_FLIGHT_MAX,
    IN_FLIGHT_PER_PEER,
    SERVING_PER_PEER,
    WANTS_MAX,
    ArtifactAsk,
    ArtifactMachine,
    ArtifactMessage,
    ArtifactOffer,
    BeginFile,
    CheckWhole,
    Chunk,
    ChunkAsk,
    ChunkRead,
    Dropped,
    Fetched,
    Held,
    ReadChunk,
    Unwant,
    Want,
    WholeChecked,
    WriteChunk,
    chunk_count,
    offer_of,
    offer_problem,
)
from protocols.envelope import DecodeError, decode, digest
from protocols.machine import (
    Digest,
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

DATA = random.Random(1).randbytes(9 * CHUNK_BYTES + 1000)
NAME = digest(DATA)
OFFER = offer_of(DATA)
NOW = Now(0, 0)
A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def part(index: int) -> bytes:
    return DATA[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]


def sent(effects: list[Effect], kind: type) -> list[Any]:
    return [one for one in effects if isinstance(one, Send) and isinstance(one.message, kind)]


def notes(effects: list[Effect], kind: type) -> list[Any]:
    return [one.event for one in effects if isinstance(one, Notify) and isinstance(one.event, kind)]


def rules(effects: list[Effect]) -> list[tuple[PeerId, str]]:
    return [(one.peer, one.rule) for one in effects if isinstance(one, Reject)]


class Swarm:
    """Machines with files in memory; `lies` may rewrite what a peer sends, `slow` peers never answer."""

    def __init__(self, *names: str) -> None:
        self.machines = {PeerId(name): ArtifactMachine() for name in names}
        self.files: dict[PeerId, dict[Digest, bytes]] = {peer: {} for peer in self.machines}
        self.parts: dict[PeerId, dict[int, bytes]] = {peer: {} for peer in self.machines}
        self.fetched: list[PeerId] = []
        self.rejected: list[tuple[PeerId, str]] = []
        self.served: dict[PeerId, int] = dict.fromkeys(self.machines, 0)
        self.lies: dict[PeerId, Any] = {}
        self.slow: set[PeerId] = set()
        self.mono_ms = 0
        self.queue: list[tuple[PeerId, Any]] = []
        for peer in self.machines:
            for other in self.machines:
                if other != peer:
                    self.tell(peer, PeerConnected(other, True))

    def hold(self, peer: PeerId, data: bytes = DATA, offer: ArtifactOffer | None = None) -> None:
        self.files[peer][digest(data)] = data
        self.tell(peer, Held(offer or offer_of(data)))

    def tell(self, peer: PeerId, event: Any) -> None:
        self.queue.append((peer, event))
        while self.queue:
            target, one = self.queue.pop(0)
            for effect in self.machines[target].handle(one, Now(self.mono_ms, 0)):
                self.perform(target, effect)

    def perform(self, peer: PeerId, effect: Effect) -> None:
        match effect:
            case Send(to, message):
                lie = self.lies.get(peer)
                said = lie(message) if lie else message
                if peer not in self.slow:
                    self.served[peer] += isinstance(said, Chunk)
                    self.queue.append((to, Received(peer, said)))
            case Notify(ReadChunk(to, name, index)):
                data = self.files[peer].get(name, b"")[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
                self.queue.append((peer, ChunkRead(to, name, index, data)))
            case Notify(WriteChunk(_, index, data)):
                self.parts[peer][index] = data
            case Notify(CheckWhole(name)):
                whole = b"".join(data for _, data in sorted(self.parts[peer].items()))
                self.queue.append((peer, WholeChecked(name, digest(whole) == name)))
            case Notify(Fetched()):
                self.fetched.append(peer)
            case Reject(liar, rule):
                self.rejected.append((liar, rule))

    def pass_time(self, ms: int) -> None:
        self.mono_ms += ms
        for peer in self.machines:
            self.tell(peer, Tick())


# --- the good path ----------------------------------------------------------------------------------------------------


def test_an_artifact_comes_from_several_peers_at_once_and_is_served_on() -> None:
    s = Swarm("me", "a", "b", "c")
    for peer in (A, B, C):
        s.hold(peer)
    s.tell(PeerId("me"), Want(NAME))
    assert s.fetched == [PeerId("me")]
    assert b"".join(data for _, data in sorted(s.parts[PeerId("me")].items())) == DATA
    assert sum(count > 0 for count in s.served.values()) >= 2
    assert not s.rejected
    s.tell(PeerId("me"), Want(NAME))
    assert s.fetched == [PeerId("me")] * 2
    s.files[PeerId("me")][NAME] = DATA
    for peer in (A, B):
        s.tell(peer, Dropped(NAME))
    s.tell(A, Want(NAME))
    assert s.fetched[-1] == A


def test_only_the_missing_chunks_are_fetched_after_a_restart() -> None:
    s = Swarm("me", "a")
    s.hold(A)
    s.parts[PeerId("me")] = {index: part(index) for index in range(8)}
    s.tell(PeerId("me"), Want(NAME, OFFER, tuple(range(8))))
    assert s.fetched == [PeerId("me")]
    assert s.served[A] == 2


def test_all_chunks_at_hand_need_no_peer() -> None:
    machine = ArtifactMachine()
    effects = machine.handle(Want(NAME, OFFER, tuple(range(10))), NOW)
    assert notes(effects, CheckWhole) == [CheckWhole(NAME)]
    assert machine.handle(WholeChecked(NAME, True), NOW) == [Notify(Fetched(NAME))]


def test_a_holder_found_later_is_asked_again() -> None:
    s = Swarm("me", "a")
    s.tell(PeerId("me"), Want(NAME))
    assert s.machines[PeerId("me")].missing(NAME) is None
    s.hold(A)
    assert not s.fetched
    s.pass_time(5_000)
    assert s.fetched == [PeerId("me")]


def test_a_peer_that_connects_later_is_asked() -> None:
    machine = ArtifactMachine()
    machine.handle(Want(NAME), NOW)
    assert machine.handle(PeerConnected(A, True), NOW) == [Send(A, ArtifactAsk(NAME))]
    assert machine.handle(PeerConnected(A, True), NOW) == [Send(A, ArtifactAsk(NAME))]


def test_what_is_in_flight_is_bounded_per_peer_and_in_all() -> None:
    machine = ArtifactMachine()
    peers = [PeerId(f"p{n}") for n in range(8)]
    for peer in peers:
        machine.handle(PeerConnected(peer, True), NOW)
    big = ArtifactOffer(NAME, 100 * CHUNK_BYTES, tuple(digest(b"%d" % n) for n in range(100)))
    machine.handle(Want(NAME), NOW)
    first = sent(machine.handle(Received(peers[0], big), NOW), ChunkAsk)
    assert len(first) == IN_FLIGHT_PER_PEER
    asked = len(first)
    for peer in peers[1:]:
        asked += len(sent(machine.handle(Received(peer, big), NOW), ChunkAsk))
    assert asked == IN_FLIGHT_MAX


def test_a_slow_holder_is_passed_over_and_a_lost_one_replaced() -> None:
    s = Swarm("me", "a", "b")
    s.hold(A)
    s.tell(PeerId("me"), Want(NAME))
    s = Swarm("me", "a", "b")
    s.hold(A)
    s.lies[A] = lambda message: ArtifactOffer(b"", 0) if isinstance(message, Chunk) else message
    s.tell(PeerId("me"), Want(NAME))
    s.hold(B)
    s.pass_time(5_000)
    assert s.machines[PeerId("me")].missing(NAME) is not None
    s.pass_time(5_000)
    s.pass_time(5_000)
    assert s.fetched == [PeerId("me")]
    assert s.served[B] > 0


def test_what_a_lost_peer_was_sending_is_asked_of_another() -> None:
    machine = ArtifactMachine()
    for peer in (A, B):
        machine.handle(PeerConnected(peer, True), NOW)
    machine.handle(Want(NAME), NOW)
    machine.handle(Received(A, OFFER), NOW)
    machine.handle(Received(B, OFFER), NOW)
    again = sent(machine.handle(PeerDisconnected(A), NOW), ChunkAsk)
    assert again == []
    got = machine.handle(Received(B, Chunk(NAME, 4, part(4))), NOW)
    assert [one.message.index for one in sent(got, ChunkAsk)] == [0]
    assert machine.handle(PeerDisconnected(C), NOW) == []


def test_a_chunk_that_comes_late_over_a_slow_link_is_kept() -> None:
    machine = ArtifactMachine()
    machine.handle(PeerConnected(A, True), NOW)
    machine.handle(Want(NAME), NOW)
    machine.handle(Received(A, OFFER), NOW)
    machine.handle(Tick(), Now(10_000, 0))
    for late in (Chunk(NAME, 0, b"x"), Chunk(NAME, 10, part(0)), Chunk(NAME, 0, part(1))):
        assert machine.handle(Received(A, late), NOW) == []
    assert notes(machine.handle(Received(A, Chunk(NAME, 0, part(0))), NOW), WriteChunk)
    assert machine.handle(Received(A, Chunk(NAME, 0, part(0))), NOW) == []
    assert machine.missing(NAME) == 9


def test_unwanted_is_forgotten_and_its_late_chunks_are_ignored() -> None:
    machine = ArtifactMachine()
    machine.handle(PeerConnected(A, True), NOW)
    machine.handle(Want(NAME), NOW)
    machine.handle(Received(A, OFFER), NOW)
    assert machine.handle(Unwant(NAME), NOW) == []
    assert machine.deadline_ms() is None
    for message in (OFFER, Chunk(NAME, 0, part(0))):
        assert machine.handle(Received(A, message), NOW) == []
    assert machine.handle(WholeChecked(NAME, True), NOW) == []
    assert machine.missing(NAME) is None


def test_an_artifact_that_the_node_gets_elsewhere_is_fetched() -> None:
    machine = ArtifactMachine()
    machine.handle(Want(NAME), NOW)
    assert machine.handle(Held(OFFER), NOW) == [Notify(Fetched(NAME))]
    assert machine.handle(Held(OFFER), NOW) == []


# --- liars ------------------------------------------------------------------------------------------------------------


def test_a_bad_chunk_is_the_fault_of_who_sent_it_and_another_gives_it() -> None:
    s = Swarm("me", "a", "b")
    s.hold(A)
    s.hold(B)
    s.lies[A] = lambda message: Chunk(message.digest, message.index, b"x") if isinstance(message, Chunk) else message
    s.tell(PeerId("me"), Want(NAME))
    assert s.fetched == [PeerId("me")]
    assert s.rejected == [(A, "artifact.bad-chunk")]


def test_a_false_list_is_found_out_by_the_whole_and_never_used() -> None:
    s = Swarm("me", "a", "b")
    false = bytearray(DATA)
    false[5] ^= 1
    lie = offer_of(bytes(false))
    s.files[A][NAME] = bytes(false)
    s.tell(A, Held(ArtifactOffer(NAME, lie.size, lie.chunks)))
    s.tell(PeerId("me"), Want(NAME))
    assert not s.fetched
    assert s.rejected == [(A, "artifact.false-offer")]
    s.hold(B)
    s.pass_time(5_000)
    assert s.fetched == [PeerId("me")]
    assert b"".join(data for _, data in sorted(s.parts[PeerId("me")].items())) == DATA


def test_the_list_that_most_peers_offer_is_tried_first_and_proven_lies_are_refused() -> None:
    machine = ArtifactMachine()
    for peer in (A, B, C):
        machine.handle(PeerConnected(peer, True), NOW)
    lie = ArtifactOffer(NAME, 3, (digest(b"lie"),))
    machine.handle(Want(NAME), NOW)
    assert notes(machine.handle(Received(A, lie), NOW), BeginFile) == [BeginFile(lie)]
    assert notes(machine.handle(Received(B, OFFER), NOW), BeginFile) == []
    machine.handle(Received(C, OFFER), NOW)
    machine.handle(Received(A, Chunk(NAME, 0, b"lie")), NOW)
    effects = machine.handle(WholeChecked(NAME, False), NOW)
    assert rules(effects) == [(A, "artifact.false-offer")]
    assert notes(effects, BeginFile) == [BeginFile(OFFER)]
    assert machine.handle(Received(A, OFFER), NOW) == []
    assert rules(machine.handle(Received(C, lie), NOW)) == [(C, "artifact.false-offer")]


def test_when_a_list_loses_its_last_holder_another_is_used_and_shared_chunks_are_kept() -> None:
    machine = ArtifactMachine()
    for peer in (A, B):
        machine.handle(PeerConnected(peer, True), NOW)
    shared = ArtifactOffer(NAME, OFFER.size, (*OFFER.chunks[:-1], digest(b"other")))
    machine.handle(Want(NAME), NOW)
    machine.handle(Received(A, shared), NOW)
    machine.handle(Received(B, OFFER), NOW)
    machine.handle(Received(A, Chunk(NAME, 0, part(0))), NOW)
    assert machine.missing(NAME) == 9
    effects = machine.handle(PeerDisconnected(A), NOW)
    assert notes(effects, BeginFile) == [BeginFile(OFFER)]
    assert machine.missing(NAME) == 9


def test_no_list_is_changed_while_the_whole_is_being_checked() -> None:
    machine = ArtifactMachine()
    machine.handle(Want(NAME, OFFER, tuple(range(10))), NOW)
    machine.handle(PeerConnected(A, True), NOW)
    assert machine.handle(Received(A, ArtifactOffer(NAME, 3, (digest(b"lie"),))), NOW) == []
    assert machine.handle(WholeChecked(NAME, True), NOW) == [Notify(Fetched(NAME))]


@pytest.mark.parametrize(
    "offer",
    [
        ArtifactOffer(NAME, -1),
        ArtifactOffer(NAME, 1 << 40, ()),
        ArtifactOffer(NAME, 5, ()),
        ArtifactOffer(NAME, 5, (b"short",)),
        ArtifactOffer(NAME, 5, (NAME, NAME)),
        ArtifactOffer(NAME, 0, (NAME,)),
    ],
)
def test_malformed_offers_are_rejected_once(offer: ArtifactOffer) -> None:
    machine = ArtifactMachine()
    machine.handle(PeerConnected(A, True), NOW)
    machine.handle(Want(NAME), NOW)
    assert rules(machine.handle(Received(A, offer), NOW)) == [(A, "artifact.malformed-offer")]
    assert machine.handle(Received(A, offer), NOW) == []
    assert offer_problem(ArtifactOffer(b"short", 5, (NAME,)))


def test_a_holder_that_takes_back_its_offer_is_not_asked() -> None:
    machine = ArtifactMachine()
    machine.handle(PeerConnected(A, True), NOW)
    machine.handle(Want(NAME), NOW)
    machine.handle(Received(A, OFFER), NOW)
    assert machine.handle(Received(A, Chunk(NAME, 0, b"")), NOW) == []
    assert machine.handle(Received(A, ArtifactOffer(NAME, 0)), NOW) == []
    assert machine.handle(Received(A, Chunk(NAME, 9, b"unasked")), NOW) == []
    assert machine.handle(Received(A, "nonsense"), NOW) == []


# --- serving ----------------------------------------------------------------------------------------------------------


def test_serving_is_bounded_and_honest_about_what_is_not_there() -> None:
    machine = ArtifactMachine()
    assert machine.handle(Received(A, ArtifactAsk(NAME)), NOW) == [Send(A, ArtifactOffer(NAME, 0))]
    assert machine.handle(Received(A, ChunkAsk(NAME, 0)), NOW) == [Send(A, Chunk(NAME, 0, b""))]
    machine.handle(Held(OFFER), NOW)
    assert machine.handle(Received(A, ArtifactAsk(NAME)), NOW) == [Send(A, OFFER)]
    for index in range(SERVING_PER_PEER):
        assert machine.handle(Received(A, ChunkAsk(NAME, index)), NOW) == [Notify(ReadChunk(A, NAME, index))]
    assert machine.handle(Received(A, ChunkAsk(NAME, 0)), NOW) == []
    assert machine.handle(Received(A, ChunkAsk(NAME, 9)), NOW) == [Send(A, Chunk(NAME, 9, b""))]
    assert machine.handle(ChunkRead(A, NAME, 0, b"data"), NOW) == [Send(A, Chunk(NAME, 0, b"data"))]
    assert machine.handle(Received(A, ChunkAsk(NAME, 9)), NOW) == [Notify(ReadChunk(A, NAME, 9))]
    assert rules(machine.handle(Received(B, ChunkAsk(NAME, 10)), NOW)) == [(B, "artifact.no-such-chunk")]
    assert machine.handle(PeerDisconnected(A), NOW) == []
    assert machine.handle(Dropped(NAME), NOW) == []


def test_tables_are_bounded() -> None:
    machine = ArtifactMachine()
    for number in range(WANTS_MAX + 10):
        machine.handle(Want(digest(b"want %d" % number)), NOW)
    for number in range(HELD_MAX + 10):
        machine.handle(Held(ArtifactOffer(digest(b"held %d" % number), 1, (NAME,))), NOW)
    assert len(machine._fetches) == WANTS_MAX
    assert len(machine._held) == HELD_MAX
    for number in range(40):
        machine.handle(Received(PeerId(f"p{number}"), ArtifactOffer(digest(b"want 1"), 5, (NAME,))), NOW)
    assert len(machine._fetches[digest(b"want 1")].offers) <= 32


def test_a_saved_offer_for_something_else_is_not_used() -> None:
    machine = ArtifactMachine()
    machine.handle(Want(digest(b"else"), OFFER, (0, 1)), NOW)
    assert machine.missing(digest(b"else")) is None
    machine.handle(Want(NAME, OFFER, (0, 99, -1)), NOW)
    assert machine.missing(NAME) == 9
    assert chunk_count(1) == 1


@given(st.data())
def test_random_peers_never_make_it_use_a_wrong_artifact(data: st.DataObject) -> None:
    """Whatever three peers say in whatever order, Fetched comes only after the node itself verified the whole."""
    machine = ArtifactMachine()
    small = random.Random(2).randbytes(CHUNK_BYTES + 10)
    good, name = offer_of(small), digest(small)
    lie = ArtifactOffer(name, 10, (digest(b"lie"),))
    verified, file = False, {}
    machine.handle(Want(name), NOW)
    mono_ms = 0
    for _ in range(30):
        peer = data.draw(st.sampled_from((A, B, C)))
        event: Any = data.draw(
            st.sampled_from(
                (
                    PeerConnected(peer, True),
                    PeerDisconnected(peer),
                    Received(peer, good),
                    Received(peer, lie),
                    Received(peer, Chunk(name, 0, b"lie")),
                    Received(peer, Chunk(name, 0, small[:CHUNK_BYTES])),
                    Received(peer, Chunk(name, 1, small[CHUNK_BYTES:])),
                    Received(peer, Chunk(name, -1, b"x")),
                    Tick(),
                )
            )
        )
        mono_ms += data.draw(st.integers(0, 6_000))
        pending = [event]
        while pending:
            for effect in machine.handle(pending.pop(0), Now(mono_ms, 0)):
                match effect:
                    case Notify(WriteChunk(_, index, chunk)):
                        file[index] = chunk
                    case Notify(BeginFile(offer)):
                        file = {i: c for i, c in file.items() if i < len(offer.chunks) and digest(c) == offer.chunks[i]}
                    case Notify(CheckWhole()):
                        verified = digest(b"".join(file[index] for index in sorted(file))) == name
                        pending.append(WholeChecked(name, verified))
                    case Notify(Fetched()):
                        assert verified
        due = machine.deadline_ms()
        assert due is None or due > mono_ms or not isinstance(event, Tick)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_an_artifact_message_or_refused(data: bytes) -> None:
    try:
        decode(data, ArtifactMessage)
    except DecodeError:
        return
