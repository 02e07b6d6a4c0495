"""Disks that fill and fail under real daemons: what was acknowledged stays, and the mesh goes on."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.errors import CommandError
from node.store.disk_room import RESERVE_BYTES, STEP_BYTES
from protocols.envelope import digest
from tests.support.mesh.disks import Disk, doctor, needs
from tests.support.mesh.durable import Site, call, ingress_of, socket_of
from tests.support.mesh.nodes import LOOPBACK, PASSPHRASE, Fleet, Machine, until


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


@pytest.mark.timeout(300)
def test_a_node_with_a_full_disk_serves_and_follows_and_votes_again_when_there_is_room(
    site: Site, small_disk: Disk
) -> None:
    if small_disk.problem:
        pytest.skip(small_disk.problem)
    machine, two, three = site.machines
    node = three.status()["node"]
    reserve = three.data / "reserve"
    assert reserve.stat().st_size == RESERVE_BYTES
    assert reserve.stat().st_blocks * 512 >= RESERVE_BYTES, "the reserve holds no space"
    filler = fill_while_written(site, small_disk)
    a_full_disk_is_told_and_refuses_writes(site)
    until(lambda: three.status()["slot"] == machine.status()["slot"], 10, "the node to follow with its reserve")
    assert site.missing(three) == []
    assert call(ingress_of(three), "site.test")[0] == 200
    newest = site.ask(machine, lambda client: client.get("/v1/decisions", limit=1))[0]
    assert node not in newest["voters"]
    assert reserve.stat().st_size < RESERVE_BYTES
    assert reserve.stat().st_size % STEP_BYTES == 0

    for end in (three.kill, three.stop):  # as it dies, and as an operator in a hurry restarts it
        end()
        three.start()
        until(lambda: three.status()["muted"] != "", 20, "the full disk to be noticed at the start")
        assert not three.status()["speaking"]
        assert three.status()["quarantined"] == ""
    site.ask(machine, lambda client: site.write_project(client, "while-full"))
    until(lambda: site.missing(three) == [], 20, "it to follow after its restarts")
    until(lambda: call(ingress_of(three), "site.test")[0] == 200, 20, "its apps to run again")

    filler.unlink()
    until(lambda: three.status()["speaking"], 20, "it to vote again")
    assert reserve.stat().st_size == RESERVE_BYTES
    two.kill()  # now nothing is decided without it
    try:
        site.ask(machine, lambda client: site.write_project(client, "with-its-vote"))
    finally:
        two.start()
    until(lambda: site.missing(two) == site.missing(three) == [], 30, "everybody to have everything")
    assert not any("does not vote" in fault for fault in doctor(three)[1])


def fill_while_written(site: Site, disk: Disk) -> Path:
    """Fill the third node's disk while commands are decided; they go on, and it notices."""
    machine, _, three = site.machines
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            site.ask(machine, lambda client, number=number: site.write_project(client, f"filling-{number}"))  # type: ignore[misc]

    writer = threading.Thread(target=write)
    writer.start()
    try:
        until(lambda: len(site.acknowledged.projects) > 3, 30, "commands to be decided")
        filler = fill(disk.folder)
        until(lambda: three.status()["muted"] != "", 20, "the full disk to be noticed")
        before = len(site.acknowledged.projects)
        until(lambda: len(site.acknowledged.projects) > before + 5, 60, "the others to go on deciding")
    finally:
        stop.set()
        writer.join()
    return filler


def a_full_disk_is_told_and_refuses_writes(site: Site) -> None:
    """Every place that is asked names the full disk, and a write is refused by its own rule."""
    chosen_machine, _, three = site.machines
    status = three.status()
    assert not status["speaking"]
    assert status["voter"]
    assert any("does not vote: its disk is full" in entry for entry in status["warnings"])
    assert b"503" in three.raw("/readyz").splitlines()[0]
    for machine in (chosen_machine, three):
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
    machine, two, _ = site.machines
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
    until(lambda: records_of(two) == records_of(machine), 60, "both to hold the same records")
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
            entries = [entry for entry in answer.json["findings"] if expected in entry["what"]]
            assert entries, answer
            assert "freehold mesh restore" in entries[0]["advice"]
        sole.stop()
        sole.data.rename(sole.folder / "lost")
        sole.ok("mesh", "restore", str(backup), "--data", str(sole.data), "-y")
        sole.start()
        assert site.missing(sole, "kept") == []
        assert sole.status()["warnings"] == [] or all("disk" in entry for entry in sole.status()["warnings"])
        site.ask(sole, lambda client: site.write_project(client, "after"))
    finally:
        fleet.close()


# --- deaths in the middle of something --------------------------------------------------------------------------------


def compilers_of(machine: Machine) -> list[int]:
    """The process ids of the compilers that a daemon has started."""
    assert machine.process is not None
    numbers = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
            arguments = (entry.parent / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == machine.process.pid and b"runtime.sandbox.compiler" in arguments:
            numbers.append(int(entry.parent.name))
    return numbers


def half_made(machine: Machine) -> list[str]:
    """What only a process that is at work may have lying about."""
    places = ((machine.data, "artifacts/*.part"), (machine.data, "compiled/.*.*"), (machine.data, "throwaway/*"),
              (machine.folder / "run", "*/smoke-*"))  # fmt: skip
    return [str(path) for folder, pattern in places for path in folder.glob(pattern)]


@pytest.mark.timeout(200)
def test_a_daemon_that_dies_while_it_compiles_or_takes_an_upload_leaves_nothing_half_made_and_goes_on(
    site: Site,
) -> None:
    machine, two, _ = site.machines
    site.ask(machine, lambda client: site.write_project(client, "crash"))
    proposal = site.ask(machine, lambda client: site.propose(client, "crash", "hello", "now"))
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

    site.ask(machine, lambda client: site.start(client, proposal))
    release = bytes(proposal.change.release).hex()
    until(lambda: site.base(two, "crash") == release, 90, "the release to be the base")
    until(
        lambda: call(ingress_of(two), "crash.test")[:2] == (200, release), 30, "it to be served where the daemon died"
    )


# --- disks that fail --------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_a_write_that_fails_ends_the_daemon_with_its_own_exit_code_and_its_apps_serve_on(site: Site) -> None:
    machine, two, three = site.machines
    address = ingress_of(two)
    until(lambda: len(two.status()["peers"]) == 2, 20, "it to be connected")
    assert two.process is not None
    # No file may grow beyond this: the databases' logs soon would, the daemon's own log has room for its last words.
    limit = two.log.stat().st_size + (256 << 10)
    resource.prlimit(two.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    for number in range(100):
        if two.process.poll() is not None:
            break
        site.ask(machine, lambda client, number=number: site.write_project(client, f"unwritable-{number}"))  # type: ignore[misc]
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
        answer = sole.typed("mesh", "create", "home", "--data", str(sole.data), *LOOPBACK, "--policy", "solo", "-y",
                          typing=(PASSPHRASE, PASSPHRASE))  # fmt: skip
        assert answer.code == 0, answer
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
