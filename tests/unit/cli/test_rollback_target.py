"""Where `freehold rollback` goes: it names its target, and asked for twice it is one rollback."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from cli.errors import UsageError
from cli.views.lanes import rollback_target
from protocols.api_models import DecisionView
from protocols.envelope import digest
from protocols.state.model import Deployed, Lane
from tests.support.protocols.answers import decision_view


def deployed(name: str, applied: int) -> Deployed:
    return Deployed(
        digest(b"change " + name.encode()), digest(name.encode()), digest(b"c"), (), (), (), False, 0, 0, (), "", b"k" * 32,
        applied,
    )  # fmt: skip


class Decisions:
    """What a node says was decided on a lane, newest first."""

    def __init__(self, *actions: str) -> None:
        self.actions = actions

    async def read(self, _kind: Any, path: str, **query: Any) -> tuple[DecisionView, ...]:
        assert (path, query["project"], query["environment"]) == ("/v1/decisions", "shop", "prod")
        return tuple(decision_view(action, 0) for action in self.actions)


GOOD, BAD, OLD = deployed("good", 2), deployed("bad", 3), deployed("old", 1)
BEFORE = Lane("shop", "prod", 9, base=BAD, retained=(GOOD, OLD))
AFTER = Lane("shop", "prod", 10, base=GOOD, retained=(BAD, OLD))


def goes_to(lane: Lane, prefix: str, *actions: str) -> Deployed | None:
    return asyncio.run(rollback_target(Decisions(*actions), lane, prefix))  # type: ignore[arg-type]


def test_a_rollback_goes_to_the_release_before_and_the_second_stays_there() -> None:
    assert goes_to(BEFORE, "", "promote", "start") == GOOD
    assert goes_to(AFTER, "", "rollback", "promote", "start") is None
    assert goes_to(AFTER, "", "freeze", "claim_routes", "rollback", "promote") is None


def test_what_came_after_a_rollback_is_rolled_back_again() -> None:
    again = replace(AFTER, base=deployed("new", 5), retained=(GOOD, BAD, OLD))
    assert goes_to(again, "", "promote", "start", "rollback") == GOOD


def test_a_named_release_is_where_it_goes_however_often() -> None:
    named = GOOD.release.hex()[:12]
    assert goes_to(BEFORE, named) == GOOD
    assert goes_to(AFTER, named) is None
    assert goes_to(AFTER, GOOD.change.hex()) is None
    assert goes_to(AFTER, BAD.release.hex()[:12], "rollback") == BAD, "on purpose it may be named"
    with pytest.raises(UsageError, match="no such release"):
        goes_to(AFTER, "ffffffffffff")


def test_one_release_with_other_secrets_is_named_by_its_change() -> None:
    """After two rotations of a secret one release runs and is kept twice: its digest names none of the three."""
    rotated = [replace(GOOD, change=digest(f"change {number}".encode())) for number in range(3)]
    lane = replace(AFTER, base=rotated[0], retained=(rotated[1], rotated[2], OLD))
    named = GOOD.release.hex()[:12]
    with pytest.raises(UsageError) as refused:
        goes_to(lane, named)
    words = refused.value.next_step.split()
    assert goes_to(lane, words[2]) == rotated[2], "the next step works as printed"
    assert goes_to(lane, rotated[1].change.hex()[:12]) == rotated[1]
    moved = replace(lane, base=rotated[1], retained=(rotated[0], rotated[2], OLD))
    assert goes_to(moved, rotated[1].change.hex()[:12]) is None, "twice is once"
    assert goes_to(lane, OLD.release.hex()[:12]) == OLD
