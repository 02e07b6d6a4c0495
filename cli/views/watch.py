"""Watching a rollout until it ends: live lines for a person, and how it ended for the exit code.

Reads the lane and the change twice a second; prints only what changed, with the numbers behind it, and of a release that
failed the last log lines. Not here: anything
that moves the rollout.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cli.access.client import NodeClient
from cli.access.members import members_of
from cli.errors import CommandError, ExitCode
from cli.text.foreign import foreign, plain
from cli.text.output import Output
from cli.text.units import counted
from cli.views import lane_status
from cli.views.log_lines import LogEntry, described, read
from protocols.api_models import ChangeView, LaneView, LogLines

VOTERS_DECIDE = "the voters decide"
"""What the moving line says while a command waits for a decision."""
LOOK_EVERY_S = 0.5
LOG_LINES_ASKED = 100
LAST_WORDS_MAX = 24
LINES_DROPPED = "log.dropped"
APPROVAL_MISSING = "approval.missing"
NOT_PREPARED = "not-prepared"
ROLLED_BACK = "rolled-back"
UNREADY_PATIENCE_S = 60.0
"""While a node tries again to prepare a change: it does so after 5, 15 and 35 seconds."""

UNPREPARED = "rollout.not-prepared"
TELL_UNPREPARED_AFTER_S = 5.0
"""Before, nodes are expected to fetch and compile; from then on a person wants to know whom a start waits for, and why."""

UNKNOWN = "start.unknown"
"""The rule of a start that no majority has answered."""


class RolledBackError(CommandError):
    """The rollout went back."""

    exit_code = ExitCode.ROLLED_BACK


class AwaitingApprovalError(CommandError):
    """The change waits for people."""

    exit_code = ExitCode.AWAITING_APPROVAL


class RefusedStartError(CommandError):
    """The start was refused for good."""

    exit_code = ExitCode.REFUSED_BY_POLICY


@dataclass(frozen=True, slots=True)
class Watched:
    """How a rollout ended: "succeeded", "paused", or "waiting" when the time ran out."""

    outcome: str
    seconds: float


def short(name: str) -> str:
    """The last letters of a node's or digest's name: enough to tell a mesh's nodes apart."""
    return name[-6:] if name.startswith("12D3") else name[:12]


async def watch_change(
    client: NodeClient,
    output: Output | None,
    change: str,
    *,
    wait_s: float,
    patience_s: float,
    look_every_s: float = LOOK_EVERY_S,
) -> Watched:
    """Watch a change from its start to its end. `patience_s` bounds the wait for people, `wait_s` the whole.

    Nodes that are asked for evidence give it while they prepare: patience for it begins when the first has prepared.
    Without an `output` nothing is told on the way.

    Raises AwaitingApprovalError, RefusedStartError or RolledBackError for the ends that are no success.
    """
    try:
        return await _watch(client, output, change, wait_s=wait_s, patience_s=patience_s, look_every_s=look_every_s)
    except (RolledBackError, RefusedStartError) as failed:
        if output is not None and failed.kind in (ROLLED_BACK, NOT_PREPARED):
            await _tell_last_words(client, output, await client.read(ChangeView, f"/v1/changes/{change}"))
        raise


async def _watch(
    client: NodeClient, output: Output | None, change: str, *, wait_s: float, patience_s: float, look_every_s: float
) -> Watched:
    began_s = answered_s = time.monotonic()
    told: list[str] = []
    was_candidate = False
    unprepared_s = asked_s = 0.0
    names = {member.node: member.name or short(member.node) for member in await members_of(client)}
    view = await client.read(ChangeView, f"/v1/changes/{change}")
    while True:
        # The lane first: what the change became is then at least as new as the end of its rollout.
        lane = await client.read(LaneView, f"/v1/lanes/{view.project}/{view.environment}")
        view = await client.read(ChangeView, f"/v1/changes/{change}")
        elapsed_s = time.monotonic() - began_s
        lines = _lines(view, lane, names)
        if output is not None and elapsed_s > asked_s + TELL_UNPREPARED_AFTER_S:
            asked_s = elapsed_s
            lines += await unprepared_words(client, view, names)
        _tell_new(output, lines, told, elapsed_s)
        if output is not None:
            output.live(_standing(view, lane))
        rollout = lane.rollout
        mine = rollout if rollout is not None and rollout.change == change else None
        was_candidate = was_candidate or mine is not None
        if view.state == "base" and mine is None:
            return Watched("succeeded", elapsed_s)
        if mine is not None and mine.paused:
            return Watched("paused", elapsed_s)
        if was_candidate and mine is None:
            raise RolledBackError(
                f"rolled back: {lane.last_abort or 'the rollout was aborted'}",
                next_step=f"freehold logs --project {view.project}",
                kind=ROLLED_BACK,
            )
        start = view.start
        if start is None or start.outcome != "waiting" or start.rule != UNKNOWN:
            answered_s = time.monotonic()
        elif time.monotonic() - answered_s > patience_s:
            raise CommandError(
                f"no majority of voters answers: {start.detail}; the node goes on trying, so it may still start",
                next_step="freehold mesh members",
                kind="unknown-outcome",
            )
        if not view.prepared:
            unprepared_s = elapsed_s
        judge_start(view, elapsed_s, unprepared_s, patience_s)
        if elapsed_s > wait_s:
            return Watched("waiting", elapsed_s)
        await asyncio.sleep(look_every_s)


def judge_start(view: ChangeView, elapsed_s: float, unprepared_s: float, patience_s: float) -> None:
    """Raise CommandError if a start is refused, or waits for what the command does not wait for."""
    start = view.start
    if start is None or start.outcome == "started" or view.state in {"candidate", "base"}:
        return
    if start.outcome == "refused":
        raise RefusedStartError(
            f"{start.rule}: {start.detail}", next_step="freehold diff, then deploy again", kind=start.rule
        )
    if view.failure and not (view.tries_again and elapsed_s <= max(patience_s, UNREADY_PATIENCE_S)):
        raise RefusedStartError(
            f"the release cannot be prepared: {view.failure}",
            next_step=f"freehold logs --project {view.project}",
            kind=NOT_PREPARED,
        )
    rule = str(start.rule)
    if rule == APPROVAL_MISSING and elapsed_s > patience_s:
        raise AwaitingApprovalError(
            f"{rule}: {start.detail}", next_step=f"freehold approve {view.id[:12]}", kind="awaiting-approval"
        )
    step = lane_status.step_for(rule, view.id)
    waited_s = elapsed_s - (unprepared_s if rule.startswith("evidence.") else 0)
    if step and waited_s > patience_s:
        raise RefusedStartError(f"{rule}: {start.detail}", next_step=step, kind=rule)


def _lines(view: ChangeView, lane: LaneView, names: Mapping[str, str]) -> list[str]:
    """What a person should know, one sentence each; the same sentence while nothing of it has changed."""
    texts = []
    start = view.start
    if start is not None and start.outcome == "waiting" and start.rule not in lane_status.QUIET:
        texts.append(f"waiting: {start.detail}")
    if view.failure and view.tries_again:
        texts.append(f"waiting: {view.failure}")
    texts += [f"{names.get(node, short(node))} has fetched, compiled and tried it" for node in view.prepared]
    rollout = lane.rollout
    if rollout is not None and rollout.change == view.id:
        number, sizes = rollout.stage, rollout.stages
        cohort = ", ".join(names.get(node, short(node)) for node in rollout.cohort)
        texts.append(f"stage {number + 1} of {len(sizes)}: {sizes[number]} of {sizes[-1]} nodes ({cohort})")
        for verdict in rollout.verdicts:
            if verdict.node in rollout.cohort and verdict.verdict != "pending":
                said = f"fails: {verdict.reason}" if verdict.verdict == "fail" else "stays up"
                numbers = f"{counted(verdict.errors, 'error')} in {counted(verdict.requests, 'request')}"
                texts.append(f"  {names.get(verdict.node, short(verdict.node))} {said}, {numbers}")
        if rollout.paused:
            texts.append(f"paused: {rollout.paused}")
    return texts


def _standing(view: ChangeView, lane: LaneView) -> str:
    """Where it stands now, in one line that moves."""
    rollout = lane.rollout
    if rollout is None or rollout.change != view.id:
        start = view.start
        if start is not None and start.rule.partition(".")[0] in {"approval", "evidence", "window"}:
            return "waiting for people"
        return f"the nodes prepare it: fetch, compile, smoke checks ({len(view.prepared)} are done)"
    cohort = [verdict for verdict in rollout.verdicts if verdict.node in rollout.cohort]
    up = sum(verdict.verdict == "pass" for verdict in cohort)
    errors, requests = sum(verdict.errors for verdict in cohort), sum(verdict.requests for verdict in cohort)
    stage = f"stage {rollout.stage + 1} of {len(rollout.stages)}"
    tally = f"{counted(errors, 'error')} in {counted(requests, 'request')}"
    return f"{stage}: {up} of {counted(len(rollout.cohort), 'node')} up, {tally}"


def _tell_new(output: Output | None, lines: Iterable[str], told: list[str], elapsed_s: float) -> None:
    for line in lines:
        if output is not None and line not in told:
            told.append(line)
            output.happened(f"{elapsed_s:5.1f} s  {line}")


async def unprepared_words(client: NodeClient, view: ChangeView, names: Mapping[str, str]) -> list[str]:
    """Say of each node that a start waits for why it has not prepared the change: it is down, it cannot, or it is at it."""
    start = view.start
    if start is None or start.outcome != "waiting" or start.rule != UNPREPARED:
        return []
    texts = []
    for member in await members_of(client):
        if member.node not in start.detail:
            continue
        if member.belief == lane_status.DOWN:
            why = "it is down"
        else:
            why = await _why_unprepared(client, member.node, view.id) or "it fetches, compiles and tries it"
        texts.append(f"{names.get(member.node, short(member.node))} has not prepared it yet: {why}")
    return texts


async def _why_unprepared(client: NodeClient, node: str, change: str) -> str:
    """What a node said last of why it cannot prepare a change; nothing if it said nothing, or does not answer."""
    try:
        page = await client.read(LogLines, "/v1/logs", node=node, contains=change, limit=LOG_LINES_ASKED)
    except CommandError as error:
        return f"it does not answer ({error})"
    entries = (read(plain(line).encode()) for line in page.lines)
    said = [entry for entry in entries if entry.get("event") == "prepare.failed"]
    return str(foreign(said[-1].get("message", ""))).removeprefix("not prepared: ") if said else ""


async def _tell_last_words(client: NodeClient, output: Output, view: ChangeView) -> None:
    """Show what the release that failed wrote last, so that nobody has to search for it. Silent nodes are left out."""
    rows: list[LogEntry] = []
    for node in [member.node for member in await members_of(client)]:
        try:
            page = await client.read(
                LogLines, "/v1/logs", node=node, project=view.project, release=view.release, limit=LOG_LINES_ASKED
            )
        except CommandError:
            continue
        rows += [entry for entry in (read(plain(line).encode()) for line in page.lines) if _is_bad_news(entry)]
    words = last_words(rows)
    if words:
        output.note("the last that it wrote:")
    for entry, times in words:
        output.line(described(entry) + (f"  ({times} times)" if times > 1 else ""))


def last_words(entries: Iterable[LogEntry]) -> list[tuple[LogEntry, int]]:
    """Return the newest LAST_WORDS_MAX different things said, oldest first, and how often: failing visitors repeat one."""
    said: dict[tuple[str, ...], tuple[LogEntry, int]] = {}
    for entry in sorted(entries, key=lambda entry: str(entry.get("time", ""))):
        key = tuple(str(entry.get(name, "")) for name in ("app", "stream", "event", "message"))
        said[key] = (entry, said.pop(key, (entry, 0))[1] + 1)
    return list(said.values())[-LAST_WORDS_MAX:]


def _is_bad_news(entry: LogEntry) -> bool:
    if entry.get("event") == LINES_DROPPED:
        return False  # it says that more was written, and everybody who reads this knows that
    return entry.get("stream") == "guest" or entry.get("level") in {"warn", "error", "critical"}
