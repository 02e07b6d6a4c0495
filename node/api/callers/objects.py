"""Which places and principals each kind of object belongs to, as this node knows it. What it does not know is nobody's.

Not here: who may see what (scope.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from node.api.callers.scope import OF_MESH, OF_NOBODY, Owned, Place, Scope, covered, overlap, place_of
from node.control import Control
from protocols.api_models import DecisionView
from protocols.core import NodeCore
from protocols.envelope import digest, encode
from protocols.machine import Digest
from protocols.records.audit import AuditEntry
from protocols.records.key_table import parse_key
from protocols.refusal import Refusal
from protocols.state.model import MeshState
from protocols.trust.grants import ANY, BEFORE_EXPIRY_MS, Rights

MESH_RECORDS = frozenset({
    "certificate", "admission", "revocation", "status", "address", "floor", "equivocation", "decision",
})  # fmt: skip
"""Kinds of records about nodes and the mesh: anybody with a grant may hear that there is a new one."""

_TARGET = re.compile(r"([a-z0-9-]{1,63})(?:/([a-z0-9-]{1,63}))?(?![0-9A-Za-z])")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def of_change(control: Control, change: bytes) -> Owned:
    """What a proposed change belongs to."""
    proposed = control.core.dossiers.changes.get(Digest(change))
    return place_of(proposed.change) if proposed is not None else OF_NOBODY


def of_artifact(control: Control, named: bytes) -> Owned:
    """What an artifact belongs to: the changes that name it; whoever sent it may see that it is here."""
    places = tuple(Place(*where) for where in sorted(control.belongings.places(named)))
    return Owned(places, control.belongings.uploaders(named))


def of_principal(scope: Scope, core: NodeCore, key: bytes) -> Owned:
    """What a principal belongs to: itself, whom its grants come from, and where its grants meet the caller's."""
    rights = core.dossiers.rights(key, BEFORE_EXPIRY_MS)
    if not isinstance(rights, Rights):
        return Owned(keys=(key.hex(),))
    behind = tuple(key.hex() for key in rights.behind)
    mine = [rights for rights in scope.rights if "view" in rights.verbs]
    meets = any(
        overlap(entry.projects, held.projects) and overlap(entry.environments, held.environments)
        for entry in mine
        for held in rights.each
    )
    return Owned(keys=(key.hex(), *behind), mesh=meets)


def of_decision(view: DecisionView) -> Owned:
    """What a decision belongs to; one about a project or an environment that is made belongs there."""
    if view.project or view.environment:
        return Owned((Place(view.project, view.environment),))
    if view.action == "create_project":
        return Owned((Place(project=view.subject),))
    if view.action == "create_environment":
        return Owned((Place(environment=view.subject),))
    return OF_MESH


class AuditObjects:
    """What audit entries are about. Made for one answer: it looks changes up by the digest of their signed form once."""

    def __init__(self, control: Control, scope: Scope) -> None:
        """Take the node and who asks."""
        self._control, self._scope = control, scope
        self._filed: dict[bytes, Owned] | None = None

    def of(self, entry: AuditEntry) -> Owned:
        """What an entry belongs to: who called or signed, and the object of the call."""
        about = self._about(entry)
        return Owned(about.places, (entry.caller, *entry.signers, *about.keys), about.mesh)

    def _about(self, entry: AuditEntry) -> Owned:
        control, target = self._control, entry.target
        match entry.verb:
            case "publish change" | "propose":
                return self._changes().get(entry.digest, OF_NOBODY)
            case "publish approval" if _DIGEST.fullmatch(target):
                return of_change(control, bytes.fromhex(target))
            case "publish evidence" if _DIGEST.fullmatch(target):
                return of_artifact(control, bytes.fromhex(target))
            case "publish grant" if _DIGEST.fullmatch(target):
                return of_principal(self._scope, control.core, bytes.fromhex(target))
            case "put_artifact":
                return of_artifact(control, entry.digest)
            case "publish revocation" | "leave" | "reset":
                return OF_MESH
            case _:
                pass
        if target == "mesh" or target.startswith(("mesh ", "mesh:")):
            if entry.verb == "create_project":
                return Owned((Place(project=target.removeprefix("mesh ")),))
            return Owned((Place(environment=target.removeprefix("mesh ")),)) if "environment" in entry.verb else OF_MESH
        answer = _TARGET.match(target)
        return Owned((Place(answer[1], answer[2]),)) if answer is not None and answer[2] else OF_NOBODY

    def _changes(self) -> dict[bytes, Owned]:
        if self._filed is None:
            held = self._control.core.dossiers.changes.values()
            self._filed = {digest(encode(proposed.signed)): place_of(proposed.change) for proposed in held}
        return self._filed


def of_record(control: Control, key: str) -> Owned:
    """What a record belongs to, by its key."""
    parsed = parse_key(key)
    if isinstance(parsed, Refusal):
        return OF_NOBODY
    kind, parts = parsed.rule.prefix, parsed.parts
    if kind in MESH_RECORDS:
        return OF_MESH
    match kind:
        case "approval":
            return of_change(control, bytes.fromhex(parts[0])) if _DIGEST.fullmatch(parts[0]) else OF_NOBODY
        case "evidence":
            return of_artifact(control, bytes.fromhex(parts[0])) if _DIGEST.fullmatch(parts[0]) else OF_NOBODY
        case "prepared":
            return of_change(control, bytes.fromhex(parts[1])) if _DIGEST.fullmatch(parts[1]) else OF_NOBODY
        case "secret":
            return Owned((Place(parts[0], parts[1]),))
        case "change":
            for proposed in control.core.dossiers.changes.values():
                if proposed.change.project == parts[0] and digest(encode(proposed.signed)).hex() == parts[1]:
                    return place_of(proposed.change)
        case _:
            pass
    return OF_NOBODY


def of_event(control: Control, kind: str, fields: Mapping[str, Any]) -> Owned:
    """What an event of the feed belongs to."""
    if kind == "record":
        return of_record(control, str(fields["key"]))
    if kind == "decision":
        return of_decision(msgspec.convert(fields, DecisionView))
    if "project" in fields:
        return Owned((Place(str(fields["project"]), str(fields["environment"])),))
    return OF_MESH


def of_line(line: bytes) -> Owned:
    """What a log line belongs to: its app's project and environment. One that names no
    project is for who sees all, one that names no environment for who sees all of those."""
    try:
        fields = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return OF_NOBODY
    project, environment = fields.get("project"), fields.get("environment")
    if not isinstance(project, str) or not project:
        return OF_NOBODY
    return Owned((Place(project, environment if isinstance(environment, str) and environment else ANY),))


def within(scope: Scope, state: MeshState) -> MeshState:
    """The decided state without projects, environments, routes and lanes that the caller's grants do not cover."""
    if scope.whole:
        return state
    return msgspec.structs.replace(
        state,
        projects=tuple(project for project in state.projects if scope.sees(project.name)),
        environments=tuple(environment for environment in state.environments if scope.sees("", environment.name)),
        routes=tuple(route for route in state.routes if covered(scope, place_of(route))),
        lanes=tuple(lane for lane in state.lanes if covered(scope, place_of(lane))),
    )
