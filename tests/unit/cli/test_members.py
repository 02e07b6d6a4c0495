"""By how many decisions a member is behind: of those that answer, in their own words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from cli.access.members import behind
from cli.errors import CommandError
from protocols.api_models import NodeView
from tests.support.protocols.answers import node_view


class Client:
    """A node that passes on what its peers say; None for one that does not answer."""

    def __init__(self, slots: dict[str, int | None]) -> None:
        self.slots = slots

    async def read(self, _kind: Any, path: str) -> NodeView:
        slot = self.slots[path.removeprefix("/v1/nodes/")]
        if slot is None:
            raise CommandError("no answer", next_step="", kind="node.unreachable")
        return node_view(slot=slot)


async def lag(slots: dict[str, int | None], apart: tuple[str, ...] = ()) -> dict[str, int]:
    members = tuple(SimpleNamespace(node=slot, connected=slot not in apart) for slot in slots)
    return await behind(Client(slots), members)  # type: ignore[arg-type]


async def test_the_furthest_is_the_measure_and_who_says_nothing_is_left_out() -> None:
    assert await lag({"a": 7, "b": 7}) == {"a": 0, "b": 0}
    assert await lag({"a": 7, "b": 4, "c": None}) == {"a": 0, "b": 3}
    assert await lag({"a": 4, "b": 7}) == {"a": 3, "b": 0}, "the asked node may be the one that lags"
    assert await lag({"a": 7, "b": 9}, apart=("b",)) == {"a": 0}, "what is not reached is not asked"
    assert await lag({"a": None}) == {}
