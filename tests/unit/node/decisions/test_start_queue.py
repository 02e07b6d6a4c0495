"""The file of starts that wait: what was handed over is there for the next process, and a damaged file holds up nobody."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from node.decisions.start_queue import FILE_MAX_BYTES, FILE_NAME, STARTS_MAX, Kept, read_starts, write_starts
from node.keys import SystemEntropy
from protocols.keys import Ed25519Signer
from protocols.machine import PeerId
from protocols.state.commands import Command, SignedCommand, Start, sign_command
from protocols.state.model import NODES_MAX

SIGNER = Ed25519Signer(SystemEntropy().random_bytes(32))


def kept(number: int, nodes: int = 1) -> Kept:
    named = tuple(PeerId("1" * 48 + f"{index:04d}") for index in range(nodes))
    command = Command(number.to_bytes(16), Start(number.to_bytes(32), named), "site", "production", 7)
    return Kept(sign_command((SIGNER,), b"m" * 32, command), 1_800_000_000_000 + number)


def test_what_was_written_is_there_for_the_next_life_until_nothing_waits(tmp_path: Path) -> None:
    assert read_starts(tmp_path) == ()
    assert write_starts(tmp_path, [kept(1), kept(2)])
    assert read_starts(tmp_path) == (kept(1), kept(2))
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert write_starts(tmp_path, [kept(2)])
    assert read_starts(tmp_path) == (kept(2),)
    assert write_starts(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
    assert write_starts(tmp_path, [])


def test_as_many_as_may_wait_fit_over_the_largest_mesh_and_more_bytes_leave_the_file_as_it_was(tmp_path: Path) -> None:
    most = [kept(number, NODES_MAX) for number in range(STARTS_MAX)]
    assert write_starts(tmp_path, most)
    large = SignedCommand(b"x" * FILE_MAX_BYTES, ())
    assert not write_starts(tmp_path, [Kept(large, 1)])
    assert read_starts(tmp_path) == tuple(most)


@pytest.mark.parametrize("damage", ["cut", "other", "empty", "large", "folder"])
def test_a_damaged_file_holds_nothing_and_is_in_the_log(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / FILE_NAME
    write_starts(tmp_path, [kept(1)])
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        whole = path.read_bytes()
        path.write_bytes(
            {"cut": whole[:-1], "other": b"\xff" + whole, "empty": b"", "large": whole + bytes(FILE_MAX_BYTES)}[damage]
        )
    with caplog.at_level(logging.ERROR):
        assert read_starts(tmp_path) == ()
    assert "sign them again" in caplog.text
