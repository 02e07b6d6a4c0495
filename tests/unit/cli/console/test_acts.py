"""What a button of the console does: it is done to what the person saw, and to nothing that took its place meanwhile."""

from __future__ import annotations

import asyncio
from typing import get_args

import pytest

from cli.console.acts import Act, Acts, AsShown, Drawn, LaneAct
from cli.errors import CommandError
from protocols.envelope import encode
from protocols.state.model import Lane, MeshState
from tests.support.protocols.mesh_world import MeshWorld

KEY = b"k" * 32


class Node:
    """A node that shows a state, and what belongs to an act on it."""

    def __init__(self, state: MeshState) -> None:
        self._state = state

    async def state(self) -> MeshState:
        return self._state

    async def mesh(self) -> bytes:
        return b"m" * 32

    async def chains(self, key: bytes) -> tuple[bytes, ...]:
        return (key,)

    async def get_bytes(self, path: str) -> bytes:
        return encode((path.encode(),))


def shown(lane: Lane) -> AsShown:
    """What the page says that it shows of a lane."""
    base, rollout = lane.base, lane.rollout
    return AsShown(
        rollout.id.hex() if rollout else "", rollout.stage if rollout else 0, base.change.hex() if base else ""
    )


def press(act: Act, world: MeshWorld, seen: AsShown) -> Drawn:
    lane, acts = world.lane, Acts(Node(world.state))  # type: ignore[arg-type]
    return asyncio.run(acts.draw(KEY, LaneAct(act, lane.project, lane.environment, seen)))


@pytest.fixture
def rolling() -> MeshWorld:
    world = MeshWorld().furnish().deployed(1)
    return world.started(2)


@pytest.mark.parametrize("act", [act for act in get_args(Act) if act != "rollback"])
def test_what_is_done_is_done_to_the_rollout_that_was_seen(rolling: MeshWorld, act: Act) -> None:
    now = shown(rolling.lane)
    assert press(act, rolling, now).says.startswith(act)
    for near in (
        AsShown("ab" * 32, now.stage, now.base), AsShown("", now.stage, now.base),
        AsShown(now.rollout, now.stage, "ab" * 32),
    ):  # fmt: skip
        with pytest.raises(CommandError, match="not what you looked at"):
            press(act, rolling, near)


def test_a_promotion_is_of_the_stage_that_was_seen_and_an_abort_of_any(rolling: MeshWorld) -> None:
    now = shown(rolling.lane)
    before = AsShown(now.rollout, now.stage + 1, now.base)
    with pytest.raises(CommandError, match="not what you looked at"):
        press("promote", rolling, before)
    assert press("abort", rolling, before).says.startswith("abort")


def test_a_release_that_began_meanwhile_is_not_rolled_back_with_what_was_seen(rolling: MeshWorld) -> None:
    resting = MeshWorld().furnish().deployed(1)
    with pytest.raises(CommandError, match="not what you looked at"):
        press("rollback", rolling, shown(resting.lane))
