"""Disks that lie and go back in time, and machines lost or doubled, under real daemons."""

from __future__ import annotations

import shutil
import threading
from typing import Any

import pytest

from node.store.storage import FenceFile
from protocols.chain.fence import BOOT_LEAP, Fence, newest_fence
from tests.support.mesh.disks import doctor, needs
from tests.support.mesh.durable import VOTING, Site, call, ingress_of, socket_of
from tests.support.mesh.nodes import Machine, until

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
    fence = newest_fence(FenceFile(machine.data / "fence").load())
    assert fence is not None
    return fence


def decide_some(site: Site, prefix: str) -> None:
    for number in range(3):
        site.ask(site.machines[0], lambda client, number=number: site.write_project(client, f"{prefix}-{number}"))  # type: ignore[misc]


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
    machine, two, three = site.machines
    node, store = two.status()["node"], fence_of(two).store_id
    two.stop()
    old, said = databases(two, "vote.db"), fence_of(two).counter
    two.start()
    until(lambda: two.status()["speaking"], 20, "it to vote")
    needs(site, two, three, damage.replace(" ", "-"))  # else a majority may do without it, and its fence stands still
    assert fence_of(two).counter > said
    until(lambda: two.status()["slot"] == machine.status()["slot"], 20, "it to follow")
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
    assert b"\nfreehold_quarantined 1.0\n" in two.get("/metrics"), "what the alert FreeholdChainStalled looks at"
    assert b"\nfreehold_quarantined 0.0\n" in machine.get("/metrics")
    until(lambda: any("its disk was lost" in fault for fault in doctor(machine)[1]), 30, "the others to notice")
    newest_slot = machine.status()["slot"]
    decide_some(site, "without-" + damage.replace(" ", "-"))
    decisions = site.ask(machine, lambda client: client.get("/v1/decisions", limit=10))
    assert not any(node in decision["voters"] for decision in decisions if decision["slot"] > newest_slot)
    machine.typed_ok("mesh", "voters", "--replace", "two", "two", "-y")
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
    machine, two, three = site.machines
    token = socket_of(two).parent / "fence"
    two.stop()
    old, earlier = databases(two, "vote.db", "fence"), fence_of(two)
    two.start()
    until(lambda: len(two.status()["peers"]) == 2, 20, "it to be connected")
    decide_some(site, f"forgotten-{rebooted}".lower())
    until(lambda: fence_of(two).counter > earlier.counter, 20, "it to say something")
    until(lambda: two.status()["slot"] == machine.status()["slot"], 20, "it to follow")
    two.kill()
    before = fence_of(two)
    put_back(two, old, "vote.db", "fence")
    assert fence_of(two) == earlier
    if rebooted:
        token.unlink()
    machine.kill()  # with one other voter up it may not speak yet: two must answer
    two.start()
    assert two.status()["quarantined"] == ""
    assert not two.status()["speaking"]
    machine.start()
    until(lambda: two.status()["speaking"], 30, "it to have read what the others hold")
    until(
        lambda: fence_of(two).counter >= BOOT_LEAP, 10, "its statements to count from above all that it may have said"
    )
    assert fence_of(two).store_id == before.store_id, "it is the same voter"
    assert site.missing(two) == []
    needs(site, two, three, f"read-{rebooted}".lower())


# --- backups ----------------------------------------------------------------------------------------------------------


def machine_of(site: Site, node: str) -> Machine:
    return next(machine for machine in site.machines if machine.status()["node"] == node)


@pytest.mark.timeout(200)
def test_a_restored_node_has_its_apps_data_and_reads_what_the_others_hold_before_it_speaks(site: Site) -> None:
    chosen_machine = site.machines[0]
    lane = site.ask(chosen_machine, lambda client: client.state()).lane("shop", "production")
    assert lane is not None
    keeper = machine_of(site, lane.data_node)
    other = next(machine for machine in site.machines[1:] if machine is not keeper)
    address = ingress_of(keeper)
    assert call(address, "shop.test", "/kv/set?key=a&value=before")[2] == "set"
    backup = keeper.folder / "keeper.tar.gz"
    keeper.ok("mesh", "backup", str(backup), "--data", str(keeper.data))
    assert call(address, "shop.test", "/kv/set?key=b&value=after")[2] == "set"
    before = keeper.status()
    asked = chosen_machine if keeper is not chosen_machine else other
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
    if keeper is not chosen_machine:
        needs(site, keeper, other, "restored")


# --- lost and doubled machines ----------------------------------------------------------------------------------------


@pytest.mark.timeout(250)
def test_a_cloned_folder_that_runs_beside_its_original_is_turned_away_with_it_and_the_mesh_heals_without_the_copy(
    site: Site,
) -> None:
    machine, two, three = site.machines
    double = two.status()["node"]
    clone = site.fleet.machine("clone")
    shutil.copytree(two.data, clone.data, ignore=shutil.ignore_patterns("lock"))
    clone.start("--listen", "127.0.0.1:0", "--ingress", "127.0.0.1:0")
    try:
        for peer in (machine, three):
            until(lambda peer=peer: peer.status()["doubles"] == [double], 60, "the double to be noticed")  # type: ignore[misc]
            code, faults = doctor(peer)
            assert code == 1
            assert any("two machines use the key" in fault for fault in faults), faults
        for copy in (two, clone):
            until(lambda copy=copy: copy.status()["refused_by"] != {}, 60, "both to be turned away")  # type: ignore[misc]
            assert all(why.startswith("hello.cloned") for why in copy.status()["refused_by"].values())
        assert any("another machine uses the key of two" in fault for fault in doctor(two)[1])
        site.ask(machine, lambda client: site.write_project(client, "without-the-double"))
    finally:
        clone.stop()
        site.fleet.machines.remove(clone)
    # The peers keep it out for ten minutes after they last saw it double; their restart is what an operator can do now.
    for peer in (three, machine):
        peer.stop()
        peer.start()
    until(lambda: len(two.status()["peers"]) == 2, 60, "the original to be let in again")
    until(lambda: two.status()["speaking"], 30, "it to vote")
    until(lambda: site.missing(two) == [], 60, "it to have caught up")
    # If the copy got as far as a boot read before it was noticed, nobody counts what the original says any more.
    three.kill()
    writer = threading.Thread(
        target=site.ask, args=(machine, lambda client: site.write_project(client, "after-the-double"))
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
        until(lambda: any("its disk was lost" in fault for fault in doctor(machine)[1]), 30, "the others to notice")
        machine.typed_ok("mesh", "voters", "--replace", "two", "two", "-y")
        until(lambda: two.status()["speaking"], 30, "it to vote with a new store")
    needs(site, two, three, "without-the-copy")


@pytest.mark.long
@pytest.mark.timeout(250)
def test_an_original_that_comes_back_after_its_copy_has_spoken_gives_up_its_vote(site: Site) -> None:
    machine, two, three = site.machines
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
    until(lambda: any("its disk was lost" in fault for fault in doctor(machine)[1]), 30, "the others to notice")
    machine.typed_ok("mesh", "voters", "--replace", "two", "two", "-y")
    until(lambda: two.status()["speaking"], 30, "it to vote with a new store")
    needs(site, two, three, "without-the-copy-again")


@pytest.mark.timeout(250)
def test_a_voter_whose_disk_is_lost_is_replaced_by_a_new_machine_with_one_command_and_nothing_else_is_harmed(
    site: Site,
) -> None:
    chosen_machine, two, three = site.machines
    addresses = [ingress_of(machine) for machine in (chosen_machine, two)]
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
        four = site.fleet.join(site.fleet.invite(chosen_machine, *VOTING), "four")
        until(lambda: sum(row["ready"] != "" and not row["voter"] for row in voters(site)) == 1, 60, "four to be ready")
        chosen_machine.typed_ok("mesh", "voters", "--replace", "three", "four", "-y")
        until(lambda: four.status()["speaking"], 30, "the new voter to vote")
        site.fleet.machines[2:4] = [four, three]
        needs(site, four, two, "with-the-new-voter")
        until(lambda: call(ingress_of(four), "site.test")[0] == 200, 60, "the apps to run on the new machine")
    finally:
        stop.set()
        for visitor in visitors:
            visitor.join()
    release = site.base(chosen_machine, "site")
    assert answers == {(200, release)}, answers
    assert {row["node"] for row in voters(site) if row["voter"]} == {
        chosen_machine.status()["node"],
        two.status()["node"],
        four.status()["node"],
    }


def voters(site: Site) -> list[dict[str, Any]]:
    return site.ask(site.machines[0], lambda client: client.get("/v1/voters"))
