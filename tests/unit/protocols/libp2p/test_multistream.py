"""multistream-select in both roles: agreement, refusal, caps, and every way of cutting the bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.libp2p import varint
from protocols.libp2p.errors import LocalProtocolError, RemoteProtocolError
from protocols.libp2p.multistream import FRAME_MAX_BYTES, PROPOSALS_MAX, Dialler, Listener, NegotiationPhase, frame

HEADER = frame(b"/multistream/1.0.0")


def converse(dialler: Dialler, listener: Listener, chunk: int = 1024) -> None:
    while True:
        there, back = dialler.data_to_send(), listener.data_to_send()
        if not there and not back:
            return
        for start in range(0, len(there), chunk):
            listener.receive_data(there[start : start + chunk])
        for start in range(0, len(back), chunk):
            dialler.receive_data(back[start : start + chunk])


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 20, 1000])
def test_the_first_protocol_both_speak_is_agreed_under_any_chunking(chunk: int) -> None:
    dialler, listener = Dialler(["/c", "/b", "/a"]), Listener(["/a", "/b"])
    converse(dialler, listener, chunk)
    assert (dialler.phase, dialler.protocol) == (NegotiationPhase.AGREED, "/b")
    assert (listener.phase, listener.protocol) == (NegotiationPhase.AGREED, "/b")


def test_the_bytes_are_those_of_the_specification() -> None:
    dialler = Dialler(["/noise"])
    assert dialler.data_to_send() == b"\x13/multistream/1.0.0\n\x07/noise\n"
    listener = Listener([])
    listener.receive_data(HEADER + frame(b"/noise"))
    assert listener.data_to_send() == HEADER + b"\x03na\n"


def test_a_dialler_with_nothing_left_is_refused() -> None:
    dialler, listener = Dialler(["/x", "/y"]), Listener(["/a"])
    converse(dialler, listener)
    assert dialler.phase is NegotiationPhase.REFUSED
    assert listener.phase is NegotiationPhase.PROPOSING


def test_data_behind_the_agreement_belongs_to_the_protocol() -> None:
    listener = Listener(["/echo"])
    listener.receive_data(HEADER + frame(b"/echo") + b"payload")
    assert listener.leftover() == b"payload"
    dialler = Dialler(["/echo"])
    dialler.receive_data(HEADER + frame(b"/echo") + b"answer")
    assert dialler.leftover() == b"answer"
    assert dialler.leftover() == b""


def test_listing_is_refused_and_names_need_not_be_text() -> None:
    listener = Listener(["/echo"])
    listener.receive_data(HEADER + frame(b"ls") + frame(b"\xff\xfe"))
    assert listener.data_to_send() == HEADER + frame(b"na") * 2


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (frame(b"/multistream/2.0.0"), "multistream.header"),
        (varint.encode(FRAME_MAX_BYTES + 1), "multistream.frame-length"),
        (varint.encode(2**31), "multistream.frame-length"),
        (b"\x00", "multistream.frame-length"),
        (b"\x03abc", "multistream.no-newline"),
        (b"\xff" * 10, "varint.too-long"),
        (HEADER + frame(b"/x") * PROPOSALS_MAX, "multistream.too-many-proposals"),
    ],
)
def test_a_listener_refuses_malformed_talk_by_rule(data: bytes, rule: str) -> None:
    with pytest.raises(RemoteProtocolError, match=rule):
        Listener(["/echo"]).receive_data(data)


def test_a_dialler_takes_only_its_proposal_or_a_refusal() -> None:
    with pytest.raises(RemoteProtocolError, match=r"multistream\.answer"):
        Dialler(["/echo"]).receive_data(HEADER + frame(b"/other"))
    for names in ([], ["/x"] * (PROPOSALS_MAX + 1)):
        with pytest.raises(LocalProtocolError):
            Dialler(names)


def test_a_held_proposal_is_answered_when_its_time_comes() -> None:
    dialler, listener = Dialler(["/control"]), Listener(["/hello"], later=["/control"])
    converse(dialler, listener)
    assert dialler.phase is NegotiationPhase.PROPOSING
    listener.serve(["/hello", "/control"])
    converse(dialler, listener)
    assert dialler.phase is listener.phase is NegotiationPhase.AGREED


def test_a_held_proposal_that_is_then_not_served_is_refused() -> None:
    dialler, listener = Dialler(["/control"]), Listener([], later=["/control"])
    converse(dialler, listener)
    listener.serve([])
    converse(dialler, listener)
    assert dialler.phase is NegotiationPhase.REFUSED


def test_serving_more_also_counts_for_proposals_still_to_come() -> None:
    dialler, listener = Dialler(["/late"]), Listener([])
    listener.serve(["/late"])
    converse(dialler, listener)
    assert listener.phase is NegotiationPhase.AGREED


@pytest.mark.parametrize("gap", ["together", "apart"])
def test_data_behind_a_held_proposal_is_refused(gap: str) -> None:
    listener = Listener([], later=["/control"])
    proposal = HEADER + frame(b"/control")
    if gap == "apart":
        listener.receive_data(proposal)
    with pytest.raises(RemoteProtocolError, match=r"multistream\.impatient"):
        listener.receive_data(b"x" if gap == "apart" else proposal + b"x")


@given(st.lists(st.binary(max_size=64), max_size=20), st.booleans())
def test_any_bytes_are_negotiated_or_refused(chunks: list[bytes], good_header: bool) -> None:
    for negotiation in (Listener(["/a"], later=["/b"]), Dialler(["/a"])):
        try:
            for chunk in [HEADER] * good_header + chunks:
                negotiation.receive_data(chunk)
        except RemoteProtocolError:
            continue
        assert len(negotiation.data_to_send()) <= FRAME_MAX_BYTES
