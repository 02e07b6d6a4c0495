"""The page for agents' windows: one file, made of the console's own view, and named by tools that both servers have."""

from __future__ import annotations

import re

from cli.console.agent_page import made
from cli.mcp.resources import TEXT_MAX_CHARACTERS
from cli.mcp.server import described
from cli.mcp.tools import TOOLS
from node.api import mcp, rollout_page


def test_the_committed_page_is_the_one_that_its_parts_make() -> None:
    assert rollout_page.page() == made(), "run: python -m cli.console.agent_page"


def test_it_is_one_file_that_loads_nothing_and_parses_no_text_as_html() -> None:
    page = rollout_page.page()
    assert len(page) < TEXT_MAX_CHARACTERS, "it would be cut"
    assert not re.search(r"^(import|export) ", page, re.MULTILINE)
    for word in ("http:", "https:", "//cdn", "src=", "href=", "innerHTML", "fetch(", "@import", "url("):
        assert word not in page, word
    assert page.count("</script>") == page.count("<script") == 1


def test_both_servers_name_it_in_the_same_tools() -> None:
    beside = {tool.name: described(tool).model_dump(by_alias=True, mode="json")["_meta"] for tool in TOOLS}
    named = {name for name, meta in beside.items() if meta and meta["ui"]["resourceUri"] == rollout_page.URI}
    assert named == rollout_page.TOOLS
    assert named <= set(mcp.BY_NAME), "a tool without its name on the node's server would not be drawn there"
