"""Where a node keeps lanes' data: what apps use, copies on their way, what was put aside, and the mark that holds it still.

Not here: when data moves or is replaced (node/serving/), and copies themselves (data_copy.py).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from node.keys import sync_tree, write_private
from protocols.envelope import encode
from runtime.durable import sync_folder
from runtime.services import freeze

TICKET_MAX_BYTES = 256 * 1024
KEPT_MS = 7 * 24 * 3_600_000

Lane = tuple[str, str]


class MoveTicket(msgspec.Struct, frozen=True, tag="data_ticket"):
    """An admin's leave to move: encoded SignedCommands of one sequence, and the material that proves both."""

    switch: bytes
    abort: bytes
    material: tuple[bytes, ...]


class Mark(msgspec.Struct, frozen=True, tag="data_mark"):
    """What stands in a freeze's mark: the move it belongs to, and since when (wall ms)."""

    ticket: MoveTicket | None
    since_ms: int
    left: bool = False
    """The data went to another node."""

    fenced: bool = False
    """The node has only just become the holder, and the former one may not know it yet."""

    migrating: bool = False
    """A release migrates a copy of the data, which is put into its place then."""


@dataclass(slots=True)
class DataFolders:
    """The folders of one node's data."""

    folder: Path

    def stores(self, lane: Lane) -> Path:
        """What workers read and write."""
        return self.folder / "data" / lane[0] / lane[1]

    def incoming(self, lane: Lane) -> Path:
        """A copy on its way in."""
        return self.folder / "incoming" / lane[0] / lane[1]

    def outgoing(self, lane: Lane) -> Path:
        """A copy on its way out."""
        return self.folder / "outgoing" / lane[0] / lane[1]

    def importing(self, lane: Lane) -> Path:
        """Data on its way in from outside."""
        return self.folder / "importing" / lane[0] / lane[1]

    def copies(self, lane: Lane) -> Path:
        """A second copy of what another node holds."""
        return self.folder / "copies" / lane[0] / lane[1]

    def migrating(self, lane: Lane) -> Path:
        """Copies that a release migrates."""
        return self.folder / "migrating" / lane[0] / lane[1]

    def exports(self) -> Path:
        """Copies that are fetched."""
        return self.folder / "exports"

    def keep(self, lane: Lane, at_ms: int) -> None:
        """Put what is in the lane's place aside, unwritable, but for mark and lease; to be called again after a crash."""
        stores = self.stores(lane)
        inside = [path for path in children(stores) if path.name not in {freeze.FROZEN, freeze.LEASE}]
        if not inside:
            return
        kept_path = self.folder / "kept" / lane[0] / lane[1] / str(at_ms)
        kept_path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in inside:
            path.rename(kept_path / path.name)
        sync_tree(kept_path)
        sync_folder(kept_path.parent)
        sync_folder(stores)
        for path in kept_path.rglob("*"):
            if path.is_file():
                path.chmod(0o400)

    def leave(self, lane: Lane, mark: Mark) -> None:
        """Put what is there aside; the mark stays: whoever still serves here begins no new, empty store."""
        self.keep(lane, mark.since_ms)
        write_private(self.stores(lane) / freeze.FROZEN, encode(Mark(None, mark.since_ms, left=True)))

    def install(self, lane: Lane, at_ms: int) -> None:
        """Put a complete copy into its place, and what was there aside; to be called again after a crash."""
        files, stores = self.incoming(lane) / "files", self.stores(lane)
        if files.exists():  # else it came before this process did
            self.keep(lane, at_ms)
            shutil.rmtree(stores, ignore_errors=True)
            stores.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.rename(stores)
            sync_folder(stores.parent)

    def kept(self, lane: Lane) -> tuple[int, ...]:
        """When what is kept of a lane was put aside (wall ms), ascending."""
        paths = (self.folder / "kept" / lane[0] / lane[1]).glob("[0-9]*")
        return tuple(sorted(int(path.name) for path in paths if path.name.isdigit()))

    def forget(self, before_ms: int) -> None:
        """Remove what was put aside before a moment."""
        for path in (self.folder / "kept").glob("*/*/[0-9]*"):
            if path.name.isdigit() and int(path.name) < before_ms:
                shutil.rmtree(path, ignore_errors=True)


def children(folder: Path) -> list[Path]:
    """What is in a folder, ascending; nothing if there is no folder."""
    return sorted(folder.iterdir()) if folder.is_dir() else []
