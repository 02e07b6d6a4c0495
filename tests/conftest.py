"""What every folder of tests shares: the built test components. Not here: fakes and servers, which their tests own."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.fixtures import build
from tests.support.running_order import running_order

settings.register_profile("freehold", deadline=None)
settings.load_profile("freehold")
"""No example is held to a time by the wall: on a busy machine that fails what is sound."""


MADE = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Let children be interrupted, and keep sockets out of /run, where they stay until the machine boots.

    A shell without job control starts what runs behind it with SIGINT ignored.
    """
    if "RUNTIME_DIRECTORY" not in os.environ:
        config.stash[MADE] = Path(tempfile.mkdtemp(prefix="fhr", dir="/tmp"))  # a short path: sockets are in it
        os.environ["RUNTIME_DIRECTORY"] = str(config.stash[MADE])
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take the files in the order that ends soonest; every process of xdist must find the same one."""
    files = {item: os.path.relpath(item.path, config.rootpath) for item in items}
    place = {file: number for number, file in enumerate(running_order(files.values()))}
    items.sort(key=lambda item: place[files[item]])


def pytest_unconfigure(config: pytest.Config) -> None:
    path = config.stash.get(MADE, None)
    if path is not None:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def component() -> Callable[[str], Path]:
    """The path of a test component by name, built on first use; fails with the install command if a tool is missing."""

    def get(name: str) -> Path:
        try:
            return build.component(name)
        except build.ToolMissing as missing:
            pytest.fail(str(missing), pytrace=False)

    return get
