"""What a peer may cost this node: a bounded log, no connection for noise."""

from __future__ import annotations

import logging

import pytest

from node.mesh import mesh
from node.mesh.mesh import MALFORMED_MAX, REJECTS_SAID_EVERY_MS, REJECTS_SAID_MAX, Mesh
from node.transport import ChannelName
from protocols.machine import Now, PeerId

PEER = PeerId("peer")


def lonely_mesh() -> Mesh:
    """A mesh of which only the edge to the transport is looked at."""
    made = Mesh.__new__(Mesh)
    made.rejects, made._malformed, made._said = (
        mesh.Counter(), mesh.Counter(), {},
    )  # fmt: skip
    made.rejected = {}
    made.closed = []  # type: ignore[attr-defined]
    made.disconnect = lambda peer, reason: made.closed.append((peer, reason))  # type: ignore[method-assign,attr-defined]
    return made


def test_a_peer_that_sends_noise_loses_its_connection_and_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    made = lonely_mesh()
    with caplog.at_level(logging.WARNING, "freehold.mesh"):
        for _ in range(MALFORMED_MAX):
            made._take_frames(PEER, ChannelName.CONTROL, (b"\xc1",))
    assert made.closed == [(PEER, "core.malformed")]  # type: ignore[attr-defined]
    assert [record.getMessage() for record in caplog.records] == [
        "a peer sends what is no message; its connection ends"
    ]
    assert made.rejects["core.malformed"] == MALFORMED_MAX


def test_a_rejected_message_is_one_line_a_minute_for_each_rule(caplog: pytest.LogCaptureFixture) -> None:
    made, at = lonely_mesh(), [0]
    made._clock = lambda: Now(at[0], 0)
    with caplog.at_level(logging.WARNING, "freehold.mesh"):
        for _ in range(1_000):
            made.reject(PEER, "records.rate", "too fast")
        made.reject(PEER, "sync.rate", "too fast")
        at[0] = REJECTS_SAID_EVERY_MS
        made.reject(PEER, "records.rate", "too fast")
    assert [getattr(record, "count", None) for record in caplog.records] == [1, 1, 1000]
    for number in range(2 * REJECTS_SAID_MAX):
        made.reject(PeerId(f"p{number}"), "records.rate", "")
    assert len(made._said) == REJECTS_SAID_MAX
