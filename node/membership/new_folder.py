"""A node's data folder in the making: prepared inside it, moved into place, and a node's only when all of it is there.

The folder itself may be there already and may be a mount point, so nothing is renamed over it. What is prepared lies in
DATA/making; it is moved piece by piece, `genesis` last: without a genesis a folder holds no node, and making one again
begins by removing what the last attempt moved. Not here: what belongs into the folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from node.errors import ConfigError
from node.keys import sync_tree
from runtime.durable import sync_folder

MAKING = "making"
COMMIT = "genesis"
NOTES = frozenset({"founding", "invite"})
"""What whoever makes the folder notes there for its next attempt; it is not moved."""
NOT_OURS = frozenset({"lost+found"})
"""What a new file system holds."""


def holds_node(folder: Path) -> bool:
    """Whether a node was made in a folder, wholly."""
    return (folder / COMMIT).exists()


def is_free(folder: Path) -> bool:
    """Whether a node can be made in a folder: there is none, and nothing else that is not ours."""
    there = {path.name for path in folder.iterdir()} - NOT_OURS if folder.exists() else set()
    return not holds_node(folder) and (not there or MAKING in there)


def begin(folder: Path, *, keep: tuple[str, ...] = ()) -> Path:
    """Return the empty folder to prepare in, mode 0700; of an earlier attempt only the files `keep` are in it.

    Raises ConfigError if there is a node, or anything that is not ours.
    """
    making = folder / MAKING
    if not is_free(folder):
        raise ConfigError(f"{folder} is not empty", "choose another folder with --data")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    making.mkdir(exist_ok=True, mode=0o700)
    moved = [path for path in folder.iterdir() if path.name not in {MAKING, *NOT_OURS}]
    for entry in (path for path in moved if path.name in keep):
        entry.rename(making / entry.name)
    for left in (*(path for path in moved if path.exists()), *making.iterdir()):
        if left.parent == making and left.name in keep:
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()
    sync_folder(folder)
    return making


def finish(folder: Path) -> None:
    """Make what was prepared the folder's, durably: from here on it holds a node."""
    making = folder / MAKING
    folder.chmod(0o700)
    sync_tree(making)
    for entry in sorted(making.iterdir(), key=lambda path: path.name):
        if entry.name not in {COMMIT, *NOTES}:
            entry.rename(folder / entry.name)
    sync_folder(folder)
    (making / COMMIT).rename(folder / COMMIT)
    sync_folder(folder)
    shutil.rmtree(making)
    sync_folder(folder.parent)


def abandon(folder: Path) -> None:
    """Remove what was prepared and not moved, and the folder if nothing else is in it."""
    shutil.rmtree(folder / MAKING, ignore_errors=True)
    if folder.exists() and not any(folder.iterdir()) and not folder.is_mount():
        folder.rmdir()
