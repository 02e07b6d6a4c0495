"""`freehold changes [CHANGE]`: what is proposed, what each change needs or what became of it; one change with its papers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import click
from msgspec.structs import asdict

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.change.proposal import require_known
from cli.change.propose import resolve_change
from cli.change.review import review_change, review_text
from cli.frame import command
from cli.text.foreign import builtins_of
from cli.text.output import Output
from cli.text.table import table
from cli.views.lane_status import held_by, step_for
from cli.views.papers import papers_text, without_bytes
from protocols.api_models import ChangeView, MissingView, PapersView

SHOWN_DEFAULT = 20


class ChangeRow(NamedTuple):
    """A change, and the rules that it does not meet yet."""

    view: ChangeView
    missing: tuple[MissingView, ...]


@command("changes", examples=("freehold changes", "freehold changes 3f9a12", "freehold changes --env staging --json"))
@click.argument("change", default="")
@click.option("--project", default="", help="Only this project.")
@click.option("--env", "environment", default="", help="Only this environment.")
@click.option("--limit", type=click.IntRange(1, 500), default=SHOWN_DEFAULT, show_default=True, help="How many.")
@click.option("--context", "context_name", help="The mesh, if not the current context.")
def changes(output: Output, change: str, project: str, environment: str, limit: int, context_name: str | None) -> None:
    """List proposed changes, newest first, or show the one whose id begins with CHANGE."""
    _, context = contexts.current_context(context_name)
    if change:
        row, answer, text = talk(context, lambda client: _one(client, change))
        output.result(answer, text)
        _hint(output, [row])
        return

    async def conversation(client: NodeClient) -> list[ChangeRow]:
        found_changes = await client.read(
            tuple[ChangeView, ...], "/v1/changes", project=project, environment=environment, limit=limit
        )
        if not found_changes:
            await require_known(client, project, environment)
        return [ChangeRow(change, await _missing(client, change)) for change in found_changes]

    pairs = talk(context, conversation)
    rows = [
        (change.id[:12], change.project, change.environment, change.state, _words(change, missing), change.request[:50])
        for change, missing in pairs
    ]
    header, *lines = table(("CHANGE", "PROJECT", "IN", "STATE", "NEEDS", "REQUEST"), rows).split("\n")
    shown = [header]
    for line, (entry, _) in zip(lines, pairs, strict=True):
        shown += [line, *([f"  {entry.ended}"] if entry.ended else [])]
    told = [{**asdict(change), "missing": missing} for change, missing in pairs]
    output.result({"changes": told}, "\n".join(shown) if rows else "nothing was proposed yet")
    _hint(output, pairs)
    if not rows:
        output.hint('freehold propose -m "what it is for"')


def _hint(output: Output, rows: Sequence[ChangeRow]) -> None:
    """Name the command that moves the newest change which waits for somebody."""
    for view, missing in rows:
        for rule in (*(entry.rule for entry in missing), held_by(view.start)) if _is_open(view) else ():
            if step := step_for(rule, view.id):
                output.hint(step)
                return


def _is_open(view: ChangeView) -> bool:
    """Whether a change may yet start: it was never started, or is to be started anew."""
    return view.state == "proposed" or bool(held_by(view.start))


async def _missing(client: NodeClient, view: ChangeView) -> tuple[MissingView, ...]:
    if not _is_open(view):
        return ()
    return (await client.read(PapersView, f"/v1/changes/{view.id}/papers")).missing


def _words(view: ChangeView, missing: Sequence[MissingView]) -> str:
    if not _is_open(view):
        return "-"
    rules = dict.fromkeys(text for text in (*(entry.rule for entry in missing), held_by(view.start)) if text)
    return ", ".join(rules) or ("a start" if view.start is None else "-")


async def _one(client: NodeClient, text: str) -> tuple[ChangeRow, dict[str, object], str]:
    view = await resolve_change(client, text)
    papers = await client.read(PapersView, f"/v1/changes/{view.id}/papers")
    lines = []
    answer: dict[str, object] = {"change": view.id, "view": view, **without_bytes(papers)}
    if view.state == "proposed":
        review = await review_change(client, view.id)
        answer["diff"] = builtins_of(review)
        lines.append(review_text(review))
    else:
        lines.append(f"{view.project} in {view.environment}: {view.state}, {view.request}")
        lines += [f"{view.state} because: {view.ended}"] if view.ended else []
    lines += ["", "papers", *papers_text(papers)]
    if view.start is not None and held_by(view.start):
        lines.append(f"  start     waits: {view.start.rule}: {view.start.detail}")
    return ChangeRow(view, papers.missing), answer, "\n".join(lines)
