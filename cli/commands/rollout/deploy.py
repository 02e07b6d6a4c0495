"""`freehold deploy`: build, propose, and roll out in stages that the mesh certifies. Not: judging any of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from yarl import URL

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.access.principals import unlock_admin
from cli.change.proposal import Offered, kept_here, visited_at
from cli.change.propose import NewChange, StartSigner, resolve_change, start_change, to_offer
from cli.commands.options import environment_option
from cli.errors import CommandError, UsageError
from cli.frame import command
from cli.project.find import Found, find_project, project_at
from cli.text.going_on import nothing_goes_on
from cli.text.output import Output
from cli.text.units import duration_ms
from cli.views.handed_over import awaiting, handed_over, outcome_of
from cli.views.watch import watch_change
from protocols.api_models import ChangeView, LaneView, NodeView
from protocols.keys import Ed25519Signer
from protocols.machine import Digest
from protocols.state.commands import REASON_MAX

PATIENCE_S = 5.0
"""How long a deploy waits for people before it says so and ends; `--wait` changes it."""


@command("deploy", examples=(
    'freehold deploy -m "greet by name"',
    "freehold deploy --env staging --wait 30m",
    "freehold deploy --release 5c1d09 --env production -m \"to production\"",
    "freehold deploy --detach --json",
    'freehold deploy --change 3f9a12 --break-glass "the site is down"',
))  # fmt: skip
@environment_option("Where to deploy.")
@click.option("-m", "--message", default="", help="The change request this fulfils; kept with the change.")
@click.option("--detach", is_flag=True, help="Hand over the start and return; `freehold status` tells the rest.")
@click.option("--wait", "wait", default="", metavar="DURATION", help="How long to wait for approvals, such as 30m.")
@click.option("--expect", type=int, help="Refuse if the environment has moved past this sequence (see freehold diff).")
@click.option(
    "--release",
    default="",
    metavar="DIGEST",
    help="Deploy this release (see freehold releases), as it is; build nothing.",
)
@click.option(
    "--build", "kept", default="", metavar="ID", help="Deploy this build, built or taken in before (freehold release)."
)
@click.option(
    "--change", "proposed", default="", help="Start this proposed change (see freehold changes); build nothing."
)
@click.option("--supersede", is_flag=True, help="Abort a rollout that is under way first.")
@click.option(
    "--break-glass",
    "reason",
    default="",
    metavar="REASON",
    help="Start without approvals, evidence or window; needs an admin's sealed key, and the reason stays.",
)
@click.option("--context", "context_name", help="The mesh to use, if not the current one.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path(),
              help="The project's folder; by default the current one.")  # fmt: skip
def deploy(
    output: Output,
    environment: str,
    message: str,
    detach: bool,
    wait: str,
    expect: int | None,
    release: str,
    kept: str,
    proposed: str,
    supersede: bool,
    reason: str,
    context_name: str | None,
    folder: Path,
) -> None:
    """Build the project, propose the change, and roll it out in stages that the mesh certifies.

    Each stage is judged by the nodes themselves; a stage that fails goes back everywhere, by itself. Approvals and
    evidence that the environment's policy asks for are waited for; without them nothing starts.

    With --release nothing is built: what ran in one environment goes to another by its digest, with what its own project
    file says of that one. No project folder is needed; in one, evidence that was made there goes along.
    """
    _, context = contexts.current_context(context_name)
    signer = contexts.open_plain(context.key)
    outcome = _named(folder, release, kept, proposed, signer.public_key)
    patience_s = duration_ms(wait) / 1000 if wait else PATIENCE_S
    starter = _start_signer(context, signer, supersede, reason)
    addresses: list[str] = []

    async def conversation(client: NodeClient) -> dict[str, object]:
        wanted, where = await _wanted(client, proposed, outcome, release, environment, message)
        change = (await start_change(client, output, wanted, signer=signer, starter=starter, expect=expect)).hex()
        answer: dict[str, object] = {"change": change, "environment": where}
        try:
            if detach:
                handed = await handed_over(client, change)
                if handed.missing:
                    raise awaiting(change, handed.missing, answer | handed.answer)
                return answer | handed.answer
            watched = await watch_change(client, output, change, wait_s=24 * 3600, patience_s=patience_s)
        except CommandError as error:  # whoever reads the exit code needs to know of which change it speaks
            error.answer = {**answer, "outcome": outcome_of(error), **error.answer}
            raise
        answer |= {"outcome": watched.outcome, "elapsed_ms": int(watched.seconds * 1000)}
        if watched.outcome == "succeeded":
            nothing_goes_on()
            addresses.extend(await _addresses(client, change, URL(context.url).host or ""))
            answer["addresses"] = addresses
        return answer

    try:
        answer = talk(context, conversation)
    except CommandError as error:
        error.answer = {"outcome": "not-started", **error.answer}
        raise
    _tell(output, answer, addresses)


async def _wanted(
    client: NodeClient, proposed: str, found: Found | Offered | None, release: str, environment: str, message: str
) -> tuple[NewChange | Digest, str]:
    """Return what is to start, a proposed change or a new one, and the environment that it is for."""
    if proposed:
        view = await resolve_change(client, proposed)
        return Digest(bytes.fromhex(view.id)), view.environment
    what = await to_offer(client, found, release)
    return NewChange(what, environment, message or f"deploy of {what.project.name}"), environment


def _named(folder: Path, release: str, kept: str, proposed: str, author: bytes) -> Found | Offered | None:
    """Return what is here of what is to be deployed. Raises UsageError where more than one thing is named."""
    if (release or kept) and proposed:
        step = f"freehold deploy --change {proposed}"
        raise UsageError("a proposed change has its release already", next_step=step, kind="usage")
    if release and kept:
        raise UsageError(
            "a build is here, a release in the mesh: name one", next_step="freehold releases", kind="usage"
        )
    if kept:
        return kept_here(folder, kept, author)
    return project_at(folder) if release else None if proposed else find_project(folder)


def _start_signer(context: contexts.Context, signer: Ed25519Signer, supersede: bool, reason: str) -> StartSigner:
    """Whoever signs the start: the everyday key, or, with a reason to break glass, an admin's, unlocked here."""
    if len(reason) > REASON_MAX:
        raise UsageError(f"a reason has at most {REASON_MAX} characters", next_step="shorten it")
    return StartSigner(unlock_admin(context, f"break glass: {reason}") if reason else signer, supersede, reason)


def _tell(output: Output, answer: dict[str, object], addresses: Sequence[str]) -> None:
    """Print what became of the change."""
    output.result(answer, f"change {str(answer['change'])[:12]} in {answer['environment']}: {answer['outcome']}")
    for address in addresses:
        output.note(f"  visitors reach it at {address}")
    output.hint("freehold promote, resume or abort" if answer["outcome"] == "paused" else "freehold status")


async def _addresses(client: NodeClient, change: str, host: str) -> list[str]:
    """Where visitors reach what a change made, through the asked node, which leads on those it does not serve."""
    view = await client.read(ChangeView, f"/v1/changes/{change}")
    node = await client.read(NodeView, "/v1/node")
    lane = await client.read(LaneView, f"/v1/lanes/{view.project}/{view.environment}")
    return visited_at(node.ingress, lane.routes, host)
