"""Mesh state: genesis, and how one decided command makes the next state.

`apply` is deterministic: the same state, command, material and `at_ms` give the same state or the same refusal on every
voter, whatever its clock or what it has heard. What depends on one voter's own view stands apart in `fresh_refusal`.
Not here: slots, ballots and certificates (chain.py), and the transition table (transitions.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from protocols.commands import SignedCommand
from protocols.decision import Material, Voter
from protocols.genesis import Genesis
from protocols.machine import Digest, PeerId, Verifier
from protocols.mesh_types import MeshState
from protocols.refusal import Refusal

__all__ = ["Material", "MeshState", "Refusal", "Rules", "View", "Voter", "apply", "fresh_refusal", "genesis_state"]


@dataclass(frozen=True, slots=True)
class Rules:
    """What judging needs beside the state: a verifier of signatures and the mesh id they cover."""

    verifier: Verifier
    mesh: Digest


class View(Protocol):
    """What one voter knows beyond the chain; it may differ between voters and only stops fresh decisions."""

    def revoked(self, key: bytes) -> bool:
        """Return whether this voter knows a revocation of the key or of a grant digest."""
        ...

    def alive(self, node: PeerId) -> bool:
        """Return whether this voter believes the node to be up."""
        ...

    def freshest_verdict(self, rollout: bytes, stage_slot: int, node: PeerId) -> int:
        """Return the highest verdict sequence this voter holds of the node for that stage, -1 for none."""
        ...


def genesis_state(genesis: Genesis) -> MeshState:
    """Return the state of slot 0, as the genesis document founds it. Raises DecodeError if its policy is not one."""
    raise NotImplementedError


def apply(
    state: MeshState, command: SignedCommand, material: Material, at_ms: int, rules: Rules
) -> MeshState | Refusal:
    """Return the state after `command`, or the first rule it breaks; pure and the same on every voter."""
    raise NotImplementedError


def fresh_refusal(
    state: MeshState, command: SignedCommand, material: Material, at_ms: int, view: View
) -> Refusal | None:
    """Return why this voter does not vote for a fresh decision of `command`, or None; depends on its own view."""
    raise NotImplementedError
