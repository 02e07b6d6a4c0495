"""The members as a command sees them: found by the name, the id or the end of the id that a person types.

Not here: what is done to a member.
"""

from __future__ import annotations

import asyncio

from cli.access.client import NodeClient
from cli.errors import CommandError, UsageError
from cli.text.table import short
from cli.text.units import in_words
from protocols.api_models import MemberView, NodeView
from protocols.trust.certificates import WARN_BEFORE_MS

SUFFIX_MIN = 4
"""Letters of an id's end that name a node; ids all begin alike."""


class Member(MemberView, frozen=True):
    """One row of /v1/members, with what people call it."""

    @property
    def title(self) -> str:
        """The name and the end of the id."""
        return f"{self.name} ({short(self.node)})" if self.name else short(self.node)

    def expiry(self, wall_ms: int) -> str:
        """A warning when the certificate runs out within 14 days, or has; else nothing."""
        left_ms = self.expires_ms - wall_ms
        if not self.expires_ms or left_ms > WARN_BEFORE_MS:
            return ""
        return f"expires in {in_words(left_ms)}" if left_ms > 0 else "has expired"


async def members_of(client: NodeClient) -> tuple[Member, ...]:
    """Return every node the asked one knows."""
    return await client.read(tuple[Member, ...], "/v1/members")


async def behind(client: NodeClient, members: tuple[Member, ...]) -> dict[str, int]:
    """Ask every member that is reached how far its chain is; return by how many decisions each is behind the furthest.

    One that is not reached, or does not answer, is left out.
    """

    async def slot(node: str) -> int | None:
        try:
            return (await client.read(NodeView, f"/v1/nodes/{node}")).slot
        except CommandError:
            return None

    reached = [member.node for member in members if member.connected]
    slots = await asyncio.gather(*map(slot, reached))
    known = {node: slot for node, slot in zip(reached, slots, strict=True) if slot is not None}
    return {node: max(known.values()) - index for node, index in known.items()}


def find_member(members: tuple[Member, ...], text: str) -> Member:
    """Return the member that `text` names. Raises UsageError if it names none, or several."""
    exact = [member for member in members if text in {member.node, member.name}]
    found_members = exact or [member for member in members if len(text) >= SUFFIX_MIN and member.node.endswith(text)]
    if len(found_members) == 1:
        return found_members[0]
    what = f"{len(found_members)} nodes are called {text!r}" if found_members else f"no node is called {text!r}"
    raise UsageError(what, next_step="freehold mesh members", kind="no-such-node")
