"""Has a release migrate its lane's data, once, before it takes visitors: on a copy, which takes the data's place or is gone.

The data is held still, copied, and the copy given to the release's own `migrate` functions in a worker of their own. If
all of them say that it is done, the copy is put into the data's place together with the note that this release migrated
it; else the data is what it was. A node that is killed on the way begins again, or ends the swap that has begun. There is
no way back through a release: what ran before serves on the migrated data if the rollout fails. Not here: when a release
starts (workloads.py), the swap (node/store/data_staging.py), what an app is asked (releases.ask_migrations).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from node.errors import ConfigError, NotDoneError
from node.serving.data_custody import require_room
from node.serving.releases import LaterError, PreparationError, PreparedRelease, ask_migrations, migration_load
from node.serving.smoke_bench import SmokeBenches
from node.store.data_copy import clone, seal
from node.store.data_folders import TICKET_MAX_BYTES, DataFolders, Lane, Mark
from node.store.data_staging import Staging
from node.store.migrated import migrated_by, note_migrated
from protocols.core import NodeCore
from protocols.envelope import DecodeError, decode, encode
from protocols.machine import Now
from runtime.services import freeze
from runtime.workers.link import WorkerRefusedError
from runtime.workers.pool import PoolError

STATEMENT_MAX_S = 600.0
"""Of a statement in a migration, which may build an index over all there is."""

LOOK_EVERY_S = 0.5
_log = logging.getLogger("freehold.migrations")


class UnwantedError(Exception):
    """What was begun is wanted no more; nothing was changed."""


class Migrations:
    """One node's migrations. `marking` is held while marks and the data's place change."""

    def __init__(
        self, core: NodeCore, place: DataFolders, marking: asyncio.Lock, benches: SmokeBenches, providers_file: Path,
        clock: Callable[[], Now],
    ) -> None:  # fmt: skip
        self._core = core
        self._place = place
        self._marking = marking
        self._benches = benches
        self._providers_file = providers_file
        self._clock = clock

    def settle(self) -> None:
        """Let go of what an earlier life was migrating; swaps that had begun were ended before. Workers come after."""
        for path in sorted((self._place.folder / "data").glob(f"*/*/{freeze.FROZEN}")):
            lane = path.parent.parent.name, path.parent.name
            if self._held(lane) and Staging(self._place, lane).begun is None:
                freeze.thaw(path.parent)
        for folder in sorted((self._place.folder / "migrating").glob("*/*")):
            if Staging(self._place, (folder.parent.name, folder.name)).begun is None:
                shutil.rmtree(folder, ignore_errors=True)

    def is_due(self, lane: Lane, prepared: PreparedRelease) -> bool:
        """Whether a release has yet to migrate the data that is here. Raises PreparationError if nobody can tell."""
        if not prepared.migrating:
            return False
        try:
            return prepared.release.hex() not in migrated_by(self._place.stores(lane))
        except (ConfigError, OSError) as error:
            raise PreparationError(f"whether the data was migrated cannot be read: {error}") from error

    async def run(self, lane: Lane, prepared: PreparedRelease, wanted: Callable[[], bool]) -> None:
        """Migrate, as long as it is `wanted`. Raises PreparationError, UnwantedError; the data is what it was then."""
        _log.info("migrating", extra=_about(lane, "migrate.begun"))
        folder = self._place.migrating(lane) / secrets.token_hex(8)
        try:
            await self._hold(lane)
            try:
                await self._migrate_copy(lane, prepared, folder, wanted)
            finally:
                if Staging(self._place, lane).begun is None:
                    if self._held(lane):
                        freeze.thaw(self._place.stores(lane))
                    await _to_its_end(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))
        except (OSError, sqlite3.Error, ConfigError) as error:
            raise LaterError(f"the data cannot be migrated now: {error}") from error
        _log.info("migrated", extra=_about(lane, "migrate.done"))

    async def _hold(self, lane: Lane) -> None:
        """Hold the data still for this. Raises LaterError while it is elsewhere, or held for something else."""
        stores = self._place.stores(lane)
        async with self._marking:
            if not self._is_here(lane):
                raise LaterError("the data that the release migrates is not on this node yet")
            if freeze.note_of(stores) is not None or Staging(self._place, lane).begun is not None:
                raise LaterError("the data that the release migrates is frozen: freehold data list")
            stores.mkdir(mode=0o700, parents=True, exist_ok=True)
            mark = encode(Mark(None, self._clock().wall_ms, migrating=True))
            await _to_its_end(asyncio.to_thread(freeze.freeze, stores, mark))

    async def _migrate_copy(
        self, lane: Lane, prepared: PreparedRelease, folder: Path, wanted: Callable[[], bool]
    ) -> None:
        stores, copy = self._place.stores(lane), folder / lane[0] / lane[1]
        size_bytes = sum(path.stat().st_size for path in freeze.databases(stores))
        try:
            require_room(self._place.folder, size_bytes)
        except NotDoneError as error:
            raise LaterError(f"the data cannot be copied to be migrated: {error}") from None
        await _to_its_end(asyncio.to_thread(clone, stores, copy))
        await self._ask(prepared, folder, wanted)
        await _to_its_end(asyncio.to_thread(_finish, copy, prepared.release.hex()))
        async with self._marking:
            if not wanted() or not self._is_here(lane) or not self._held(lane):
                raise UnwantedError
            staging, source = Staging(self._place, lane), str(copy.relative_to(self._place.folder))
            at_ms = self._clock().wall_ms
            await _to_its_end(asyncio.to_thread(staging.install, at_ms, stays_frozen=False, source=source))

    async def _ask(self, prepared: PreparedRelease, data: Path, wanted: Callable[[], bool]) -> None:
        """Have the release migrate the stores below `data`. Raises PreparationError, UnwantedError."""
        asking = asyncio.ensure_future(self._ask_apps(prepared, data))
        try:
            while not asking.done():
                await asyncio.wait({asking}, timeout=LOOK_EVERY_S)
                if not asking.done() and not wanted():
                    raise UnwantedError
            asking.result()
        except (PoolError, TimeoutError) as error:
            refused = isinstance(error.__cause__, WorkerRefusedError)
            raise (PreparationError if refused else LaterError)(
                f"the data was not migrated: {str(error) or 'no worker in time'}"
            ) from None
        finally:
            asking.cancel()
            await asyncio.wait({asking})

    async def _ask_apps(self, prepared: PreparedRelease, data: Path) -> None:
        load = migration_load(prepared)
        async with self._benches.over(data, load, self._providers_file, STATEMENT_MAX_S) as bench:
            await ask_migrations(bench.pool, load)

    def _is_here(self, lane: Lane) -> bool:
        decided = self._core.state.lane(*lane)
        return decided is not None and decided.data_node == self._core.node

    def _held(self, lane: Lane) -> bool:
        """Whether the data is held still for a migration."""
        note = freeze.note_of(self._place.stores(lane))
        try:
            mark: Mark | None = decode(note, Mark, TICKET_MAX_BYTES) if note is not None else None
        except DecodeError:
            return False
        return mark is not None and mark.migrating


def _finish(copy: Path, release: str) -> None:
    note_migrated(copy, release)
    seal(copy)


async def _to_its_end(call: Awaitable[Any]) -> None:
    """Await what a thread does also when cancelled: what comes behind must not happen beside it."""
    running = asyncio.ensure_future(call)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


def _about(lane: Lane, event: str) -> dict[str, str]:
    return {"event": event, "project": lane[0], "environment": lane[1]}
