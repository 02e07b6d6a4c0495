"""What an MCP client may read beside the tools: schema, AGENTS.md, the last failure, the page that shows a rollout.

Nothing here is decided or changed; text of the project and of apps is data. Not here: the tools (tools.py).
"""

from __future__ import annotations

import mcp_types

from cli.access.client import NodeClient
from cli.errors import CommandError
from cli.mcp.session import AgentSession, Opening
from cli.project.schema import published_schema
from cli.text.foreign import for_model
from node.api import rollout_page
from protocols.api_models import ChangeView

SCHEMA, AGENTS, FAILURE = (
    "freehold://schema/freehold.toml",
    "freehold://project/AGENTS.md",
    "freehold://rollout/last-failure",
)
TEXT_MAX_CHARACTERS = 32_000

_LISTED = (
    (SCHEMA, "freehold.toml schema", "What freehold.toml may say, as JSON Schema.", "application/schema+json"),
    (AGENTS, "AGENTS.md", "What the project's people tell agents.", "text/markdown"),
    (FAILURE, "Last failing rollout", "Which change was aborted or rolled back last, and why.", "application/json"),
    (rollout_page.URI, rollout_page.NAME, rollout_page.TEXT, rollout_page.KIND),
)


async def listed(_context: object, _params: object) -> mcp_types.ListResourcesResult:
    """List what can be read."""
    return mcp_types.ListResourcesResult(
        resources=[
            mcp_types.Resource(uri=uri, name=name, description=text, mime_type=kind, _meta=_look(uri))
            for uri, name, text, kind in _LISTED
        ]
    )


async def read(
    opening: Opening, _context: object, params: mcp_types.ReadResourceRequestParams
) -> mcp_types.ReadResourceResult:
    """Read one of them; what is wrong is its text, with the next step."""
    uri = str(params.uri)
    kind = next((kind for known, _, _, kind in _LISTED if known == uri), None)
    if kind is None:
        raise ValueError(f"there is no resource {uri[:80]!r}; one of {', '.join(pair[0] for pair in _LISTED)}")
    try:
        text = await _text(opening, uri)
    except CommandError as error:
        text, kind = f"{error}; next: {error.next_step}", "text/plain"
    contents = mcp_types.TextResourceContents(
        uri=uri, mime_type=kind, text=text[:TEXT_MAX_CHARACTERS], _meta=_look(uri)
    )
    return mcp_types.ReadResourceResult(contents=[contents])


def _look(uri: str) -> dict[str, object] | None:
    return rollout_page.LOOK if uri == rollout_page.URI else None


async def _text(opening: Opening, uri: str) -> str:
    if uri == SCHEMA:
        return for_model(published_schema()).decode()
    if uri == rollout_page.URI:
        return rollout_page.page()
    session = await opening.session()
    if uri == AGENTS:
        path = session.folder().root / "AGENTS.md"
        if not path.is_file():
            return "the project has no AGENTS.md"
        return path.read_text(errors="replace")
    return await session.talk(lambda client: _last_failure(client, session))


async def _last_failure(client: NodeClient, session: AgentSession) -> str:
    changes = await client.read(tuple[ChangeView, ...], "/v1/changes", project=session.project)
    failed = [change for change in changes if change.state in {"aborted", "rolled-back"} or change.failure]
    if not failed:
        return for_model({"change": None, "next_step": "nothing failed"}).decode()
    chosen_change = max(failed, key=lambda each: each.ended_ms or each.created_ms)
    told = {key: getattr(chosen_change, key) for key in ("id", "environment", "release", "state", "ended_ms")}
    return for_model(
        {
            **told,
            "untrusted_why": chosen_change.ended or chosen_change.failure,
            "untrusted_request": chosen_change.request,
            "next_step": "logs",
        }
    ).decode()
