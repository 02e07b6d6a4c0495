"""Grants that end soon, for commands that say it among their own findings. When they do: access/endings.py."""

from __future__ import annotations

from cli.access.client import NodeClient
from cli.access.contexts import Context
from cli.text.reminders import told


async def ending(client: NodeClient, context: Context) -> str:
    """Return what to say of the grants of a context's everyday key, or ""; it is not said again at the command's end."""
    if not context.key:
        return ""
    text = await client.ending()
    told(text)
    return text
