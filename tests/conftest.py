"""What every folder of tests shares: the built test components. Not here: fakes and servers, which their tests own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures import build


@pytest.fixture(scope="session")
def component() -> Callable[[str], Path]:
    """The path of a test component by name, built on first use; fails with the install command if a tool is missing."""

    def get(name: str) -> Path:
        try:
            return build.component(name)
        except build.ToolMissing as missing:
            pytest.fail(str(missing), pytrace=False)

    return get
