"""What the guest's own modules decide without a sandbox. Not here: what needs one (tests/e2e/dev)."""

from __future__ import annotations

import importlib.util
import sys
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


def test_two_contents_of_one_size_and_second_have_two_times(files: ModuleType) -> None:
    first, second, same = (files._File("a.css", content, 1_700_000_000) for content in (b"a" * 9, b"b" * 9, b"a" * 9))
    assert first.modified_ns / 1e9 != second.modified_ns / 1e9, "an ETag is made of the time as a float"
    assert first.modified_ns == same.modified_ns
    assert first.modified_ns // 1_000_000_000 == 1_700_000_000
