"""Disks that fill, fail, lie and go back in time under real daemons: what was acknowledged stays, and the mesh goes on."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.room import RESERVE_BYTES, STEP_BYTES
from tests.e2e.durable import Site, call, ingress_of
from tests.e2e.nodes import Fleet, Machine, until

DISK_BYTES = 96 << 20


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of its own, small enough to be filled."""
    folder = tmp_path_factory.mktemp("disk")
    options = f"size={DISK_BYTES},mode=700"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, small_disk: Path, component: Callable[[str], Path]
) -> Iterator[Site]:
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    made = Site(fleet, component)
    try:
        made.found({"three": small_disk})
        first = made.machines[0]
        made.ask(first, lambda client: made.write_project(client, "site"))
        made.deploy(first, "site", "probe", "first")
        yield made
    finally:
        fleet.close()


def fill(folder: Path) -> Path:
    """Take every byte that is left on a disk."""
    filler = folder / "filler"
    handle = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    os.write(handle, bytes(size))
            except OSError:
                continue
    finally:
        os.close(handle)
    return filler


def doctor(machine: Machine) -> tuple[int, list[str]]:
    answer = machine.run("doctor", "--data", str(machine.data), "--json")
    return answer.code, [one["what"] for one in answer.json["findings"] if one["fault"]]


@pytest.mark.timeout(300)
def test_a_node_with_a_full_disk_serves_and_follows_and_votes_again_when_there_is_room(
    site: Site, small_disk: Path
) -> None:
    one, two, three = site.machines
    node = three.status()["node"]
    reserve = three.data / "reserve"
    assert reserve.stat().st_size == RESERVE_BYTES
    assert reserve.stat().st_blocks * 512 >= RESERVE_BYTES, "the reserve holds no space"

    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            site.ask(one, lambda client, number=number: site.write_project(client, f"filling-{number}"))  # type: ignore[misc]

    writer = threading.Thread(target=write)
    writer.start()
    try:
        until(lambda: len(site.acknowledged.projects) > 3, 30, "commands to be decided")
        filler = fill(small_disk)
        until(lambda: three.status()["muted"] != "", 20, "the full disk to be noticed")
        before = len(site.acknowledged.projects)
        until(lambda: len(site.acknowledged.projects) > before + 5, 60, "the others to go on deciding")
    finally:
        stop.set()
        writer.join()

    status = three.status()
    assert not status["speaking"]
    assert status["voter"]
    assert any("does not vote: its disk is full" in one for one in status["warnings"])
    assert b"503" in three.raw("/readyz").splitlines()[0]
    for machine in (one, three):
        code, faults = doctor(machine)
        assert code == 1
        assert any("three serves and does not vote: its disk is full" in fault for fault in faults), faults
    refused = three.run("mesh", "voters", "--json")
    assert refused.code == 0, "reading goes on"
    until(lambda: three.status()["slot"] == one.status()["slot"], 10, "the node to follow with its reserve")
    assert site.missing(three) == []
    assert call(ingress_of(three), "site.test")[0] == 200
    newest = site.ask(one, lambda client: client.get("/v1/decisions", limit=1))[0]
    assert node not in newest["voters"]
    assert reserve.stat().st_size < RESERVE_BYTES
    assert reserve.stat().st_size % STEP_BYTES == 0

    for end in (three.kill, three.stop):  # as it dies, and as an operator in a hurry restarts it
        end()
        three.start()
        until(lambda: three.status()["muted"] != "", 20, "the full disk to be noticed at the start")
        assert not three.status()["speaking"]
        assert three.status()["quarantined"] == ""
    site.ask(one, lambda client: site.write_project(client, "while-full"))
    until(lambda: site.missing(three) == [], 20, "it to follow after its restarts")
    until(lambda: call(ingress_of(three), "site.test")[0] == 200, 20, "its apps to run again")

    filler.unlink()
    until(lambda: three.status()["speaking"], 20, "it to vote again")
    assert reserve.stat().st_size == RESERVE_BYTES
    two.kill()  # now nothing is decided without it
    try:
        site.ask(one, lambda client: site.write_project(client, "with-its-vote"))
    finally:
        two.start()
    until(lambda: site.missing(two) == site.missing(three) == [], 30, "everybody to have everything")
    assert not any("does not vote" in fault for fault in doctor(three)[1])
