"""Certificates of a folder: the one that is good is served, and one bad file takes nothing down at a start."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from runtime.ingress.certificates import CertificateError, Certificates, best_first, read, read_some
from tests.support.runtime.pem import write

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def test_of_two_for_one_name_the_valid_one_is_served_whatever_they_are_called(tmp_path: Path) -> None:
    old, new = write(tmp_path / "a.pem", begins=-20, ends=-1), write(tmp_path / "b.pem")
    coming = write(tmp_path / "c.pem", begins=2, ends=100)
    assert [loaded.path for loaded in best_first(read(tmp_path))] == [new, coming, old]
    later = write(tmp_path / "d.pem", ends=50)
    assert best_first(read(tmp_path))[0].path == later
    held = Certificates(tmp_path)
    assert held._by_name["site.test"] is held.front


def test_a_client_without_a_name_gets_the_first_that_is_valid(tmp_path: Path) -> None:
    write(tmp_path / "a.pem", "a.test", ends=-1, begins=-5)
    first, _ = write(tmp_path / "b.pem", "b.test", ends=5), write(tmp_path / "c.pem", "c.test", ends=500)
    assert best_first(read(tmp_path))[0].path == first


def test_one_unreadable_file_keeps_no_node_from_starting_and_is_named(tmp_path: Path) -> None:
    good = write(tmp_path / "z.pem")
    (tmp_path / "a.pem").write_bytes(b"half a file")
    (tmp_path / "a.pem").chmod(0o600)
    with pytest.raises(CertificateError, match=r"a\.pem"):
        read(tmp_path)
    assert [loaded.path for loaded in read_some(tmp_path)] == [good]
    assert "a.pem" in Certificates(tmp_path).problem
    good.unlink()
    with pytest.raises(CertificateError, match=r"a\.pem"):
        Certificates(tmp_path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o610, 0o601, 0o644])
def test_a_key_that_the_group_or_others_may_touch_is_not_taken(tmp_path: Path, mode: int) -> None:
    write(tmp_path / "a.pem", mode=mode)
    with pytest.raises(CertificateError, match="chmod 600"):
        read(tmp_path)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_of_its_owner_alone_is_taken(tmp_path: Path, mode: int) -> None:
    write(tmp_path / "a.pem", mode=mode)
    assert len(read(tmp_path)) == 1
