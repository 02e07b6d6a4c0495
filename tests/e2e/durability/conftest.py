"""A site of three daemons, the third on a disk small enough to be filled: one for each file of tests that asks."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mesh.disks import DISK_BYTES, Disk
from tests.support.mesh.durable import Site
from tests.support.mesh.nodes import Fleet


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """A file system small enough to be filled, where one may be mounted."""
    folder = tmp_path_factory.mktemp("disk")
    options = f"size={DISK_BYTES},mode=700"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    problem = f"no file system may be mounted here: {done.stderr.strip()}" if done.returncode else ""
    try:
        yield Disk(folder, problem)
    finally:
        if not problem:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, small_disk: Disk, component: Callable[[str], Path]
) -> Iterator[Site]:
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    new_site = Site(fleet, component)
    try:
        new_site.found({"three": small_disk.folder})
        first = new_site.machines[0]
        for name in ("site", "shop"):
            new_site.ask(first, lambda client, name=name: new_site.write_project(client, name))  # type: ignore[misc]
        new_site.deploy(first, "site", "probe", "first")
        new_site.deploy(first, "shop", "services", "first", more='keyvalue = ["default"]', smoke="/env")
        yield new_site
    finally:
        fleet.close()
