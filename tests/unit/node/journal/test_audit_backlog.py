"""The backlog of audit entries: whole frames stay, what was cut off goes, and an end is an end."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.journal.audit_backlog import BACKLOG_FILE_NAME, Backlog
from protocols.records.audit import AuditEntry


def entry(number: int) -> AuditEntry:
    return AuditEntry(0, number, b"", "local", (), (), "upload", f"target {number}", b"d" * 32, "done", f"r{number}")


def test_what_was_appended_is_there_for_the_next_life_until_the_end(tmp_path: Path) -> None:
    first = Backlog(tmp_path)
    assert (first.open, first.load()) == (False, [])
    first.begin()
    assert (first.open, first.load()) == (True, [])
    first.append(entry(1))
    second = Backlog(tmp_path)
    second.begin()
    second.append(entry(2))
    assert Backlog(tmp_path).load() == [entry(1), entry(2)]
    second.end()
    assert (first.open, first.load()) == (False, [])
    first.end()


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_an_entry_that_was_cut_off_is_gone_and_the_next_one_takes_its_place(tmp_path: Path, cut: int) -> None:
    backlog = Backlog(tmp_path)
    backlog.begin()
    backlog.append(entry(1))
    backlog.append(entry(2))
    path = tmp_path / BACKLOG_FILE_NAME
    path.write_bytes(path.read_bytes()[:-cut])
    again = Backlog(tmp_path)
    again.begin()
    assert again.load() == [entry(1)]
    again.append(entry(3))
    assert Backlog(tmp_path).load() == [entry(1), entry(3)]


def test_a_damaged_entry_ends_what_can_be_read(tmp_path: Path) -> None:
    backlog = Backlog(tmp_path)
    backlog.begin()
    backlog.append(entry(1))
    size = (tmp_path / BACKLOG_FILE_NAME).stat().st_size
    backlog.append(entry(2))
    data = bytearray((tmp_path / BACKLOG_FILE_NAME).read_bytes())
    data[size + 20] ^= 1
    (tmp_path / BACKLOG_FILE_NAME).write_bytes(data)
    assert Backlog(tmp_path).load() == [entry(1)]
