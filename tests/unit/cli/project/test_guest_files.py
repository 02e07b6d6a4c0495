"""What the guest's own modules decide without a sandbox. Not here: what needs one (tests/e2e/dev)."""

from __future__ import annotations

import importlib.util
import sys
import time
from types import ModuleType

import pytest

from cli.project.python_build import GUEST


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(GUEST))
    spec = importlib.util.spec_from_file_location("freehold_files", GUEST / "freehold_files.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "freehold_files", module)
    spec.loader.exec_module(module)
    return module


def test_two_contents_of_one_size_have_two_times_in_whole_seconds(files: ModuleType) -> None:
    first, second, same = (files._File("a.css", content) for content in (b"a" * 9, b"b" * 9, b"a" * 9))
    assert first.modified_ns // 1_000_000_000 != second.modified_ns // 1_000_000_000, "some ETags hold seconds alone"
    assert first.modified_ns == same.modified_ns


@pytest.mark.parametrize("mark", [0, 1, (1 << 28) - 1, 1 << 28, (1 << 32) - 1])
def test_a_files_time_lies_ahead_of_visitors_and_fits_a_zip(
    files: ModuleType, mark: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.zlib, "crc32", lambda content: mark)
    year = time.gmtime(files._File("a.css", b"").modified_ns // 1_000_000_000).tm_year
    assert 2090 <= year < 2107
