"""What every folder of tests shares: the built test components. Not here: fakes and servers, which their tests own."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.fixtures import build

settings.register_profile("freehold", deadline=None)
settings.load_profile("freehold")
"""No example is held to a time by the wall: on a busy machine that fails what is sound."""


def pytest_configure() -> None:
    """Let children be interrupted: a shell without job control starts what runs behind it with SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def component() -> Callable[[str], Path]:
    """The path of a test component by name, built on first use; fails with the install command if a tool is missing."""

    def get(name: str) -> Path:
        try:
            return build.component(name)
        except build.ToolMissing as missing:
            pytest.fail(str(missing), pytrace=False)

    return get
