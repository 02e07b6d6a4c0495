"""Unix sockets have room for 103 bytes of path: whatever a folder is called, a node finds a place for its sockets."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from node.config import api_socket, runtime_folder, throwaway_folder
from runtime.workers.settings import control_path


@pytest.mark.parametrize("characters", [20, 40, 60, 90, 110, 200])
@pytest.mark.parametrize("variable", ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"])
def test_sockets_can_be_bound_whatever_the_folder_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, characters: int, variable: str
) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    given_path = tmp_path / ("r" * characters)
    given_path.mkdir(parents=True)
    monkeypatch.setenv(variable, str(given_path))
    data = tmp_path / "data"
    runtime = runtime_folder(data)
    assert runtime.stat().st_mode & 0o777 == 0o700
    assert api_socket(data).parent == runtime, "commands look where the node is"
    bench = throwaway_folder(runtime) / "smoke-12345678" / "run"
    for folder in (runtime / "workers", bench):
        folder.mkdir(parents=True, exist_ok=True)
        path = control_path(folder, 64, 4_194_304)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
        path.unlink()
    bench.rmdir()
    bench.parent.rmdir()
    (runtime / "workers").rmdir()
