"""Blobs: whole or not at all, bounded, apart from each other, still while frozen, and nothing left behind."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from runtime.providers import ProviderError
from runtime.services import freeze
from runtime.services.file_blobs import BlobCaps, FileBlobs

ROOT = Path(__file__).parents[4]


@pytest.fixture
def blobs(tmp_path: Path) -> FileBlobs:
    return FileBlobs(tmp_path, "shop/production")


def put(blobs: FileBlobs, name: str, data: bytes, container: str = "uploads") -> None:
    writer = blobs.put()
    writer.write(data)
    writer.commit([(container, name)])


def read(blobs: FileBlobs, name: str, container: str = "uploads", *part: int) -> bytes:
    reader = blobs.get(container, name, *part)
    try:
        content = b""
        while piece := reader.read(7):
            content += piece
        return content
    finally:
        reader.close()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "shop" / "production" / "blobs").rglob("*") if path.is_file())


def refused(call: Any, *arguments: Any) -> ProviderError:
    with pytest.raises(ProviderError) as exception_info:
        call(*arguments)
    return exception_info.value


def test_an_object_is_seen_when_it_is_whole(blobs: FileBlobs) -> None:
    writer = blobs.put()
    writer.write(b"half")
    assert blobs.info("uploads", "a") is None
    writer.write(b" whole")
    writer.commit([("uploads", "a"), ("uploads", "b")])
    assert read(blobs, "a") == read(blobs, "b") == b"half whole"
    assert read(blobs, "a", "uploads", 2, 5) == b"lf w"
    assert blobs.names("uploads", None, 10) == ["a", "b"]
    assert blobs.names("uploads", "a", 10) == ["b"]


def test_equal_objects_lie_there_once_and_go_with_their_last_name(blobs: FileBlobs, tmp_path: Path) -> None:
    put(blobs, "a", b"same")
    put(blobs, "b", b"same", "other")
    digest = hashlib.sha256(b"same").hexdigest()
    assert files(tmp_path) == [digest]
    blobs.delete("uploads", ["a", "absent"])
    assert read(blobs, "b", "other") == b"same"
    put(blobs, "b", b"new", "other")
    assert files(tmp_path) == [hashlib.sha256(b"new").hexdigest()]
    blobs.delete("other", None)
    assert files(tmp_path) == []


def test_a_reader_keeps_what_it_opened(blobs: FileBlobs) -> None:
    put(blobs, "a", b"before")
    reader = blobs.get("uploads", "a")
    blobs.delete("uploads", ["a"])
    assert reader.read(100) == b"before"
    reader.close()


def test_copies_and_moves_need_no_bytes(blobs: FileBlobs, tmp_path: Path) -> None:
    put(blobs, "a", b"x")
    blobs.copy(("uploads", "a"), ("other", "b"))
    blobs.copy(("uploads", "a"), ("uploads", "c"), move=True)
    blobs.copy(("uploads", "c"), ("uploads", "c"), move=True)
    assert blobs.names("uploads", None, 9) == ["c"]
    assert read(blobs, "b", "other") == read(blobs, "c") == b"x"
    assert len(files(tmp_path)) == 1
    assert "no object" in refused(blobs.copy, ("uploads", "gone"), ("uploads", "d")).text


def test_what_is_given_up_leaves_nothing(blobs: FileBlobs, tmp_path: Path) -> None:
    writer = blobs.put()
    writer.write(b"x" * 100)
    writer.close()
    assert files(tmp_path) == []
    assert refused(writer.write, b"more").text == "the object is finished"


def test_objects_have_limits(tmp_path: Path) -> None:
    caps = BlobCaps(object_max_bytes=10, objects_max=2, total_max_bytes=15, unfinished_max_bytes=12)
    blobs = FileBlobs(tmp_path, "shop/production", caps)
    writer = blobs.put()
    writer.write(b"1234567890")
    assert "at most 10 bytes" in refused(writer.write, b"x").text
    other = blobs.put()
    assert "on their way" in refused(other.write, b"123").text
    other.close()
    writer.commit([("uploads", "a")])
    assert "together would exceed 15" in refused(put, blobs, "b", b"abcdef").text
    put(blobs, "b", b"abc")
    assert "2 objects already" in refused(put, blobs, "c", b"d").text
    assert read(blobs, "a") == b"1234567890", "what was there stays"
    assert len(files(tmp_path)) == 2
    for name in ("", "x" * 1025):
        assert "a name" in refused(put, blobs, name, b"d").text or "name has" in refused(put, blobs, name, b"d").text


@pytest.mark.parametrize("name", ["../../../../etc/passwd", "/etc/passwd", "a/../b", "frozen", "x-wal", ".", "\0"])
def test_a_name_is_never_a_path(blobs: FileBlobs, tmp_path: Path, name: str) -> None:
    put(blobs, name, b"data")
    assert read(blobs, name) == b"data"
    assert files(tmp_path) == [hashlib.sha256(b"data").hexdigest()]
    freeze.check(tmp_path / "shop" / "production")


def test_a_full_disk_is_said_and_nothing_is_lost(blobs: FileBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    put(blobs, "a", b"before")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert refused(put, blobs, "a", b"after").text == "the disk of the node is full"
    monkeypatch.undo()
    assert read(blobs, "a") == b"before"


def test_an_object_written_while_frozen_waits_or_says_when_to_try_again(
    blobs: FileBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shop" / "production"
    put(blobs, "a", b"before")
    freeze.freeze(folder, b"")
    assert read(blobs, "a") == b"before"
    threading.Timer(0.3, freeze.thaw, (folder,)).start()
    put(blobs, "a", b"after")
    assert read(blobs, "a") == b"after"
    monkeypatch.setattr(freeze, "WRITER_WAIT_S", 0.1)
    freeze.freeze(folder, b"")
    assert refused(put, blobs, "b", b"x").retry_after_s == freeze.RETRY_AFTER_S
    assert refused(blobs.delete, "uploads", ["a"]).retry_after_s == freeze.RETRY_AFTER_S
    assert read(blobs, "a") == b"after"


WRITER = """
import sys
from pathlib import Path
from runtime.services.file_blobs import FileBlobs
blobs = FileBlobs(Path(sys.argv[1]), "shop/production")
number = 0
while True:
    number += 1
    writer = blobs.put()
    writer.write(b"%d " % number * 1000)
    writer.commit([("uploads", f"n{number}")])
    blobs.delete("uploads", [f"n{number - 3}"])
    print(number, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill_and_what_was_not_leaves_nothing(tmp_path: Path) -> None:
    for round_number in range(3):
        running = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert running.stdout is not None
        told = [running.stdout.readline() for _ in range(8 + round_number)]
        running.kill()
        told += [line for line in running.communicate()[0].splitlines(keepends=True) if line.endswith("\n")]
        last = int(told[-1])
        blobs = FileBlobs(tmp_path, "shop/production")
        assert read(blobs, f"n{last}") == b"%d " % last * 1000
        names = blobs.names("uploads", None, 1000)
        for name in names:
            assert read(blobs, name) == b"%d " % int(name[1:]) * 1000
        blobs.clean()
        assert len(files(tmp_path)) == len(names)
        blobs.delete("uploads", None)
        blobs.close()


def test_bytes_are_synced_before_their_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded syncs: the file, its folder, the folder above; then the transaction that names it, synced by SQLite."""
    blobs = FileBlobs(tmp_path, "shop/production")
    put(blobs, "a", b"first")
    seen: list[str] = []
    sync = os.fsync

    def record(handle: int) -> None:
        named = blobs.info("uploads", "b") is not None
        seen.append(f"{Path(os.readlink(f'/proc/self/fd/{handle}')).suffix or 'folder'} {named}")
        sync(handle)

    monkeypatch.setattr(os, "fsync", record)
    put(blobs, "b", b"second")
    assert seen == [".new False", "folder False", "folder False"]
    with blobs.file._connection() as (_, connection):
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
