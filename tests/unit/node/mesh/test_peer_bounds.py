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
    new_mesh = Mesh.__new__(Mesh)
    new_mesh.rejects, new_mesh._malformed, new_mesh._said = (
        mesh.Counter(), mesh.Counter(), {},
    )  # fmt: skip
    new_mesh.rejected = {}
    new_mesh.closed = []  # type: ignore[attr-defined]
    new_mesh.disconnect = lambda peer, reason: new_mesh.closed.append((peer, reason))  # type: ignore[method-assign,attr-defined]
    return new_mesh


def test_a_peer_that_sends_noise_loses_its_connection_and_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    new_mesh = lonely_mesh()
    with caplog.at_level(logging.WARNING, "freehold.mesh"):
        for _ in range(MALFORMED_MAX):
            new_mesh._take_frames(PEER, ChannelName.CONTROL, (b"\xc1",))
    assert new_mesh.closed == [(PEER, "core.malformed")]  # type: ignore[attr-defined]
    assert [record.getMessage() for record in caplog.records] == [
        "a peer sends what is no message; its connection ends"
    ]
    assert new_mesh.rejects["core.malformed"] == MALFORMED_MAX


def test_a_rejected_message_is_one_line_a_minute_for_each_rule(caplog: pytest.LogCaptureFixture) -> None:
    new_mesh, position = lonely_mesh(), [0]
    new_mesh._clock = lambda: Now(position[0], 0)
    with caplog.at_level(logging.WARNING, "freehold.mesh"):
        for _ in range(1_000):
            new_mesh.reject(PEER, "records.rate", "too fast")
        new_mesh.reject(PEER, "sync.rate", "too fast")
        position[0] = REJECTS_SAID_EVERY_MS
        new_mesh.reject(PEER, "records.rate", "too fast")
    assert [getattr(record, "count", None) for record in caplog.records] == [1, 1, 1000]
    for number in range(2 * REJECTS_SAID_MAX):
        new_mesh.reject(PeerId(f"p{number}"), "records.rate", "")
    assert len(new_mesh._said) == REJECTS_SAID_MAX
