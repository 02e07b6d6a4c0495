"""`freehold node drain|undrain` and `freehold env freeze|unfreeze`: hold work off a node, or changes off an environment.

Each is a decision of the mesh that its counterpart takes back. Not here: stopping a node, which needs no decision, and
removing one for good (membership.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.access.members import Member, find_member, members_of
from cli.access.principals import require_admin, unlock_admin
from cli.access.prompts import confirm
from cli.errors import UsageError
from cli.frame import command
from cli.text.output import Output
from cli.text.times import moment
from cli.text.units import duration_ms, in_words
from cli.views.watch import VOTERS_DECIDE
from protocols.api_upkeep import DRAIN_MAX_MS
from protocols.keys import Ed25519Signer
from protocols.machine import PeerId
from protocols.state.commands import REASON_MAX, DrainNode, Freeze, Unfreeze
from protocols.state.model import Lane

_CONTEXT = click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")
_YES = click.option("-y", "--yes", is_flag=True, help="Go on without asking.")
_PROJECT = click.option("--project", default="", help="Only this project; by default every one.")


@command("drain", examples=("freehold node drain berlin", "freehold node drain Xy3kQ9ab --for 2h -y"))
@click.argument("node")
@click.option("--for", "span", default="", metavar="DURATION", help="Undrain it by itself after so long: 90m, 2h, 7d.")
@_CONTEXT
@_YES
def drain(output: Output, *, node: str, span: str, context_name: str | None, yes: bool) -> None:
    """Take a node out of work before maintenance: its apps move to others. Needs the admin key.

    It stays a member and keeps its vote. Data does not move: an app that keeps its data there stops until undrain.
    With --for the asked node keeps the signed undrain, and hands it over when the time is over, or when it runs again.
    """
    _set_draining(output, node, context_name, draining=True, yes=yes, span_ms=duration_ms(span) if span else 0)


@command("undrain", examples=("freehold node undrain berlin",))
@click.argument("node")
@_CONTEXT
@_YES
def undrain(output: Output, *, node: str, context_name: str | None, yes: bool) -> None:
    """Let a drained node work again. Needs the admin key."""
    _set_draining(output, node, context_name, draining=False, yes=yes)


def _set_draining(
    output: Output, node: str, context_name: str | None, *, draining: bool, yes: bool, span_ms: int = 0
) -> None:
    verb = "drain" if draining else "undrain"
    _, context = contexts.current_context(context_name)
    require_admin(context, f"{verb} {node}")
    target = find_member(talk(context, members_of), node)
    state = talk(context, lambda client: client.state())
    if span_ms > DRAIN_MAX_MS:
        raise UsageError(
            f"a drain for a time lasts up to {in_words(DRAIN_MAX_MS)}", next_step=f"freehold node drain {node} --for 7d"
        )
    if target.draining == draining and not span_ms and not target.drained_until_ms:
        word = "drained already" if draining else "not drained"
        told = {"node": target.node, "draining": draining, "slot": None, "until_ms": 0}
        output.result(told, f"{target.title} is {word}")
        return
    output.note(f"This {verb}s {target.title}:")
    output.note("  apps without data move to other nodes" if draining else "  what its labels select runs there again")
    for lane in state.lanes:
        if draining and lane.base is not None and lane.base.data and lane.data_node == target.node:
            output.note(f"  {lane.project} in {lane.environment} keeps its data there: it stops until undrain")
    for line in _ends(target, draining=draining, span_ms=span_ms):
        output.note(f"  {line}")
    confirm(output, "Go on?", yes)
    admin = unlock_admin(context, f"{verb} {target.title}")
    output.live(VOTERS_DECIDE)
    action, until_ms = DrainNode(PeerId(target.node), draining), 0
    if span_ms:
        until_ms = time.time_ns() // 1_000_000 + span_ms
        slot = talk(context, lambda client: client.drain_until(admin, action, until_ms))
    else:
        slot = talk(context, lambda client: client.decide(admin, action, next_step="freehold mesh members"))
    until = f", until {moment(until_ms)}" if until_ms else ""
    output.result(
        {"node": target.node, "draining": draining, "slot": slot, "until_ms": until_ms},
        f"{target.title} is {verb}ed (decision {slot}){until}",
    )
    output.hint(f"freehold node undrain {target.node[-8:]}" if draining else "freehold mesh members")


def _ends(target: Member, *, draining: bool, span_ms: int) -> list[str]:
    """What a plan says of when a drain ends."""
    lines = []
    if draining and target.drained_until_ms:
        lines.append(f"so far it was drained until {moment(target.drained_until_ms)}: that no longer counts")
    if span_ms:
        lines.append(f"after {in_words(span_ms)} the asked node undrains it, or when that node runs again")
    return lines


@command("freeze", examples=('freehold env freeze production -m "the sale runs"',
                             'freehold env freeze staging --project shop -m "audit"'))  # fmt: skip
@click.argument("name")
@click.option("-m", "--message", required=True, help="Why; kept with the decision, and told to who would deploy.")
@_PROJECT
@_CONTEXT
@_YES
def freeze(output: Output, *, name: str, message: str, project: str, context_name: str | None, yes: bool) -> None:
    """Refuse starts and promotions in an environment until unfreeze; aborts and rollbacks stay possible.

    Needs the admin key.
    """
    if not 0 < len(message) <= REASON_MAX:
        raise UsageError(f"a reason has 1 to {REASON_MAX} characters", next_step="shorten it")
    _set_frozen(output, name, project, message, context_name, yes=yes)


@command("unfreeze", examples=("freehold env unfreeze production",))
@click.argument("name")
@_PROJECT
@_CONTEXT
@_YES
def unfreeze(output: Output, *, name: str, project: str, context_name: str | None, yes: bool) -> None:
    """Let an environment change again. Needs the admin key."""
    _set_frozen(output, name, project, "", context_name, yes=yes)


def _set_frozen(output: Output, name: str, project: str, reason: str, context_name: str | None, *, yes: bool) -> None:
    verb = "freeze" if reason else "unfreeze"
    _, context = contexts.current_context(context_name)
    require_admin(context, f"{verb} {name}")
    lanes = talk(context, lambda client: _lanes(client, name, project))
    due = [lane for lane in lanes if bool(lane.frozen) != bool(reason)]
    names = [lane.project for lane in due]
    if due:
        output.note(f"This {verb}s {name} for {', '.join(names)}.")
        confirm(output, "Go on?", yes)
        admin = unlock_admin(context, f"{verb} {name}")
        output.live(VOTERS_DECIDE)
        talk(context, lambda client: _decide(client, admin, due, reason))
    word = "frozen" if reason else "not frozen"
    output.result(
        {"environment": name, "frozen": bool(reason), "projects": names},
        f"{name} is {word}" + (f": {', '.join(names)}" if names else ", as it was"),
    )
    output.hint(f"freehold env unfreeze {name}" if reason else "freehold status")


async def _lanes(client: NodeClient, environment: str, project: str) -> list[Lane]:
    """Return the lanes of an environment, of one project or of all. Raises UsageError if there is none such."""
    state = await client.state()
    found_lanes = [state.lane(entry.name, environment) for entry in state.projects if project in {"", entry.name}]
    lanes = [lane for lane in found_lanes if lane is not None]
    if not lanes:
        raise UsageError(
            f"there is no {f'project {project}' if project else 'project'} in an environment {environment}",
            next_step="freehold env list",
            kind="no-lane",
        )
    return lanes


async def _decide(client: NodeClient, admin: Ed25519Signer, lanes: Sequence[Lane], reason: str) -> None:
    for lane in lanes:
        await client.decide(
            admin,
            Freeze(reason) if reason else Unfreeze(),
            project=lane.project,
            environment=lane.environment,
            expect=lane.sequence,
        )
