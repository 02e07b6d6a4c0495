"""A release that the mesh holds already, on its way to another environment: found by its digest, built by nobody again.

Its manifest has the whole project file, so what it runs with anywhere, and how a rollout moves there, can be read from the
manifest alone. Everything comes from a node by digest. Not here: releases built here (deploy.built_here), and going
back to an earlier one (`freehold rollback`).
"""

from __future__ import annotations

from cli.access.client import NodeClient
from cli.change.proposal import Offered
from cli.change.review import effective_at, release_at
from cli.errors import CommandError, UsageError
from cli.project.find import Found
from cli.project.parse import ProjectFileError, parse
from protocols.api_models import ChangeView, DeployedView, LaneView
from protocols.envelope import digest, encode

PREFIX_MIN = 4
"""Characters of a digest that may stand for all of it."""

CHANGES_ASKED = 500
NAMED_MAX = 5


async def held_release(client: NodeClient, text: str, here: Found | None) -> Offered:
    """Return the release whose digest is `text`, or begins with it.

    Evidence goes along that was made `here`, if that is its project. Raises UsageError for none or several, CommandError
    if this program cannot read it.
    """
    wanted, known = text.lower(), await _known(client)
    texts = [text for text in known if len(wanted) >= PREFIX_MIN and text.startswith(wanted)]
    if len(texts) != 1:
        what = f"{len(texts)} releases begin with {text}" if texts else f"no release here begins with {text!r}"
        names = ", ".join(text[:12] for text in list(known)[:NAMED_MAX]) or "none"
        raise UsageError(f"{what} (newest: {names})", next_step="freehold releases", kind="no-such-release")
    named = texts[0]
    release = await release_at(client, bytes.fromhex(named))
    effective = await effective_at(client, bytes.fromhex(known[named]))
    if digest(encode(release)).hex() != named:
        raise _unreadable(named, "its manifest has what this program does not know")
    try:
        project = parse(release.project_file.decode())
    except (ProjectFileError, UnicodeDecodeError) as error:
        raise _unreadable(named, f"its project file is not read here: {error}") from None
    kinds = {app.name: app.kind for app in effective.apps}
    root = here.root if here is not None and here.project.name == release.project else None
    return Offered(project, release, kinds, {}, root)


async def _known(client: NodeClient) -> dict[str, str]:
    """Every release that was proposed or runs, newest first, each with one configuration that was made for it."""
    table: dict[str, str] = {}
    changes: list[ChangeView | DeployedView] = [
        *await client.read(tuple[ChangeView, ...], "/v1/changes", limit=CHANGES_ASKED)
    ]
    for lane in await client.read(tuple[LaneView, ...], "/v1/lanes"):
        changes += [deployed for deployed in (lane.base, *lane.retained) if deployed is not None]
    for change in changes:
        table.setdefault(change.release, change.configuration)
    return table


def _unreadable(named: str, why: str) -> CommandError:
    return CommandError(
        f"release {named[:12]} was made by another version of Freehold: {why}",
        next_step="use the version that made it, or build it again: freehold deploy",
        kind="other-version",
    )
