"""Artifacts on disk: bytes named by their SHA-256, written whole or not at all, and collected when nobody needs them.

A file gets its name only once its digest was checked and it is durable: temporary name, fsync, rename, fsync of the
folder. Reading checks nothing again, except where bytes came from outside this process's control (`verify`). What is
being fetched in chunks lies beside them as NAME.fetch, with the list of chunk digests it was offered under (NAME.list):
what of it is there is read back by those digests, so nothing needs to be durable before the whole is. Deleting a file
is always safe: it can be fetched again from peers. Not here: fetching (fetching.py), and compiled code (runtime).
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import time
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path

from protocols import envelope
from protocols.artifacts import ARTIFACT_MAX_BYTES, CHUNK_BYTES, ArtifactOffer, chunk_count, offer_problem
from protocols.envelope import DecodeError, decode, encode
from protocols.machine import Digest
from runtime.durable import sync_folder

UNFINISHED_KEPT_S = 7 * 86_400
"""A fetch that nobody took up again for a week is not resumed."""

STORE_MAX_BYTES = 16 << 30
_CHUNK_BYTES = 1 << 20


class ArtifactError(Exception):
    """The bytes are not to be had or not what they were said to be, too many, or there is no room; nothing was kept."""


class OtherBytesError(ArtifactError):
    """The bytes have another digest than they were said to have."""


class _OpenFetch:
    """The file of one fetch. It is hashed as its beginning grows, so that the whole is known when the last chunk is."""

    def __init__(self, path: Path, flags: int) -> None:
        self._handle = os.open(path, os.O_RDWR | flags, 0o644)
        self._forget_hash()

    def _forget_hash(self) -> None:
        self._sha = hashlib.sha256()
        self._hashed = 0
        """How many chunks from the beginning are hashed."""
        self._written: set[int] = set()
        """Chunks behind those that were written since."""

    def resize(self, size: int) -> None:
        os.ftruncate(self._handle, size)
        self._forget_hash()

    def write(self, chunks: Sequence[tuple[int, bytes]]) -> None:
        fresh = dict(chunks)
        for index, data in chunks:
            _write_at(self._handle, data, index * CHUNK_BYTES)
        if any(index < self._hashed for index in fresh):
            self._forget_hash()
        self._written.update(fresh)
        while self._hashed in self._written:
            data = fresh.get(self._hashed) or self.read(self._hashed)
            self._written.discard(self._hashed)
            self._sha.update(data)
            self._hashed += 1

    def read(self, index: int) -> bytes:
        return os.pread(self._handle, CHUNK_BYTES, index * CHUNK_BYTES)

    def digest(self) -> bytes:
        """Hash what is not hashed yet, and return the digest of the whole."""
        while data := self.read(self._hashed):
            self._sha.update(data)
            self._hashed += 1
        return self._sha.digest()

    def sync(self) -> None:
        os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)


class ArtifactStore:
    """The folder of artifacts of one node."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; it is made if it is not there. What an earlier process left and nobody resumes is removed."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.part"):
            leftover.unlink()
        for leftover in (*folder.glob("*.fetch"), *folder.glob("*.list")):
            if time.time() - leftover.stat().st_mtime > UNFINISHED_KEPT_S:
                leftover.unlink()
        self._number = 0
        self._open: dict[bytes, _OpenFetch] = {}
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

        digest = envelope.digest(data)
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
                    raise OtherBytesError(f"the bytes have digest {sha.hexdigest()[:16]}, not {digest.hex()[:16]}")
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
        actual = await asyncio.to_thread(_file_digest, path)
        if actual != digest:
            path.unlink(missing_ok=True)
        return actual == digest

    def collect(self, keep: Collection[bytes], max_bytes: int = STORE_MAX_BYTES) -> list[str]:
        """Remove the least recently used artifacts beyond `max_bytes`, never one in `keep`; return their names."""
        texts = {digest.hex() for digest in keep}
        files = sorted(
            (path for path in self._folder.iterdir() if len(path.name) == 64), key=lambda path: path.stat().st_atime
        )
        total = sum(path.stat().st_size for path in files)
        removed = []
        for path in files:
            if total <= max_bytes:
                break
            if path.name not in texts:
                total -= path.stat().st_size
                path.unlink()
                removed.append(path.name)
        return removed

    # --- chunks; these block, call them in a thread -------------------------------------------------------------------

    def offer(self, digest: bytes) -> ArtifactOffer:
        """Return what this node offers: size and chunk digests, from the file; size 0 if it is not here."""
        chunks = []
        try:
            with self.path(digest).open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    chunks.append(envelope.digest(chunk))
                return ArtifactOffer(digest, file.tell(), tuple(chunks))
        except OSError:
            return ArtifactOffer(digest, 0)

    def read_chunks(self, digest: bytes, indices: Sequence[int]) -> list[bytes]:
        """Return these chunks; empty bytes for each that there is not."""
        try:
            handle = os.open(self.path(digest), os.O_RDONLY)
        except OSError:
            return [b""] * len(indices)
        try:
            return [_read_chunk(handle, index) for index in indices]
        finally:
            os.close(handle)

    def unfinished(self, digest: bytes) -> tuple[ArtifactOffer, tuple[int, ...]] | None:
        """Return the list an earlier fetch went by, and which of its chunks are here; None if there was none."""
        try:
            offer: ArtifactOffer = decode(self._list(digest).read_bytes(), ArtifactOffer)
            if offer.digest != digest or offer_problem(offer) is not None:
                return None
            with self._fetching(digest).open("rb") as file:
                digests = [envelope.digest(file.read(CHUNK_BYTES)) for _ in offer.chunks]
        except (OSError, DecodeError):
            return None
        return offer, tuple(index for index, chunk in enumerate(offer.chunks) if digests[index] == chunk)

    def begin(self, offer: ArtifactOffer) -> None:
        """Make the file that chunks are written to, or fit it to another list: what is in it stays. Raises OSError."""
        self._check_open()
        written = self._list(offer.digest).with_suffix(".part")
        written.write_bytes(encode(offer))
        written.replace(self._list(offer.digest))
        self._opened(offer.digest, os.O_CREAT).resize(offer.size)

    def write_chunks(self, digest: bytes, chunks: Sequence[tuple[int, bytes]]) -> None:
        """Write chunks by their numbers. Raises OSError; FileNotFoundError if the fetch was abandoned meanwhile."""
        opened = self._opened(digest)
        self._check_open()
        opened.write(chunks)

    def complete(self, digest: bytes) -> bool:
        """Give what was fetched its name if it has this digest, durably; else remove it. Raises OSError."""
        fetched = self._opened(digest)
        good = fetched.digest() == digest
        if good:
            fetched.sync()
            self._fetching(digest).replace(self.path(digest))
            sync_folder(self._folder)
        self.abandon(digest)
        return good

    def release(self, digest: bytes) -> None:
        """Close the file of a fetch that ended or waits; what is in it stays for the next one."""
        opened = self._open.pop(digest, None)
        if opened is not None:
            opened.close()

    def abandon(self, digest: bytes) -> None:
        """Remove what was fetched so far."""
        self.release(digest)
        self._fetching(digest).unlink(missing_ok=True)
        self._list(digest).unlink(missing_ok=True)

    def _opened(self, digest: bytes, flags: int = 0) -> _OpenFetch:
        opened = self._open.get(digest)
        if opened is None:
            opened = self._open[digest] = _OpenFetch(self._fetching(digest), flags)
        return opened

    def _check_open(self) -> None:
        if self.closed:
            raise OSError(errno.ENOSPC, self.closed)

    def _fetching(self, digest: bytes) -> Path:
        return self._folder / f"{digest.hex()}.fetch"

    def _list(self, digest: bytes) -> Path:
        return self._folder / f"{digest.hex()}.list"


def _file_digest(path: Path) -> bytes:
    sha = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                sha.update(chunk)
    except FileNotFoundError:
        return b""
    return sha.digest()


def _read_chunk(handle: int, index: int) -> bytes:
    if not 0 <= index < chunk_count(ARTIFACT_MAX_BYTES):
        return b""
    try:
        return os.pread(handle, CHUNK_BYTES, index * CHUNK_BYTES)
    except OSError:
        return b""


def _write_at(handle: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(handle, rest, offset)
        rest, offset = rest[written:], offset + written
