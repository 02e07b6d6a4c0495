"""Keys that a command of several steps stores before it is done: noted first, so that its next run finds them.

The note is durable before the first key is stored and goes when the command is done. Not here: the steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from cli.access import contexts
from runtime.durable import sync_folder


class Note(msgspec.Struct, frozen=True):
    """What a command is about (an invite's digest, or nothing), and the public key in hex of each key it stores."""

    keys: dict[str, str]
    about: str = ""


def write_note(path: Path, keys: Mapping[str, bytes], about: str = "") -> None:
    """Note, durably, which keys are about to be stored."""
    note = Note({name: key.hex() for name, key in keys.items()}, about)
    contexts.write_durably(path.with_suffix(".new"), msgspec.json.encode(note))
    path.with_suffix(".new").replace(path)
    sync_folder(path.parent)


def read_note(path: Path) -> Note | None:
    """Return what an earlier run noted; nothing if it was done, or noted nothing."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Note)
    except (OSError, msgspec.MsgspecError):
        return None


def discard(path: Path) -> None:
    """Remove the keys that an earlier run stored and nothing uses, and its note."""
    note = read_note(path)
    for name, key in (note.keys if note is not None else {}).items():
        stored = contexts.key_path(name)
        if stored.exists() and contexts.public_key(name).hex() == key:
            stored.unlink()
    path.unlink(missing_ok=True)
