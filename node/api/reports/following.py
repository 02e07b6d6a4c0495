"""Operations that follow what goes on: log lines, of this node or of another, and the feed of events.

Answers are server-sent events (WHATWG HTML, section 9.2) with a comment now and then, so that a reader that has gone is
noticed. Not here: what is told (node/feed.py, node/journal/logs.py), and which of it a caller sees (scope.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from aiohttp import web

from node.api.callers.objects import of_event, of_line
from node.api.callers.scope import covered
from node.api.operations import Call, Operation, Parameter
from node.api.problems import ProblemError, not_found
from node.control import Control
from node.feed import WATCHERS_MAX
from node.journal.logs import FOLLOWERS_MAX, LogFilter
from node.mesh.peer_questions import Ask
from node.transport import StreamError
from protocols.api_models import LogLines
from protocols.machine import PeerId

PEER_TIMEOUT_S = 10.0
LINES_MAX = 2_000
HEARTBEAT_S = 15.0
EVENT_ID_MAX = 24
ODD_MAX_BYTES = 2_000

_OPTIONAL_NAME = {"type": "string", "pattern": "^[a-z0-9-]{0,63}$"}
_OPTIONAL_PEER = {"type": "string", "pattern": "^([1-9A-HJ-NP-Za-km-z]{46,60})?$"}
_PROJECT = Parameter("project", _OPTIONAL_NAME, "only this project")
_ENVIRONMENT = Parameter("environment", _OPTIONAL_NAME, "only this environment")
_LIMIT = Parameter("limit", {"type": "integer", "minimum": 1, "maximum": LINES_MAX, "default": 100}, "how many")


async def logs(call: Call) -> LogLines | web.StreamResponse:
    """Return log lines of this node or of another, or follow them."""
    control: Control = call.node
    query = call.query
    if query.get("follow", False) and control.logs.followers >= FOLLOWERS_MAX:
        raise ProblemError(503, "request.busy", "too many follow", f"{FOLLOWERS_MAX} follow the logs", "try again")
    wanted = LogFilter(
        query.get("project", ""), query.get("app", ""), query.get("release", ""), query.get("contains", "")
    )
    named, limit = query.get("node", ""), query.get("limit", 100)
    if named and named != control.core.node:
        require_known(control, named)
        return await _peer_logs(call, PeerId(named), wanted, limit)
    recent = await control.logs.recent(wanted, limit, lambda line: covered(call.scope, of_line(line)))
    if not query.get("follow", False):
        return LogLines(tuple(one_line(line).decode() for line in recent))

    async def lines() -> AsyncIterator[bytes]:
        for line in recent:
            yield line
        async for line in control.logs.follow(wanted):
            if covered(call.scope, of_line(line)):
                yield line

    return await _stream(call, _log_frames(lines()))


async def _peer_logs(call: Call, named: PeerId, wanted: LogFilter, limit: int) -> LogLines | web.StreamResponse:
    control: Control = call.node
    follow = call.query.get("follow", False)
    ask = Ask("logs", wanted.project, wanted.app, wanted.release, wanted.contains, limit, follow)
    lines = (line async for line in control.asking.lines(named, ask) if covered(call.scope, of_line(line)))
    if follow:
        return await _stream(call, _log_frames(lines))
    try:
        async with asyncio.timeout(PEER_TIMEOUT_S):
            return LogLines(tuple([one_line(line).decode() async for line in lines]))
    except (StreamError, TimeoutError) as error:
        raise unreachable(named, error) from None


async def _log_frames(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for line in lines:
        yield b"event: log\ndata: " + one_line(line) + b"\n\n"


def one_line(line: bytes) -> bytes:
    """Return a log line as one object of JSON on one line, whatever was there: a frame within a frame would be believed."""
    try:
        return msgspec.json.encode(msgspec.json.decode(line, type=dict[str, Any]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        text = line[:ODD_MAX_BYTES].decode(errors="backslashreplace")
        return msgspec.json.encode({"level": "warn", "event": "log.odd", "message": text})


def require_known(control: Control, named: str) -> None:
    """Raise ProblemError 404 for a node that this one does not know."""
    if named not in control.core.trust.nodes():
        raise not_found("node", named, "freehold mesh members")


def unreachable(named: str, error: Exception) -> ProblemError:
    """What is told of a node that did not answer."""
    why = str(error) or "no answer in time"
    return ProblemError(503, "node.unreachable", "the node does not answer", f"{named}: {why}", "freehold mesh members")


async def events(call: Call) -> web.StreamResponse:
    """Follow records, decisions, members and rollouts."""
    control: Control = call.node
    if control.feed.watchers >= WATCHERS_MAX:
        raise ProblemError(503, "request.busy", "too many watch", f"{WATCHERS_MAX} watch this node", "try again")
    kinds = frozenset(filter(None, call.query.get("kind", "").split(",")))
    places = {name: call.query[name] for name in ("project", "environment") if call.query.get(name)}

    def wanted(kind: str, fields: dict[str, Any]) -> bool:
        asked = (not kinds or kind in kinds) and all(fields.get(name) == place for name, place in places.items())
        return asked and covered(call.scope, of_event(control, kind, fields))

    after = call.request.headers.get("Last-Event-ID", "")[:EVENT_ID_MAX] or call.query.get("after", "")
    return await _stream(call, control.feed.watch(wanted, after))


async def _stream(call: Call, frames: AsyncIterator[bytes]) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await answer.prepare(call.request)
    await answer.write(b": following\n\n")
    following = asyncio.ensure_future(_copy(frames, answer))
    try:
        while not (await asyncio.wait({following}, timeout=HEARTBEAT_S))[0]:
            await answer.write(b": still here\n\n")  # a quiet stream would never notice that the reader is gone
        following.result()
    except (ConnectionError, RuntimeError):
        pass
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    return answer


async def _copy(frames: AsyncIterator[bytes], answer: web.StreamResponse) -> None:
    async for frame in frames:
        await answer.write(frame)


FOLLOWING_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "logs", "GET", "/v1/logs", "Log lines of a node", logs, answer=LogLines, stream="asked",
        parameters=(
            Parameter("node", _OPTIONAL_PEER, "of this node; by default the one that is asked"),
            _PROJECT,
            Parameter("app", _OPTIONAL_NAME, "only this app"),
            Parameter("release", {"type": "string", "pattern": "^[0-9a-f]{0,64}$"}, "only this release, by prefix"),
            Parameter("contains", {"type": "string", "maxLength": 200}, "only lines with this text"),
            Parameter("follow", {"type": "boolean"}, "stream lines as they come"),
            _LIMIT,
        ),
    ),
    Operation(
        "events", "GET", "/v1/events", "Follow what happens", events, stream="always",
        parameters=(
            _PROJECT,
            _ENVIRONMENT,
            Parameter("kind", {"type": "string", "pattern": "^[a-z,]{0,200}$"}, "only these kinds, as decision,rollout"),
            Parameter("after", {"type": "string", "pattern": "^([0-9a-f]{8}-[0-9]{1,12})?$"},
                      "what came after this event's id; a client that resumes sends Last-Event-ID"),
        ),
    ),
)  # fmt: skip
