"""Records: verified and merged per second, the trie's upkeep, and what reconciling 100,000 of them costs.

CPU time of one core, one process; bytes are encoded messages without framing. The peer of merging is the bare Ed25519
verification inside it: what is lost to that ratio is our own work.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from protocols.changes.evidence import EvidenceRun, attest
from protocols.envelope import digest, encode, verify
from protocols.keys import Ed25519Signer, Ed25519Verifier, peer_id
from protocols.machine import Effect, Notify, Now, PeerConnected, PeerId, Received, Send, Verifier
from protocols.records.gossip import RecordMachine, RecordsConfig
from protocols.records.key_table import DAY_MS, make_key
from protocols.records.quotas import RecordLimits
from protocols.records.record import RECORD_DOMAIN, Record, sign_record
from protocols.records.store import OfferOutcome, RecordStore
from protocols.records.sync import Synced, SyncMachine
from protocols.trust.certificates import issue
from protocols.trust.genesis import Genesis
from protocols.trust.store import TrustStore

WALL_MS = 1_700_000_000_000
BODY_BYTES = 256
STORE_RECORDS = 100_000
DIFFERENCES = 100
MERGED = 4_000


class Row(NamedTuple):
    name: str
    value: float
    unit: str
    aim: str
    met: bool | None
    peer: str = ""
    ratio: float | None = None


class Trusting:
    """Accepts every signature: the bulk of a large store is not what is measured."""

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        return True

    def verify_es256(self, point: bytes, message: bytes, signature: bytes) -> bool:
        return True


class Unsigned:
    def __init__(self, public_key: bytes) -> None:
        self.public_key = public_key

    def sign(self, message: bytes) -> bytes:
        return bytes(64)


class Halves:
    """An entropy without surprises."""

    def random_bytes(self, count: int) -> bytes:
        return bytes(count)

    def uniform(self, low: float, high: float) -> float:
        return (low + high) / 2


ADMIN = Ed25519Signer(hashlib.sha256(b"admin").digest())
NODES = [Ed25519Signer(hashlib.sha256(b"node%d" % index).digest()) for index in range(4)]
PEERS = [peer_id(node.public_key) for node in NODES]
GENESIS = encode(Genesis("bench", bytes(16), (ADMIN.public_key,), 1, PEERS[0], bytes(16), b"", WALL_MS))
MESH = digest(GENESIS)


def trust(verifier: Verifier) -> TrustStore:
    store = TrustStore(verifier, GENESIS)
    for peer in PEERS:
        certificate = issue(ADMIN, MESH, peer, roles=("worker",), labels=(), serial=1, wall_ms=WALL_MS)
        store.learn_certificate(certificate, WALL_MS)
    store.chain_decided(store.admins, 1, PEERS)
    return store


def record(number: int, signer: Any) -> Any:
    """A node's word on a change, one of many: the record itself is all there is to check."""
    body = number.to_bytes(8, "big") * (BODY_BYTES // 8)
    key = make_key("prepared", peer_id(signer.public_key), digest(body).hex())
    said = Record(key, "owned", number + 1, (WALL_MS << 16) + number, ttl_ms=DAY_MS, body=body)
    return sign_record(signer, MESH, said)


def paper(number: int, signer: Any) -> Any:
    """A person's evidence, carried by a node: it is checked and judged as well."""
    component = digest(b"%d" % number)
    run = EvidenceRun(MESH.hex(), "test", "host", WALL_MS)
    body = attest(ADMIN, run, passed=True, components=(("web", component),), configuration=component)
    key = make_key("evidence", component.hex(), digest(body).hex())
    return sign_record(signer, MESH, Record(key, "immutable", number, (WALL_MS << 16) + number, body=body))


def merging() -> Iterator[Row]:
    verifier = Ed25519Verifier()
    records = [record(number, NODES[number % 4]) for number in range(MERGED)]
    start = time.process_time()
    assert all(verify(verifier, RECORD_DOMAIN, MESH, signed) for signed in records)
    bare = MERGED / (time.process_time() - start)
    store = RecordStore(trust(verifier))
    rate = MERGED / offered(store, records, OfferOutcome.MERGED)
    yield Row(
        "records verified and merged", round(rate), "1/s", ">= 2000", rate >= 2000, "bare Ed25519 verify", rate / bare
    )
    rate = MERGED / offered(store, records, OfferOutcome.KNOWN)
    yield Row("known records recognised", round(rate), "1/s", "", None)
    papers = [paper(number, NODES[number % 4]) for number in range(MERGED)]
    rate = MERGED / offered(store, papers, OfferOutcome.MERGED)
    yield Row(
        "papers verified and merged", round(rate), "1/s", "", None, "two bare Ed25519 verifies", rate / (bare / 2)
    )


def offered(store: RecordStore, records: Sequence[Any], outcome: OfferOutcome) -> float:
    """Offer records, each of which must end so; return the CPU seconds that took."""
    start = time.process_time()
    for signed in records:
        offer_result = store.offer(signed, WALL_MS)
        assert offer_result.outcome is outcome, offer_result
    return time.process_time() - start


def trie(store: RecordStore) -> Iterator[Row]:
    count = 2_000
    start = time.process_time()
    for number in range(count):
        store.trie.put(f"/bench/{number}", b"d" * 32)
        store.trie.root()
    answer = (time.process_time() - start) / count * 1e6
    yield Row("trie: one change and the new root, at 100,000", round(answer, 1), "us", "<= 50", answer <= 50)
    for number in range(count):
        store.trie.remove(f"/bench/{number}")
    store.trie.root()


class Side:
    def __init__(self, index: int) -> None:
        limits = RecordLimits(
            records_max=STORE_RECORDS + DIFFERENCES, node_words_max=STORE_RECORDS, node_words_bytes_max=1 << 30
        )
        own = trust(Trusting())
        self.peer = PEERS[index]
        self.records = RecordMachine(own, NODES[index], Halves(), RecordsConfig(limits))
        self.sync = SyncMachine(self.records, own, NODES[index], Halves())
        self.sent_bytes = 0
        self.synced: list[Synced] = []

    def perform(self, effects: Any) -> list[tuple[PeerId, Any]]:
        out = []
        for effect in effects:
            effect_: Effect = effect
            if isinstance(effect_, Send):
                self.sent_bytes += len(encode(effect_.message))
                out.append((effect_.peer, effect_.message))
            elif isinstance(effect_, Notify) and isinstance(effect_.event, Synced):
                self.synced.append(effect_.event)
        return out


def reconcile(one: Side, two: Side) -> tuple[int, int, float]:
    """Return bytes, rounds and CPU seconds of one session between the two sides."""
    now = Now(0, WALL_MS)
    sides = {one.peer: one, two.peer: two}
    queue: list[tuple[PeerId, PeerId, Any]] = []
    start = time.process_time()
    for here, there in ((one, two), (two, one)):
        here.sent_bytes, here.synced = 0, []
        effects = here.sync.handle(PeerConnected(there.peer, inbound=False), now)
        queue += [(target, here.peer, message) for target, message in here.perform(effects)]
    while queue:
        target, source, message = queue.pop(0)
        side = sides[target]
        effects = side.sync.handle(Received(source, message), now)
        queue += [(to, target, out) for to, out in side.perform(effects)]
    took = time.process_time() - start
    (session,) = [*one.synced, *two.synced]
    assert session.equal
    assert one.records.store.trie.root() == two.records.store.trie.root()
    return one.sent_bytes + two.sent_bytes, session.rounds, took


def anti_entropy() -> Iterator[Row]:
    side, two = Side(0), Side(1)
    fakes = [Unsigned(node.public_key) for node in NODES]
    for number in range(STORE_RECORDS):
        signed = record(number, fakes[number % 4])
        if number >= DIFFERENCES // 2:
            assert side.records.store.offer(signed, WALL_MS).outcome is OfferOutcome.MERGED
        if number < STORE_RECORDS - DIFFERENCES // 2:
            assert two.records.store.offer(signed, WALL_MS).outcome is OfferOutcome.MERGED
    yield from trie(side.records.store)
    two.records.store.trie.root()
    used, rounds, took = reconcile(side, two)
    kib = used / 1024
    yield Row("reconcile 100 of 100,000: bytes", round(kib, 1), "KiB", "<= 150", kib <= 150)
    yield Row("reconcile 100 of 100,000: rounds", rounds, "", "<= 5", rounds <= 5)
    yield Row("reconcile 100 of 100,000: CPU of both sides, without signatures", round(took * 1000, 1), "ms", "", None)
    used, rounds, _ = reconcile(side, two)
    yield Row("equal sets of 100,000: rounds", rounds, "", "1", rounds == 1)
    yield Row("equal sets of 100,000: bytes", used, "B", "", None)


def run() -> Iterator[Row]:
    """Measure; yields (name, value, unit, aim, met, peer, ratio)."""
    yield from merging()
    yield from anti_entropy()


if __name__ == "__main__":
    for row in run():
        print(row)
