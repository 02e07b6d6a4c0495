"""Grants that end soon: whoever acts from here hears of it 30 days before. Renewing: commands/principals/key.py."""

from __future__ import annotations

import time

from cli.access import contexts as home
from cli.access.client import NodeClient
from cli.access.contexts import Context
from cli.access.principals import Principal, principal_of
from cli.errors import CommandError, UsageError
from cli.text.units import in_words
from protocols.trust.certificates import DAY_MS

WARN_MS = 30 * DAY_MS
RENEW = "an admin: freehold key renew"


async def ending(client: NodeClient, context: Context) -> str:
    """Return what to say of the grants of a context's everyday key, or ""."""
    if not context.key:
        return ""
    try:
        key = home.public_key(context.key)
        return words(await principal_of(client, key), time.time_ns() // 1_000_000)
    except (CommandError, UsageError):
        return ""  # whoever may not look at principals hears of it when a command is refused


def words(one: Principal, wall_ms: int) -> str:
    """What is to be said at `wall_ms`: what ends last decides, since each grant stands alone."""
    ends_ms = max((held.expires_ms for held in one.each), default=0)
    if not ends_ms or ends_ms - wall_ms > WARN_MS:
        return ""
    who = f"the grant of {one.name or 'your key'}"
    renewed = RENEW if one.kind != "agent" else "freehold token create NAME"
    when = "has ended" if ends_ms <= wall_ms else f"ends in {in_words(ends_ms - wall_ms)}"
    return f"{who} {when}; {renewed}"
