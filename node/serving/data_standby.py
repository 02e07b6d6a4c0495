"""Standbys of lanes' data: the holder ships what changed to another node, and writes only while it knows that it holds.

An admin names the standby by a mandate, which the holder keeps. Each second it looks whether anything changed, and ships the
changed blocks. It holds a lease besides: each linearizable read that succeeds lets the data be written until LEASE_S after
the read began. The lease lies beside the data, where whoever writes looks at it: it ends though the daemon is gone. A
promotion is a decision (PlaceData at the standby); the standby opens its copy only WAIT_S after it learned of that, when
every lease that was begun before the decision has run out. So the two never acknowledge writes at once; what is lost is what
the copy lacks, and its moment is said.
Not here: the copy's files (node/store/standby_copy.py), and moves that lose nothing (data_moves.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from node.errors import ConfigError, NotDoneError
from node.keys import write_private
from node.mesh.core_requests import BusyChainError
from node.serving.data_custody import copy_with_room, require_room
from node.serving.data_moves import DataMoves
from node.store.data_copy import BLOCK_BYTES, MANIFEST_MAX_BYTES, DataCopy, read_block
from node.store.data_folders import TICKET_MAX_BYTES, Lane, Mark
from node.store.standby_copy import StandbyCopy
from node.transport import Stream, StreamError, Transport
from protocols.chain.messages import EntryStored
from protocols.changes.mandates import DataMandate, open_mandate
from protocols.core import NodeCore
from protocols.envelope import DecodeError, decode, encode
from protocols.machine import Now, PeerId
from protocols.refusal import Refusal
from protocols.state.placement import eligible
from runtime.durable import sync_folder
from runtime.services import freeze

PROTOCOL = "/freehold/data-standby/1"
SHIP_EVERY_S = 1.0
CONFIRM_EVERY_S = 5.0
"""How often a standby is told that nothing changed."""

SHARE = 10.0
"""A copy takes time, and the node does other things: a tenth of its time at most goes into copies of one lane."""

READ_EVERY_S = 2.0
READ_TIMEOUT_S = 5.0
LEASE_S = 10.0
WAIT_S = 30.0
"""The lease, a write under way when it ends, and as much again for clocks that run apart."""

STEP_TIMEOUT_S = 60.0
_log = logging.getLogger("freehold.data")


class Ship(msgspec.Struct, frozen=True, tag="data_ship"):
    """A holder offers a lane's data as it was at `at_ms` (its wall clock), by an admin's mandate (Signed, encoded)."""

    mandate: bytes
    at_ms: int


class Shipped(msgspec.Struct, frozen=True, tag="data_shipped"):
    """A standby asks for blocks, or says that it has all (`blocks` empty, `done`); `refused` says why it takes none."""

    blocks: tuple[tuple[str, int], ...] = ()
    done: bool = False
    refused: str = ""


class StandbyPlan(msgspec.Struct, frozen=True, tag="data_standby"):
    """What a holder keeps: where its data goes, and an admin's mandate for it (Signed, encoded)."""

    node: PeerId
    mandate: bytes


@dataclass(slots=True)
class StandbyState:
    """How far a lane's standby is, as its holder knows it: the newest whole copy's moment (wall ms, 0: none)."""

    node: PeerId
    at_ms: int = 0
    problem: str = ""
    seen: tuple[Any, ...] = ()
    copy: DataCopy | None = None
    confirmed_s: float = 0.0
    next_s: float = 0.0


class DataStandby:
    """One node's part as a holder with standbys, and as a standby."""

    def __init__(
        self, core: NodeCore, transport: Transport, moves: DataMoves, read: Callable[[], Awaitable[int]],
        *, clock: Callable[[], Now], is_member: Callable[[PeerId], bool],
    ) -> None:  # fmt: skip
        """Take how the latest decision is read; before anything runs."""
        self._core = core
        self._transport = transport
        self._moves = moves
        self._read = read
        self._clock = clock
        self._is_member = is_member
        self._place = moves.place
        self._lease_s = float("-inf")
        self._learned_s: dict[Lane, float] = {}
        """When this node learned that it is to take the place of a holder (monotonic)."""
        self._taking: dict[Lane, None] = {}
        self.states: dict[Lane, StandbyState] = {lane: StandbyState(plan.node) for lane, plan in self._plans()}
        transport.serve(PROTOCOL, self._serve)

    def settle(self) -> None:
        """End what an earlier life began, and write nothing before it is known that the data is still here."""
        for copy in self._copies():
            copy.settle()
        self._follow()

    async def run(self) -> None:
        """Renew the lease, fence, ship and take over, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._renew())
            tasks.create_task(self._watch())
            while True:
                for lane, plan in list(self._plans()):
                    state = self.states.setdefault(lane, StandbyState(plan.node))
                    if time.monotonic() >= state.next_s:
                        await self._ship(lane, plan, state)
                await asyncio.sleep(SHIP_EVERY_S / 4)

    def hear(self, event: Any) -> None:
        """Take a notice before moves do: whoever is to take a place holds it still from the first moment."""
        if isinstance(event, EntryStored):
            self._follow()

    def _follow(self) -> None:
        """Do what was decided about data that is shipped from here, or to here."""
        for lane, _ in list(self._plans()):
            if not self._is_here(lane):
                self._left(lane)
        for path in self._copy_folders():
            lane = path.parent.name, path.name
            if self._is_here(lane):
                self._claim(lane)

    # --- the holder ---------------------------------------------------------------------------------------------------

    async def plan(self, lane: Lane, mandate: DataMandate, signed: bytes) -> None:
        """Keep an admin's word: ship to `mandate.target` from now on, or to nobody. Durable on return.

        Raises NotDoneError, OSError.
        """
        path = self._plan_path(lane)
        if not mandate.target:
            path.unlink(missing_ok=True)
            self.states.pop(lane, None)
            freeze.end_lease(self._place.stores(lane))
            return
        state = self._core.state
        if mandate.target == self._core.node or mandate.target not in eligible(state, lane[1]):
            text = f"{lane[1]} does not select that node, or it holds the data itself"
            raise NotDoneError(Refusal("placement.not-eligible", text), "freehold mesh members")
        if lane in self._learned_s:
            raise NotDoneError(Refusal("data.under-way", "this node takes over in a moment"), "freehold data list")
        await self._renew_once()
        until_s, stores = self._lease_s + LEASE_S, self._place.stores(lane)
        if time.monotonic() >= until_s:
            text = "this node hears no majority of voters now"
            raise NotDoneError(Refusal("data.under-way", text), "freehold doctor")
        stores.mkdir(mode=0o700, parents=True, exist_ok=True)
        freeze.lease(stores, until_s)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, encode(StandbyPlan(PeerId(mandate.target), signed)))
        sync_folder(path.parent.parent)
        self.states[lane] = StandbyState(PeerId(mandate.target))

    async def _renew(self) -> None:
        while True:
            if self.states:
                await self._renew_once()
            await asyncio.sleep(READ_EVERY_S)

    async def _renew_once(self) -> None:
        began_s = time.monotonic()
        with contextlib.suppress(TimeoutError, BusyChainError):
            async with asyncio.timeout(READ_TIMEOUT_S):
                if await self._read() >= 0:
                    self._lease_s = began_s
                    self._let_write()

    def _let_write(self) -> None:
        """Renew the leases of what is still here, as far as the decisions go that the read has shown."""
        for lane, _ in self._plans():
            if self._is_here(lane):
                try:
                    freeze.lease(self._place.stores(lane), self._lease_s + LEASE_S)
                except OSError as error:
                    _log.error("%s has no lease: %s", lane[0], error, extra={"event": "data.lease"})

    async def _watch(self) -> None:
        """Take over what is due."""
        while True:
            for lane, learned_s in list(self._learned_s.items()):
                if time.monotonic() - learned_s >= WAIT_S:
                    await self._take_over(lane)
            await asyncio.sleep(0.25)

    def _left(self, lane: Lane) -> None:
        """The data went to its standby, or elsewhere: nothing is written here, and what is here is put aside."""
        mark, stores = self._mark(lane), self._place.stores(lane)
        moved = (self._place.incoming(lane) / "ticket").exists() or (mark is not None and mark.ticket is not None)
        if not moved:  # a move has its own marks
            stores.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(stores / freeze.FROZEN, encode(Mark(None, self._clock().wall_ms, left=True)))
            self._place.leave(lane, Mark(None, self._clock().wall_ms))
            _log.warning("%s is held elsewhere now", lane[0], extra={"event": "data.displaced"})
        self._plan_path(lane).unlink(missing_ok=True)
        freeze.end_lease(stores)
        self.states.pop(lane, None)

    async def _ship(self, lane: Lane, plan: StandbyPlan, state: StandbyState) -> None:
        began_s = time.monotonic()
        stores, outgoing = self._place.stores(lane), self._place.exports() / f"standby-{lane[0]}-{lane[1]}"
        try:
            seen = await asyncio.to_thread(_stamp, stores)
            at_ms, changed = self._clock().wall_ms, seen != state.seen or state.copy is None
            if changed:
                state.copy = None
                copy = await asyncio.to_thread(copy_with_room, stores, outgoing)
                await self._send(plan, at_ms, copy, outgoing)
                state.seen, state.copy = seen, copy
            elif state.copy is not None and began_s - state.confirmed_s >= CONFIRM_EVERY_S:
                await self._send(plan, at_ms, state.copy, outgoing)
            if changed or began_s - state.confirmed_s >= CONFIRM_EVERY_S:
                state.at_ms, state.confirmed_s = at_ms, began_s
            state.problem = ""
        except (StreamError, OSError, sqlite3.Error, ConfigError, NotDoneError, DecodeError, TimeoutError) as error:
            state.problem = str(error)[:200] or type(error).__name__
        finally:
            await asyncio.to_thread(shutil.rmtree, outgoing, ignore_errors=True)
        ended_s = time.monotonic()
        state.next_s = ended_s + max(SHIP_EVERY_S, SHARE * (ended_s - began_s))

    async def _send(self, plan: StandbyPlan, at_ms: int, copy: DataCopy, outgoing: Path) -> None:
        sizes = {file.name: len(file.blocks) for file in copy.files}
        async with await self._transport.open_stream(plan.node, PROTOCOL) as stream, asyncio.timeout(STEP_TIMEOUT_S):
            await stream.write_block(encode(Ship(plan.mandate, at_ms)))
            await stream.write_block(encode(copy))
            asked = await _answer(stream)
            if not asked.done:
                for name, number in asked.blocks:
                    if not 0 <= number < sizes.get(name, 0):
                        raise StreamError("data.malformed")
                    await stream.write_block(read_block(outgoing, name, number))
                asked = await _answer(stream)
            if not asked.done:
                raise StreamError("data.malformed")
            stream.finish()

    # --- the standby --------------------------------------------------------------------------------------------------

    async def _serve(self, stream: Stream) -> None:
        if not self._is_member(stream.peer):
            raise StreamError("data.refused")
        try:
            async with asyncio.timeout(STEP_TIMEOUT_S):
                ship: Ship = decode(await stream.read_block(TICKET_MAX_BYTES) or b"", Ship, TICKET_MAX_BYTES)
                mandate = self._allowed(ship, stream.peer)
                if isinstance(mandate, Refusal):
                    await stream.write_block(encode(Shipped(refused=f"{mandate.rule}: {mandate.detail}")))
                    return
                body = await stream.read_block(MANIFEST_MAX_BYTES)
            copy: DataCopy = decode(body or b"", DataCopy, MANIFEST_MAX_BYTES)
        except DecodeError:
            raise StreamError("data.malformed") from None
        lane = mandate.project, mandate.environment
        if lane in self._taking:
            await stream.write_block(encode(Shipped(refused="a copy comes already")))
            return
        self._taking[lane] = None
        try:
            await self._take(stream, StandbyCopy(self._place, lane), ship, copy)
            stream.finish()
        finally:
            del self._taking[lane]

    def _allowed(self, ship: Ship, peer: PeerId) -> DataMandate | Refusal:
        core = self._core
        mandate = open_mandate(
            ship.mandate, core.trust.verifier, core.trust.mesh, core.state.admins, core.state.threshold
        )
        if isinstance(mandate, Refusal):
            return mandate
        lane = core.state.lane(mandate.project, mandate.environment)
        if (mandate.act, mandate.node, mandate.target) != ("standby", peer, core.node):
            return Refusal("data.mandate", "the mandate is for other nodes")
        if lane is None or lane.data_node != peer:
            return Refusal("data.elsewhere", "the data is not held there")
        return mandate

    async def _take(self, stream: Stream, standby: StandbyCopy, ship: Ship, copy: DataCopy) -> None:
        try:
            wanted = standby.wanted(copy)
            require_room(self._place.folder, 2 * len(wanted) * BLOCK_BYTES)
            await asyncio.to_thread(standby.begin)
            await stream.write_block(encode(Shipped(tuple(wanted))))
            blocks = {file.name: file.blocks for file in copy.files}
            for name, number in wanted:
                async with asyncio.timeout(STEP_TIMEOUT_S):
                    block = await stream.read_block(BLOCK_BYTES)
                await asyncio.to_thread(standby.add, block or b"", blocks[name][number])
            refusal = self._allowed(ship, stream.peer)  # it may have been decided meanwhile that the data is here
            if isinstance(refusal, Refusal):
                raise ConfigError(refusal.detail, "freehold data list")
            await asyncio.to_thread(standby.finish, stream.peer, ship.at_ms, copy)
            await stream.write_block(encode(Shipped(done=True)))
        except (ConfigError, NotDoneError, OSError) as error:
            if isinstance(error, StreamError):
                raise
            await stream.write_block(encode(Shipped(refused=str(error)[:200])))

    def copy_ms(self, lane: Lane) -> int:
        """Return the moment (wall ms, the holder's clock) that the second copy here is of; 0 if there is none."""
        note = StandbyCopy(self._place, lane).note
        return note.at_ms if note is not None else 0

    def _claim(self, lane: Lane) -> None:
        """This node is to hold the data: nothing is begun in its place before the copy is there."""
        if (self._place.incoming(lane) / "ticket").exists():
            StandbyCopy(self._place, lane).forget()  # a move brought all of it
            return
        if lane not in self._learned_s:
            stores = self._place.stores(lane)
            stores.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(stores / freeze.FROZEN, encode(Mark(None, self._clock().wall_ms, fenced=True)))
            self._learned_s[lane] = time.monotonic()

    async def _take_over(self, lane: Lane) -> None:
        async with self._moves.marking:
            try:
                if self._is_here(lane):
                    standby = StandbyCopy(self._place, lane)
                    taken = await asyncio.to_thread(standby.promote, self._clock().wall_ms)
                    mark = self._mark(lane)
                    if mark is not None and mark.fenced:
                        freeze.thaw(self._place.stores(lane))
                    _log.warning("%s is held here now", lane[0], extra={"event": "data.promoted", "detail": str(taken)})
            except (OSError, sqlite3.Error, ConfigError) as error:
                _log.error("the copy cannot take over: %s", error, extra={"event": "data.promote", "detail": lane[0]})
                return
        del self._learned_s[lane]

    # --- what both ask ------------------------------------------------------------------------------------------------

    def _is_here(self, lane: Lane) -> bool:
        decided = self._core.state.lane(*lane)
        return decided is not None and decided.data_node == self._core.node

    def _mark(self, lane: Lane) -> Mark | None:
        note = freeze.note_of(self._place.stores(lane))
        if note is None:
            return None
        mark: Mark = decode(note, Mark, TICKET_MAX_BYTES)
        return mark

    def _plan_path(self, lane: Lane) -> Path:
        return self._place.folder / "standby" / lane[0] / lane[1]

    def _plans(self) -> Iterator[tuple[Lane, StandbyPlan]]:
        for path in sorted((self._place.folder / "standby").glob("*/*")):
            if path.suffix != ".new":
                with contextlib.suppress(DecodeError, FileNotFoundError):
                    plan: StandbyPlan = decode(path.read_bytes(), StandbyPlan, TICKET_MAX_BYTES)
                    yield (path.parent.name, path.name), plan

    def _copy_folders(self) -> list[Path]:
        return sorted((self._place.folder / "copies").glob("*/*"))

    def _copies(self) -> list[StandbyCopy]:
        return [StandbyCopy(self._place, (path.parent.name, path.name)) for path in self._copy_folders()]


async def _answer(stream: Stream) -> Shipped:
    block = await stream.read_block(MANIFEST_MAX_BYTES)
    if block is None:
        raise StreamError("data.move-broken")
    answer: Shipped = decode(block, Shipped, MANIFEST_MAX_BYTES)
    if answer.refused:
        raise ConfigError(answer.refused, "freehold data standby")
    return answer


def _stamp(stores: Path) -> tuple[Any, ...]:
    """What changes whenever the data does: sizes and moments of the files, logs of databases among them."""
    pairs = []
    for parent, _, names in os.walk(stores):
        for name in names:
            if not name.endswith((".lock", "-shm", ".new")) and name not in {freeze.FROZEN, freeze.LEASE}:
                with contextlib.suppress(FileNotFoundError):
                    stat = os.stat(os.path.join(parent, name))
                    pairs.append((parent, name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(pairs))
