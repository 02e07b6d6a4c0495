"""The node's key file and the operating system's randomness: the only two places where secrets are made.

A key file holds the 32-byte Ed25519 seed as 64 hexadecimal digits and a newline, mode 0600, in the node's data
folder. It is written to a temporary name, fsynced and renamed, so that a crash leaves either no key or a whole one.
Not here: principals' keys, which stay with the CLI and are encrypted.
"""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

from node.errors import ConfigError
from protocols.keys import SEED_BYTES, Ed25519Signer
from runtime.durable import sync_folder

KEY_MODE = 0o600


class SystemEntropy:
    """The operating system's randomness, as the machines' `Entropy`."""

    def __init__(self) -> None:
        """Prepare the jitter source; keys never come from it."""
        self._jitter = random.SystemRandom()

    def random_bytes(self, count: int) -> bytes:
        """Return `count` bytes fit for keys."""
        return os.urandom(count)  # noqa: TID251  the one place it is allowed

    def uniform(self, low: float, high: float) -> float:
        """Return a float in [low, high), for jitter."""
        return self._jitter.uniform(low, high)


def load_or_create_key(path: Path, entropy: SystemEntropy) -> Ed25519Signer:
    """Return the signer in `path`, making the file if there is none.

    Raises ConfigError if the file is readable by others, or not a key; the file is then left as it was.
    """
    try:
        info = path.stat()
    except FileNotFoundError:
        return _create(path, entropy)
    if stat.S_IMODE(info.st_mode) & 0o077:
        raise ConfigError(
            f"{path} can be read by other users (mode {stat.S_IMODE(info.st_mode):04o})", f"chmod 600 {path}"
        )
    text = path.read_text().strip()
    try:
        seed = bytes.fromhex(text)
    except ValueError:
        seed = b""
    if len(seed) != SEED_BYTES:
        raise ConfigError(f"{path} is not a node key: expected 64 hexadecimal digits", "restore it from your backup")
    return Ed25519Signer(seed)


def read_seed(path: Path) -> bytes:
    """Return the seed in a key file that `load_or_create_key` has accepted."""
    return bytes.fromhex(path.read_text().strip())


def _create(path: Path, entropy: SystemEntropy) -> Ed25519Signer:
    seed = entropy.random_bytes(SEED_BYTES)
    write_private(path, seed.hex().encode() + b"\n")
    return Ed25519Signer(seed)


def write_private(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash leaves the old file or the new one, mode 0600, durable on return."""
    temporary = path.with_name(path.name + ".new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, KEY_MODE), "wb") as file:
        file.write(data)  # all of it, or an error: a full disk may take the beginning
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def write_private_in(folder: Path, name: str, data: bytes) -> None:
    """Write a file as `write_private` does, in a folder that is made, durably and for its user alone, if it is missing."""
    if not folder.exists():
        folder.mkdir(mode=0o700)
        sync_folder(folder.parent)
    write_private(folder / name, data)


def sync_tree(folder: Path) -> None:
    """Make everything below `folder` durable, before a rename shows it to others as whole."""
    for parent, _, names in os.walk(folder):
        for name in names:
            handle = os.open(Path(parent) / name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(parent))
