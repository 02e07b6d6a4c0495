"""Artifacts in chunks: what is fetched is hashed as it grows, whatever the order, and gets its name only if it is right."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from node.store.artifacts import ArtifactStore
from protocols.artifacts import CHUNK_BYTES, offer_of
from protocols.envelope import digest

DATA = random.Random(7).randbytes(5 * CHUNK_BYTES + 77)
NAME = digest(DATA)
OFFER = offer_of(DATA)
CHUNKS = len(OFFER.chunks)


def part(index: int) -> bytes:
    return DATA[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]


@pytest.mark.parametrize("seed", range(6))
def test_chunks_in_any_order_and_any_batches_make_the_whole(tmp_path: Path, seed: int) -> None:
    store, draw = ArtifactStore(tmp_path), random.Random(seed)
    store.begin(OFFER)
    order = [*range(CHUNKS), draw.randrange(CHUNKS)]
    draw.shuffle(order)
    while order:
        batch = [order.pop() for _ in range(min(len(order), draw.randint(1, 3)))]
        store.write_chunks(NAME, [(index, part(index)) for index in batch])
    assert store.complete(NAME)
    assert store.path(NAME).read_bytes() == DATA
    assert os.listdir(tmp_path) == [NAME.hex()]


def test_one_wrong_bit_in_any_chunk_is_found_and_nothing_is_kept(tmp_path: Path) -> None:
    for wrong in range(CHUNKS):
        store = ArtifactStore(tmp_path)
        store.begin(OFFER)
        for index in range(CHUNKS):
            data = bytearray(part(index))
            data[-1] ^= index == wrong
            store.write_chunks(NAME, [(index, bytes(data))])
        assert not store.complete(NAME)
        assert os.listdir(tmp_path) == []


def test_a_chunk_written_again_counts_and_not_what_was_there_before(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    store.begin(OFFER)
    store.write_chunks(NAME, [(0, bytes(CHUNK_BYTES)), *((index, part(index)) for index in range(1, CHUNKS))])
    store.write_chunks(NAME, [(0, part(0))])
    assert store.complete(NAME)


def test_a_list_of_another_size_fits_the_file_and_what_is_there_is_hashed_again(tmp_path: Path) -> None:
    store, longer = ArtifactStore(tmp_path), offer_of(DATA + bytes(CHUNK_BYTES))
    store.begin(type(longer)(NAME, longer.size, longer.chunks))
    store.write_chunks(NAME, [(index, part(index)) for index in range(CHUNKS)])
    store.begin(OFFER)
    assert store.complete(NAME)


def test_what_a_process_left_is_gone_on_with_by_the_next(tmp_path: Path) -> None:
    first = ArtifactStore(tmp_path)
    first.begin(OFFER)
    first.write_chunks(NAME, [(index, part(index)) for index in (0, 1, 4)])
    first.release(NAME)
    store = ArtifactStore(tmp_path)
    assert store.unfinished(NAME) == (OFFER, (0, 1, 4))
    store.write_chunks(NAME, [(index, part(index)) for index in (5, 2, 3)])
    assert store.complete(NAME)
    assert store.path(NAME).read_bytes() == DATA


def test_an_abandoned_fetch_takes_nothing_more_though_the_disk_is_full(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    store.begin(OFFER)
    store.abandon(NAME)
    store.closed = "no room"
    with pytest.raises(FileNotFoundError):
        store.write_chunks(NAME, [(0, part(0))])
    assert os.listdir(tmp_path) == []


def test_a_released_file_is_closed_and_may_be_released_twice(tmp_path: Path) -> None:
    store, before = ArtifactStore(tmp_path), set(os.listdir("/proc/self/fd"))
    store.begin(OFFER)
    assert len(set(os.listdir("/proc/self/fd")) - before) == 1
    store.release(NAME)
    store.release(NAME)
    assert not set(os.listdir("/proc/self/fd")) - before


def test_chunks_that_are_not_there_are_empty(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    assert store.read_chunks(NAME, [0, 1]) == [b"", b""]
    store.path(NAME).write_bytes(DATA)
    assert store.read_chunks(NAME, [CHUNKS - 1, 0, CHUNKS, -1]) == [part(CHUNKS - 1), part(0), b"", b""]
