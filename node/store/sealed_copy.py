"""A folder as one encrypted file and back: a tar archive in the format of age, for one stated key.

Whoever has the key's other half can open it with the `age` and `tar` of any distribution; the node that makes it cannot.
Not here: what is in the folder. The format: age-encryption.org/v1.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyrage

from node.errors import ConfigError
from runtime.durable import sync_folder

MEMBERS_MAX = 200_000
IDENTITY_MAX_BYTES = 16 * 1024


def check_key(text: str) -> None:
    """Raise ConfigError unless a text is a key that can be encrypted to."""
    _recipient(text)


def seal_folder(folder: Path, target: Path, key: str) -> int:
    """Write all below `folder` to `target`, whole or not at all, durable on return; return its size in bytes.

    Raises ConfigError for a key that is none, OSError.
    """
    recipient = _recipient(key)
    temporary = target.with_name(target.name + ".new")
    try:
        with temporary.open("wb") as file:
            with _archive(folder) as reader:
                pyrage.encrypt_io(reader, file, [recipient])
            file.flush()
            os.fsync(file.fileno())
        size = temporary.stat().st_size
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)
    return size


def open_sealed(sealed: Path, identity: Path, folder: Path) -> None:
    """Write what a sealed file holds below the new folder `folder`. Raises ConfigError, OSError."""
    with identity.open("rb") as file:
        lines = file.read(IDENTITY_MAX_BYTES).decode(errors="replace").splitlines()
    try:
        entries = [
            pyrage.x25519.Identity.from_str(line.strip()) for line in lines if line.startswith("AGE-SECRET-KEY-")
        ]
    except pyrage.IdentityError as error:
        raise ConfigError(
            f"{identity} holds a key that cannot be read: {error}", "age-keygen -o FILE makes one"
        ) from None
    if not entries:
        raise ConfigError(f"{identity} holds no AGE-SECRET-KEY", "age-keygen -o FILE makes one") from None
    folder.mkdir(mode=0o700)
    opened = folder.with_name(folder.name + ".tar")
    try:
        with sealed.open("rb") as reader, opened.open("wb") as writer:
            pyrage.decrypt_io(reader, writer, entries)
        with tarfile.open(opened, "r:") as archive:
            for number, member in enumerate(archive):
                if number >= MEMBERS_MAX or not (member.isfile() or member.isdir()):
                    raise ConfigError(f"{sealed} holds what no backup holds", "take another backup")
                archive.extract(member, folder, filter="data")
    except (pyrage.DecryptError, tarfile.TarError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ConfigError(f"{sealed} cannot be opened with this key: {error}", "name the key it was made for") from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        opened.unlink(missing_ok=True)


def _recipient(text: str) -> pyrage.x25519.Recipient:
    try:
        return pyrage.x25519.Recipient.from_str(text)
    except pyrage.RecipientError as error:
        raise ConfigError(
            f"{text[:80]!r} is no age key: {error}", "age-keygen -o FILE makes one; give its public key"
        ) from None


@contextmanager
def _archive(folder: Path) -> Iterator[object]:
    """A stream of the archive, made while it is read. A failure to make it is raised behind the reader's end."""
    read_end, write_end = os.pipe()
    failed: list[BaseException] = []

    def write() -> None:
        try:
            with os.fdopen(write_end, "wb") as pipe, tarfile.open(fileobj=pipe, mode="w|") as archive:
                for path in sorted(folder.rglob("*")):
                    archive.add(path, str(path.relative_to(folder)), recursive=False)
        except BrokenPipeError:  # the reader gave up, and says why itself
            pass
        except BaseException as error:
            failed.append(error)

    writer = threading.Thread(target=write, name="archive")
    writer.start()
    try:
        with os.fdopen(read_end, "rb") as pipe:
            yield pipe
    finally:
        writer.join()
    if failed:
        raise failed[0]
