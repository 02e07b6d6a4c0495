"""A question of 28 bytes draws 16 KB of statements: how often one peer may ask it."""

from __future__ import annotations

from protocols.changes.statements import Prepared, state_it
from protocols.keys import peer_id
from protocols.machine import Now, PeerId, Reject, Send
from protocols.rollout.conductor import ANSWERS_BURST, Conductor
from protocols.rollout.orders import RolloutStatement, StatementsHeld
from tests.support.protocols.mesh_world import MeshWorld, signer
from tests.support.protocols.trust_world import VERIFIER


def test_a_peer_is_answered_as_often_as_an_honest_one_asks_and_no_other_peer_waits_for_it() -> None:
    w = MeshWorld().furnish()
    me = signer("n1")
    conductor = Conductor(peer_id(me.public_key), w.mesh, me, VERIFIER)
    conductor.decided(w.state, Now(0, 0))
    changes = [bytes([number]) * 32 for number in range(3)]
    for change in changes:
        said = state_it(me, w.mesh, Prepared(change, b"b" * 32, "passed"))
        conductor.hear(peer_id(me.public_key), RolloutStatement(said), Now(0, 0))

    def asked(peer: str, at_ms: int) -> list[type]:
        return [type(entry) for entry in conductor.answer(PeerId(peer), StatementsHeld(b""), changes, Now(at_ms, 0))]

    for _ in range(ANSWERS_BURST):
        assert asked("greedy", 1) == [Send] * 3
    assert asked("greedy", 2) == [Reject]
    assert asked("other", 2) == [Send] * 3
    assert asked("greedy", 4_000) == [Send] * 3
    conductor.disconnected(PeerId("greedy"))
    assert PeerId("greedy") not in conductor._answers
