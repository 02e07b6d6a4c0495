"""Names in a folder that survive a power cut, and what is there whole or not at all. Not here: the bytes of a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make what was made, renamed or removed in `folder` durable. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def made_whole(target: Path) -> Iterator[Path]:
    """Yield a path beside `target`, for a file or folder that gets the name of `target` when the block is done.

    An error leaves nothing, and what a killed attempt left goes with the next one. Raises OSError.
    """
    part = target.with_name(f"{target.name}.part")
    _remove(part)
    try:
        yield part
        part.rename(target)
    except BaseException:
        _remove(part)
        raise
    sync_folder(target.absolute().parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
