"""The transport's parts without sockets: frames, half-open places, back-off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.transport.channel import Assembler
from node.transport.dialler import Backoff
from node.transport.half_open import HalfOpen
from node.transport.settings import BACKOFF_FIRST_S, BACKOFF_MAX_S, HALF_OPEN_MAX, HALF_OPEN_PER_ADDRESS_MAX
from node.transport.stream import Stream
from protocols.libp2p.errors import RemoteProtocolError
from tests.support.protocols.libp2p_pair import SeededEntropy


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=10), st.integers(1, 60))
def test_frames_come_back_whole_under_any_chunking(frames: list[bytes], chunk: int) -> None:
    wire = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
    assembler = Assembler(50)
    received = [frame for start in range(0, len(wire), chunk) for frame in assembler.feed(wire[start : start + chunk])]
    assert received == frames


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_any_bytes_are_frames_or_refused(chunks: list[bytes]) -> None:
    assembler = Assembler(20)
    try:
        for chunk in chunks:
            assert all(0 < len(frame) <= 20 for frame in assembler.feed(chunk))
    except RemoteProtocolError as error:
        assert error.rule == "transport.frame-length"  # noqa: PT017
    assert len(assembler._buffer) <= 24 + 30


@pytest.mark.parametrize("length", [0, 21, 2**32 - 1])
def test_a_frame_over_the_cap_or_empty_is_refused_before_it_is_held(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match=r"transport\.frame-length"):
        Assembler(20).feed(length.to_bytes(4, "big"))


async def test_a_block_has_come_when_its_last_byte_has_whatever_the_pieces() -> None:
    wire = b"".join(len(block).to_bytes(4, "big") + block for block in (b"first", b"", b"third"))
    for size in range(1, len(wire) + 1):
        stream = Stream(Consuming(), "/test")  # type: ignore[arg-type]
        came = 0
        for start in range(0, len(wire), size):
            came += len(wire[start : start + size])
            stream.data_received(wire[start : start + size])
            assert stream.has_block() == (came >= 9)
        blocks = []
        while stream.has_block():
            blocks.append(await stream.read_block(10))
        assert blocks == [b"first", b"", b"third"]


class Consuming:
    """A link that only takes back windows."""

    peer = "peer"

    def consumed(self, stream_id: int, count: int) -> None: ...


class FakeLink:
    """As much of a link as a half-open place knows."""

    def __init__(self, number: int, host: str, places: HalfOpen) -> None:
        self.number = number
        self.host = host
        self.closed = ""
        self._places = places

    def close(self, reason: str) -> None:
        self.closed = reason
        self._places.remove(self)


def fill(places: HalfOpen, hosts: list[str]) -> list[FakeLink]:
    links = [FakeLink(number, host, places) for number, host in enumerate(hosts)]
    for link in links:
        places.add(link)
    return links


def test_the_oldest_of_an_address_gives_way_to_its_newest() -> None:
    places = HalfOpen(HALF_OPEN_MAX, HALF_OPEN_PER_ADDRESS_MAX)
    links = fill(places, ["10.0.0.1"] * (HALF_OPEN_PER_ADDRESS_MAX + 2) + ["10.0.0.2"])
    assert [link.number for link in links if link.closed] == [0, 1]
    assert links[0].closed == "transport.half-open-address"
    assert len(places) == HALF_OPEN_PER_ADDRESS_MAX + 1


def test_the_oldest_of_all_gives_way_when_there_are_too_many() -> None:
    places = HalfOpen(HALF_OPEN_MAX, HALF_OPEN_PER_ADDRESS_MAX)
    links = fill(places, [f"10.0.{n // 250}.{n % 250}" for n in range(HALF_OPEN_MAX + 3)])
    assert [link.number for link in links if link.closed] == [0, 1, 2]
    assert links[0].closed == "transport.half-open"
    for link in links:
        places.remove(link)
    assert len(places) == 0
    assert not places._by_source


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("/run/socket", "10.0.0.1", False),
    ],
)
def test_one_customer_is_one_address(one: str, other: str, same: bool) -> None:
    places = HalfOpen(HALF_OPEN_MAX, HALF_OPEN_PER_ADDRESS_MAX)
    links = fill(places, [one] * HALF_OPEN_PER_ADDRESS_MAX + [other])
    assert bool(links[0].closed) is same


def test_back_off_doubles_with_jitter_up_to_a_bound_and_never_ends() -> None:
    backoff = Backoff(SeededEntropy(1))
    delays = [backoff.next_s() for _ in range(50)]
    assert 0.5 * BACKOFF_FIRST_S <= delays[0] <= 1.5 * BACKOFF_FIRST_S
    assert max(delays) <= 1.5 * BACKOFF_MAX_S
    assert all(delay >= 0.5 * BACKOFF_MAX_S for delay in delays[10:])
    assert len(set(delays)) == 50
    backoff.reset()
    assert backoff.next_s() <= 1.5 * BACKOFF_FIRST_S
