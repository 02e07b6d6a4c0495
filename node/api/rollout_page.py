"""The rollout view for agents' windows, as both MCP servers hand it out: `ui://freehold/rollout`, one file of HTML.

Source: MCP Apps (SEP-1865), 2026-01-26: a tool names its page in `_meta`, and the host shows the tool's answers in it. The
page asks for no permission and no address. Not here: the page's parts (cli/console).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

URI = "ui://freehold/rollout"
KIND = "text/html;profile=mcp-app"
EXTENSION = "io.modelcontextprotocol/ui"
FILE = Path(__file__).with_name("rollout.html")
NAME, TEXT = "Rollout", "Stages of a rollout, and what each node says with its numbers."
TOOLS = frozenset({"status", "rollout_status", "watch"})
"""Tools whose answers it draws, by the name that they have on both servers."""

LOOK: dict[str, Any] = {"ui": {"prefersBorder": True}}
"""Of the resource; without a policy of its own the host gives it no network."""


def page() -> str:
    """The page's HTML."""
    return FILE.read_text()


def meta_of(tool: str) -> dict[str, Any] | None:
    """What a tool's description says of its page, or None for one that has none."""
    return {"ui": {"resourceUri": URI}} if tool in TOOLS else None
