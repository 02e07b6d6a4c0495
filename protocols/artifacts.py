"""Artifacts: fetch bytes by their SHA-256 digest in chunks, from several peers at once.

A peer that holds an artifact offers its size and the digest of every chunk. Whoever offers a list answers for it: a
chunk that does not match the sender's own list is that peer's lie, and so is a list whose chunks do not add up to the
artifact. So chunks from several peers that offer one list can be mixed, and nothing is used before the whole verified.
Bytes never rest here: the node writes each verified chunk to a file, hashes the whole, and after a restart says which
chunks it still has. Not here: files, which artifacts a release needs, and serving, which remembers nothing between two
asks: what a holder answers is a function of its files (node/mesh/artifact_fetcher.py). Compare BitTorrent v2's per-file
hashes (BEP 52), with a flat list in place of a tree, since an artifact has at most 2048 chunks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

import msgspec

from protocols.envelope import DIGEST_BYTES, digest
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

CHUNK_BYTES = 128 * 1024
"""Eight of them in flight fill a 100 ms link at 10 MB/s; one fits a message and a worker's pause."""
ARTIFACT_MAX_BYTES = 256 * 1024 * 1024
"""The largest component seen (an interpreter with its libraries) has under 60 MiB."""
CHUNKS_MAX = ARTIFACT_MAX_BYTES // CHUNK_BYTES
WANTS_MAX = 64
"""The components of several releases at once; more wait in the node's own queue."""
IN_FLIGHT_PER_PEER = 8
IN_FLIGHT_MAX = 32
"""4 MiB on their way to this node, whatever is wanted."""
HOLDERS_MAX = 32
LIES_MAX = 1024
"""Pairs of an artifact and a peer that lied about it; the oldest is forgotten, and found out again."""
ASK_MAX_BYTES = 256
ANSWER_MAX_BYTES = CHUNK_BYTES + 1024
"""What either side reads of the other's next message: a chunk, or the longest list of digests."""


# --- messages ---------------------------------------------------------------------------------------------------------


class ArtifactAsk(msgspec.Struct, frozen=True, tag="artifact_ask"):
    """Who holds this artifact?"""

    digest: bytes


class ArtifactOffer(msgspec.Struct, frozen=True, tag="artifact_offer"):
    """The sender holds `size` bytes in chunks of CHUNK_BYTES (the last shorter) with these digests, or nothing (0)."""

    digest: bytes
    size: int
    chunks: tuple[bytes, ...] = ()


class ChunkAsk(msgspec.Struct, frozen=True, tag="chunk_ask"):
    """Send the chunk with this number, from 0."""

    digest: bytes
    index: int


class Chunk(msgspec.Struct, frozen=True, tag="chunk"):
    """The bytes of one chunk; empty when the sender no longer has them."""

    digest: bytes
    index: int
    data: bytes


ArtifactMessage = ArtifactAsk | ArtifactOffer | ChunkAsk | Chunk


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Want:
    """Fetch this artifact; `have` are chunks of `offer` that an earlier run of this node verified and still holds."""

    digest: Digest
    offer: ArtifactOffer | None = None
    have: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Unwant:
    """Nobody needs it any more."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Garbled:
    """A peer sent what is no answer at all."""

    peer: PeerId
    detail: str


@dataclass(frozen=True, slots=True)
class WholeChecked:
    """The answer to `CheckWhole`: whether the written file has the artifact's digest."""

    digest: Digest
    ok: bool


ArtifactEvent = (
    Want | Unwant | Garbled | WholeChecked | PeerConnected | PeerDisconnected | Received[ArtifactMessage] | Tick
)


# --- orders to the node -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BeginFile:
    """Keep a temporary file of `offer.size` bytes, and the offer beside it so that a restart can go on."""

    offer: ArtifactOffer


@dataclass(frozen=True, slots=True)
class WriteChunk:
    """Write this verified chunk at `index` * CHUNK_BYTES."""

    digest: Digest
    index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class CheckWhole:
    """All chunks are written: hash the file, rename it if it is the artifact, answer with WholeChecked."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Fetched:
    """The artifact is whole, verified and may be used."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The artifact did not come: nobody offered it, or those who did sent nothing for too long. It is not wanted now."""

    digest: Digest
    offered: bool


@dataclass(frozen=True, slots=True)
class FetchTimes:
    """Times in ms: until a chunk counts as lost, and between two rounds of asking who holds an artifact.

    `nobody_ms` without an offer, or `stalled_ms` without a chunk, end a fetch, so that an operator can be told; the node
    tries again for a while. What has arrived stays on disk for the next attempt.
    """

    chunk_ms: int = 10_000
    ask_ms: int = 1_000
    nobody_ms: int = 10_000
    stalled_ms: int = 60_000


@dataclass(slots=True)
class _Fetch:
    """One wanted artifact: whose `offers` are known, the one in `using`, lists proven `false`, chunks in `flight`.

    `moved_ms` is when it was wanted, first offered, or last got a chunk.
    """

    asked_ms: int
    moved_ms: int
    using: ArtifactOffer | None = None
    offered: bool = False
    offers: dict[PeerId, ArtifactOffer] = field(default_factory=dict)
    false: set[Digest] = field(default_factory=set)
    have: set[int] = field(default_factory=set)
    flight: dict[int, tuple[PeerId, int]] = field(default_factory=dict)
    checking: bool = False


def offer_of(artifact: bytes) -> ArtifactOffer:
    """Return what a holder of these bytes offers."""
    parts = [artifact[start : start + CHUNK_BYTES] for start in range(0, len(artifact), CHUNK_BYTES)]
    return ArtifactOffer(digest(artifact), len(artifact), tuple(digest(part) for part in parts))


def chunk_count(size: int) -> int:
    """Return how many chunks `size` bytes make."""
    return -(-size // CHUNK_BYTES)


def offer_problem(offer: ArtifactOffer) -> str | None:
    """Return which bound an offer breaks, or None."""
    if len(offer.digest) != DIGEST_BYTES or not 0 < offer.size <= ARTIFACT_MAX_BYTES:
        return f"an artifact has a digest and 1 to {ARTIFACT_MAX_BYTES} bytes"
    if len(offer.chunks) != chunk_count(offer.size) or any(len(chunk) != DIGEST_BYTES for chunk in offer.chunks):
        return "the list of chunks does not fit the size"
    return None


class ArtifactMachine:
    """The machine; see the module. Holds lists of digests and what is in flight, never an artifact."""

    def __init__(self, times: FetchTimes | None = None) -> None:
        """Start wanting nothing and knowing nobody."""
        self._times = times or FetchTimes()
        self._peers: list[PeerId] = []
        self._fetches: dict[Digest, _Fetch] = {}
        self._lies: dict[tuple[Digest, PeerId], None] = {}

    def deadline_ms(self) -> int | None:
        """When a chunk is next overdue, holders must be asked for again or a fetch is given up."""
        due = [fetch.asked_ms + self._times.ask_ms for fetch in self._fetches.values()]
        for fetch in self._fetches.values():
            due += [asked_ms + self._times.chunk_ms for _, asked_ms in fetch.flight.values()]
            due += [] if fetch.checking else [self._hopeless_ms(fetch)]
        return min(due, default=None)

    def handle(self, event: ArtifactEvent, now: Now) -> list[Effect]:
        """Consume one event; return the effects to perform, in order."""
        match event:
            case Want():
                return self._want(event, now)
            case Unwant(name):
                self._fetches.pop(name, None)
                return self._ask_chunks(now)
            case Garbled(peer, detail):
                return self._garbled(peer, detail, now)
            case WholeChecked():
                return self._checked(event, now)
            case PeerConnected(peer):
                if peer not in self._peers:
                    self._peers.append(peer)
                return [Send(peer, ArtifactAsk(name)) for name in self._fetches if not self._lied(name, peer)]
            case PeerDisconnected(peer):
                return self._lose(peer, now)
            case Received(peer, message):
                return self._received(peer, message, now)
            case Tick():
                return self._tick(now)
            case _:
                assert_never(event)

    @property
    def wanted(self) -> tuple[Digest, ...]:
        """What is being fetched."""
        return tuple(self._fetches)

    def missing(self, name: Digest) -> int | None:
        """Return how many chunks of a wanted artifact are still to come, None while nobody offered it."""
        fetch = self._fetches.get(name)
        return None if fetch is None or fetch.using is None else len(fetch.using.chunks) - len(fetch.have)

    # --- wanting

    def _want(self, event: Want, now: Now) -> list[Effect]:
        if event.digest in self._fetches or len(self._fetches) >= WANTS_MAX:
            return []
        fetch = self._fetches[event.digest] = _Fetch(now.mono_ms, now.mono_ms)
        if event.offer is not None and event.offer.digest == event.digest and offer_problem(event.offer) is None:
            fetch.using = event.offer
            fetch.have = {index for index in event.have if 0 <= index < len(event.offer.chunks)}
        asked = [peer for peer in self._peers if not self._lied(event.digest, peer)]
        return [*(Send(peer, ArtifactAsk(event.digest)) for peer in asked), *self._finish(event.digest, fetch)]

    def _checked(self, event: WholeChecked, now: Now) -> list[Effect]:
        fetch = self._fetches.get(event.digest)
        if fetch is None or not fetch.checking or fetch.using is None:
            return []
        if event.ok:
            del self._fetches[event.digest]
            return [Notify(Fetched(event.digest)), *self._ask_chunks(now)]
        # Every chunk matched the list in use: the list itself is false, and whoever offered it lied.
        liars = [peer for peer, offer in fetch.offers.items() if offer == fetch.using]
        fetch.false.add(digest(b"".join(fetch.using.chunks)))
        for peer in liars:
            self._note_lie(event.digest, peer)
            del fetch.offers[peer]
        fetch.checking, fetch.using, fetch.have = False, None, set()
        effects: list[Effect] = [
            Reject(peer, "artifact.false-offer", "its chunks are not the artifact") for peer in liars
        ]
        return [*effects, *self._choose(event.digest, fetch, now)]

    # --- hearing

    def _received(self, peer: PeerId, message: object, now: Now) -> list[Effect]:
        match message:
            case ArtifactOffer():
                return self._offered(peer, message, now)
            case Chunk():
                return self._arrived(peer, message, now)
            case _:
                return []

    def _offered(self, peer: PeerId, offer: ArtifactOffer, now: Now) -> list[Effect]:
        name = Digest(offer.digest)
        fetch = self._fetches.get(name)
        if fetch is None or self._lied(name, peer):
            return []
        if offer.size == 0 and not offer.chunks:
            fetch.offers.pop(peer, None)
            return []
        problem = offer_problem(offer)
        if problem is not None:
            self._note_lie(name, peer)
            return [Reject(peer, "artifact.malformed-offer", problem)]
        if digest(b"".join(offer.chunks)) in fetch.false:
            self._note_lie(name, peer)
            return [Reject(peer, "artifact.false-offer", "this list of chunks is not the artifact")]
        if len(fetch.offers) < HOLDERS_MAX:
            fetch.offers[peer] = offer
        if not fetch.offered:
            fetch.offered, fetch.moved_ms = True, now.mono_ms
        return self._choose(name, fetch, now)

    def _arrived(self, peer: PeerId, chunk: Chunk, now: Now) -> list[Effect]:
        name = Digest(chunk.digest)
        fetch = self._fetches.get(name)
        if fetch is None or fetch.using is None:
            return []
        if fetch.flight.get(chunk.index, ("", 0))[0] != peer:
            return self._late(name, fetch, chunk, now)
        del fetch.flight[chunk.index]
        if not chunk.data:
            self._pass_over(fetch, peer)
            return self._ask_chunks(now)
        if digest(chunk.data) != fetch.using.chunks[chunk.index]:
            self._note_lie(name, peer)
            self._pass_over(fetch, peer)
            refused = Reject(peer, "artifact.bad-chunk", f"chunk {chunk.index} is not what the peer itself offered")
            return [refused, *self._ask_chunks(now)]
        return self._keep(name, fetch, chunk, now)

    def _late(self, name: Digest, fetch: _Fetch, chunk: Chunk, now: Now) -> list[Effect]:
        """Keep a good chunk that came after its time, or a slow link would never finish; pass over anything else."""
        assert fetch.using is not None
        lacking = 0 <= chunk.index < len(fetch.using.chunks) and chunk.index not in fetch.have and not fetch.checking
        if not lacking or digest(chunk.data) != fetch.using.chunks[chunk.index]:
            return []
        fetch.flight.pop(chunk.index, None)
        return self._keep(name, fetch, chunk, now)

    def _keep(self, name: Digest, fetch: _Fetch, chunk: Chunk, now: Now) -> list[Effect]:
        fetch.have.add(chunk.index)
        fetch.moved_ms = now.mono_ms
        written = Notify(WriteChunk(name, chunk.index, chunk.data))
        return [written, *self._finish(name, fetch), *self._ask_chunks(now)]

    def _garbled(self, peer: PeerId, detail: str, now: Now) -> list[Effect]:
        """What cannot be read may have been about anything that was asked: the peer is asked for none of it again."""
        for name in self._fetches:
            self._note_lie(name, peer)
        return [Reject(peer, "artifact.garbled", detail), *self._lose(peer, now)]

    def _lied(self, name: Digest, peer: PeerId) -> bool:
        return (name, peer) in self._lies

    def _note_lie(self, name: Digest, peer: PeerId) -> None:
        if len(self._lies) >= LIES_MAX:
            del self._lies[next(iter(self._lies))]
        self._lies[name, peer] = None

    # --- asking

    def _choose(self, name: Digest, fetch: _Fetch, now: Now) -> list[Effect]:
        """Use the list most peers offer, if none is in use or nobody offers that one any more."""
        effects: list[Effect] = []
        if not fetch.checking and fetch.using not in fetch.offers.values():
            lists = sorted(fetch.offers.values(), key=lambda one: (one.size, one.chunks))
            counts = [(sum(other == artifact_offer for other in lists), artifact_offer) for artifact_offer in lists]
            if counts:
                effects += self._switch(fetch, max(counts, key=lambda pair: pair[0])[1])
        return [*effects, *self._finish(name, fetch), *self._ask_chunks(now)]

    @staticmethod
    def _switch(fetch: _Fetch, offer: ArtifactOffer) -> list[Effect]:
        old = fetch.using.chunks if fetch.using is not None else ()
        fetch.have = {i for i in fetch.have if i < len(offer.chunks) and old[i] == offer.chunks[i]}
        fetch.using, fetch.flight = offer, {}
        return [Notify(BeginFile(offer))]

    def _finish(self, name: Digest, fetch: _Fetch) -> list[Effect]:
        if fetch.using is None or fetch.checking or len(fetch.have) < len(fetch.using.chunks):
            return []
        fetch.checking = True
        return [Notify(CheckWhole(name))]

    def _ask_chunks(self, now: Now) -> list[Effect]:
        """Ask for missing chunks up to the limits, spread over the holders of the list in use."""
        effects: list[Effect] = []
        load = dict.fromkeys(self._peers, 0)
        for fetch in self._fetches.values():
            for peer, _ in fetch.flight.values():
                load[peer] = load.get(peer, 0) + 1
        total = sum(load.values())
        for name, fetch in self._fetches.items():
            if fetch.using is None or fetch.checking:
                continue
            holders = [peer for peer, offer in fetch.offers.items() if offer == fetch.using and peer in load]
            for index in self._lacking(fetch):
                free = [peer for peer in holders if load[peer] < IN_FLIGHT_PER_PEER]
                if not free or total >= IN_FLIGHT_MAX:
                    break
                peer = min(free, key=lambda one: load[one])
                load[peer] += 1
                total += 1
                fetch.flight[index] = (peer, now.mono_ms)
                effects.append(Send(peer, ChunkAsk(name, index)))
        return effects

    @staticmethod
    def _lacking(fetch: _Fetch) -> Iterable[int]:
        assert fetch.using is not None
        return (
            index for index in range(len(fetch.using.chunks)) if index not in fetch.have and index not in fetch.flight
        )

    def _lose(self, peer: PeerId, now: Now) -> list[Effect]:
        if peer in self._peers:
            self._peers.remove(peer)
        effects: list[Effect] = []
        for name, fetch in list(self._fetches.items()):
            self._pass_over(fetch, peer)
            effects += self._choose(name, fetch, now)
        return effects

    @staticmethod
    def _pass_over(fetch: _Fetch, peer: PeerId) -> None:
        fetch.offers.pop(peer, None)
        fetch.flight = {index: asked for index, asked in fetch.flight.items() if asked[0] != peer}

    def _tick(self, now: Now) -> list[Effect]:
        """Give up on overdue chunks, passing their peer over until it offers again; ask anew who holds what."""
        effects: list[Effect] = []
        for name, fetch in list(self._fetches.items()):
            if not fetch.checking and now.mono_ms >= self._hopeless_ms(fetch):
                del self._fetches[name]
                effects.append(Notify(GivenUp(name, fetch.offered)))
                continue
            for peer, asked_ms in list(fetch.flight.values()):
                if now.mono_ms - asked_ms >= self._times.chunk_ms:
                    self._pass_over(fetch, peer)
            if now.mono_ms - fetch.asked_ms >= self._times.ask_ms:
                fetch.asked_ms = now.mono_ms
                unknown = [peer for peer in self._peers if peer not in fetch.offers and not self._lied(name, peer)]
                effects += [Send(peer, ArtifactAsk(name)) for peer in unknown]
            effects += self._choose(name, fetch, now)
        return effects

    def _hopeless_ms(self, fetch: _Fetch) -> int:
        return fetch.moved_ms + (self._times.stalled_ms if fetch.offered else self._times.nobody_ms)
