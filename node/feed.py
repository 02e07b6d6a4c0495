"""The feed: what happens on this node and in its mesh, as server-sent events for whoever watches.

A watcher that does not read loses events, for it never makes the node wait; one that comes
back with the id of its last event hears what it missed, of the newest thousand. Not here: HTTP (api/).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from node.decisions.history import view_of
from node.decisions.start_queue import Waiting
from protocols.chain.messages import EntryStored, Lied, Quarantined, Stalled
from protocols.core import NodeCore
from protocols.liveness import BeliefChanged
from protocols.machine import Digest
from protocols.records.gossip import RecordsMerged
from protocols.rollout.orders import Reverted, Run, Stop
from protocols.trust.hello import PeerCloned

Wanted = Callable[[str, dict[str, Any]], bool]
"""Whether a watcher is told of an event, by its kind and fields."""

WATCHERS_MAX = 128
WATCHER_EVENTS_MAX = 1_000
RECENT_MAX = 1_000
PROGRESS_LOOK_S = 1.0


class Feed:
    """Tells every watcher what the core notices, how far rollouts are, and what starts wait for."""

    def __init__(self, core: NodeCore, starts: Mapping[Digest, Waiting] = MappingProxyType({})) -> None:
        """Take the core, to read how far rollouts are, and the starts that this node holds."""
        self._core, self._starts = core, starts
        self._watchers: dict[int, tuple[asyncio.Queue[bytes], Wanted]] = {}
        self._number = 0
        self._boot = secrets.token_hex(4)
        self._events = 0
        self._recent: deque[tuple[int, str, dict[str, Any]]] = deque(maxlen=RECENT_MAX)
        """The newest events, for watchers who come back: their ids begin with this process's own name."""

    @property
    def watchers(self) -> int:
        """How many watch now."""
        return len(self._watchers)

    def hear(self, event: Any) -> None:
        """Take one of the core's notices."""
        match event:
            case RecordsMerged(entries):
                for entry in entries:
                    self._tell("record", {"key": entry.record.key})
            case PeerCloned(peer):
                self._tell("cloned", {"node": peer})
            case Quarantined(reason, _):
                self._tell("quarantined", {"reason": reason})
            case EntryStored(slot, entry):
                self._tell("decision", msgspec.to_builtins(view_of(slot, entry)))
            case BeliefChanged(peer, belief, _, _):
                self._tell("member", {"node": peer, "belief": belief.value})
            case Reverted(project, environment, rollout, reason):
                lane = {"project": project, "environment": environment}
                self._tell("reverted", {**lane, "rollout": rollout.hex(), "reason": reason})
            case Run(project, environment, deployed, role, _):
                lane = {"project": project, "environment": environment}
                self._tell("run", {**lane, "release": deployed.release.hex(), "role": role})
            case Stop(project, environment):
                self._tell("stop", {"project": project, "environment": environment})
            case Lied() | Stalled():
                self._tell(type(event).__name__.lower(), {})
            case _:
                pass

    def _missed(self, after: str, wanted: Wanted) -> list[bytes]:
        """What came after an event id, or one event `gap` where that is not known any more: look at everything anew."""
        boot, _, number = after.partition("-")
        oldest = self._recent[0][0] if self._recent else self._events + 1
        if boot != self._boot or not number.isdecimal() or not oldest - 1 <= int(number) <= self._events:
            return [_frame("gap", {"after": after})]
        return [
            _frame(kind, fields, f"{self._boot}-{count}")
            for count, kind, fields in self._recent
            if count > int(number) and wanted(kind, fields)
        ]

    async def watch(self, wanted: Wanted, after: str = "") -> AsyncIterator[bytes]:
        """Yield wanted events as server-sent event frames, for ever; first those after the event whose id is `after`.

        Raises RuntimeError when too many watch.
        """
        if len(self._watchers) >= WATCHERS_MAX:
            raise RuntimeError(f"at most {WATCHERS_MAX} watch one node at once")
        self._number += 1
        number = self._number
        queue: asyncio.Queue[bytes] = asyncio.Queue(WATCHER_EVENTS_MAX)
        missed = self._missed(after, wanted) if after else []
        self._watchers[number] = queue, wanted
        told: dict[tuple[str, ...], dict[str, Any]] = {}
        loop = asyncio.get_running_loop()
        look_s = loop.time()
        try:
            for frame in missed:
                yield frame
            while True:
                if loop.time() >= look_s:
                    look_s = loop.time() + PROGRESS_LOOK_S
                    seen = self._progress()
                    for what, fields in seen.items():
                        if told.get(what) != fields and wanted(what[0], fields):
                            yield _frame(what[0], fields)
                    told = seen
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(look_s):
                        frame = await queue.get()
                    yield frame
        finally:
            del self._watchers[number]

    def _progress(self) -> dict[tuple[str, ...], dict[str, Any]]:
        """What goes on between two decisions, by its kind and what it is about.

        Of each rollout what nodes say of its open stage, and of each start whether it waits, and for what.
        """
        document: dict[tuple[str, ...], dict[str, Any]] = {}
        for lane in self._core.state.lanes:
            rollout = lane.rollout
            if rollout is not None:
                said = self._core.agent.conductor.verdicts(rollout.id, rollout.opened)
                document["rollout", lane.project, lane.environment] = {
                    "project": lane.project,
                    "environment": lane.environment,
                    "rollout": rollout.id.hex(),
                    "stage": rollout.stage,
                    "stages": len(rollout.stages),
                    "paused": rollout.paused,
                    "verdicts": {node: verdict.verdict for node, verdict in sorted(said.items())},
                }
        for change, waiting in self._starts.items():
            proposed = self._core.dossiers.changes.get(change)
            if proposed is not None:
                document["start", change.hex()] = {
                    "project": proposed.change.project,
                    "environment": proposed.change.environment,
                    "change": change.hex(),
                    "outcome": waiting.outcome,
                    "rule": waiting.refusal.rule,
                }
        return document

    def _tell(self, kind: str, fields: dict[str, Any]) -> None:
        self._events += 1
        self._recent.append((self._events, kind, fields))
        frame = _frame(kind, fields, f"{self._boot}-{self._events}")
        for queue, wanted in self._watchers.values():
            if not queue.full() and wanted(kind, fields):
                queue.put_nowait(frame)


def _frame(kind: str, fields: dict[str, Any], number: str = "") -> bytes:
    head = b"id: " + number.encode() + b"\n" if number else b""
    return head + b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(fields) + b"\n\n"
