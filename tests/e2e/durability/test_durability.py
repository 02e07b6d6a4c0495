"""Disks that fill, fail, lie and go back in time under real daemons: what was acknowledged stays, and the mesh goes on."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.errors import CommandError
from node.store.disk_room import RESERVE_BYTES, STEP_BYTES
from node.store.storage import FenceFile
from protocols.chain.fence import BOOT_LEAP, Fence, newest
from protocols.envelope import digest
from tests.support.mesh.durable import VOTING, Site, call, ingress_of, socket_of
from tests.support.mesh.nodes import LOOPBACK, PASSPHRASE, Fleet, Machine, until

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
    for write in (
        lambda client: site.write_project(client, "asked-of-a-full-disk"),
        lambda client: client.put_artifact(b"bytes", digest(b"bytes")),
    ):
        with pytest.raises(CommandError, match="its disk is full") as refused:
            site.ask(three, write)
        assert refused.value.kind == "node.muted"
    assert three.run("mesh", "voters", "--json").code == 0, "reading goes on"
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
        pytest.param(truncate, "was damaged and is set aside", True, marks=pytest.mark.long),
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


@pytest.mark.long
@pytest.mark.timeout(200)
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
@pytest.mark.parametrize(
    "damage",
    [
        "older database",
        pytest.param("no database", marks=pytest.mark.long),
        pytest.param("damaged fence", marks=pytest.mark.long),
    ],
)
def test_a_voter_whose_database_or_fence_cannot_be_trusted_gives_up_its_vote_until_it_is_replaced(
    site: Site, damage: str
) -> None:
    one, two, three = site.machines
    node, store = two.status()["node"], fence_of(two).store_id
    two.stop()
    old, said = databases(two, "vote.db"), fence_of(two).counter
    two.start()
    until(lambda: two.status()["speaking"], 20, "it to vote")
    needs(site, two, three, damage.replace(" ", "-"))  # else a majority may do without it, and its fence stands still
    assert fence_of(two).counter > said
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
    until(lambda: reason in two.status()["quarantined"], 20, f"it to say that its store is {reason}")
    status = two.status()
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
@pytest.mark.parametrize(
    "rebooted",
    [
        pytest.param(True, id="after a reboot"),
        pytest.param(False, id="restored while it was up", marks=pytest.mark.long),
    ],
)
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


# --- backups ----------------------------------------------------------------------------------------------------------


def machine_of(site: Site, node: str) -> Machine:
    return next(one for one in site.machines if one.status()["node"] == node)


@pytest.mark.timeout(200)
def test_a_restored_node_has_its_apps_data_and_reads_what_the_others_hold_before_it_speaks(site: Site) -> None:
    one = site.machines[0]
    lane = site.ask(one, lambda client: client.state()).lane("shop", "production")
    assert lane is not None
    keeper = machine_of(site, lane.data_node)
    other = next(machine for machine in site.machines[1:] if machine is not keeper)
    address = ingress_of(keeper)
    assert call(address, "shop.test", "/kv/set?key=a&value=before")[2] == "set"
    backup = keeper.folder / "keeper.tar.gz"
    keeper.ok("mesh", "backup", str(backup), "--data", str(keeper.data))
    assert call(address, "shop.test", "/kv/set?key=b&value=after")[2] == "set"
    before = keeper.status()
    asked = one if keeper is not one else other
    for number in range(3):
        site.ask(asked, lambda client, number=number: site.write_project(client, f"after-backup-{number}"))  # type: ignore[misc]
    keeper.stop()
    shutil.rmtree(keeper.data)
    keeper.ok("mesh", "restore", str(backup), "--data", str(keeper.data), "-y")
    older = fence_of(keeper)
    keeper.start()
    until(lambda: keeper.status()["speaking"], 30, "it to have read what the other voters hold")
    until(lambda: fence_of(keeper).counter >= older.counter + BOOT_LEAP, 10, "its statements to count from far above")
    after = keeper.status()
    assert (after["node"], after["quarantined"]) == (before["node"], "")
    until(lambda: site.missing(keeper) == [], 60, "what was decided since the backup")
    until(lambda: call(ingress_of(keeper), "shop.test", "/kv/get?key=a")[2] == "before", 30, "the app with its data")
    assert call(ingress_of(keeper), "shop.test", "/kv/get?key=b")[0] == 404, "the backup is older than this"
    if keeper is not one:
        needs(site, keeper, other, "restored")


# --- deaths in the middle of something --------------------------------------------------------------------------------


def compilers_of(machine: Machine) -> list[int]:
    """The process ids of the compilers that a daemon has started."""
    assert machine.process is not None
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
            arguments = (entry.parent / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == machine.process.pid and b"runtime.sandbox.compiler" in arguments:
            found.append(int(entry.parent.name))
    return found


def half_made(machine: Machine) -> list[str]:
    """What only a process that is at work may have lying about."""
    places = ((machine.data, "artifacts/*.part"), (machine.data, "compiled/.*.*"), (machine.data, "throwaway/*"),
              (machine.folder / "run", "*/smoke-*"))  # fmt: skip
    return [str(path) for folder, pattern in places for path in folder.glob(pattern)]


@pytest.mark.timeout(200)
def test_a_daemon_that_dies_while_it_compiles_or_takes_an_upload_leaves_nothing_half_made_and_goes_on(
    site: Site,
) -> None:
    one, two, _ = site.machines
    site.ask(one, lambda client: site.write_project(client, "crash"))
    proposal = site.ask(one, lambda client: site.propose(client, "crash", "hello", "now"))
    until(lambda: compilers_of(two) != [], 30, "a compiler to run", every_s=0.005)
    (compiler,) = compilers_of(two)
    two.kill()
    until(lambda: not Path(f"/proc/{compiler}").exists(), 30, "the compiler to notice that nobody waits")
    two.start()
    until(lambda: half_made(two) == [], 60, "what was left half-made to go")

    data = random.Random(8).randbytes(4 << 20)
    name = digest(data).hex()
    with socket.socket(socket.AF_UNIX) as upload:
        upload.connect(str(socket_of(two)))
        upload.sendall(
            f"PUT /v1/artifacts/{name} HTTP/1.1\r\nHost: node\r\nIdempotency-Key: half-an-upload\r\n"
            f"Content-Type: application/octet-stream\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data[: 3 << 20]
        )  # fmt: skip
        two.kill()
    two.start()
    until(lambda: half_made(two) == [], 60, "the half upload to go, and the smoke checks begun anew to end")
    assert b" 404 " in two.raw(f"/v1/artifacts/{name}/here").splitlines()[0]
    assert site.ask(two, lambda client: client.put_artifact(data, digest(data)))
    assert site.ask(two, lambda client: client.get_bytes(f"/v1/artifacts/{name}")) == data

    site.ask(one, lambda client: site.start(client, proposal))
    release = bytes(proposal.change.release).hex()
    until(lambda: site.base(two, "crash") == release, 90, "the release to be the base")
    until(
        lambda: call(ingress_of(two), "crash.test")[:2] == (200, release), 30, "it to be served where the daemon died"
    )


# --- disks that fail --------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_a_write_that_fails_ends_the_daemon_with_its_own_exit_code_and_its_apps_serve_on(site: Site) -> None:
    one, two, three = site.machines
    address = ingress_of(two)
    until(lambda: len(two.status()["peers"]) == 2, 20, "it to be connected")
    assert two.process is not None
    # No file may grow beyond this: the databases' logs soon would, the daemon's own log has room for its last words.
    limit = two.log.stat().st_size + (256 << 10)
    resource.prlimit(two.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    for number in range(100):
        if two.process.poll() is not None:
            break
        site.ask(one, lambda client, number=number: site.write_project(client, f"unwritable-{number}"))  # type: ignore[misc]
    assert two.process.wait(30) == 74
    two.process = None
    assert "a durable write failed" in two.log.read_text()
    assert call(address, "site.test")[0] == 200, "the workers serve on"
    two.start()
    assert call(address, "site.test")[0] == 200
    until(lambda: site.missing(two) == [], 30, "it to have caught up")
    assert two.status()["quarantined"] == ""
    needs(site, two, three, "written-again")


@contextlib.contextmanager
def failing_disk(folder: Path) -> Iterator[tuple[Path, Callable[[], Path], Callable[[], None]]]:
    """A file system on a loop device whose backing file system can be filled: then writing back fails with EIO.

    Yields where it is mounted, what makes it fail (returns what to remove), and what mounts it anew once it may work.
    """
    backing, mounted, image = folder / "backing", folder / "mounted", folder / "backing" / "image"
    backing.mkdir()
    mounted.mkdir()

    def run(*command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"no loop device may be mounted here: {done.stderr.strip()}")

    run("mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(backing))
    try:
        run("truncate", "-s", "128m", str(image))
        run("mkfs.ext4", "-q", "-O", "^metadata_csum", "-E", "lazy_itable_init=0", str(image))
        run("mount", "-o", "loop", str(image), str(mounted))
        try:

            def again() -> None:
                subprocess.run(["umount", str(mounted)], check=True)
                subprocess.run(["fsck.ext4", "-p", str(image)], check=False, capture_output=True)
                subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], check=True)

            yield mounted, lambda: fill(backing), again
        finally:
            subprocess.run(["umount", "--lazy", str(mounted)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(backing)], check=True)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_an_fsync_that_fails_ends_the_daemon_and_nothing_acknowledged_is_lost(
    tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]
) -> None:
    fleet = Fleet(tmp_path_factory.mktemp("failing"))
    with failing_disk(tmp_path_factory.mktemp("loop")) as (mounted, fail, mount_again):
        sole = fleet.machine("sole")
        sole.disk = mounted
        made = sole.typed("mesh", "create", "home", "--data", str(sole.data), *LOOPBACK, "--policy", "solo", "-y",
                          typing=(PASSPHRASE, PASSPHRASE))  # fmt: skip
        assert made.code == 0, made
        try:
            sole.start()
            site = Site(fleet, component)
            site.ask(sole, lambda client: site.write_environment(client, "production"))
            site.ask(sole, lambda client: site.write_project(client, "p"))
            filler = fail()
            ended = None
            for number in range(2000):
                try:
                    site.ask(
                        sole, lambda client, number=number: site.write_secret(client, "p", f"K{number}", bytes(8000))
                    )  # type: ignore[misc]
                except CommandError as error:
                    ended = error
                    break
            assert ended is not None, "the disk took everything"
            assert sole.process is not None
            assert sole.process.wait(30) == 74
            sole.process = None
            assert len(site.acknowledged.secrets) < 2000
            sole.kill_workers()
            filler.unlink()
            mount_again()
            sole.start()
            assert site.missing(sole, "p") == []
        finally:
            fleet.close()


# --- lost and doubled machines ----------------------------------------------------------------------------------------


@pytest.mark.timeout(250)
def test_a_cloned_folder_that_runs_beside_its_original_is_turned_away_with_it_and_the_mesh_heals_without_the_copy(
    site: Site,
) -> None:
    one, two, three = site.machines
    double = two.status()["node"]
    clone = site.fleet.machine("clone")
    shutil.copytree(two.data, clone.data, ignore=shutil.ignore_patterns("lock"))
    clone.start("--listen", "127.0.0.1:0", "--ingress", "127.0.0.1:0")
    try:
        for peer in (one, three):
            until(lambda peer=peer: peer.status()["doubles"] == [double], 60, "the double to be noticed")  # type: ignore[misc]
            code, faults = doctor(peer)
            assert code == 1
            assert any("two machines use the key" in fault for fault in faults), faults
        for copy in (two, clone):
            until(lambda copy=copy: copy.status()["refused_by"] != {}, 60, "both to be turned away")  # type: ignore[misc]
            assert all(why.startswith("hello.cloned") for why in copy.status()["refused_by"].values())
        assert any("another machine uses the key of two" in fault for fault in doctor(two)[1])
        site.ask(one, lambda client: site.write_project(client, "without-the-double"))
    finally:
        clone.stop()
        site.fleet.machines.remove(clone)
    # The peers keep it out for ten minutes after they last saw it double; their restart is what an operator can do now.
    for peer in (three, one):
        peer.stop()
        peer.start()
    until(lambda: len(two.status()["peers"]) == 2, 60, "the original to be let in again")
    until(lambda: two.status()["speaking"], 30, "it to vote")
    until(lambda: site.missing(two) == [], 60, "it to have caught up")
    # If the copy got as far as a boot read before it was noticed, nobody counts what the original says any more.
    three.kill()
    writer = threading.Thread(
        target=site.ask, args=(one, lambda client: site.write_project(client, "after-the-double"))
    )
    writer.start()
    until(
        lambda: not writer.is_alive() or two.status()["quarantined"] != "", 20, "its vote to count, or to be given up"
    )
    three.start()
    writer.join()
    assert "after-the-double" in site.acknowledged.projects
    if two.status()["quarantined"]:
        assert two.status()["quarantined"] == "another life of this node has spoken for its store"
        assert any("two gave up its vote" in fault for fault in doctor(two)[1])
        until(lambda: any("its disk was lost" in fault for fault in doctor(one)[1]), 30, "the others to notice")
        one.typed_ok("mesh", "voters", "--replace", "two", "two", "-y")
        until(lambda: two.status()["speaking"], 30, "it to vote with a new store")
    needs(site, two, three, "without-the-copy")


@pytest.mark.long
@pytest.mark.timeout(250)
def test_an_original_that_comes_back_after_its_copy_has_spoken_gives_up_its_vote(site: Site) -> None:
    one, two, three = site.machines
    two.stop()
    clone = site.fleet.machine("copy")
    shutil.copytree(two.data, clone.data, ignore=shutil.ignore_patterns("lock"))
    clone.start()
    try:
        until(lambda: clone.status()["speaking"], 30, "the copy to have read what the others hold")
        needs(site, clone, three, "with-the-copy")
    finally:
        clone.stop()
        site.fleet.machines.remove(clone)
    two.start()
    until(lambda: len(two.status()["peers"]) == 2, 60, "the original to be let in")
    decide_some(site, "after-the-copy")
    until(lambda: two.status()["quarantined"] != "", 30, "the original to hear that it was fenced")
    assert two.status()["quarantined"] == "another life of this node has spoken for its store"
    assert "vote.quarantined" in two.log.read_text()
    assert any("two gave up its vote" in fault for fault in doctor(two)[1])
    until(lambda: any("its disk was lost" in fault for fault in doctor(one)[1]), 30, "the others to notice")
    one.typed_ok("mesh", "voters", "--replace", "two", "two", "-y")
    until(lambda: two.status()["speaking"], 30, "it to vote with a new store")
    needs(site, two, three, "without-the-copy-again")


@pytest.mark.timeout(250)
def test_a_voter_whose_disk_is_lost_is_replaced_by_a_new_machine_with_one_command_and_nothing_else_is_harmed(
    site: Site,
) -> None:
    one, two, three = site.machines
    addresses = [ingress_of(machine) for machine in (one, two)]
    answers: set[tuple[int, str]] = set()
    stop = threading.Event()

    def visit(address: str) -> None:
        while not stop.wait(0.02):
            answers.add(call(address, "site.test")[:2])

    visitors = [threading.Thread(target=visit, args=(address,)) for address in addresses]
    for visitor in visitors:
        visitor.start()
    try:
        three.kill()
        three.kill_workers()
        shutil.rmtree(three.data)
        four = site.fleet.join(site.fleet.invite(one, *VOTING), "four")
        until(lambda: sum(row["ready"] != "" and not row["voter"] for row in voters(site)) == 1, 60, "four to be ready")
        one.typed_ok("mesh", "voters", "--replace", "three", "four", "-y")
        until(lambda: four.status()["speaking"], 30, "the new voter to vote")
        site.fleet.machines[2:4] = [four, three]
        needs(site, four, two, "with-the-new-voter")
        until(lambda: call(ingress_of(four), "site.test")[0] == 200, 60, "the apps to run on the new machine")
    finally:
        stop.set()
        for visitor in visitors:
            visitor.join()
    release = site.base(one, "site")
    assert answers == {(200, release)}, answers
    assert {row["node"] for row in voters(site) if row["voter"]} == {
        one.status()["node"],
        two.status()["node"],
        four.status()["node"],
    }


def voters(site: Site) -> list[dict[str, Any]]:
    return site.ask(site.machines[0], lambda client: client.get("/v1/voters"))
