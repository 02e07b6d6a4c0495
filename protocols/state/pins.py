"""What the chain's decisions keep: papers that a base, a rollout or a retained release names. Not: how they are kept."""

from __future__ import annotations

from protocols.state.model import MeshState


def pins_of(state: MeshState) -> frozenset[bytes]:
    """Return what the chain's decisions within retention keep: changes, configurations, versions of secrets."""
    deployed = [
        deployed
        for lane in state.lanes
        for deployed in (lane.base, lane.rollout.candidate if lane.rollout is not None else None, *lane.retained)
        if deployed is not None
    ]
    return frozenset(
        bytes(name)
        for entry in deployed
        for name in (entry.change, entry.configuration, *(secret.digest for secret in entry.secrets))
    )
