"""doctor on a node whose app fails its visitors: "no fault" is said only when there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.mesh import dev_process
from tests.support.mesh.dev_process import run_freehold, serving

PROJECT = '[project]\nname = "shop"\n[app.web]\nlanguage = "python"\nsource = "web"\nroutes = ["/"]\n'
APP = """
def handle(request):
    if request.path == "/boom":
        raise RuntimeError("out of stock")
    return "hello"
"""


def findings(folder: Path) -> tuple[int, list[dict[str, Any]]]:
    """What doctor says of apps, and its exit code."""
    code, answer, _ = run_freehold("doctor", "--context", "dev", folder=folder)
    return code, [entry for entry in answer["findings"] if "shop/dev: app web" in entry["what"]]


def soon(folder: Path, wanted: Callable[[list[dict[str, Any]]], bool]) -> tuple[int, list[dict[str, Any]]]:
    """The same, once the node has looked at its workers."""
    limit_s = time.monotonic() + 30
    while not wanted((pair := findings(folder))[1]):
        assert time.monotonic() < limit_s, pair
        time.sleep(0.5)
    return pair


def test_an_app_that_fails_its_visitors_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dev_process.ENVIRONMENT, "FREEHOLD_HOME", str(tmp_path / "home"))
    folder = tmp_path / "shop"
    (folder / "web").mkdir(parents=True)
    (folder / "freehold.toml").write_text(PROJECT)
    (folder / "web" / "app.py").write_text(APP)
    with serving(folder) as process:
        assert process.call("/").status == 200
        time.sleep(6)  # a look at the workers has seen this answer
        assert findings(folder) == (0, [])
    with serving(folder) as process:
        for _ in range(3):
            assert process.call("/boom").status == 500
        code, (document,) = soon(folder, bool)
        assert (code, document["fault"]) == (1, True)
        assert "app web failed each of 3 requests on" in document["what"]
        command = document["advice"].partition(";")[0].split()
        assert command[:2] == ["freehold", "logs"]
        code, answer, _ = run_freehold(*command[1:], "--context", "dev", folder=folder)
        assert code == 0
        assert any("out of stock" in str(line) for line in answer["lines"])
        for _ in range(10):
            assert process.call("/").status == 200
        code, (document,) = soon(folder, lambda seen: "13 requests" in seen[0]["what"])
        assert (code, document["fault"]) == (0, False), "most visitors are served"
        assert "failed 3 of 13 requests" in document["what"]
