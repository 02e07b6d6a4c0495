"""What the chain's decisions keep: papers that a base, a rollout or a retained release names. Not: how they are kept."""

from __future__ import annotations

from protocols.state.model import MeshState


def pins_of(state: MeshState) -> frozenset[bytes]:
    """Return what the chain's decisions within retention keep: changes, configurations, versions of secrets."""
    deployed = [
        one
        for lane in state.lanes
        for one in (lane.base, lane.rollout.candidate if lane.rollout is not None else None, *lane.retained)
        if one is not None
    ]
    return frozenset(
        bytes(name)
        for one in deployed
        for name in (one.change, one.configuration, *(secret.digest for secret in one.secrets))
    )
