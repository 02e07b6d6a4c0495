"""The feed: what happens on this node and in its mesh, as server-sent events for whoever watches.

A watcher that does not read loses events, for it never makes the node wait. Not here: HTTP (api/), and any history.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from node.decisions.history import view_of
from protocols.chain.messages import EntryStored, Lied, Quarantined, Stalled
from protocols.core import NodeCore
from protocols.liveness import BeliefChanged
from protocols.records.gossip import RecordsMerged
from protocols.rollout.orders import Reverted, Run, Stop
from protocols.trust.hello import Cloned

Wanted = Callable[[str, dict[str, Any]], bool]
"""Whether a watcher is told of an event, by its kind and fields."""

WATCHERS_MAX = 128
WATCHER_EVENTS_MAX = 1_000
PROGRESS_LOOK_S = 1.0


class Feed:
    """Tells every watcher what the core notices, and how far rollouts are."""

    def __init__(self, core: NodeCore) -> None:
        """Take the core, to read how far rollouts are."""
        self._core = core
        self._watchers: dict[int, tuple[asyncio.Queue[bytes], Wanted]] = {}
        self._number = 0

    @property
    def watchers(self) -> int:
        """How many watch now."""
        return len(self._watchers)

    def hear(self, event: Any) -> None:
        """Take one of the core's notices."""
        if not self._watchers:
            return
        match event:
            case RecordsMerged(entries):
                for entry in entries:
                    self._tell("record", {"key": entry.record.key})
            case Cloned(peer):
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

    async def watch(self, wanted: Wanted) -> AsyncIterator[bytes]:
        """Yield wanted events as server-sent event frames, for ever. Raises RuntimeError when too many watch."""
        if len(self._watchers) >= WATCHERS_MAX:
            raise RuntimeError(f"at most {WATCHERS_MAX} watch one node at once")
        self._number += 1
        number = self._number
        queue: asyncio.Queue[bytes] = asyncio.Queue(WATCHER_EVENTS_MAX)
        self._watchers[number] = queue, wanted
        told: dict[tuple[str, str], dict[str, Any]] = {}
        loop = asyncio.get_running_loop()
        look_s = loop.time()
        try:
            while True:
                if loop.time() >= look_s:
                    look_s = loop.time() + PROGRESS_LOOK_S
                    seen = self._progress()
                    for lane in [
                        lane for lane in seen if told.get(lane) != seen[lane] and wanted("rollout", seen[lane])
                    ]:
                        yield _frame("rollout", seen[lane])
                    told = seen
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(look_s):
                        frame = await queue.get()
                    yield frame
        finally:
            del self._watchers[number]

    def _progress(self) -> dict[tuple[str, str], dict[str, Any]]:
        """How far each rollout is: what nodes say of its open stage changes between two decisions."""
        found = {}
        for lane in self._core.state.lanes:
            rollout = lane.rollout
            if rollout is not None:
                said = self._core.agent.conductor.verdicts(rollout.id, rollout.opened)
                found[lane.project, lane.environment] = {
                    "project": lane.project,
                    "environment": lane.environment,
                    "rollout": rollout.id.hex(),
                    "stage": rollout.stage,
                    "stages": len(rollout.stages),
                    "paused": rollout.paused,
                    "verdicts": {node: verdict.verdict for node, verdict in sorted(said.items())},
                }
        return found

    def _tell(self, kind: str, fields: dict[str, Any]) -> None:
        frame = _frame(kind, fields)
        for queue, wanted in self._watchers.values():
            if not queue.full() and wanted(kind, fields):
                queue.put_nowait(frame)


def _frame(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(fields) + b"\n\n"
