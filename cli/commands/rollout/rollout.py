"""`freehold promote|pause|resume|abort|rollback`: the steps a person takes in a rollout. Not: judging it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import click

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.change.review import effective_at
from cli.commands.options import environment_option
from cli.errors import CommandError
from cli.frame import command
from cli.project.find import project_here
from cli.text.output import Output
from cli.views.lanes import find_lane, rollback_target
from cli.views.watch import VOTERS_DECIDE
from protocols.api_models import ChangeView
from protocols.envelope import decode, digest
from protocols.state.commands import Abort, Action, Exhibits, Pause, Promote, Resume, Rollback
from protocols.state.model import Deployed, Lane, Rollout

Step = Callable[[NodeClient, contexts.Context, Lane], Awaitable[int]]


def _lane_options(function: Callable[..., None]) -> Callable[..., None]:
    options = (
        click.option("--project", help="The project; by default that of this folder, or the only one."),
        environment_option("Where the project runs."),
        click.option("--context", "context_name", help="The mesh to use, if not the current one."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _rollout_of(lane: Lane) -> Rollout:
    if lane.rollout is None:
        raise CommandError(
            f"no rollout is under way for {lane.project} in {lane.environment}",
            next_step="freehold status",
            kind="rollout.none",
        )
    return lane.rollout


async def _waiting_starts(client: NodeClient, lane: Lane) -> list[str]:
    """Return the changes of a lane whose starts wait on the asked node."""
    views = await client.read_all(ChangeView, "/v1/changes", project=lane.project, environment=lane.environment)
    return [view.id for view in views if view.start is not None and view.start.outcome == "waiting"]


async def _migrating(client: NodeClient, deployed: Deployed) -> tuple[str, ...]:
    """Return the apps of a release that migrate their data; none where its configuration is not to be had."""
    try:
        effective = await effective_at(client, deployed.configuration)
    except CommandError:
        return ()
    return tuple(app.name for app in effective.apps if app.migrates)


async def decide(
    client: NodeClient, context: contexts.Context, lane: Lane, action: Action, *, statements: tuple[bytes, ...] = ()
) -> int:
    """Sign an action on a lane with the everyday key and have it decided."""
    signer = contexts.open_plain(context.key)
    return await client.decide(
        signer,
        action,
        project=lane.project,
        environment=lane.environment,
        expect=lane.sequence,
        exhibits=Exhibits(statements=tuple(bytes(digest(statement)) for statement in statements)),
        material=statements,
    )


def _run(
    output: Output,
    context_name: str | None,
    project: str | None,
    environment: str,
    step: Step,
    done: str,
    otherwise: str = "nothing to do, it is there already",
) -> None:
    _, context = contexts.current_context(context_name)

    async def conversation(client: NodeClient) -> tuple[int, Lane]:
        lane = await find_lane(client, project or project_here() or None, environment)
        return await step(client, context, lane), lane

    output.live(VOTERS_DECIDE)
    slot, lane = talk(context, conversation)
    text = f"{done} (decision {slot})" if slot else otherwise
    output.result(
        {"slot": slot, "project": lane.project, "environment": lane.environment},
        f"{lane.project} in {lane.environment}: {text}",
    )
    output.hint("freehold status")


@command("promote", examples=("freehold promote", "freehold promote --project guestbook --env staging"))
@_lane_options
def promote(output: Output, project: str | None, environment: str, context_name: str | None) -> None:
    """Take the rollout to its next stage. The mesh refuses that while health forbids it."""

    async def step(client: NodeClient, context: contexts.Context, lane: Lane) -> int:
        rollout = _rollout_of(lane)
        path = f"/v1/lanes/{lane.project}/{lane.environment}/statements"
        statements: tuple[bytes, ...] = tuple(decode(await client.get_bytes(path), tuple[bytes, ...]))
        return await decide(client, context, lane, Promote(rollout.id, rollout.stage), statements=statements)

    _run(output, context_name, project, environment, step, "promoted")


@command("pause", examples=('freehold pause -m "looking at the graphs"',))
@click.option("-m", "--message", default="", help="Why; kept with the decision.")
@_lane_options
def pause(output: Output, message: str, project: str | None, environment: str, context_name: str | None) -> None:
    """Hold the rollout where it is."""

    async def step(client: NodeClient, context: contexts.Context, lane: Lane) -> int:
        return await decide(client, context, lane, Pause(_rollout_of(lane).id, message))

    _run(output, context_name, project, environment, step, "paused")


@command("resume", examples=("freehold resume",))
@_lane_options
def resume(output: Output, project: str | None, environment: str, context_name: str | None) -> None:
    """Continue a paused rollout; its stage opens anew."""

    async def step(client: NodeClient, context: contexts.Context, lane: Lane) -> int:
        return await decide(client, context, lane, Resume(_rollout_of(lane).id))

    _run(output, context_name, project, environment, step, "resumed")


@command("abort", examples=('freehold abort -m "wrong release"',))
@click.option("-m", "--message", default="", help="Why; kept with the decision.")
@_lane_options
def abort(output: Output, message: str, project: str | None, environment: str, context_name: str | None) -> None:
    """End the rollout; every node returns to the release it had. A start that still waits is withdrawn."""

    async def step(client: NodeClient, context: contexts.Context, lane: Lane) -> int:
        waiting = [] if lane.rollout is not None else await _waiting_starts(client, lane)
        for change in waiting:
            await client.withdraw(change)
            output.note(f"  the start of change {change[:12]} is withdrawn; it waited on the node that took it")
        if waiting:
            return 0
        return await decide(client, context, lane, Abort(_rollout_of(lane).id, message))

    _run(output, context_name, project, environment, step, "aborted", "its start is withdrawn")


@command("rollback", examples=('freehold rollback -m "orders fail"', 'freehold rollback 3f9a12 -m "back to Monday"'))
@click.argument("release", default="")
@click.option("-m", "--message", required=True, help="Why; kept with the decision.")
@_lane_options
def rollback(
    output: Output, release: str, message: str, project: str | None, environment: str, context_name: str | None
) -> None:
    """Return to an earlier release at once: code, configuration and secret versions together.

    RELEASE is a prefix of a release's or change's digest from `freehold releases`; by default the one before. Asked for
    twice it is one rollback: the second finds the lane there already, decides nothing and says so (`slot` 0).
    """

    async def step(client: NodeClient, context: contexts.Context, lane: Lane) -> int:
        target = await rollback_target(client, lane, release)
        if target is None:
            return 0
        left = lane.rollout.candidate if lane.rollout is not None else lane.base
        slot = await decide(client, context, lane, Rollback(target.change, message))
        for app in await _migrating(client, left) if left is not None else ():
            output.warn(f"the data of app {app} stays as the release that is left migrated it")
        return slot

    _run(output, context_name, project, environment, step, f"rolled back to {release or 'the release before'}")
