"""Undrains for later: an admin's signed command that this node hands to the chain when a drained node's time is over.

Kept durably, so that it is handed over after a restart too, late rather than never. Whoever is drained or undrained by another
decision meanwhile is left alone: the newest decision about a node counts. Not here: what an admin may do (protocols/state).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from node.decisions.history import payload_of
from node.errors import NotDoneError, NotNowError
from node.keys import write_private
from node.mesh.core_requests import BusyChainError, ChainRequests
from protocols.api_upkeep import DRAIN_MAX_MS
from protocols.chain.decision import material_of
from protocols.chain.messages import EntryStored
from protocols.core import NodeCore
from protocols.envelope import DecodeError, decode, encode
from protocols.machine import Now, PeerId, Verifier
from protocols.refusal import Refusal
from protocols.state.apply import apply
from protocols.state.commands import COMMAND_MAX_BYTES, Action, Command, DrainNode, SignedCommand
from protocols.state.exhibits import Rules
from runtime.durable import sync_folder

FILE_NAME = "undrains"
UNDRAINS_MAX = 32
"""As many as a mesh has nodes."""

MATERIAL_MAX_BYTES = 16 * 1024
FILE_MAX_BYTES = UNDRAINS_MAX * (2 * COMMAND_MAX_BYTES + MATERIAL_MAX_BYTES)
LOOK_EVERY_S = 0.5
AGAIN_MS = 15_000
LATE_MS = 60_000
UNDECIDED_MS = 600_000
"""A command that no majority answered may be decided for as long."""
NEXT = "freehold node drain NODE --for 2h"

_log = logging.getLogger("freehold.control")


class Undrain(msgspec.Struct, frozen=True, array_like=True):
    """One kept: the drain it belongs to and the undrain, each as signed (encoded SignedCommand), and their material.

    `until_ms` is when it is due (wall). `after` is the slot behind which the drain was decided or will be.
    """

    node: PeerId
    until_ms: int
    after: int
    drain: bytes
    undrain: bytes
    material: tuple[bytes, ...]


class Undrains:
    """What is kept here, and handing it over."""

    def __init__(
        self,
        core: NodeCore,
        requests: ChainRequests,
        verifier: Verifier,
        clock: Callable[[], Now],
        folder: Path,
        announce: Callable[[], None],
    ) -> None:
        """Take what is read and asked, the data folder with those of an earlier life, and what tells the others anew."""
        self._core, self._requests, self._clock, self._path = core, requests, clock, folder / FILE_NAME
        self._rules = Rules(verifier, core.trust.mesh)
        self._kept = {undrain.node: undrain for undrain in self._read()}
        self._announce = announce
        self._scanned: dict[PeerId, tuple[int, bytes, bytes]] = {}
        self._why: dict[PeerId, str] = {}
        self._again_ms = 0
        self._woken = asyncio.Event()

    def promised(self) -> tuple[tuple[PeerId, int], ...]:
        """Which drained nodes this one undrains, and when (wall ms)."""
        drained = (undrain for undrain in self._kept.values() if self._standing(undrain) == "drained")
        return tuple(sorted((undrain.node, undrain.until_ms) for undrain in drained))

    def hear(self, event: Any) -> None:
        """Take one of the core's notices: a decision may end or begin what is kept."""
        if self._kept and isinstance(event, EntryStored):
            self._woken.set()

    def keep(self, drain: bytes, undrain: bytes, material: tuple[bytes, ...], until_ms: int) -> None:
        """Keep an undrain, durably, before its drain is handed to the chain; it takes the place of one for the same node.

        Raises NotDoneError, naming the rule, or NotNowError if the disk fails.
        """
        now_ms, node = self._clock().wall_ms, _node_of(drain, undrain)
        held = self._kept.get(node)
        if held is not None and (held.drain, held.undrain, held.until_ms) == (drain, undrain, until_ms):
            return  # asked again, by one whose answer was lost
        if not now_ms < until_ms <= now_ms + DRAIN_MAX_MS:
            raise _refusal("drain.span", f"a drain lasts up to {DRAIN_MAX_MS // 86_400_000} days")
        if sum(map(len, material)) > MATERIAL_MAX_BYTES or max(len(drain), len(undrain)) > COMMAND_MAX_BYTES:
            raise _refusal("drain.too-large", "the commands and their material are too long")
        for signed, at_ms in ((drain, now_ms), (undrain, now_ms), (undrain, until_ms)):
            self._judge(signed, material, at_ms)
        undrains = {
            **self._kept,
            node: Undrain(node, until_ms, self._core.chain.position.slot, drain, undrain, material),
        }
        if len(undrains) > UNDRAINS_MAX:
            raise _refusal("drain.limit", f"a node keeps at most {UNDRAINS_MAX} undrains")
        try:
            self._write(undrains)
        except OSError as error:
            raise NotNowError(
                Refusal("node.disk", f"it cannot be kept: {error.strerror}"), "freehold doctor"
            ) from error
        self._why.pop(node, None)
        self._scanned.pop(node, None)
        self._woken.set()

    def concerns(self) -> list[str]:
        """What is overdue, each as "what; what to do"."""
        now_ms = self._clock().wall_ms
        return [
            f"{undrain.node} was to be undrained by this node {(now_ms - undrain.until_ms) // 60_000} minutes ago"
            f" ({self._why.get(undrain.node) or 'not tried yet'}); freehold node undrain {undrain.node[-8:]}"
            for undrain in self._kept.values()
            if now_ms - undrain.until_ms > LATE_MS and self._standing(undrain) == "drained"
        ]

    async def run(self) -> None:
        """Hand over what is due, until cancelled."""
        said: tuple[tuple[PeerId, int], ...] = ()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S if self._kept else None):
                    await self._woken.wait()
            self._woken.clear()
            if (promised := self.promised()) != said:
                said = promised
                self._announce()
            now = self._clock()
            for undrain in list(self._kept.values()):
                standing = self._standing(undrain)
                if standing == "over":
                    self._forget(undrain, "another decision counts")
                elif standing == "undecided" and now.wall_ms >= undrain.until_ms + UNDECIDED_MS:
                    self._forget(undrain, "its drain was never decided")
                elif standing == "drained" and now.wall_ms >= undrain.until_ms and now.mono_ms >= self._again_ms:
                    await self._hand_over(undrain)

    async def _hand_over(self, one: Undrain) -> None:
        try:
            outcome = await self._requests.submit(one.undrain, one.material)
        except BusyChainError:
            return
        if outcome.outcome == "decided":
            _log.info("%s is undrained", one.node, extra={"event": "undrain.done"})
            self._forget(one, "done")
            return
        self._why[one.node] = outcome.detail or outcome.rule or "no majority of voters answered"
        self._again_ms = self._clock().mono_ms + AGAIN_MS

    def _standing(self, one: Undrain) -> str:
        """`drained` by the drain it belongs to, `undecided` while that is not known, or `over`."""
        core = self._core
        held = next((node for node in core.state.nodes if node.node == one.node), None)
        if held is None:
            return "over"
        newest = self._newest(one)
        drain: SignedCommand = decode(one.drain, SignedCommand)
        if not newest:
            return "undecided"
        return "drained" if newest == drain.payload and held.draining else "over"

    def _newest(self, one: Undrain) -> bytes:
        """The newest drain or undrain of its node that was decided since it was kept, as signed; empty if none was."""
        chain = self._core.chain
        here = chain.position
        looked, era, content = self._scanned.get(one.node, (one.after, here.era, b""))
        if era != here.era:
            looked, content = one.after, b""
        for slot in range(here.slot, min(looked, here.slot), -1):
            payload = payload_of(chain.ledger.entry(slot))
            action = _action_of(payload) if payload else None
            if isinstance(action, DrainNode) and action.node == one.node:
                content = payload
                break
        self._scanned[one.node] = (here.slot, here.era, content)
        return content

    def _judge(self, data: bytes, material: tuple[bytes, ...], at_ms: int) -> None:
        """Raise NotDoneError if voters would refuse a command now, for anything but that it comes too early."""
        signed: SignedCommand = decode(data, SignedCommand, COMMAND_MAX_BYTES)
        judged = apply(self._core.state, signed, material_of(material), at_ms, self._rules)
        if isinstance(judged, Refusal):
            raise NotDoneError(judged, NEXT)

    def _forget(self, one: Undrain, why: str) -> None:
        _log.info("the undrain of %s is forgotten: %s", one.node, why, extra={"event": "undrain.over"})
        with contextlib.suppress(OSError):  # what stays in the file is over for the next process too
            self._write({node: undrain for node, undrain in self._kept.items() if node != one.node})
        self._kept.pop(one.node, None)
        self._why.pop(one.node, None)

    def _write(self, kept: dict[PeerId, Undrain]) -> None:
        if kept:
            write_private(self._path, encode(tuple(kept.values())))
        else:
            self._path.unlink(missing_ok=True)
            sync_folder(self._path.parent)
        self._kept = kept

    def _read(self) -> tuple[Undrain, ...]:
        try:
            with self._path.open("rb") as file:
                undrains: tuple[Undrain, ...] = decode(
                    file.read(FILE_MAX_BYTES + 1), tuple[Undrain, ...], FILE_MAX_BYTES
                )
            for undrain in undrains:
                _node_of(undrain.drain, undrain.undrain)
        except FileNotFoundError:
            return ()
        except (OSError, DecodeError, NotDoneError) as error:  # no reason to run nothing at all
            _log.error(
                "undrains that were kept here are lost, see freehold mesh members: %s: %s", self._path, error,
                extra={"event": "undrains.lost"},
            )  # fmt: skip
            return ()
        return undrains[:UNDRAINS_MAX]


def _node_of(drain: bytes, undrain: bytes) -> PeerId:
    """The node that both commands are about. Raises NotDoneError if they are not a drain and an undrain of one node."""
    try:
        first, second = (
            _action_of(decode(data, SignedCommand, COMMAND_MAX_BYTES).payload) for data in (drain, undrain)
        )
    except DecodeError as error:
        raise _refusal("command.malformed", str(error)) from None
    if (
        not isinstance(first, DrainNode) or not isinstance(second, DrainNode)
        or not first.draining or second.draining or first.node != second.node
    ):  # fmt: skip
        raise _refusal("drain.pair", "these are not a drain and the undrain of one node")
    return first.node


def _action_of(payload: bytes) -> Action:
    command: Command = decode(payload, Command)
    return command.action


def _refusal(rule: str, detail: str) -> NotDoneError:
    return NotDoneError(Refusal(rule, detail), NEXT)
