"""Keys that anybody else can read are not taken: group or world, to read, to write or to run; each bit by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.api.tls import _load
from node.errors import ConfigError
from node.keys import SystemEntropy, load_or_create_key, write_private
from tests.support.runtime.pem import write

OTHERS = (0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o660, 0o644, 0o777)


@pytest.mark.parametrize("mode", OTHERS, ids=oct)
def test_a_node_key_that_others_reach_is_refused_and_left(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "node.key"
    load_or_create_key(path, SystemEntropy())
    held = path.read_bytes()
    path.chmod(mode)
    with pytest.raises(ConfigError, match="can be read by other users"):
        load_or_create_key(path, SystemEntropy())
    assert path.read_bytes() == held


@pytest.mark.parametrize("mode", OTHERS, ids=oct)
def test_an_api_key_that_others_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "api-tls.pem"
    write(path, "node.test")
    assert _load(path) is not None
    path.chmod(mode)
    with pytest.raises(ConfigError, match="can be read by other users"):
        _load(path)


def test_what_is_written_as_private_is_private_at_every_moment(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"old")
    path.chmod(0o644)
    write_private(path, b"new")
    assert path.stat().st_mode & 0o777 == 0o600
