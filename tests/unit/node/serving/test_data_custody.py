"""What a node's disk allows: a copy that would leave it no room is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.errors import NotDoneError
from node.serving import data_custody
from node.serving.data_custody import ROOM_KEPT_BYTES, copy_with_room


def test_a_copy_leaves_the_node_the_room_it_votes_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = tmp_path / "stores"
    (stores / "blobs").mkdir(parents=True)
    (stores / "blobs" / "a").write_bytes(bytes(1_000))
    monkeypatch.setattr(data_custody, "free_bytes", lambda _folder: ROOM_KEPT_BYTES + 999)
    with pytest.raises(NotDoneError) as refused:
        copy_with_room(stores, tmp_path / "exports" / "one")
    assert refused.value.refusal.rule == "data.no-room"
    assert list((tmp_path / "exports").iterdir()) == []
    monkeypatch.setattr(data_custody, "free_bytes", lambda _folder: ROOM_KEPT_BYTES + 1_000)
    assert copy_with_room(stores, tmp_path / "exports" / "one").size_bytes == 1_000
