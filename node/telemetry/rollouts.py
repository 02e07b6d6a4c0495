"""Spans of decisions and of rollouts with their stages, as this node came to know of them.

A rollout's trace id follows from its id, so that what all nodes tell of it is one trace; every node's spans hang below its
own. Times are those of the decisions, by their proposers' clocks. Not here: sending.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from node.decisions.history import NOOP_ACTION, view_of
from protocols.api_models import DecisionView
from protocols.chain.messages import EntryStored
from protocols.core import NodeCore
from protocols.machine import PeerId
from protocols.state.model import Lane, Rollout
from runtime.services.spans import Span, Value

MS = 1_000_000


class RolloutSpans:
    """Follows the chain; what was under way when the process began is told from its decided start."""

    def __init__(self, core: NodeCore) -> None:
        """Take the core to read."""
        self._core = core
        self._open: dict[tuple[str, str], Rollout] = {}

    def begin(self) -> None:
        """Take what is under way, before anything new is decided."""
        self._open = {_key(lane): lane.rollout for lane in self._core.state.lanes if lane.rollout is not None}

    def hear(self, event: Any, wall_ms: int) -> Iterator[Span]:
        """Yield the spans that one of the core's notices ends."""
        if not isinstance(event, EntryStored):
            return
        view = view_of(event.slot, event.entry)
        lanes = {_key(lane): lane for lane in self._core.state.lanes}
        before = self._open
        self._open = {key: lane.rollout for key, lane in lanes.items() if lane.rollout is not None}
        here = (view.project, view.environment)
        if view.action not in {NOOP_ACTION, "reset"}:
            yield self._decision(view, before.get(here) or self._open.get(here), wall_ms)
        at_ms = view.at_ms or wall_ms
        for key, rollout in before.items():
            now = self._open.get(key)
            same = now is not None and now.id == rollout.id
            if now is None or not same or now.opened != rollout.opened:
                yield self._stage(key, rollout, at_ms)
            if not same:
                yield self._whole(key, rollout, lanes.get(key), at_ms)

    def _decision(self, view: DecisionView, rollout: Rollout | None, wall_ms: int) -> Span:
        parent = self._name(rollout.id, "rollout") if rollout is not None else ""
        trace = rollout.id if rollout is not None else f"{self._core.trust.mesh.hex()} {view.slot}".encode()
        attributes: dict[str, Value] = {
            "freehold.slot": view.slot, "freehold.action": view.action, "freehold.project": view.project,
            "deployment.environment.name": view.environment, "freehold.voters": len(view.voters),
        }  # fmt: skip
        if view.reason:
            attributes["freehold.reason"] = view.reason
        return Span(
            trace_id=_trace(trace), span_id=self._name(trace, f"decision {view.slot}"), parent_id=parent,
            name=f"decision {view.action}", began_ns=view.at_ms * MS, ended_ns=max(wall_ms, view.at_ms) * MS,
            attributes=attributes,
        )  # fmt: skip

    def _stage(self, key: tuple[str, str], rollout: Rollout, at_ms: int) -> Span:
        return Span(
            trace_id=_trace(rollout.id), span_id=self._name(rollout.id, f"stage {rollout.opened}"),
            parent_id=self._name(rollout.id, "rollout"), name=f"stage {rollout.stage + 1} of {len(rollout.stages)}",
            began_ns=rollout.stage_at_ms * MS, ended_ns=at_ms * MS,
            attributes={
                "freehold.project": key[0], "deployment.environment.name": key[1],
                "freehold.stage": rollout.stage + 1, "freehold.nodes": len(rollout.cohort),
            },
        )  # fmt: skip

    def _whole(self, key: tuple[str, str], rollout: Rollout, lane: Lane | None, at_ms: int) -> Span:
        reached = lane is not None and lane.base is not None and lane.base.change == rollout.candidate.change
        return Span(
            trace_id=_trace(rollout.id), span_id=self._name(rollout.id, "rollout"), name=f"rollout {key[0]} {key[1]}",
            began_ns=rollout.started_at_ms * MS, ended_ns=at_ms * MS, failed="" if reached else "it was taken back",
            attributes={
                "freehold.project": key[0], "deployment.environment.name": key[1],
                "freehold.release": rollout.candidate.release.hex(), "freehold.change": rollout.candidate.change.hex(),
            },
        )  # fmt: skip

    def _name(self, of: bytes, what: str) -> str:
        return span_name(of, self._core.node, what)


def span_name(of: bytes, node: PeerId, what: str) -> str:
    """Return the id of a node's span: the same whenever it tells of the same thing again."""
    return hashlib.sha256(b"\0".join((of, node.encode(), what.encode()))).hexdigest()[:16]


def _trace(of: bytes) -> str:
    return hashlib.sha256(b"trace\0" + of).hexdigest()[:32]


def _key(lane: Lane) -> tuple[str, str]:
    return lane.project, lane.environment
