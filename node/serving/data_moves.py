"""Moving a lane's data to another node so that no acknowledged write is lost, whoever is killed at any step.

An admin signs two commands with one expected sequence, so at most one of them is ever decided: the switch (the data is on
the target) and the abort (it stays). The target copies while the source serves; then the source freezes the data durably,
with both commands beside it, says with its signature what the frozen bytes are, and the target compares them before it
asks for the switch. A source thaws only once the switch can be decided no more; after a minute it asks for the abort itself.
The target opens its copy only once the switch was decided. What was there before stays, unwritable, for a week.
Not here: the bytes (node/store/data_copy.py), the mark that freezes (runtime/services/freeze.py), what a person is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from node.errors import ConfigError
from node.keys import write_private
from node.mesh.core_requests import BusyChainError
from node.store.data_copy import (
    BLOCK_BYTES,
    MANIFEST_MAX_BYTES,
    DataCopy,
    check_copy,
    complete,
    missing,
    read_block,
    take_copy,
    write_block,
)
from node.store.data_folders import KEPT_MS, TICKET_MAX_BYTES, DataFolders, Lane, Mark, MoveTicket
from node.transport import Stream, StreamError, Transport
from protocols.chain.messages import EntryStored, Outcome
from protocols.core import NodeCore
from protocols.envelope import DecodeError, Signed, decode, digest, encode, open_signed, sign
from protocols.keys import peer_id
from protocols.machine import Now, PeerId, Signer
from protocols.refusal import Refusal
from protocols.rollout.orders import Run
from protocols.state.commands import Command, PlaceData, SignedCommand
from protocols.state.exhibits import Rules, open_case
from protocols.state.placement import eligible
from runtime.services import freeze

PROTOCOL = "/freehold/data/1"
FROZEN_DOMAIN = "freehold/data-frozen/1"
ABORT_AFTER_MS = 60_000
LOOK_EVERY_S = 2.0
STEP_TIMEOUT_S = 600.0
"""How long a source may take to make its copy, or a block to come."""

WANTED_MAX = 4_096
"""Blocks asked for at once: 256 MiB, in a question of 20 KiB."""

MOVES_MAX = 32
ARRAY_OF_THREE = b"\x93"
"""How an encoded `Signed` begins; a refusal is a map."""

_log = logging.getLogger("freehold.data")


class AskCopy(msgspec.Struct, frozen=True, tag="data_ask"):
    """A target asks the source for a copy; with `freeze` for the last one."""

    ticket: MoveTicket
    freeze: bool


class Order(msgspec.Struct, frozen=True, tag="data_order"):
    """A node that was asked to move data hands the order to the target, and hears `MoveProgress` until the end."""

    ticket: MoveTicket


class Wanted(msgspec.Struct, frozen=True, tag="data_wanted"):
    """Blocks of one file, by number."""

    name: str
    blocks: tuple[int, ...]


class Frozen(msgspec.Struct, frozen=True, tag="data_frozen"):
    """A source's word: these bytes (digest of the encoded DataCopy) are the lane's data, and nobody writes them now."""

    node: PeerId
    project: str
    environment: str
    expect: int
    copy: bytes
    frozen: bool


class MoveProgress(msgspec.Struct, frozen=True, tag="data_progress"):
    """How far a move is: `phase` is copying, freezing, comparing, switching, done or failed."""

    phase: str
    done_bytes: int = 0
    total_bytes: int = 0
    rule: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Move:
    """A ticket that was checked."""

    ticket: MoveTicket
    project: str
    environment: str
    expect: int
    source: PeerId
    target: PeerId
    switch: SignedCommand

    @property
    def lane(self) -> Lane:
        """The project and the environment."""
        return self.project, self.environment


class MoveError(Exception):
    """A move cannot go on; nothing was lost. `rule` names why."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.rule = rule
        self.detail = detail


class DataMoves:
    """One node's part in moves: as source, as target, and as the node that was asked."""

    def __init__(
        self,
        core: NodeCore,
        transport: Transport,
        submit: Callable[[bytes, tuple[bytes, ...]], Awaitable[Outcome]],
        slot_of: Callable[[SignedCommand], int],
        *,
        signer: Signer,
        clock: Callable[[], Now],
        folder: Path,
        is_member: Callable[[PeerId], bool],
    ) -> None:
        """Take the core to read, how a command is decided and where it was, and the node's folder; before anything runs."""
        self._core = core
        self._transport = transport
        self._submit = submit
        self._slot_of = slot_of
        self._signer = signer
        self._clock = clock
        self._is_member = is_member
        self.place = DataFolders(folder)
        self.marking = asyncio.Lock()
        """Held by whoever makes or takes away a mark that no decision asks for."""
        self.moves: dict[Lane, MoveProgress] = {}
        """How far the newest move of each lane is that was asked for here, or that this node is the target of."""
        self._pulling: dict[Lane, None] = {}
        self._tasks: asyncio.TaskGroup | None = None
        transport.serve(PROTOCOL, self._serve)

    async def run(self) -> None:
        """End what an earlier life left open, ask for aborts that are due, and forget old copies, until cancelled."""
        shutil.rmtree(self.place.folder / "outgoing", ignore_errors=True)
        async with asyncio.TaskGroup() as self._tasks:
            while True:
                self._settle()
                for _, mark in list(self._marks()):
                    if mark.ticket is not None:
                        await self._abort_if_due(mark.ticket, mark.since_ms)
                self.place.forget(self._clock().wall_ms - KEPT_MS)
                await asyncio.sleep(LOOK_EVERY_S)

    def hear(self, event: Any) -> None:
        """Take one of the core's notices, before the workloads do: a copy is in its place before anything opens it."""
        if isinstance(event, EntryStored | Run):
            self._settle()

    def check(self, ticket: MoveTicket) -> Move:
        """Return what an admin's ticket says. Raises MoveError for one that the voters would not take now."""
        material = {digest(entry): entry for entry in ticket.material}
        opened = [self._open(data, material) for data in (ticket.switch, ticket.abort)]
        (switch, command), (_, back) = opened
        place, stay = command.action, back.action
        if not isinstance(place, PlaceData) or not isinstance(stay, PlaceData) or place.schedule or stay.schedule:
            raise MoveError("data.ticket", "a move is two commands that place data")
        if (command.project, command.environment, command.expect) != (back.project, back.environment, back.expect):
            raise MoveError("data.ticket", "the two commands of a move are of one lane and one sequence")
        if command.expect is None or place.node == stay.node:
            raise MoveError("data.ticket", "a move has two nodes and a sequence")
        return Move(ticket, command.project, command.environment, command.expect, stay.node, place.node, switch)

    def require_current(self, move: Move) -> None:
        """Raise MoveError unless the switch of a move could be decided now."""
        lane = self._core.state.lane(*move.lane)
        if lane is None or lane.sequence != move.expect:
            raise MoveError("lane.sequence", "something else was decided since the move was signed; plan it again")
        if lane.data_node != move.source:
            raise MoveError("data.elsewhere", "the data is not on that node")
        if move.target not in eligible(self._core.state, move.environment):
            raise MoveError("placement.not-eligible", "the environment does not select that node")
        if lane.rollout is not None:
            raise MoveError("rollout.under-way", "a rollout is under way: finish or abort it first")

    def begin(self, ticket: MoveTicket) -> Move:
        """Begin a move in the background; `moves` says how far it is. Raises MoveError."""
        move = self.check(ticket)
        self.require_current(move)
        running = self.moves.get(move.lane)
        if running is not None and running.phase not in {"done", "failed"}:
            raise MoveError("data.moving", "a move of this lane is under way")
        if len(self.moves) >= MOVES_MAX and move.lane not in self.moves:
            del self.moves[next(iter(self.moves))]
        self.moves[move.lane] = MoveProgress("copying")
        assert self._tasks is not None, "a move before run"
        self._tasks.create_task(self._carry(move))
        return move

    def _open(self, data: bytes, material: dict[Any, bytes]) -> tuple[SignedCommand, Command]:
        try:
            signed: SignedCommand = decode(data, SignedCommand, TICKET_MAX_BYTES)
        except DecodeError as error:
            raise MoveError("command.malformed", str(error)) from None
        core = self._core
        named = {digest: material[digest] for digest in signed.exhibits.digests() if digest in material}
        rules = Rules(core.trust.verifier, core.trust.mesh)
        case = open_case(signed, named, self._clock().wall_ms, rules, core.state.admins)
        if isinstance(case, Refusal):
            raise MoveError(case.rule, case.detail)
        rights = case.signer("admin", case.command.project, case.command.environment)
        if isinstance(rights, Refusal):
            raise MoveError(rights.rule, rights.detail)
        return signed, case.command

    # --- the target ---------------------------------------------------------------------------------------------------

    async def _carry(self, move: Move) -> None:
        """Move, here or by telling the target, and note how it went."""
        try:
            if move.target == self._core.node:
                await self._pull(move)
            else:
                await self._tell_target(move)
        except (MoveError, StreamError, OSError, ConfigError, TimeoutError, sqlite3.Error, DecodeError) as error:
            rule = error.rule if isinstance(error, MoveError) else "data.move-failed"
            _log.warning("not moved: %s", error, extra={"event": "data.move-failed", "project": move.project})
            self.moves[move.lane] = MoveProgress("failed", rule=rule, detail=str(error)[:300] or type(error).__name__)

    async def _tell_target(self, move: Move) -> None:
        async with await self._transport.open_stream(move.target, PROTOCOL) as stream:
            await stream.write_block(encode(Order(move.ticket)))
            stream.finish()
            while True:
                async with asyncio.timeout(STEP_TIMEOUT_S):
                    block = await stream.read_block(TICKET_MAX_BYTES)
                if block is None:
                    raise MoveError("data.move-broken", "the target ended in the middle; the data stays where it was")
                progress: MoveProgress = decode(block, MoveProgress)
                self.moves[move.lane] = progress
                if progress.phase in {"done", "failed"}:
                    return

    async def _pull(self, move: Move) -> None:
        if move.lane in self._pulling:
            raise MoveError("data.moving", "a move of this lane is under way")
        self._pulling[move.lane] = None
        try:
            incoming = self.place.incoming(move.lane)
            (incoming / "ticket").unlink(missing_ok=True)
            files = incoming / "files"
            files.mkdir(mode=0o700, parents=True, exist_ok=True)
            await self._fetch(move, files, last=False)
            self.moves[move.lane] = MoveProgress("freezing")
            copy = await self._fetch(move, files, last=True)
            self.moves[move.lane] = MoveProgress("comparing", 0, copy.size_bytes)
            await asyncio.to_thread(complete, copy, files)
            await asyncio.to_thread(write_private, incoming / "ticket", encode(move.ticket))
            self.moves[move.lane] = MoveProgress("switching")
            await self._decide(move)
            self._settle()
            self.moves[move.lane] = MoveProgress("done", copy.size_bytes, copy.size_bytes)
        finally:
            del self._pulling[move.lane]

    async def _decide(self, move: Move) -> None:
        try:
            outcome = await self._submit(move.ticket.switch, _shown(move.ticket, move.switch))
        except BusyChainError as error:
            raise MoveError("chain.busy", f"{error}; the source goes on by itself") from None
        if outcome.outcome == "decided" or self._slot_of(move.switch):
            return
        if outcome.outcome == "unknown":
            raise MoveError("chain.unknown", "no majority answered in time; it is settled as soon as one does")
        raise MoveError(outcome.rule or outcome.outcome, outcome.detail)

    async def _fetch(self, move: Move, files: Path, *, last: bool) -> DataCopy:
        """Make `files` what the source holds; the frozen bytes are those it signed for."""
        async with await self._transport.open_stream(move.source, PROTOCOL) as stream:
            await stream.write_block(encode(AskCopy(move.ticket, last)))
            copy = await self._read_copy(stream, move, last=last)
            wanted = await asyncio.to_thread(missing, copy, files)
            total = sum(map(len, wanted.values())) * BLOCK_BYTES
            done = 0
            phase = "freezing" if last else "copying"
            for name, numbers in wanted.items():
                for first in range(0, len(numbers), WANTED_MAX):
                    some = tuple(numbers[first : first + WANTED_MAX])
                    await stream.write_block(encode(Wanted(name, some)))
                    for number in some:
                        async with asyncio.timeout(STEP_TIMEOUT_S):
                            block = await stream.read_block(BLOCK_BYTES)
                        if block is None:
                            raise MoveError("data.move-broken", "the source ended in the middle")
                        write_block(files, name, number, block)
                        done += len(block)
                        self.moves[move.lane] = MoveProgress(phase, done, total)
            return copy

    async def _read_copy(self, stream: Stream, move: Move, *, last: bool) -> DataCopy:
        async with asyncio.timeout(STEP_TIMEOUT_S):
            head = await stream.read_block(TICKET_MAX_BYTES)
            if head is None:
                raise MoveError("data.move-broken", "the source does not answer; is its version older?")
            if head[:1] != ARRAY_OF_THREE:
                refused: MoveProgress = decode(head, MoveProgress)
                raise MoveError(refused.rule, refused.detail)
            said: Signed = decode(head, Signed)
            body = await stream.read_block(MANIFEST_MAX_BYTES)
        core = self._core
        word: Frozen = open_signed(core.trust.verifier, FROZEN_DOMAIN, core.trust.mesh, said, Frozen)
        wanted = (move.source, *move.lane, move.expect, last)
        if (word.node, word.project, word.environment, word.expect, word.frozen) != wanted:
            raise MoveError("data.statement", "the source signed for something else")
        if peer_id(said.key) != move.source or word.copy != digest(body or b""):
            raise MoveError("data.statement", "the copy is not what the source signed for")
        copy: DataCopy = decode(body or b"", DataCopy, MANIFEST_MAX_BYTES)
        check_copy(copy)
        return copy

    # --- the source ---------------------------------------------------------------------------------------------------

    async def _serve(self, stream: Stream) -> None:
        if not self._is_member(stream.peer):
            raise StreamError("data.refused")
        async with asyncio.timeout(STEP_TIMEOUT_S):
            block = await stream.read_block(TICKET_MAX_BYTES)
        try:
            asked: AskCopy | Order = decode(block or b"", AskCopy | Order, TICKET_MAX_BYTES)
        except DecodeError:
            raise StreamError("data.malformed") from None
        try:
            if isinstance(asked, Order):
                await self._obey(stream, asked.ticket)
            else:
                await self._give(stream, asked)
        except MoveError as error:
            await stream.write_block(encode(MoveProgress("failed", rule=error.rule, detail=error.detail)))
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, StreamError):
                raise
            await stream.write_block(encode(MoveProgress("failed", rule="data.move-failed", detail=str(error)[:300])))
        stream.finish()

    async def _obey(self, stream: Stream, ticket: MoveTicket) -> None:
        move = self.begin(ticket)
        if move.target != self._core.node:
            raise MoveError("data.ticket", "this node is not the target")
        told: MoveProgress | None = None
        while told is None or told.phase not in {"done", "failed"}:
            if told != self.moves[move.lane]:
                told = self.moves[move.lane]
                await stream.write_block(encode(told))
            await asyncio.sleep(0.1)

    async def _give(self, stream: Stream, asked: AskCopy) -> None:
        move = self.check(asked.ticket)
        if (move.source, move.target) != (self._core.node, stream.peer):
            raise MoveError("data.ticket", "the ticket is for other nodes")
        stores, outgoing = self.place.stores(move.lane), self.place.outgoing(move.lane)
        self.require_current(move)
        self._require_no_other(move)
        if asked.freeze:
            async with self.marking:
                self._require_no_other(move)
                mark = encode(Mark(asked.ticket, self._clock().wall_ms))
                stores.mkdir(mode=0o700, parents=True, exist_ok=True)
                await asyncio.to_thread(freeze.freeze, stores, mark)
            self._settle()  # what was decided while the mark was made would otherwise never take it away
            self.require_current(move)
        try:
            copy = await asyncio.to_thread(take_copy, stores, outgoing)
            body = encode(copy)
            word = Frozen(self._core.node, *move.lane, move.expect, digest(body), asked.freeze)
            await stream.write_block(encode(sign(self._signer, FROZEN_DOMAIN, self._core.trust.mesh, word)))
            await stream.write_block(body)
            await self._send_blocks(stream, copy, outgoing)
        finally:
            shutil.rmtree(outgoing, ignore_errors=True)

    def _require_no_other(self, move: Move) -> None:
        """Raise MoveError while an admin holds the data still or puts a copy into its place, or a release migrates it."""
        note = freeze.note_of(self.place.stores(move.lane))
        mark: Mark | None = decode(note, Mark, TICKET_MAX_BYTES) if note is not None else None
        if mark is not None and mark.migrating:
            raise MoveError("data.under-way", "a release migrates the data; move it when that has ended")
        if mark is not None and mark.ticket is None:
            raise MoveError(
                "data.frozen", f"an admin froze it: freehold data thaw {move.project} --env {move.environment}"
            )

    async def _send_blocks(self, stream: Stream, copy: DataCopy, outgoing: Path) -> None:
        sizes = {file.name: len(file.blocks) for file in copy.files}
        while (block := await stream.read_block(TICKET_MAX_BYTES)) is not None:
            try:
                wanted: Wanted = decode(block, Wanted, TICKET_MAX_BYTES)
            except DecodeError:
                raise StreamError("data.malformed") from None
            if any(not 0 <= number < sizes.get(wanted.name, 0) for number in wanted.blocks):
                raise StreamError("data.malformed")
            for number in wanted.blocks:
                await stream.write_block(read_block(outgoing, wanted.name, number))

    def _marks(self) -> Iterator[tuple[Lane, Mark]]:
        """The marks that stand here."""
        for path in sorted((self.place.folder / "data").glob(f"*/*/{freeze.FROZEN}")):
            try:
                mark: Mark = decode(freeze.note_of(path.parent) or b"", Mark, TICKET_MAX_BYTES)
                yield (path.parent.parent.name, path.parent.name), mark
            except DecodeError as error:
                _log.error("a mark cannot be read: %s", error, extra={"event": "data.mark", "detail": str(path)})

    def _parse(self, ticket: MoveTicket) -> Move:
        """Read a ticket that was checked when it came: its signer may have lost the right since."""
        switch: SignedCommand = decode(ticket.switch, SignedCommand, TICKET_MAX_BYTES)
        abort: SignedCommand = decode(ticket.abort, SignedCommand, TICKET_MAX_BYTES)
        command: Command = decode(switch.payload, Command)
        back: Command = decode(abort.payload, Command)
        if not isinstance(command.action, PlaceData) or not isinstance(back.action, PlaceData):
            raise MoveError("data.ticket", "no move")
        return Move(ticket, command.project, command.environment, command.expect or 0, back.action.node,
                    command.action.node, switch)  # fmt: skip

    async def _abort_if_due(self, ticket: MoveTicket, since_ms: int) -> None:
        if self._clock().wall_ms - since_ms < ABORT_AFTER_MS:
            return
        abort: SignedCommand = decode(ticket.abort, SignedCommand, TICKET_MAX_BYTES)
        with contextlib.suppress(BusyChainError):
            await self._submit(ticket.abort, _shown(ticket, abort))
        self._settle()

    # --- what was decided ---------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Bring marks and copies in line with what was decided; never before it was."""
        for lane, mark in list(self._marks()):
            if mark.ticket is not None:
                self._settle_source(self._parse(mark.ticket), mark)
            elif mark.left:
                self._settle_left(lane)
        for path in sorted((self.place.folder / "incoming").glob("*/*/ticket")):
            try:
                self._settle_target(self._parse(decode(path.read_bytes(), MoveTicket, TICKET_MAX_BYTES)))
            except (DecodeError, MoveError) as error:
                _log.error("a copy cannot be settled: %s", error, extra={"event": "data.copy", "detail": str(path)})

    def _settle_left(self, lane: Lane) -> None:
        """Data that left may be placed here again without a move: the new store begins empty, as the admin was told."""
        decided = self._core.state.lane(*lane)
        if (
            decided is not None
            and decided.data_node == self._core.node
            and not (self.place.incoming(lane) / "ticket").exists()
        ):
            freeze.thaw(self.place.stores(lane))

    def _settle_source(self, move: Move, mark: Mark) -> None:
        lane = self._core.state.lane(*move.lane)
        if lane is None or move.source != self._core.node:
            return
        gone = self._slot_of(move.switch) or (lane.sequence > move.expect and lane.data_node != self._core.node)
        if gone:
            self.place.leave(move.lane, mark)
            _log.info("data moved away", extra={"event": "data.left", "project": move.project})
        elif lane.sequence > move.expect:
            freeze.thaw(self.place.stores(move.lane))
            _log.info("data stays: the move was given up", extra={"event": "data.thawed", "project": move.project})

    def _settle_target(self, move: Move) -> None:
        lane = self._core.state.lane(*move.lane)
        incoming = self.place.incoming(move.lane)
        if lane is None or move.target != self._core.node:
            return
        if self._slot_of(move.switch):
            self.place.install(move.lane, self._clock().wall_ms)
            (incoming / "ticket").unlink()
            _log.info("data moved here", extra={"event": "data.came", "project": move.project})
        elif lane.sequence > move.expect:
            (incoming / "ticket").unlink()
            shutil.rmtree(incoming, ignore_errors=True)


def _shown(ticket: MoveTicket, signed: SignedCommand) -> tuple[bytes, ...]:
    """The material that one of a ticket's commands shows."""
    named = set(signed.exhibits.digests())
    return tuple(entry for entry in ticket.material if digest(entry) in named)
