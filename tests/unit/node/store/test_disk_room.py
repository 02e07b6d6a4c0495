"""The reserve gives way step by step and is made whole first; the watch tells once, and again when there is room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from node.store import disk_room
from node.store.disk_room import MUTED, RESERVE_BYTES, ROOM_MARGIN_BYTES, ROOM_MIN_BYTES, STEP_BYTES, Reserve, RoomWatch


def test_the_reserve_holds_real_space_and_gives_it_up_step_by_step(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve")
    assert not reserve.release(), "nothing is held before it is filled"
    reserve.fill()
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= RESERVE_BYTES
    assert (tmp_path / "reserve").stat().st_mode & 0o777 == 0o600
    assert reserve.release()
    assert reserve.missing_bytes == STEP_BYTES
    steps = 1
    while reserve.release():
        steps += 1
    assert (steps, reserve.missing_bytes) == (RESERVE_BYTES // STEP_BYTES, RESERVE_BYTES)
    reserve.fill()
    assert reserve.missing_bytes == 0


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how much is free: no test can empty the machine's own disk."""

    def free(count: int) -> None:
        monkeypatch.setattr(disk_room, "free_bytes", lambda folder: count)

    return free


def test_the_watch_tells_when_room_runs_short_and_when_it_is_back_by_a_margin(
    tmp_path: Path, disk: Callable[[int], None]
) -> None:
    told: list[str] = []
    watch = RoomWatch(tmp_path, Reserve(tmp_path / "reserve"), lambda reason: not told.append(reason))
    for free in (
        1 << 40, ROOM_MIN_BYTES, ROOM_MIN_BYTES - 1, 0, ROOM_MIN_BYTES, ROOM_MIN_BYTES + ROOM_MARGIN_BYTES, 1 << 40,
    ):  # fmt: skip
        disk(free)
        watch.look()
    assert told == [MUTED, ""]


def test_a_reserve_that_was_used_is_made_whole_before_the_node_speaks(
    tmp_path: Path, disk: Callable[[int], None]
) -> None:
    told: list[str] = []
    reserve = Reserve(tmp_path / "reserve")
    reserve.fill()
    reserve.release()
    watch = RoomWatch(tmp_path, reserve, lambda reason: not told.append(reason))
    disk(ROOM_MIN_BYTES + STEP_BYTES - 1)
    watch.look()
    assert (told, reserve.missing_bytes) == ([MUTED], STEP_BYTES)
    disk(ROOM_MIN_BYTES + ROOM_MARGIN_BYTES + STEP_BYTES)
    watch.look()
    assert (told, reserve.missing_bytes) == ([MUTED, ""], 0)


def test_what_could_not_be_told_is_told_at_the_next_look(tmp_path: Path, disk: Callable[[int], None]) -> None:
    asked: list[str] = []

    def tell(reason: str) -> bool:
        asked.append(reason)
        return len(asked) > 1

    watch = RoomWatch(tmp_path, Reserve(tmp_path / "reserve"), tell)
    disk(0)
    for _ in range(3):
        watch.look()
    assert asked == [MUTED, MUTED]
