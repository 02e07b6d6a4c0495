"""What the node that holds a lane's data does with it for an admin: hands out a copy, takes one in, holds it still.

Each act needs a mandate that an admin signed for this node. A copy that is handed out is one moment of each database; one
that is taken in replaces all there is, or nothing. Not here: the files (node/store/data_staging.py), moves to other nodes
(data_moves.py), and copies made by themselves (data_backups.py).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import sqlite3
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from node.errors import ConfigError, NotDoneError
from node.serving.data_moves import DataMoves
from node.store.data_copy import DataCopy, take_copy
from node.store.data_folders import TICKET_MAX_BYTES, DataFolders, Lane, Mark
from node.store.data_staging import PIECE_MAX_BYTES, Staging, check_listing, settle_imports
from node.store.disk_room import RESERVE_BYTES, ROOM_MIN_BYTES, free_bytes
from protocols.api_data import ListedFile
from protocols.changes.mandates import MANDATE_AHEAD_MS, MANDATE_LIFETIME_MS, Act, DataMandate, read_mandate
from protocols.core import NodeCore
from protocols.envelope import decode, encode
from protocols.machine import Now
from protocols.refusal import Refusal
from runtime.services import freeze

EXPORTS_MAX = 4
IMPORTS_MAX = 4
IDLE_S = 900.0
"""A copy that nobody fetched from, and an import that nothing came for, are thrown away after so long."""

LOOK_EVERY_S = 5.0
NONCES_MAX = 1_024
ROOM_KEPT_BYTES = 2 * ROOM_MIN_BYTES + RESERVE_BYTES
"""What a copy leaves free: the node would stop voting below."""

_log = logging.getLogger("freehold.data")


@dataclass(slots=True)
class Export:
    """A copy that is fetched file by file."""

    lane: Lane
    principal: str
    folder: Path
    files: tuple[ListedFile, ...]
    used_s: float


@dataclass(slots=True)
class Import:
    """Files that come one by one."""

    mandate: DataMandate
    files: tuple[ListedFile, ...]
    staging: Staging
    used_s: float
    coming: set[str] = field(default_factory=set)

    @property
    def lane(self) -> Lane:
        """The project and the environment."""
        return self.mandate.project, self.mandate.environment

    def listed(self, sha256: str) -> ListedFile | None:
        """Return the file with these bytes."""
        return next((file for file in self.files if file.sha256 == sha256), None)


class DataCustody:
    """One node's exports, imports and freezes."""

    def __init__(self, core: NodeCore, moves: DataMoves, clock: Callable[[], Now]) -> None:
        self._core = core
        self._moves = moves
        self._clock = clock
        self.place: DataFolders = moves.place
        self._nonces: OrderedDict[bytes, int] = OrderedDict()
        self._started_ms = clock().wall_ms
        self._exports: dict[str, Export] = {}
        self._imports: dict[str, Import] = {}

    def settle(self) -> None:
        """End what an earlier life began; before workers start."""
        shutil.rmtree(self.place.exports(), ignore_errors=True)
        settle_imports(self.place)

    async def run(self) -> None:
        """Throw away what nobody comes for, until cancelled."""
        while True:
            before_s = time.monotonic() - IDLE_S
            for name in [name for name, export in self._exports.items() if export.used_s < before_s]:
                await self._drop(name)
            for name in [name for name, entry in self._imports.items() if entry.used_s < before_s and not entry.coming]:
                await asyncio.to_thread(self._imports.pop(name).staging.clear)
            async with self._moves.marking:
                await asyncio.to_thread(settle_imports, self.place, clear=False)
            await asyncio.sleep(LOOK_EVERY_S)

    # --- mandates -----------------------------------------------------------------------------------------------------

    def check(self, data: bytes, act: Act, lane: Lane, listing: bytes = b"") -> DataMandate:
        """Return an admin's mandate for this act here, which is used up by that. Raises NotDoneError."""
        core, now_ms = self._core, self._clock().wall_ms
        state = core.state
        mandate = read_mandate(data, core.trust.verifier, core.trust.mesh, state.admins, state.threshold, now_ms)
        if isinstance(mandate, Refusal):
            raise NotDoneError(mandate, f"freehold data {act} {lane[0]} --env {lane[1]}")
        if (mandate.act, mandate.project, mandate.environment, mandate.node) != (act, *lane, core.node):
            raise _refusal("data.mandate", "the mandate is for something else")
        if mandate.listing != listing:
            raise _refusal("data.mandate", "the mandate is for other files")
        if mandate.at_ms < self._started_ms + MANDATE_AHEAD_MS:  # whether it was used is known of this life alone
            raise _refusal("data.mandate", "the mandate may be from before this node started; sign another")
        while self._nonces and next(iter(self._nonces.values())) < now_ms - 2 * MANDATE_LIFETIME_MS:
            self._nonces.popitem(last=False)
        if mandate.nonce in self._nonces or len(self._nonces) >= NONCES_MAX:
            raise _refusal("data.mandate", "the mandate was used already, or too many were; sign another")
        self._nonces[mandate.nonce] = now_ms
        self._require_here(lane)
        return mandate

    def _require_here(self, lane: Lane) -> None:
        decided = self._core.state.lane(*lane)
        if decided is None or not decided.data_node:
            raise _refusal("data.none", f"{lane[0]} has no data in {lane[1]} yet", "freehold data list")
        if decided.data_node != self._core.node:
            raise _refusal(
                "data.elsewhere", f"the data of {lane[0]} in {lane[1]} is not on this node", "freehold data list, and ask "
                "the node that it names: freehold context use",
            )  # fmt: skip

    # --- freezing -----------------------------------------------------------------------------------------------------

    async def freeze(self, lane: Lane) -> None:
        """Hold a lane's data still until it is thawed. Raises NotDoneError, OSError, sqlite3.Error."""
        async with self._moves.marking:
            if not self._frozen(lane):
                stores = self.place.stores(lane)
                stores.mkdir(mode=0o700, parents=True, exist_ok=True)
                await asyncio.to_thread(freeze.freeze, stores, encode(Mark(None, self._clock().wall_ms)))

    async def thaw(self, lane: Lane) -> None:
        """Let it be written again. Raises NotDoneError."""
        async with self._moves.marking:
            if self._frozen(lane):
                freeze.thaw(self.place.stores(lane))

    def _frozen(self, lane: Lane) -> bool:
        """Whether an admin froze it. Raises NotDoneError if a move or an import holds it."""
        note = freeze.note_of(self.place.stores(lane))
        if Staging(self.place, lane).begun is not None:
            raise _refusal("data.under-way", "an import is under way")
        if note is None:
            return False
        mark: Mark = decode(note, Mark, TICKET_MAX_BYTES)
        if mark.ticket is not None:
            raise _refusal("data.under-way", "the data moves; it ends by itself", "freehold data list")
        if mark.fenced:
            raise _refusal("data.under-way", "the node takes the place of another; it is settled in a moment")
        if mark.migrating:
            raise _refusal("data.under-way", "a release migrates the data; it ends by itself")
        if mark.left:
            raise _refusal("data.under-way", "the data went to another node; it is settled in a moment")
        return True

    # --- handing out --------------------------------------------------------------------------------------------------

    async def export(self, lane: Lane, principal: str) -> tuple[str, Export]:
        """Make a copy to be fetched; return its name. Raises NotDoneError, OSError, sqlite3.Error."""
        if len(self._exports) >= EXPORTS_MAX:
            raise _refusal("data.under-way", f"{EXPORTS_MAX} copies are fetched from this node; try again later")
        name = secrets.token_hex(16)
        folder = self.place.exports() / name
        new_export = self._exports[name] = Export(
            lane, principal, folder, (), float("inf")
        )  # it counts while it is made
        try:
            copy = await asyncio.to_thread(copy_with_room, self.place.stores(lane), folder)
        except BaseException:
            del self._exports[name]
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise
        new_export.files, new_export.used_s = listed(copy), time.monotonic()
        return name, new_export

    def exported(self, lane: Lane, principal: str, name: str, number: int) -> Path | None:
        """Return where one file of a copy lies; None if there is none for who asks."""
        export = self._exports.get(name)
        if (
            export is None
            or (export.lane, export.principal) != (lane, principal)
            or not 0 <= number < len(export.files)
        ):
            return None
        export.used_s = time.monotonic()
        return export.folder / export.files[number].name

    async def drop_export(self, lane: Lane, principal: str, name: str) -> None:
        """Throw a copy away that its fetcher needs no more; nothing happens if there is none."""
        export = self._exports.get(name)
        if export is not None and (export.lane, export.principal) == (lane, principal):
            await self._drop(name)

    async def _drop(self, name: str) -> None:
        folder = self._exports.pop(name).folder
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    # --- taking in ----------------------------------------------------------------------------------------------------

    async def begin_import(self, mandate: DataMandate, files: tuple[ListedFile, ...]) -> str:
        """Make room for files that come; return the import's name. Raises NotDoneError, OSError."""
        lane = mandate.project, mandate.environment
        try:
            check_listing(files)
        except ConfigError as error:
            raise _refusal("data.malformed", str(error), error.advice) from None
        if not mandate.replace and self.holds(lane):
            raise _refusal(
                "data.exists", "there is data already; with --replace it is put aside, unwritable, for 7 days",
                f"freehold data import {lane[0]} FOLDER --env {lane[1]} --replace",
            )  # fmt: skip
        if any(entry.lane == lane for entry in self._imports.values()):
            self._drop_imports(lane)
        if len(self._imports) >= IMPORTS_MAX:
            raise _refusal("data.under-way", f"{IMPORTS_MAX} imports are under way here; try again later")
        self._frozen(lane)
        require_room(self.place.folder, sum(file.size_bytes for file in files))
        name, staging = secrets.token_hex(16), Staging(self.place, lane)
        await asyncio.to_thread(staging.open)
        self._imports[name] = Import(mandate, files, staging, time.monotonic())
        return name

    def holds(self, lane: Lane) -> bool:
        """Whether there is anything in a lane's place that somebody may miss."""
        return any(path.suffix in {".db", ""} and path.name not in {freeze.FROZEN, freeze.LEASE}
                   for path in self.place.stores(lane).rglob("*") if path.is_file())  # fmt: skip

    async def take(self, lane: Lane, name: str, sha256: str, pieces: AsyncIterator[bytes]) -> None:
        """Take one file of an import, durable on return. Raises NotDoneError, OSError."""
        answer = self._import(lane, name)
        listed_file = answer.listed(sha256)
        if listed_file is None or sha256 in answer.coming:
            raise _refusal("data.mandate", "this import lists no such file, or it comes already")
        answer.coming.add(sha256)
        part = answer.staging.begin_part(listed_file)
        try:
            async for piece in pieces:
                for start in range(0, len(piece), PIECE_MAX_BYTES):
                    await asyncio.to_thread(part.write, piece[start : start + PIECE_MAX_BYTES])
                answer.used_s = time.monotonic()
            await asyncio.to_thread(part.finish)
        except ConfigError as error:
            raise _refusal("data.malformed", str(error), error.advice) from None
        finally:
            part.close()
            answer.coming.discard(sha256)

    async def install(self, lane: Lane, name: str) -> None:
        """Put an import into its place. Raises NotDoneError, OSError, sqlite3.Error."""
        answer = self._import(lane, name)
        lacking = [file.name for file in answer.files if not answer.staging.has(file.sha256)]
        if lacking or answer.coming:
            raise _refusal("data.mandate", f"{len(lacking)} files did not come yet, {lacking[:1]} among them")
        answer.used_s = float("inf")
        try:
            await asyncio.to_thread(answer.staging.assemble, answer.files)
            async with self._moves.marking:
                self._require_here(lane)
                stays = self._frozen(lane)
                if not answer.mandate.replace and self.holds(lane):
                    raise _refusal("data.exists", "there is data now; nothing was replaced")
                await asyncio.to_thread(answer.staging.install, self._clock().wall_ms, stays_frozen=stays)
        except ConfigError as error:
            raise _refusal("data.malformed", str(error), error.advice) from None
        except (OSError, sqlite3.Error) as error:
            if answer.staging.begun is not None:
                text = (
                    f"the swap has begun and ends as soon as the disk lets it ({error}); the data is frozen until then"
                )
                raise _refusal("data.under-way", text, "freehold data list") from error
            raise
        finally:
            self._imports.pop(name, None)
            await asyncio.to_thread(answer.staging.clear)
        _log.info("data imported", extra={"event": "data.imported", "project": lane[0]})

    def _import(self, lane: Lane, name: str) -> Import:
        answer = self._imports.get(name)
        if answer is None or answer.lane != lane:
            raise _refusal("data.mandate", "there is no such import here; begin it again")
        answer.used_s = max(answer.used_s, time.monotonic())
        return answer

    def _drop_imports(self, lane: Lane) -> None:
        for name, entry in list(self._imports.items()):
            if entry.lane == lane:
                if entry.coming or entry.used_s == float("inf"):
                    raise _refusal("data.under-way", "an import is under way")
                del self._imports[name]


def copy_with_room(stores: Path, folder: Path) -> DataCopy:
    """Copy a lane's data if the disk has room for it twice. Raises NotDoneError, OSError, sqlite3.Error."""
    size_bytes = sum(path.stat().st_size for path in stores.rglob("*") if path.is_file())
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_room(folder.parent, size_bytes)
    stores.mkdir(mode=0o700, parents=True, exist_ok=True)
    return take_copy(stores, folder)


def listed(copy: DataCopy) -> tuple[ListedFile, ...]:
    """A copy's files as they are named outside."""
    return tuple(ListedFile(file.name, file.size, file.digest.hex()) for file in copy.files)


def require_room(folder: Path, size_bytes: int) -> None:
    """Raise NotDoneError if so much on a folder's disk would leave the node no room."""
    free = free_bytes(folder)
    if free - ROOM_KEPT_BYTES < size_bytes:
        raise _refusal(
            "data.no-room", f"{size_bytes} bytes are needed, and {max(free - ROOM_KEPT_BYTES, 0)} are free on the node's "
            f"disk beyond what it keeps for itself; nothing was changed", "free some space there",
        )  # fmt: skip


def _refusal(rule: str, detail: str, next_step: str = "freehold data list") -> NotDoneError:
    return NotDoneError(Refusal(rule, detail), next_step)
