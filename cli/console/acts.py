"""What the console's page asks to be done: composed here, shown by the page, signed by the browser, decided by the mesh.

What is signed is composed on the operator's own machine from the state of the asked node, so a lying node can withhold and
no more. Not here: whose request it is (callers.py), approvals (approving.py).
"""

from __future__ import annotations

import base64
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import msgspec

from cli.access.client import NodeClient
from cli.errors import CommandError
from cli.views.lanes import find_lane, rollback_target
from protocols.api_models import CommandBody, OutcomeView
from protocols.envelope import decode, digest, encode, signing_bytes
from protocols.keys import Ed25519Verifier
from protocols.state.commands import (
    COMMAND_DOMAIN,
    COMMAND_ID_BYTES,
    REASON_MAX,
    Abort,
    Command,
    Exhibits,
    LaneAction,
    Pause,
    Promote,
    Resume,
    Rollback,
    Signature,
    SignedCommand,
)
from protocols.state.model import Lane

PENDING_MAX = 64

Act = Literal["promote", "pause", "resume", "abort", "rollback"]


class AsShown(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stood on the page when a button was pressed: the rollout (hex, "" for none), its stage, and the change that ran."""

    rollout: str
    stage: int
    base: str


class LaneAct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An act on a lane, as the page asks for it."""

    act: Act
    project: str
    environment: str
    seen: AsShown
    message: str = ""


class Drawn(msgspec.Struct, frozen=True):
    """A command that waits for its signature: `to_sign` in base64url; `says` is what it does, in words."""

    draft: str
    to_sign: str
    says: str


class SignedDrawn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The browser's signature (base64url) over a drawn command."""

    draft: str
    signature: str


@dataclass(frozen=True, slots=True)
class _Pending:
    key: bytes
    payload: bytes
    exhibits: Exhibits
    material: tuple[bytes, ...]
    to_sign: bytes


def _is_as_seen(lane: Lane, wanted: LaneAct) -> bool:
    """Whether a lane is what the person decided about: this rollout, and its stage where that is what goes on."""
    now, seen = lane.rollout, wanted.seen
    if seen.rollout != (now.id.hex() if now else "") or seen.base != (lane.base.change.hex() if lane.base else ""):
        return False
    return now is None or wanted.act != "promote" or now.stage == seen.stage


class Acts:
    """Draws commands and has them decided. Mutable: those that wait for a signature."""

    def __init__(self, client: NodeClient) -> None:
        """Take the connection that carries them."""
        self._client = client
        self._pending: OrderedDict[str, _Pending] = OrderedDict()

    async def draw(self, key: bytes, wanted: LaneAct) -> Drawn:
        """Compose the command for `key` to sign. Raises CommandError where there is nothing to do it to."""
        if len(wanted.message) > REASON_MAX:
            raise CommandError(f"a reason has at most {REASON_MAX} characters", next_step="shorten it", kind="usage")
        lane = await find_lane(self._client, wanted.project, wanted.environment)
        action, statements = await self._action(lane, wanted)
        chains = await self._client.chains(key)
        exhibits = Exhibits(
            grants=tuple(bytes(digest(chain)) for chain in chains),
            statements=tuple(bytes(digest(statement)) for statement in statements),
        )
        command = Command(secrets.token_bytes(COMMAND_ID_BYTES), action, lane.project, lane.environment, lane.sequence)
        payload = encode(command)
        to_sign = signing_bytes(COMMAND_DOMAIN, await self._client.mesh(), payload)
        draft = secrets.token_urlsafe(16)
        self._pending[draft] = _Pending(key, payload, exhibits, (*chains, *statements), to_sign)
        while len(self._pending) > PENDING_MAX:
            self._pending.popitem(last=False)
        says = f"{wanted.act} {lane.project} in {lane.environment}"
        return Drawn(draft, base64.urlsafe_b64encode(to_sign).decode().rstrip("="), says)

    async def _action(self, lane: Lane, wanted: LaneAct) -> tuple[LaneAction, tuple[bytes, ...]]:
        if not _is_as_seen(lane, wanted):
            raise CommandError(
                "it is not what you looked at any more", next_step="look at it again, and press then", kind="stale"
            )
        if wanted.act == "rollback":
            target = await rollback_target(self._client, lane, "")
            if target is None:
                raise CommandError("it is there already", next_step="look at the lane", kind="rollback.there")
            return Rollback(target.change, wanted.message or "from the console"), ()
        rollout = lane.rollout
        if rollout is None:
            raise CommandError("no rollout is under way", next_step="look at the lane", kind="rollout.none")
        match wanted.act:
            case "promote":
                path = f"/v1/lanes/{lane.project}/{lane.environment}/statements"
                said: tuple[bytes, ...] = decode(await self._client.get_bytes(path), tuple[bytes, ...])
                return Promote(rollout.id, rollout.stage), said
            case "pause":
                return Pause(rollout.id, wanted.message), ()
            case "resume":
                return Resume(rollout.id), ()
            case "abort":
                return Abort(rollout.id, wanted.message), ()

    async def decide(self, key: bytes, signed: SignedDrawn, signature: bytes) -> OutcomeView:
        """Have a drawn command decided once its key signed it. Raises CommandError."""
        pending = self._pending.pop(signed.draft, None)
        if pending is None or pending.key != key:
            raise CommandError("there is no such draft", next_step="ask for it again", kind="no-draft")
        if not Ed25519Verifier().verify(key, pending.to_sign, signature):
            raise CommandError("that is no signature of the draft", next_step="ask for it again", kind="signature")
        command = SignedCommand(pending.payload, (Signature(key, signature),), pending.exhibits)
        body = CommandBody(encode(command), pending.material)
        return await self._client.send(OutcomeView, "/v1/commands", body)
