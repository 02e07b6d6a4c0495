"""What was signed when the node was founded and is told at its first start: the founder's grant, the node's labels.

Founding happens before anything runs, with the admin's key open on a terminal; the daemon has no such key. So the
signed papers wait in the folder's `pending` file, are published and submitted at the start, and the file goes when
both are durable. Telling twice is harmless: records are named by their content, commands by their id.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from node.errors import ConfigError
from node.keys import sync_folder, write_private
from protocols.envelope import DecodeError, decode, encode

PENDING_MAX_BYTES = 256 * 1024


class Paper(msgspec.Struct, frozen=True, array_like=True):
    """One record to publish: its key and body."""

    key: str
    body: bytes


class Pending(msgspec.Struct, frozen=True):
    """Records to publish and encoded SignedCommands to submit, in order."""

    papers: tuple[Paper, ...] = ()
    commands: tuple[bytes, ...] = ()


def write_pending(folder: Path, pending: Pending) -> None:
    """Leave papers for the first start."""
    write_private(folder / "pending", encode(pending))


def read_pending(folder: Path) -> Pending:
    """Return what waits; nothing if there is no file. Raises ConfigError if it cannot be read."""
    path = folder / "pending"
    try:
        pending: Pending = decode(path.read_bytes(), Pending, PENDING_MAX_BYTES)
    except FileNotFoundError:
        return Pending()
    except DecodeError as error:
        raise ConfigError(f"{path}: {error}", f"restore it from your backup, or remove {path}") from None
    return pending


def forget_pending(folder: Path) -> None:
    """Remove the file once everything in it is durable."""
    (folder / "pending").unlink(missing_ok=True)
    sync_folder(folder)
