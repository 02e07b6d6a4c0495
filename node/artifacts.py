"""Artifacts on disk: bytes named by their SHA-256, written whole or not at all, and collected when nobody needs them.

A file gets its name only once its digest was checked and it is durable: temporary name, fsync, rename, fsync of the
folder. Reading checks nothing again, except where bytes came from outside this process's control (`verify`). Deleting
a file is always safe: it can be fetched again from peers. Not here: fetching (fetching.py), and compiled code
(runtime).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Collection
from pathlib import Path

from node.keys import sync_folder
from protocols.envelope import digest as digest_of_bytes
from protocols.machine import Digest

ARTIFACT_MAX_BYTES = 256 << 20
"""A Python component with its interpreter is 18 to 60 MB; nothing reasonable is larger than this."""

STORE_MAX_BYTES = 16 << 30
_CHUNK_BYTES = 1 << 20


class ArtifactError(Exception):
    """The bytes are not what they were said to be, or too many; nothing was kept."""


class ArtifactStore:
    """The folder of artifacts of one node."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; it is made if it is not there. What an earlier process left half-written is removed."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.part"):
            leftover.unlink()
        self._number = 0
        self.closed = ""
        """Why nothing more is taken in for now: the disk has no room."""

    def path(self, digest: bytes) -> Path:
        """Where an artifact is, if it is here."""
        return self._folder / digest.hex()

    def has(self, digest: bytes) -> bool:
        """Whether it is here, whole."""
        return self.path(digest).exists()

    def read(self, digest: bytes, max_bytes: int) -> bytes:
        """Return a small artifact's bytes. Raises FileNotFoundError; ArtifactError if it is larger than allowed."""
        path = self.path(digest)
        if path.stat().st_size > max_bytes:
            raise ArtifactError(f"artifact {digest.hex()[:16]} has over {max_bytes} bytes")
        return path.read_bytes()

    async def put(self, data: bytes) -> Digest:
        """Keep these bytes and return their digest."""

        async def once() -> AsyncIterator[bytes]:
            yield data

        digest = digest_of_bytes(data)
        await self.receive(digest, once())
        return digest

    async def receive(self, digest: bytes, chunks: AsyncIterator[bytes], max_bytes: int = ARTIFACT_MAX_BYTES) -> None:
        """Keep what arrives if it has this digest. Raises ArtifactError and keeps nothing otherwise."""
        if self.has(digest):
            async for _ in chunks:
                pass
            return
        if self.closed:
            raise ArtifactError(f"artifact {digest.hex()[:16]} cannot be stored: {self.closed}")
        self._number += 1
        temporary = self._folder / f"{digest.hex()}.{os.getpid()}.{self._number}.part"
        sha, size = hashlib.sha256(), 0
        try:
            with temporary.open("wb") as file:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > max_bytes:
                        raise ArtifactError(f"artifact {digest.hex()[:16]} has over {max_bytes} bytes")
                    sha.update(chunk)
                    await asyncio.to_thread(file.write, chunk)
                if sha.digest() != digest:
                    raise ArtifactError(f"the bytes have digest {sha.hexdigest()[:16]}, not {digest.hex()[:16]}")
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            temporary.replace(self.path(digest))
            await asyncio.to_thread(sync_folder, self._folder)
        except OSError as error:
            raise ArtifactError(f"artifact {digest.hex()[:16]} cannot be stored: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)

    async def verify(self, digest: bytes) -> bool:
        """Whether the stored bytes still have their digest; if not, they are removed."""
        path = self.path(digest)
        found = await asyncio.to_thread(_file_digest, path)
        if found != digest:
            path.unlink(missing_ok=True)
        return found == digest

    def collect(self, keep: Collection[bytes], max_bytes: int = STORE_MAX_BYTES) -> list[str]:
        """Remove the least recently used artifacts beyond `max_bytes`, never one in `keep`; return their names."""
        kept = {digest.hex() for digest in keep}
        files = sorted(
            (path for path in self._folder.iterdir() if len(path.name) == 64), key=lambda path: path.stat().st_atime
        )
        total = sum(path.stat().st_size for path in files)
        removed = []
        for path in files:
            if total <= max_bytes:
                break
            if path.name not in kept:
                total -= path.stat().st_size
                path.unlink()
                removed.append(path.name)
        return removed


def _file_digest(path: Path) -> bytes:
    sha = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                sha.update(chunk)
    except FileNotFoundError:
        return b""
    return sha.digest()
