"""`freehold changes [CHANGE]`: what is proposed, what each change needs or what became of it; one change with its papers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from cli.access import contexts as home
from cli.access.client import NodeClient, talk
from cli.change.deploy import require_known
from cli.change.propose import resolve_change
from cli.change.review import review_change, review_text
from cli.frame import command
from cli.text.foreign import builtins_of
from cli.text.output import Output
from cli.text.table import table
from cli.views.lane_status import held_by, step_for
from cli.views.papers import papers_text, without_bytes

SHOWN_DEFAULT = 20


@command("changes", examples=("freehold changes", "freehold changes 3f9a12", "freehold changes --env staging --json"))
@click.argument("change", default="")
@click.option("--project", default="", help="Only this project.")
@click.option("--env", "environment", default="", help="Only this environment.")
@click.option("--limit", type=click.IntRange(1, 500), default=SHOWN_DEFAULT, show_default=True, help="How many.")
@click.option("--context", "context_name", help="The mesh, if not the current context.")
def changes(output: Output, change: str, project: str, environment: str, limit: int, context_name: str | None) -> None:
    """List proposed changes, newest first, or show the one whose id begins with CHANGE."""
    _, context = home.current_context(context_name)
    if change:
        answer = talk(context, lambda client: _one(client, change))
        text = answer.pop("text")
        output.result(answer, text)
        _hint(output, [answer["view"] | {"missing": answer["missing"]}])
        return

    async def conversation(client: NodeClient) -> list[dict[str, Any]]:
        found = await client.get("/v1/changes", project=project, environment=environment, limit=limit)
        if not found:
            await require_known(client, project, environment)
        return [one | {"missing": await _missing(client, one)} for one in found]

    found = talk(context, conversation)
    rows = [
        (one["id"][:12], one["project"], one["environment"], one["state"], _words(one), one["request"][:50])
        for one in found
    ]
    header, *lines = table(("CHANGE", "PROJECT", "IN", "STATE", "NEEDS", "REQUEST"), rows).split("\n")
    shown = [header]
    for line, one in zip(lines, found, strict=True):
        shown += [line, *([f"  {one['ended']}"] if one["ended"] else [])]
    output.result({"changes": found}, "\n".join(shown) if rows else "nothing was proposed yet")
    _hint(output, found)
    if not rows:
        output.hint('freehold propose -m "what it is for"')


def _hint(output: Output, views: Sequence[dict[str, Any]]) -> None:
    """Name the command that moves the newest change which waits for somebody."""
    for view in filter(_is_open, views):
        for rule in (*(one["rule"] for one in view["missing"]), held_by(view)):
            if step := step_for(rule, view["id"]):
                output.hint(step)
                return


def _is_open(view: dict[str, Any]) -> bool:
    """Whether a change may yet start: it was never started, or is to be started anew."""
    return view["state"] == "proposed" or bool(held_by(view))


async def _missing(client: NodeClient, view: dict[str, Any]) -> list[dict[str, str]]:
    if not _is_open(view):
        return []
    papers = await client.get(f"/v1/changes/{view['id']}/papers")
    return list(papers["missing"])


def _words(view: dict[str, Any]) -> str:
    if not _is_open(view):
        return "-"
    rules = dict.fromkeys(one for one in (*(one["rule"] for one in view["missing"]), held_by(view)) if one)
    return ", ".join(rules) or ("a start" if view["start"] is None else "-")


async def _one(client: NodeClient, text: str) -> dict[str, Any]:
    view = await resolve_change(client, text)
    papers = await client.get(f"/v1/changes/{view['id']}/papers")
    lines = []
    answer: dict[str, Any] = {"change": view["id"], "view": view, **without_bytes(papers)}
    if view["state"] == "proposed":
        review = await review_change(client, view["id"])
        answer["diff"] = builtins_of(review)
        lines.append(review_text(review))
    else:
        lines.append(f"{view['project']} in {view['environment']}: {view['state']}, {view['request']}")
        lines += [f"{view['state']} because: {view['ended']}"] if view["ended"] else []
    lines += ["", "papers", *papers_text(papers)]
    if held_by(view):
        lines.append(f"  start     waits: {view['start']['rule']}: {view['start']['detail']}")
    return answer | {"text": "\n".join(lines)}
