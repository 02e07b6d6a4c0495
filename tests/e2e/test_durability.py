"""Disks that fill, fail, lie and go back in time under real daemons: what was acknowledged stays, and the mesh goes on."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.room import RESERVE_BYTES, STEP_BYTES
from node.storage import FenceFile
from protocols.fence import BOOT_LEAP, Fence, newest
from tests.e2e.durable import Site, call, ingress_of, socket_of
from tests.e2e.nodes import Fleet, Machine, until

DISK_BYTES = 96 << 20


@dataclass(frozen=True)
class Disk:
    """A folder; `problem` says why it is no file system of its own."""

    folder: Path
    problem: str


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
    made = Site(fleet, component)
    try:
        made.found({"three": small_disk.folder})
        first = made.machines[0]
        for name in ("site", "shop"):
            made.ask(first, lambda client, name=name: made.write_project(client, name))  # type: ignore[misc]
        made.deploy(first, "site", "probe", "first")
        made.deploy(first, "shop", "services", "first", more='keyvalue = ["default"]', smoke="/env")
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
    site: Site, small_disk: Disk
) -> None:
    if small_disk.problem:
        pytest.skip(small_disk.problem)
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
        filler = fill(small_disk.folder)
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


# --- state.db ---------------------------------------------------------------------------------------------------------


def records_of(machine: Machine) -> dict[bytes, bytes]:
    """Every record on a node's disk, by key, less those that a node says of itself anew at each start."""
    with contextlib.closing(sqlite3.connect(f"file:{machine.data / 'state.db'}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT key, value FROM entries WHERE table_name = 'record'").fetchall()
    return {key: value for key, value in rows if not key.startswith((b"/status/", b"/address/"))}


def flip_structure(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for start in range(4096, len(data), 4096):
        data[start : start + 16] = bytes(byte ^ 0xFF for byte in data[start : start + 16])
    path.write_bytes(data)


def flip_value(path: Path) -> None:
    """One bit inside a record's body, which is valid otherwise: the text of a change's request."""
    data = path.read_bytes()
    assert b"first" in data
    path.write_bytes(data.replace(b"first", b"fIrst"))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("damage", "said", "aside"),
    [
        (flip_structure, "was damaged and is set aside", True),
        (truncate, "was damaged and is set aside", True),
        (Path.unlink, "was gone", False),
        (flip_value, "damaged and left out", False),
    ],
)
def test_a_member_with_a_damaged_state_database_says_so_and_has_its_records_back_from_its_peers(
    site: Site, damage: Callable[[Path], None], said: str, aside: bool
) -> None:
    one, two, _ = site.machines
    two.stop()
    before = len(list(two.data.glob("state.db.damaged-?")))
    damage(two.data / "state.db")
    two.start()
    status = two.status()
    assert said in status["rebuilt"]
    assert any(said in warning for warning in status["warnings"])
    assert status["quarantined"] == ""
    assert len(list(two.data.glob("state.db.damaged-?"))) == before + aside
    assert any("state.rebuilt" in line for line in two.log.read_text().splitlines()[-20:])
    answer = two.run("doctor", "--data", str(two.data), "--json")
    assert any(said in finding["what"] for finding in answer.json["findings"]), answer
    until(lambda: site.missing(two) == [], 60, "the records to come back")
    until(lambda: records_of(two) == records_of(one), 60, "both to hold the same records")
    until(lambda: call(ingress_of(two), "site.test")[0] == 200, 30, "its apps to be served")
    two.kill()
    two.start()
    assert two.status()["rebuilt"] == "", "told once"


@pytest.mark.timeout(120)
def test_a_sole_node_says_what_is_lost_with_its_databases_and_a_backup_brings_it_back(
    tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]
) -> None:
    fleet = Fleet(tmp_path_factory.mktemp("sole"))
    try:
        sole = fleet.found("sole", "--policy", "solo")
        site = Site(fleet, component)
        site.ask(sole, lambda client: site.write_environment(client, "production"))
        site.ask(sole, lambda client: site.write_project(client, "kept"))
        site.ask(sole, lambda client: site.write_secret(client, "kept", "KEY", b"a value"))
        backup = sole.folder / "backup.tar.gz"
        sole.ok("mesh", "backup", str(backup), "--data", str(sole.data))
        for name, expected in (("state.db", "secrets"), ("vote.db", "gave up its vote")):
            sole.stop()
            (sole.data / name).unlink()
            sole.start()
            assert any("freehold mesh restore" in warning for warning in sole.status()["warnings"])
            answer = sole.run("doctor", "--data", str(sole.data), "--json")
            assert answer.code == 1
            found = [one for one in answer.json["findings"] if expected in one["what"]]
            assert found, answer
            assert "freehold mesh restore" in found[0]["advice"]
        sole.stop()
        sole.data.rename(sole.folder / "lost")
        sole.ok("mesh", "restore", str(backup), "--data", str(sole.data), "-y")
        sole.start()
        assert site.missing(sole, "kept") == []
        assert sole.status()["warnings"] == [] or all("disk" in one for one in sole.status()["warnings"])
        site.ask(sole, lambda client: site.write_project(client, "after"))
    finally:
        fleet.close()


# --- vote.db and the fence --------------------------------------------------------------------------------------------


def databases(machine: Machine, *names: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for name in names for path in machine.data.glob(name + "*")}


def put_back(machine: Machine, files: dict[str, bytes], *names: str) -> None:
    for name in names:
        for path in machine.data.glob(name + "*"):
            path.unlink()
    for name, data in files.items():
        (machine.data / name).write_bytes(data)


def fence_of(machine: Machine) -> Fence:
    found = newest(FenceFile(machine.data / "fence").load())
    assert found is not None
    return found


def decide_some(site: Site, prefix: str) -> None:
    for number in range(3):
        site.ask(site.machines[0], lambda client, number=number: site.write_project(client, f"{prefix}-{number}"))  # type: ignore[misc]


def needs(site: Site, voter: Machine, other: Machine, name: str) -> None:
    """Show that a voter's vote counts: with another one gone nothing can be decided without it."""
    other.kill()
    try:
        site.ask(site.machines[0], lambda client: site.write_project(client, name))
    finally:
        other.start()
    until(lambda: site.missing(other) == site.missing(voter) == [], 60, "everybody to have everything")


@pytest.mark.timeout(250)
@pytest.mark.parametrize("damage", ["older database", "no database", "damaged fence"])
def test_a_voter_whose_database_or_fence_cannot_be_trusted_gives_up_its_vote_until_it_is_replaced(
    site: Site, damage: str
) -> None:
    one, two, three = site.machines
    node, store = two.status()["node"], fence_of(two).store_id
    two.stop()
    old = databases(two, "vote.db")
    two.start()
    until(lambda: two.status()["speaking"], 20, "it to vote")
    decide_some(site, damage.replace(" ", "-"))
    until(lambda: two.status()["slot"] == one.status()["slot"], 20, "it to follow")
    two.stop()
    match damage:
        case "older database":
            put_back(two, old, "vote.db")
        case "no database":
            put_back(two, {}, "vote.db")
        case "damaged fence":
            (two.data / "fence").write_bytes(bytes(byte ^ 1 for byte in (two.data / "fence").read_bytes()))
    two.start()
    reason = {"older database": "behind the fence", "no database": "gone", "damaged fence": "fence is unreadable"}[
        damage
    ]
    status = two.status()
    assert reason in status["quarantined"], status
    assert not status["speaking"]
    assert any("quarantined" in warning for warning in status["warnings"])
    code, faults = doctor(two)
    assert code == 1
    assert any("two gave up its vote" in fault for fault in faults), faults
    until(lambda: any("its disk was lost" in fault for fault in doctor(one)[1]), 30, "the others to notice")
    newest_slot = one.status()["slot"]
    decide_some(site, "without-" + damage.replace(" ", "-"))
    decisions = site.ask(one, lambda client: client.get("/v1/decisions", limit=10))
    assert not any(node in decision["voters"] for decision in decisions if decision["slot"] > newest_slot)
    one.typed_ok("mesh", "voters", "--replace", "two", "two", "-y")
    until(lambda: two.status()["speaking"], 30, "it to vote with its new store")
    assert fence_of(two).store_id != store
    needs(site, two, three, "with-" + damage.replace(" ", "-"))


@pytest.mark.timeout(200)
@pytest.mark.parametrize("rebooted", [True, False], ids=["after a reboot", "restored while it was up"])
def test_a_voter_whose_database_and_fence_both_went_back_reads_what_the_others_hold_before_it_speaks(
    site: Site, rebooted: bool
) -> None:
    one, two, three = site.machines
    token = socket_of(two).parent / "fence"
    two.stop()
    old, earlier = databases(two, "vote.db", "fence"), fence_of(two)
    two.start()
    until(lambda: len(two.status()["peers"]) == 2, 20, "it to be connected")
    decide_some(site, f"forgotten-{rebooted}".lower())
    until(lambda: fence_of(two).counter > earlier.counter, 20, "it to say something")
    until(lambda: two.status()["slot"] == one.status()["slot"], 20, "it to follow")
    two.kill()
    before = fence_of(two)
    put_back(two, old, "vote.db", "fence")
    assert fence_of(two) == earlier
    if rebooted:
        token.unlink()
    one.kill()  # with one other voter up it may not speak yet: two must answer
    two.start()
    assert two.status()["quarantined"] == ""
    assert not two.status()["speaking"]
    one.start()
    until(lambda: two.status()["speaking"], 30, "it to have read what the others hold")
    until(
        lambda: fence_of(two).counter >= BOOT_LEAP, 10, "its statements to count from above all that it may have said"
    )
    assert fence_of(two).store_id == before.store_id, "it is the same voter"
    assert site.missing(two) == []
    needs(site, two, three, f"read-{rebooted}".lower())
