"""An export as a folder: readable lines and back again, damage that is told, and no half folder after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.errors import CommandError, UsageError
from cli.host.exported_data import ExportFolder, as_stored, read_manifest
from protocols.envelope import digest
from runtime.services.sqlite_keyvalue import SqliteKeyValue
from tests.support.mesh.killed_at import run_killed

ENTRIES = {"text": b"caf\xc3\xa9", "bytes": b"\xff\x00", "empty": b"", "n": b"41"}


def came(folder: ExportFolder) -> None:
    """What a node sent lies in the folder."""
    provider = SqliteKeyValue(folder.path, "made")
    provider.open("visits").set_many(list(ENTRIES.items()))
    provider.close()
    with contextlib.closing(sqlite3.connect(folder.path / "made" / "keyvalue.db")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (folder.path / "made" / "keyvalue.db").rename(folder.path / "keyvalue.db")
    for path in (folder.path / "made").iterdir():
        path.unlink()
    (folder.path / "made").rmdir()
    (folder.path / "sql").mkdir()
    (folder.path / "sql" / "main.db").write_bytes(b"pages")


def export(target: Path) -> None:
    folder = ExportFolder(target)
    came(folder)
    folder.finish("site", "production", "12D3", 5)


def test_entries_become_lines_and_are_entries_again(tmp_path: Path) -> None:
    export(tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "keyvalue.ndjson").read_text().splitlines()]
    assert lines == [
        {"store": "visits", "key": "bytes", "base64": "/wA="},
        {"store": "visits", "key": "empty", "value": ""},
        {"store": "visits", "key": "n", "value": "41"},
        {"store": "visits", "key": "text", "value": "café"},
    ]
    manifest = read_manifest(tmp_path / "out")
    assert [entry.name for entry in manifest.files] == ["keyvalue.ndjson", "sql/main.db"]
    with as_stored(tmp_path / "out", manifest) as (files, places):
        assert sorted(entry.name for entry in files) == ["keyvalue.db", "sql/main.db"]
        for file in files:
            data = places[file.sha256].read_bytes()
            assert (len(data), digest(data).hex()) == (file.size_bytes, file.sha256)
        listed_file = next(entry for entry in files if entry.name == "keyvalue.db")
        (tmp_path / "back" / "site").mkdir(parents=True)
        (tmp_path / "back" / "site" / "keyvalue.db").write_bytes(places[listed_file.sha256].read_bytes())
    back = SqliteKeyValue(tmp_path / "back", "site")
    assert {key: back.open("visits").get(key) for key in ENTRIES} == ENTRIES
    assert back.open("visits").increment("n", 1) == 42
    back.close()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".import")] == []


def test_an_export_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists"):
        ExportFolder(tmp_path / "out")


@pytest.mark.parametrize("harm", ["changed", "missing", "longer", "link", "no-manifest", "newer", "outside"])
def test_an_export_that_is_not_as_it_was_is_refused(tmp_path: Path, harm: str) -> None:
    export(tmp_path / "out")
    main, manifest = tmp_path / "out" / "sql" / "main.db", tmp_path / "out" / "manifest.json"
    match harm:
        case "changed":
            main.write_bytes(b"pagez")
        case "missing":
            main.unlink()
        case "longer":
            main.write_bytes(b"pages and more")
        case "link":
            main.rename(tmp_path / "elsewhere")
            main.symlink_to(tmp_path / "elsewhere")
        case "no-manifest":
            manifest.unlink()
        case "newer":
            manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
        case "outside":
            (tmp_path / "main.db").write_bytes(b"pages")
            manifest.write_text(manifest.read_text().replace("sql/main.db", "../main.db"))
    with pytest.raises(CommandError):
        read_manifest(tmp_path / "out")


@pytest.mark.parametrize(
    "line",
    ['{"store": "visits", "key": "k"}', '{"store": "visits", "key": "k", "value": "a", "base64": "YQ=="}', "no json",
     '{"store": "visits", "key": "k", "base64": "%"}', '{"store": "no/store", "key": "k", "value": "a"}',
     '{"store": "visits", "key": "' + "k" * 1_025 + '", "value": "a"}'],
    ids=["neither", "both", "no-json", "no-base64", "bad-store", "long-key"],
)  # fmt: skip
def test_a_line_that_is_no_entry_is_named(tmp_path: Path, line: str) -> None:
    export(tmp_path / "out")
    lines = tmp_path / "out" / "keyvalue.ndjson"
    lines.write_text('{"store": "visits", "key": "a", "value": "b"}\n' + line + "\n")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest["files"][0] |= {"size_bytes": lines.stat().st_size, "sha256": digest(lines.read_bytes()).hex()}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    stored = as_stored(tmp_path / "out", read_manifest(tmp_path / "out"))
    with pytest.raises(CommandError, match=r"keyvalue.ndjson cannot be taken, at line \d"):
        stored.__enter__()


def test_a_kill_before_each_file_operation_leaves_no_half_export(tmp_path: Path) -> None:
    def finish(folder: ExportFolder) -> Callable[[], int]:
        def run() -> int:
            folder.finish("site", "production", "12D3", 5)
            return 0

        return run

    def begun(name: str) -> ExportFolder:
        folder = ExportFolder(tmp_path / name)
        came(folder)
        return folder

    counted = run_killed(finish(begun("whole")), os.environ, "")
    assert counted.code == 0, counted
    for before in range(counted.operations):
        killed = run_killed(finish(begun(f"m{before}")), os.environ, "", before)
        assert killed.code is None
        target = tmp_path / f"m{before}"
        if target.exists():
            read_manifest(target)
            assert before == counted.operations - 1, "only the folder's own sync is left"
        else:
            export(target)  # the next attempt finds nothing in its way
            read_manifest(target)
