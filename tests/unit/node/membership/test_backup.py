"""A node's folder as one file and back, and what waits in it for the first start."""

from __future__ import annotations

import io
import sqlite3
import tarfile
from pathlib import Path

import pytest

from node.errors import ConfigError
from node.membership.backup import read_backup, write_backup
from node.membership.pending_papers import FoundingPaper, PendingPapers, forget_pending, read_pending, write_pending


def made_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "node.key").write_text("00" * 32)
    (folder / "fence").write_bytes(b"fence")
    (folder / "genesis").write_bytes(b"genesis")
    for name in ("vote.db", "state.db"):
        database = sqlite3.connect(folder / name)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE t (v TEXT)")
        database.execute("INSERT INTO t VALUES (?)", (name,))
        database.commit()
        database.close()
    (folder / "data" / "shop").mkdir(parents=True)
    (folder / "data" / "shop" / "visitors.txt").write_text("me")
    (folder / "logs").mkdir()
    (folder / "logs" / "current.jsonl").write_text("{}")
    return folder


def test_a_backup_holds_what_a_node_is_and_leaves_out_logs(tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "node")
    (folder / "api.pem").write_text("what logins have pinned")
    busy = sqlite3.connect(folder / "state.db")  # as the daemon has it open, with a write in its log
    busy.execute("INSERT INTO t VALUES ('while it runs')")
    busy.commit()
    write_backup(folder, tmp_path / "b.tgz", "n", "m")
    busy.close()
    manifest = read_backup(tmp_path / "b.tgz", tmp_path / "again")
    again = tmp_path / "again"
    assert (manifest.node, manifest.mesh) == ("n", "m")
    assert (again / "node.key").stat().st_mode & 0o777 == 0o600
    assert (again / "api.pem").stat().st_mode & 0o777 == 0o600
    assert (again / "data" / "shop" / "visitors.txt").read_text() == "me"
    assert not (again / "logs").exists()
    assert not (again / "backup.json").exists()
    restored = sqlite3.connect(again / "state.db")
    assert [row[0] for row in restored.execute("SELECT v FROM t")] == ["state.db", "while it runs"]
    restored.close()


def test_the_fence_is_copied_before_any_database(tmp_path: Path) -> None:
    write_backup(made_folder(tmp_path / "node"), tmp_path / "b.tgz", "n", "m")
    with tarfile.open(tmp_path / "b.tgz") as archive:
        names = archive.getnames()
    assert names.index("fence") < names.index("vote.db") < names.index("state.db")


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "logs/x", "data/../../x", "other"])
def test_a_file_that_belongs_to_no_backup_is_refused_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "b.tgz", "w:gz") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(ConfigError):
        read_backup(tmp_path / "b.tgz", tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tgz"]


def test_neither_garbage_nor_a_full_folder_is_restored_into(tmp_path: Path) -> None:
    (tmp_path / "b.tgz").write_bytes(b"not a backup")
    with pytest.raises(ConfigError):
        read_backup(tmp_path / "b.tgz", tmp_path / "folder")
    folder = made_folder(tmp_path / "node")
    with pytest.raises(ConfigError, match="not empty"):
        read_backup(tmp_path / "b.tgz", folder)


def test_papers_wait_until_they_are_forgotten(tmp_path: Path) -> None:
    assert read_pending(tmp_path) == PendingPapers()
    pending = PendingPapers((FoundingPaper("/grant/x", b"body"),), (b"command",))
    write_pending(tmp_path, pending)
    assert read_pending(tmp_path) == pending
    forget_pending(tmp_path)
    assert read_pending(tmp_path) == PendingPapers()
    (tmp_path / "pending").write_bytes(b"\xff")
    with pytest.raises(ConfigError):
        read_pending(tmp_path)
