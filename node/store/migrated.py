"""Which releases have migrated a lane's data: a file that lies among the data, and goes wherever the data goes.

It is replaced together with the data that a migration changed, so data is never migrated without saying so. Not here: when
data is migrated (node/serving/migrations.py).
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from node.errors import ConfigError
from node.keys import write_private

MIGRATED = "migrated"
MIGRATED_MAX = 1_000
"""Releases remembered; the one that migrated longest ago goes first."""

MIGRATED_MAX_BYTES = 128 * 1024
_RELEASE = re.compile("[0-9a-f]{64}")


def migrated_by(stores: Path) -> tuple[str, ...]:
    """Return the releases (hex) that migrated the data in a folder, the newest last. Raises ConfigError, OSError."""
    try:
        with (stores / MIGRATED).open("rb") as file:
            texts = msgspec.json.decode(file.read(MIGRATED_MAX_BYTES + 1), type=tuple[str, ...])
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{MIGRATED} cannot be read: {error}", "take another copy of the data") from None
    if len(texts) > MIGRATED_MAX or not all(map(_RELEASE.fullmatch, texts)):
        raise ConfigError(f"{MIGRATED} is no list of releases", "take another copy of the data")
    return texts


def note_migrated(stores: Path, release: str) -> None:
    """Say in a folder that a release migrated its data. Durable on return. Raises ConfigError, OSError."""
    releases = (*(text for text in migrated_by(stores) if text != release), release)
    write_private(stores / MIGRATED, msgspec.json.encode(releases[-MIGRATED_MAX:]))
