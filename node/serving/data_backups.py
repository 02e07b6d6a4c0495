"""Backups of the data this node holds, by a schedule of its operator: encrypted files in a folder, oldest ones removed.

They hold apps' data alone, no keys, and the node cannot open them again. A file has its name once it is whole and durable.
Not here: the files (node/store/sealed_copy.py), and backups of the node itself (node/membership/backup.py).
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import re
import secrets
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from node.config import BackupConfig
from node.errors import ConfigError, NotDoneError
from node.serving.data_custody import copy_with_room, listed
from node.store.data_folders import DataFolders, Lane
from node.store.sealed_copy import check_key, seal_folder
from protocols.api_data import DataManifest
from protocols.core import NodeCore
from protocols.machine import Now

LOOK_EVERY_S = 10.0
TRY_AGAIN_MS = 300_000
"""After one that failed."""

ENDING = ".tar.age"
_STAMP = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(r"([a-z0-9-]{1,63})\.([a-z0-9-]{1,63})\.([0-9]{8}T[0-9]{6}Z)\.tar\.age")
_log = logging.getLogger("freehold.data")


@dataclass(slots=True)
class BackupState:
    """How backups of one lane stand: the newest one's moment (wall ms, 0: none), and why the last try failed."""

    at_ms: int = 0
    problem: str = ""
    tried_ms: int = 0


class DataBackups:
    """Makes backups of every lane whose data is here. Without a configuration it makes none."""

    def __init__(
        self, core: NodeCore, place: DataFolders, config: BackupConfig | None, clock: Callable[[], Now]
    ) -> None:
        """Raises ConfigError for a key or a number that cannot be."""
        self._core = core
        self._place = place
        self._config = config
        self._clock = clock
        self.states: dict[Lane, BackupState] = {}
        if config is not None:
            check_key(config.key)
            if config.every_s < 60 or config.keep < 1:
                raise ConfigError("backup.every_s is at least 60, backup.keep at least 1", "edit node.toml")

    async def run(self) -> None:
        """Make what is due, until cancelled."""
        while self._config is not None:
            for lane in self._lanes():
                if self._due(lane, self._config):
                    await self._try(lane, self._config)
            await asyncio.sleep(LOOK_EVERY_S)

    def _lanes(self) -> list[Lane]:
        return [
            (lane.project, lane.environment) for lane in self._core.state.lanes if lane.data_node == self._core.node
        ]

    def _due(self, lane: Lane, config: BackupConfig) -> bool:
        now_ms = self._clock().wall_ms
        state = self.states.setdefault(lane, BackupState())
        if state.at_ms == 0:
            state.at_ms = max((at_ms for at_ms, _ in made_of(Path(config.to), lane)), default=0)
        if now_ms - state.tried_ms < TRY_AGAIN_MS:
            return False
        return now_ms - state.at_ms >= config.every_s * 1_000

    async def _try(self, lane: Lane, config: BackupConfig) -> None:
        state = self.states[lane]
        state.tried_ms = at_ms = self._clock().wall_ms
        try:
            size = await asyncio.to_thread(back_up, self._place, lane, str(self._core.node), at_ms, config)
        except (OSError, sqlite3.Error, ConfigError, NotDoneError) as error:
            state.problem = str(error)[:200]
            _log.error("no backup of %s: %s", "/".join(lane), error, extra={"event": "data.backup-failed"})
            return
        state.at_ms, state.problem, state.tried_ms = at_ms, "", 0
        _log.info("backed up", extra={"event": "data.backed-up", "project": lane[0], "detail": f"{size} bytes"})


def back_up(place: DataFolders, lane: Lane, node: str, at_ms: int, config: BackupConfig) -> int:
    """Make one backup and remove those beyond `keep`; return its size in bytes. Raises OSError, sqlite3.Error, ..."""
    folder = Path(config.to)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder", "mount it, or edit node.toml")
    copy = place.exports() / f"backup-{secrets.token_hex(8)}"
    try:
        files = listed(copy_with_room(place.stores(lane), copy))
        manifest = DataManifest(1, *lane, node, at_ms, files)
        (copy / "manifest.json").write_bytes(msgspec.json.encode(manifest))
        stamp = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC).strftime(_STAMP)
        size = seal_folder(copy, folder / f"{lane[0]}.{lane[1]}.{stamp}{ENDING}", config.key)
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    for _, path in made_of(folder, lane)[: -config.keep]:
        path.unlink(missing_ok=True)
    return size


def made_of(folder: Path, lane: Lane) -> list[tuple[int, Path]]:
    """Return a lane's backups in a folder, with their moments (wall ms), oldest first."""
    pairs = []
    for path in folder.glob(f"*{ENDING}"):
        name = _NAME.fullmatch(path.name)
        if name is not None and (name[1], name[2]) == lane:
            position = datetime.datetime.strptime(name[3], _STAMP).replace(tzinfo=datetime.UTC)
            pairs.append((int(position.timestamp() * 1000), path))
    return sorted(pairs)
