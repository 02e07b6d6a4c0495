"""The starts that wait on a node, in a file: who handed one over was told that it is held, so it outlives the process.

The whole file is written anew, or not at all, before that answer and when a start has ended. It needs no checksum: each
start carries its signature, and voters refuse what does not match it. Not in a backup: a start is an order for its
moment, and a restored sole node, which forgot what was decided since, would carry out an old one that nobody gives
any more. Not here: what a start waits for (start_queue.py).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import msgspec

from node.keys import write_private
from protocols.envelope import DecodeError, decode, encode
from protocols.state.commands import SignedCommand
from runtime.durable import sync_folder

FILE_NAME = "starts"
FILE_MAX_BYTES = 1 << 20
"""Room for as many starts as may wait, each over as many nodes as a mesh has."""

_log = logging.getLogger("freehold.starter")


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """A start as it was signed, without exhibits, and when it was handed over (wall ms)."""

    signed: SignedCommand
    since_ms: int


def write_starts(folder: Path, kept: Iterable[Kept]) -> bool:
    """Put these in the file, durably; with none there is no file. False if they are too large. Raises OSError."""
    starts = tuple(kept)
    if not starts:
        (folder / FILE_NAME).unlink(missing_ok=True)
        sync_folder(folder)
        return True
    data = encode(starts)
    if len(data) > FILE_MAX_BYTES:
        return False
    write_private(folder / FILE_NAME, data)
    return True


def read_starts(folder: Path) -> tuple[Kept, ...]:
    """Return what waited in an earlier life; none if there was none, or the file is damaged or cannot be read."""
    path = folder / FILE_NAME
    try:
        with path.open("rb") as file:
            starts: tuple[Kept, ...] = decode(file.read(FILE_MAX_BYTES + 1), tuple[Kept, ...], FILE_MAX_BYTES)
    except FileNotFoundError:
        return ()
    except (OSError, DecodeError) as error:  # it is no reason to run nothing at all
        _log.error(
            "the starts that waited here are lost, sign them again (freehold changes, freehold deploy --change ID): %s: %s",
            path, error, extra={"event": "starts.lost"},
        )  # fmt: skip
        return ()
    return starts
