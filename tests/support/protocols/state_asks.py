"""The world that the tests of the state of a mesh share."""

from __future__ import annotations

from collections.abc import Mapping

from protocols.changes.statements import HealthVerdict
from protocols.machine import PeerId
from tests.support.protocols.mesh_world import MeshWorld, signer

STRANGER = signer("stranger")


def world() -> MeshWorld:
    return MeshWorld().furnish()


class FakeView:
    def __init__(self) -> None:
        self.revoked_keys: set[bytes] = set()
        self.let_in: set[tuple[bytes, bytes]] = set()
        self.down: set[PeerId] = set()
        self.held: dict[PeerId, HealthVerdict] = {}

    def revoked(self, key: bytes) -> bool:
        return key in self.revoked_keys

    def admitted(self, principal: bytes, invite_key: bytes) -> bool:
        return (principal, invite_key) in self.let_in

    def alive(self, node: PeerId) -> bool:
        return node not in self.down

    def verdicts(self, rollout: bytes, opened: int) -> Mapping[PeerId, HealthVerdict]:
        return {
            node: health_verdict
            for node, health_verdict in self.held.items()
            if (health_verdict.rollout, health_verdict.opened) == (rollout, opened)
        }
