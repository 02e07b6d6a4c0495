"""`freehold mesh label`: the labels of a node, by which environments and rollout stages choose it.

An admin's decision; the labels that came with the invite were the first. Not here: what a label means anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import click

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.access.members import find_member, members_of
from cli.access.principals import require_admin, unlock_admin
from cli.access.prompts import confirm
from cli.errors import UsageError
from cli.frame import command
from cli.text.output import Output
from cli.text.units import labels_of
from cli.views.watch import VOTERS_DECIDE
from protocols.machine import PeerId
from protocols.state.commands import ConfirmNode
from protocols.state.model import ConfirmedNode, MeshState
from protocols.state.placement import eligible
from protocols.trust.certificates import Labels, valid_labels


@command("label", examples=("freehold mesh label berlin", "freehold mesh label berlin zone=eu disk=fast",
                            "freehold mesh label berlin disk-"))  # fmt: skip
@click.argument("node")
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE|KEY-]...")
@click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")
@click.option("-y", "--yes", is_flag=True, help="Go on without asking.")
def label(output: Output, *, node: str, changes: tuple[str, ...], context_name: str | None, yes: bool) -> None:
    """Show a node's labels, or set and take away some; KEY- takes one away. Needs the admin key.

    Environments and stages choose nodes by labels: the plan says which environments the node enters and leaves. A rollout
    that is under way keeps the nodes it began with.
    """
    _, context = contexts.current_context(context_name)
    state = talk(context, lambda client: client.state())
    target = find_member(talk(context, members_of), node)
    known = next((node for node in state.nodes if node.node == target.node), None)
    if known is None:
        raise UsageError(
            f"{target.title} is not confirmed yet, so it has the labels of its invite",
            next_step="freehold mesh members",
            kind="not-confirmed",
        )
    labels = labels_after(dict(known.labels), changes)
    value = {"node": target.node, "labels": dict(labels)}
    if labels == known.labels:
        words = ", ".join(f"{key}={text}" for key, text in labels) or "no labels"
        output.result({**value, "slot": None}, f"{target.title}: {words}")
        return
    require_admin(context, f"label {target.title}")
    output.note(f"This labels {target.title}:")
    for line in _plan(state, known, labels):
        output.note(f"  {line}")
    confirm(output, "Go on?", yes)
    admin = unlock_admin(context, f"label {target.title}")

    async def decide(client: NodeClient) -> int:
        action = ConfirmNode(PeerId(target.node), labels, known.roles)
        return await client.decide(admin, action, expect=state.sequence, next_step="freehold mesh label NODE")

    output.live(VOTERS_DECIDE)
    slot = talk(context, decide)
    output.result({**value, "slot": slot}, f"{target.title} is labelled (decision {slot})")
    back = [f"{key}={text}" for key, text in known.labels if (key, text) not in labels]
    back += [f"{key}-" for key, _ in labels if key not in dict(known.labels)]
    output.hint(f"freehold mesh members; back: freehold mesh label {target.node[-8:]} {' '.join(back)}")


def labels_after(before: Mapping[str, str], changes: Sequence[str]) -> Labels:
    """Return labels after changes of the form KEY=VALUE or KEY-. Raises UsageError."""
    gone = [text.removesuffix("-") for text in changes if re.fullmatch(r"[^=]+-", text)]
    items = {key: value for key, value in before.items() if key not in gone}
    after = tuple(
        sorted(
            {**items, **dict(labels_of([change for change in changes if not re.fullmatch(r"[^=]+-", change)]))}.items()
        )
    )
    if missing := [key for key in gone if key not in before]:
        raise UsageError(f"it has no label {missing[0]}", next_step="freehold mesh label NODE")
    if not valid_labels(after):
        raise UsageError("too many labels, or one that is too long", next_step="take some away: KEY-")
    return after


def _plan(state: MeshState, known: ConfirmedNode, labels: Labels) -> list[str]:
    """What changes: labels, and the environments that the node enters and leaves."""
    lines = [f"{key}={value}" + (f" (it was {old})" if (old := dict(known.labels).get(key)) else " (new)")
             for key, value in labels if (key, value) not in known.labels]  # fmt: skip
    lines += [f"{key} goes" for key, _ in known.labels if key not in dict(labels)]
    for environment in state.environments:
        was = known.node in eligible(state, environment.name)
        chosen = all(pair in labels for pair in environment.selector)
        if was and environment.selector and not chosen:
            lines.append(f"it leaves {environment.name}: what runs there for it stops at the next deploy")
            lines += [
                f"  {lane.project} keeps its data there; move it first: freehold data move {lane.project} --to NODE"
                for lane in state.lanes
                if lane.environment == environment.name and lane.data_node == known.node
            ]
        elif environment.selector and chosen and not was and not known.draining:
            lines.append(f"it enters {environment.name}: deploys there reach it from now on")
    return lines
