"""Backups by a schedule: encrypted for one key, whole or not there, the oldest removed; and what is due."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyrage
import pytest

from cli.host.exported_data import opened, read_manifest
from node.config import BackupConfig
from node.errors import ConfigError
from node.serving import data_backups
from node.serving.data_backups import back_up, made_of
from node.store import sealed_copy
from node.store.data_folders import DataFolders
from runtime.services.sqlite_keyvalue import SqliteKeyValue
from tests.support.mesh.canary import tells
from tests.support.mesh.killed_at import run_killed

LANE = ("site", "production")
DAY_MS = 86_400_000
VALUE = "a value that nobody but the key's owner reads"


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    path = tmp_path / "key.txt"
    entry = pyrage.x25519.Identity.generate()
    path.write_text(f"# public key: {entry.to_public()}\n{entry}\n")
    return path


@pytest.fixture
def config(tmp_path: Path, identity: Path) -> BackupConfig:
    (tmp_path / "to").mkdir()
    return BackupConfig(str(tmp_path / "to"), identity.read_text().splitlines()[0].rpartition(" ")[2], keep=2)


@pytest.fixture
def place(tmp_path: Path) -> DataFolders:
    provider = SqliteKeyValue(tmp_path / "n" / "data", "site/production")
    provider.open("visits").set("k", VALUE.encode())
    provider.close()
    return DataFolders(tmp_path / "n")


def test_a_backup_is_opened_by_its_key_alone(place: DataFolders, config: BackupConfig, identity: Path) -> None:
    back_up(place, LANE, "12D3", DAY_MS, config)
    ((at_ms, path),) = made_of(Path(config.to), LANE)
    assert (at_ms, path.name) == (DAY_MS, "site.production.19700102T000000Z.tar.age")
    assert not tells(path.read_bytes(), [VALUE])
    with opened(path, identity) as folder:
        manifest = read_manifest(folder)
        assert [file.name for file in manifest.files] == ["keyvalue.db"]
        (folder / "site").mkdir()
        (folder / "keyvalue.db").rename(folder / "site" / "keyvalue.db")
        provider = SqliteKeyValue(folder, "site")
        assert provider.open("visits").get("k") == VALUE.encode()
        provider.close()
    other = pyrage.x25519.Identity.generate()
    (identity.parent / "other.txt").write_text(str(other))
    with pytest.raises(ConfigError, match="cannot be opened with this key"):
        sealed_copy.open_sealed(path, identity.parent / "other.txt", identity.parent / "opened")
    assert not (identity.parent / "opened").exists()
    assert not list(place.exports().iterdir()), "the node keeps no copy"


def test_the_oldest_go_and_what_is_not_ours_stays(place: DataFolders, config: BackupConfig) -> None:
    to = Path(config.to)
    for name in ("site.staging.19700101T000000Z.tar.age", "site.production.tar.age", "thesis.txt"):
        (to / name).touch()
    for day in (1, 2, 3):
        back_up(place, LANE, "12D3", day * DAY_MS, config)
    assert [at_ms for at_ms, _ in made_of(to, LANE)] == [2 * DAY_MS, 3 * DAY_MS]
    assert len(list(to.iterdir())) == 5


def test_a_kill_before_each_file_operation_leaves_whole_backups(
    place: DataFolders, config: BackupConfig, identity: Path
) -> None:
    def again(at_ms: int) -> Callable[[], int]:
        def run() -> int:
            back_up(place, LANE, "12D3", at_ms, config)
            return 0

        return run

    counted = run_killed(again(DAY_MS), os.environ, "")
    assert counted.code == 0, counted
    for before in range(counted.operations):
        killed = run_killed(again((2 + before) * DAY_MS), os.environ, "", before)
        assert killed.code is None
        pairs = made_of(Path(config.to), LANE)
        assert pairs, "the last whole backup is gone"
        for _, path in pairs:
            with opened(path, identity) as folder:
                read_manifest(folder)


def test_a_full_disk_leaves_the_backups_before(
    place: DataFolders, config: BackupConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(place, LANE, "12D3", DAY_MS, config)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        back_up(place, LANE, "12D3", 2 * DAY_MS, config)
    assert [path.name for path in Path(config.to).iterdir()] == ["site.production.19700102T000000Z.tar.age"]


def test_a_file_has_its_name_once_it_is_durable(
    place: DataFolders, config: BackupConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, rename = os.fsync, Path.rename

    def synced(handle: int) -> None:
        calls.append("sync " + Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        sync(handle)

    def renamed(path: Path, target: Path) -> Path:
        calls.append("rename " + path.name)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    back_up(place, LANE, "12D3", DAY_MS, config)
    name = "site.production.19700102T000000Z.tar.age.new"
    assert calls == [f"sync {name}", f"rename {name}", "sync to"]


@pytest.mark.parametrize("key", ["", "age1", "AGE-SECRET-KEY-1", "ssh-rsa x", "age1" + "q" * 58])
def test_a_key_that_is_none_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match="is no age key"):
        sealed_copy.check_key(key)


def test_a_folder_that_is_not_mounted_is_told(place: DataFolders, config: BackupConfig) -> None:
    away = BackupConfig(str(Path(config.to) / "away"), config.key)
    with pytest.raises(ConfigError, match="is no folder"):
        back_up(place, LANE, "12D3", DAY_MS, away)


def test_what_is_due_is_made_once_a_time(place: DataFolders, config: BackupConfig) -> None:
    """A restart reads from the folder when the last one was made."""
    from types import SimpleNamespace

    now = SimpleNamespace(wall_ms=10 * DAY_MS)
    answer = data_backups.DataBackups(SimpleNamespace(), place, config, lambda: now)  # type: ignore[arg-type, return-value]
    assert answer._due(LANE, config)
    back_up(place, LANE, "12D3", now.wall_ms, config)
    answer.states.clear()
    assert not answer._due(LANE, config)
    now.wall_ms += DAY_MS - 1
    assert not answer._due(LANE, config)
    now.wall_ms += 1
    assert answer._due(LANE, config)


def test_the_age_of_a_distribution_reads_it(place: DataFolders, config: BackupConfig, identity: Path) -> None:
    back_up(place, LANE, "12D3", DAY_MS, config)
    ((_, path),) = made_of(Path(config.to), LANE)
    try:
        done = subprocess.run(["age", "-d", "-i", str(identity), str(path)], capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("age is not installed")
    assert b"keyvalue.db" in done.stdout
