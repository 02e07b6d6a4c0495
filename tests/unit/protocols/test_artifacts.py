"""Fetching artifacts: from several peers, across restarts, and in spite of liars."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.artifacts import (
    CHUNK_BYTES,
    IN_FLIGHT_MAX,
    IN_FLIGHT_PER_PEER,
    LIES_MAX,
    WANTS_MAX,
    ArtifactAsk,
    ArtifactMachine,
    ArtifactMessage,
    ArtifactOffer,
    BeginFile,
    CheckWhole,
    Chunk,
    ChunkAsk,
    Fetched,
    Garbled,
    GivenUp,
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
    return [effect for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


def notes(effects: list[Effect], kind: type) -> list[Any]:
    return [effect.event for effect in effects if isinstance(effect, Notify) and isinstance(effect.event, kind)]


def rules(effects: list[Effect]) -> list[tuple[PeerId, str]]:
    return [(effect.peer, effect.rule) for effect in effects if isinstance(effect, Reject)]


class Swarm:
    """One machine that fetches, from holders with files in memory; `lies` may rewrite what one sends, `slow` say nothing."""

    def __init__(self, *holders: PeerId) -> None:
        self.machine = ArtifactMachine()
        self.files: dict[PeerId, dict[Digest, tuple[bytes, ArtifactOffer]]] = {peer: {} for peer in holders}
        self.parts: dict[int, bytes] = {}
        self.fetched = 0
        self.given_up: list[GivenUp] = []
        self.rejected: list[tuple[PeerId, str]] = []
        self.served: dict[PeerId, int] = dict.fromkeys(holders, 0)
        self.lies: dict[PeerId, Any] = {}
        self.slow: set[PeerId] = set()
        self.mono_ms = 0
        self.queue: list[Any] = []
        for peer in holders:
            self.tell(PeerConnected(peer, True))

    def hold(self, peer: PeerId, data: bytes = DATA, offer: ArtifactOffer | None = None) -> None:
        offer = offer or offer_of(data)
        self.files[peer][Digest(offer.digest)] = data, offer

    def tell(self, event: Any) -> None:
        self.queue.append(event)
        while self.queue:
            for effect in self.machine.handle(self.queue.pop(0), Now(self.mono_ms, 0)):
                self.perform(effect)

    def answer(self, peer: PeerId, ask: ArtifactAsk | ChunkAsk) -> ArtifactOffer | Chunk:
        data, offer = self.files[peer].get(Digest(ask.digest), (b"", ArtifactOffer(ask.digest, 0)))
        if isinstance(ask, ArtifactAsk):
            return offer
        self.served[peer] += 1
        return Chunk(ask.digest, ask.index, data[ask.index * CHUNK_BYTES : (ask.index + 1) * CHUNK_BYTES])

    def perform(self, effect: Effect) -> None:
        match effect:
            case Send(to, ask):
                if to not in self.slow:
                    answer = self.answer(to, ask)
                    self.queue.append(Received(to, self.lies[to](answer) if to in self.lies else answer))
            case Notify(WriteChunk(_, index, data)):
                self.parts[index] = data
            case Notify(CheckWhole(name)):
                whole = b"".join(data for _, data in sorted(self.parts.items()))
                self.queue.append(WholeChecked(name, digest(whole) == name))
            case Notify(Fetched()):
                self.fetched += 1
            case Notify(GivenUp() as event):
                self.given_up.append(event)
            case Reject(liar, rule):
                self.rejected.append((liar, rule))

    def pass_time(self, ms: int) -> None:
        self.mono_ms += ms
        self.tell(Tick())


# --- the good path ----------------------------------------------------------------------------------------------------


def test_an_artifact_comes_from_several_peers_at_once() -> None:
    s = Swarm(A, B, C)
    for peer in (A, B, C):
        s.hold(peer)
    s.tell(Want(NAME))
    assert s.fetched == 1
    assert b"".join(data for _, data in sorted(s.parts.items())) == DATA
    assert sum(count > 0 for count in s.served.values()) >= 2
    assert not s.rejected
    assert s.machine.wanted == ()


def test_only_the_missing_chunks_are_fetched_after_a_restart() -> None:
    s = Swarm(A)
    s.hold(A)
    s.parts = {index: part(index) for index in range(8)}
    s.tell(Want(NAME, OFFER, tuple(range(8))))
    assert s.fetched == 1
    assert s.served[A] == 2


def test_all_chunks_at_hand_need_no_peer() -> None:
    machine = ArtifactMachine()
    effects = machine.handle(Want(NAME, OFFER, tuple(range(10))), NOW)
    assert notes(effects, CheckWhole) == [CheckWhole(NAME)]
    assert machine.handle(WholeChecked(NAME, True), NOW) == [Notify(Fetched(NAME))]


def test_a_holder_found_later_is_asked_again() -> None:
    s = Swarm(A)
    s.tell(Want(NAME))
    assert s.machine.missing(NAME) is None
    s.hold(A)
    assert not s.fetched
    s.pass_time(1_000)
    assert s.fetched == 1


def test_what_nobody_offers_is_given_up_and_may_be_wanted_again() -> None:
    s = Swarm(A)
    s.tell(Want(NAME))
    s.pass_time(9_000)
    assert not s.given_up
    s.pass_time(1_000)
    assert s.given_up == [GivenUp(NAME, offered=False)]
    assert s.machine.deadline_ms() is None
    s.hold(A)
    s.tell(Want(NAME))
    assert s.fetched == 1


def test_holders_that_send_nothing_are_given_up_a_minute_after_the_last_chunk() -> None:
    s = Swarm(A)
    s.hold(A)
    s.lies[A] = lambda answer: ArtifactOffer(NAME, 0) if isinstance(answer, Chunk) else answer
    s.tell(Want(NAME))
    for _ in range(59):
        s.pass_time(1_000)
    assert not s.given_up
    s.pass_time(1_000)
    assert s.given_up == [GivenUp(NAME, offered=True)]
    assert s.machine.wanted == ()


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


def test_a_slow_holder_is_passed_over_for_another() -> None:
    s = Swarm(A, B)
    s.hold(A)
    s.lies[A] = lambda answer: ArtifactOffer(b"", 0) if isinstance(answer, Chunk) else answer
    s.tell(Want(NAME))
    s.hold(B)
    s.slow.add(B)
    s.pass_time(9_000)
    assert s.machine.missing(NAME) is not None
    s.slow.clear()
    for _ in range(12):  # the next ten seconds it is given a share again, and loses that too
        s.pass_time(1_000)
    assert s.fetched == 1
    assert s.served[B] > 0


def test_what_a_lost_peer_was_sending_is_asked_of_another() -> None:
    machine = ArtifactMachine()
    for peer in (A, B):
        machine.handle(PeerConnected(peer, True), NOW)
    machine.handle(Want(NAME), NOW)
    machine.handle(Received(A, OFFER), NOW)
    assert len(sent(machine.handle(Received(B, OFFER), NOW), ChunkAsk)) == 2
    again = sent(machine.handle(PeerDisconnected(A), NOW), ChunkAsk)
    assert [(entry.peer, entry.message.index) for entry in again] == [(B, index) for index in range(6)]
    got = machine.handle(Received(B, Chunk(NAME, 8, part(8))), NOW)
    assert [entry.message.index for entry in sent(got, ChunkAsk)] == [6]
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


# --- liars ------------------------------------------------------------------------------------------------------------


def test_a_bad_chunk_is_the_fault_of_who_sent_it_and_another_gives_it() -> None:
    s = Swarm(A, B)
    s.hold(A)
    s.hold(B)
    s.lies[A] = lambda answer: Chunk(answer.digest, answer.index, b"x") if isinstance(answer, Chunk) else answer
    s.tell(Want(NAME))
    assert s.fetched == 1
    assert s.rejected == [(A, "artifact.bad-chunk")]


def test_who_lied_about_an_artifact_is_not_asked_for_it_again_by_a_later_fetch_either() -> None:
    s = Swarm(A)
    s.hold(A)
    s.lies[A] = lambda answer: Chunk(answer.digest, answer.index, b"x") if isinstance(answer, Chunk) else answer
    s.tell(Want(NAME))
    s.tell(Unwant(NAME))
    del s.lies[A]
    asked = s.served[A]
    s.tell(Want(NAME))
    s.tell(PeerConnected(A, True))
    s.pass_time(2_000)
    assert s.served[A] == asked
    assert not s.fetched
    other = random.Random(3).randbytes(100)
    s.parts.clear()
    s.hold(A, other)
    s.tell(Want(digest(other)))
    assert s.fetched == 1


def test_a_peer_whose_answers_cannot_be_read_is_named_and_asked_for_nothing_that_was_wanted() -> None:
    machine = ArtifactMachine()
    for peer in (A, B):
        machine.handle(PeerConnected(peer, True), NOW)
    machine.handle(Want(NAME), NOW)
    machine.handle(Received(A, OFFER), NOW)
    machine.handle(Received(B, OFFER), NOW)
    effects = machine.handle(Garbled(A, "not MessagePack"), NOW)
    assert rules(effects) == [(A, "artifact.garbled")]
    assert {entry.peer for entry in sent(effects, ChunkAsk)} <= {B}
    assert machine.handle(PeerConnected(A, True), NOW) == []
    assert not [entry for entry in machine.handle(Tick(), Now(1_000, 0)) if isinstance(entry, Send) and entry.peer == A]


def test_a_false_list_is_found_out_by_the_whole_and_never_used() -> None:
    s = Swarm(A, B)
    false = bytearray(DATA)
    false[5] ^= 1
    lie = offer_of(bytes(false))
    s.hold(A, bytes(false), ArtifactOffer(NAME, lie.size, lie.chunks))
    s.tell(Want(NAME))
    assert not s.fetched
    assert s.rejected == [(A, "artifact.false-offer")]
    s.hold(B)
    s.pass_time(1_000)
    assert s.fetched == 1
    assert b"".join(data for _, data in sorted(s.parts.items())) == DATA


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


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_tables_are_bounded() -> None:
    machine = ArtifactMachine()
    for number in range(WANTS_MAX + 10):
        machine.handle(Want(digest(b"want %d" % number)), NOW)
    assert len(machine.wanted) == WANTS_MAX
    for number in range(LIES_MAX // WANTS_MAX + 2):
        machine.handle(Garbled(PeerId(f"g{number}"), ""), NOW)
    assert len(machine._lies) == LIES_MAX
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
