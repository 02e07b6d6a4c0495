"""What webhooks are told of: read from the decisions since the last look, and from what holds now and did not before.

Nothing is lost with the process: decisions lie in the chain, and what holds is found again. So a webhook needs to keep
only where it looked last, and what it was told that still holds. Not here: delivering.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from node.decisions.history import History
from node.mesh.presence import status_of
from node.webhooks.model import HookFile, Message
from protocols.api_models import DecisionView
from protocols.api_outward import WebhookKind
from protocols.core import NodeCore
from protocols.liveness import Belief
from protocols.machine import Digest, PeerId
from protocols.rollout.dossiers import Proposed
from protocols.trust.grants import Rights

OLD_MS = 24 * 3_600_000
"""What was decided longer ago is no news: a node that was away does not tell of last week."""
APPROVABLE_MS = 7 * 86_400_000
ENDING_MS = 14 * 86_400_000
REQUEST_MAX_CHARS = 300
CHANGES_LOOKED_AT_MAX = 1_000
"""The newest: each costs signature checks when something changed for it."""

NO_MORE = frozenset({"change.base-moved", "change.policy-moved"})
"""Rules that no approval mends: the change is proposed anew."""

LackOf = Callable[[Proposed], tuple[str, ...]]
"""The rules by which a change may not start yet; empty: it may."""

_OF_ACTION: dict[str, WebhookKind] = {
    "start": "rollout.started", "pause": "rollout.paused", "resume": "rollout.resumed", "abort": "rollout.aborted",
    "rollback": "rollout.rolled-back",
}  # fmt: skip


@dataclass
class Sight:
    """What holds at one moment, by what it is told by; `bases` is the change that runs in each lane."""

    holds: dict[str, Message] = field(default_factory=dict)
    bases: dict[str, str] = field(default_factory=dict)


class Occasions:
    """Finds them in one node. `lack_of` is asked for each proposed change until it is decided what it lacks."""

    def __init__(self, core: NodeCore, history: History, lack_of: LackOf) -> None:
        """Take what is read."""
        self._core, self._history, self._lack_of = core, history, lack_of
        self._looked: dict[Digest, tuple[tuple[int, int, int], bool]] = {}
        """Whether a change waits for an approval, and as of which decision, hour and count of approvals."""

    @property
    def slot(self) -> int:
        """The newest decision."""
        return self._core.chain.position.slot

    def standing(self, wall_ms: int) -> Sight:
        """What holds now."""
        sight = Sight()
        for lane in self._core.state.lanes:
            if lane.base is not None:
                sight.bases[f"{lane.project}/{lane.environment}"] = lane.base.change.hex()
        for key, message in (*self._approvals(wall_ms), *self._nodes(wall_ms), *self._endings(wall_ms)):
            sight.holds[key] = message
        return sight

    def since(self, file: HookFile, standing: Sight, wall_ms: int) -> list[Message]:
        """Return what a webhook is to be told now, oldest first; note in its file that it was."""
        messages, rolled_back = [], set()
        newest = self.slot
        file.slot = min(file.slot, newest)  # a new era began before what was looked at
        for slot in range(file.slot + 1, newest + 1):
            view = self._history.decision(slot)
            kind = _OF_ACTION.get(view.action)
            if view.action == "rollback":
                rolled_back.add(f"{view.project}/{view.environment}")
            if kind is not None and wall_ms - view.at_ms < OLD_MS:
                messages.append(self._decided(kind, view))
        file.slot = newest
        for lane, change in standing.bases.items():
            if file.bases.get(lane) != change and lane not in rolled_back:
                project, _, environment = lane.partition("/")
                data = {"project": project, "environment": environment, "change": change}
                messages.append(self._message("rollout.succeeded", wall_ms, f"{lane} {change} {newest}", data))
        file.bases = dict(standing.bases)
        told = set(file.told)
        for key, message in standing.holds.items():
            if key not in told:
                messages.append(message)
        for key in file.told:
            if key.startswith("down ") and key not in standing.holds and self._is_member(key):
                name = self._name(PeerId(key.partition(" ")[2]))
                messages.append(self._message("node.up", wall_ms, f"{key} {wall_ms}", name))
        file.told = list(standing.holds)
        return messages

    def _decided(self, kind: WebhookKind, view: DecisionView) -> Message:
        data = {
            "project": view.project, "environment": view.environment, "slot": str(view.slot), "reason": view.reason,
        }  # fmt: skip
        named = "change" if kind in {"rollout.started", "rollout.rolled-back"} else "rollout"
        return self._message(kind, view.at_ms, f"{view.slot}", {**data, named: view.subject})

    def _approvals(self, wall_ms: int) -> Iterator[tuple[str, Message]]:
        core = self._core
        held = core.dossiers.changes.values()
        recent = [proposed for proposed in held if wall_ms - proposed.change.created_ms < APPROVABLE_MS]
        for proposed in heapq.nlargest(CHANGES_LOOKED_AT_MAX, recent, key=lambda one: one.change.created_ms):
            change = proposed.change
            if not self._waits(proposed, wall_ms):
                continue
            data = {
                "project": change.project, "environment": change.environment, "change": proposed.id.hex(),
                "request": change.request[:REQUEST_MAX_CHARS], "author": core.dossiers.name_of(change.author, wall_ms),
                "next": f"freehold approve {proposed.id.hex()[:12]}",
            }  # fmt: skip
            message = self._message("approval.needed", change.created_ms, proposed.id.hex(), data)
            yield f"approval {proposed.id.hex()}", message
        self._looked = {digest: seen for digest, seen in self._looked.items() if digest in core.dossiers.changes}

    def _waits(self, proposed: Proposed, wall_ms: int) -> bool:
        """Whether a change lacks an approval and could start with it."""
        as_of = self.slot, wall_ms // 3_600_000, len(self._core.dossiers.approvals(proposed.id))
        seen = self._looked.get(proposed.id)
        if seen is not None and seen[0] == as_of:
            return seen[1]
        lack = self._lack_of(proposed)
        waits = any(rule.startswith("approval") for rule in lack) and NO_MORE.isdisjoint(lack)
        if "release.absent" not in lack:  # what it names may still be on its way
            self._looked[proposed.id] = as_of, waits
        return waits

    def _nodes(self, wall_ms: int) -> Iterator[tuple[str, Message]]:
        core = self._core
        for node in core.state.nodes:
            if node.node != core.node and core.liveness.belief(node.node) is Belief.DOWN:
                key = f"down {node.node}"
                yield key, self._message("node.down", wall_ms, f"{key} {wall_ms}", self._name(node.node))

    def _endings(self, wall_ms: int) -> Iterator[tuple[str, Message]]:
        core = self._core
        for expiring in core.trust.expiring(wall_ms):
            key = f"certificate {expiring.node} {expiring.expires_ms}"
            data = {**self._name(expiring.node), "ends": _moment(expiring.expires_ms)}
            yield key, self._message("certificate.ending", wall_ms, key, data)
        for principal in core.dossiers.principals():
            rights = core.dossiers.rights(principal, wall_ms)
            if not isinstance(rights, Rights) or rights.kind != "person":
                continue  # an agent's ends by intent, most after a day
            ends_ms = max(entry.expires_ms for entry in rights.each)
            if ends_ms - wall_ms < ENDING_MS:
                key = f"grant {principal.hex()} {ends_ms}"
                data = {"name": rights.name, "key": principal.hex(), "ends": _moment(ends_ms)}
                yield key, self._message("grant.ending", wall_ms, key, data)

    def _is_member(self, key: str) -> bool:
        return any(key == f"down {node.node}" for node in self._core.state.nodes)

    def _name(self, node: PeerId) -> dict[str, str]:
        return {"node": node, "name": status_of(self._core.records, node).name or node[-8:]}

    def _message(self, kind: WebhookKind, at_ms: int, unique: str, data: dict[str, str]) -> Message:
        return Message(message_id(self._core.trust.mesh, kind, unique), kind, at_ms, data)


def message_id(mesh: bytes, kind: str, unique: str) -> str:
    """Return what names a message: the same wherever a mesh's nodes tell of the same thing."""
    return "msg_" + hashlib.sha256(b"\0".join((mesh, kind.encode(), unique.encode()))).hexdigest()[:32]


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
