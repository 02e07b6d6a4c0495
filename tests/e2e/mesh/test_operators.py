"""What operators do with a mesh, on real processes: let nodes in and out, lose them, and find out what is wrong."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from node.keys import SystemEntropy, write_private
from node.membership.found import NodeIdentity, read_identity
from node.transport import ChannelName, FramesReceived, Transport, TransportSettings
from protocols.core import decode_message
from protocols.envelope import Signed, encode
from protocols.keys import Ed25519Signer, Ed25519Verifier, peer_id
from protocols.libp2p import multiaddr
from protocols.libp2p.multiaddr import Multiaddr
from protocols.trust.certificates import NODE_ROLES, issue
from protocols.trust.genesis import mesh_id
from protocols.trust.hello import ChainHead, Hello, Refused
from protocols.trust.invites import read_line, write_line
from protocols.trust.store import Credentials
from tests.support.mesh import skewed
from tests.support.mesh.nodes import LOOPBACK, PASSPHRASE, Fleet, Machine, until

SECONDS_TO_CUT_OFF = 5.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    new_fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    try:
        yield new_fleet
    finally:
        new_fleet.close()


@pytest.fixture(scope="module")
def line(fleet: Fleet) -> str:
    """An invite for two nodes, of which both uses are taken."""
    first = fleet.found("one", "--label", "zone=eu")
    text = fleet.invite(first, "--uses", "2", "--label", "zone=us")
    fleet.join(text, "two")
    fleet.join(text, "three")
    return text


@pytest.fixture
def three(fleet: Fleet, line: str) -> tuple[Machine, Machine, Machine]:
    machine, two, three = fleet.machines[:3]
    return machine, two, three


def connected(machine: Machine) -> int:
    return sum(member["connected"] and member["standing"] == "member" for member in machine.members().values())


def test_three_processes_see_each_other_and_grow_to_three_voters(three: tuple[Machine, Machine, Machine]) -> None:
    for machine in three:
        until(lambda machine=machine: connected(machine) == 3, 20, "three members")  # type: ignore[misc]
    until(lambda: sum(member["voter"] for member in three[2].members().values()) == 3, 30, "three voters")
    assert three[1].ok("node", "status", "--data", str(three[1].data))["node"]["name"] == "two"
    by_name = {entry["name"]: entry for entry in three[1].ok("mesh", "members")["members"]}
    assert by_name["one"]["labels"] == {"zone": "eu"}
    assert by_name["three"]["labels"] == {"zone": "us"}
    assert {entry["belief"] for entry in by_name.values()} == {"self", "alive"}
    voters = three[0].ok("mesh", "voters")
    assert (voters["up"], voters["majority"]) == (3, 2)
    assert three[0].ok("doctor", "--data", str(three[0].data))["faults"] == 0


def test_metrics_follow_the_conventions_and_say_what_the_node_sees(three: tuple[Machine, Machine, Machine]) -> None:
    families = {family.name: family for family in text_string_to_metric_families(three[0].get("/metrics").decode())}
    assert all(name.startswith("freehold_") for name in families)
    values = {name: family.samples[0].value for name, family in families.items() if len(family.samples) == 1}
    assert (values["freehold_voters"], values["freehold_links_admitted"]) == (3, 2)
    assert values["freehold_certificate_expiry_timestamp_seconds"] > time.time() + 80 * 86_400
    beliefs = {sample.labels["belief"]: sample.value for sample in families["freehold_members"].samples}
    assert beliefs["alive"] == 2


def test_an_admin_makes_projects_and_environments_and_everybody_reads_the_decisions(
    three: tuple[Machine, Machine, Machine],
) -> None:
    machine, two, _ = three
    machine.typed_ok("project", "create", "guestbook", "--owner", "web-team")
    document = machine.typed_ok("env", "create", "production", "--select", "zone=us", "-y")
    assert len(document["nodes"]) == 2
    changed = machine.typed_ok("env", "set", "production", "--protected", "-y")
    assert (changed["protected"], changed["selector"]) == (True, {"zone": "us"})
    said = machine.typed("env", "set", "production", "--not-protected", "-y").stderr
    assert "the voters decide" in said, said
    until(lambda: two.ok("project", "list")["projects"] != [], 10, "the project to be known everywhere")
    decisions = two.ok("decisions")["decisions"]
    assert [decision["names"] for decision in decisions[:4]] == [["admin"]] * 4
    decided = [decision["action"] for decision in decisions]
    assert decided[:4] == ["create_environment", "create_environment", "create_environment", "create_project"]
    assert "confirm_node" in decided
    assert "reconfigure" in decided


def test_whoever_runs_as_the_same_user_without_the_passphrase_can_invite_nobody(
    three: tuple[Machine, Machine, Machine],
) -> None:
    agent = three[0].run("mesh", "invite", "--json")
    assert agent.code == 3
    assert agent.json["error"]["kind"] == "needs-person"
    guessing = three[0].typed("mesh", "invite", "--json", typing=("hunter2hunter2",))
    assert guessing.code == 1
    assert json.loads(guessing.stdout)["error"]["kind"] == "passphrase"
    elsewhere = three[1].run("mesh", "invite", "--json")
    assert elsewhere.json["error"]["kind"] == "no-admin-key"


def counted(machine: Machine, rule: str) -> float:
    """How often a node has refused something by this rule."""
    families = {family.name: family for family in text_string_to_metric_families(machine.get("/metrics").decode())}
    samples = families["freehold_rejected_messages"].samples
    return sum(sample.value for sample in samples if sample.labels["rule"] == rule and sample.name.endswith("_total"))


def test_an_expired_a_spent_and_a_tampered_invite_are_refused_by_the_members(
    fleet: Fleet, three: tuple[Machine, Machine, Machine], line: str
) -> None:
    late = fleet.invite(three[0], "--expires", "1s")
    newcomer = fleet.machine("late")
    spent = newcomer.run("mesh", "join", line, "--data", str(newcomer.data), *LOOPBACK, "-y", "--json")
    assert spent.code == 1
    assert "spent" in spent.json["error"]["message"]
    until(lambda: time.time_ns() // 1_000_000 > read_line(late).invite.expires_ms, 5, "the invite to expire")
    expired = newcomer.run("mesh", "join", late, "--data", str(newcomer.data), *LOOPBACK, "-y", "--json")
    assert expired.code == 1
    assert "expired" in expired.json["error"]["message"]
    # The line of somebody who wants more than the admin gave, or more time, with a checksum that fits.
    for wanted in ({"roles": ("voter",)}, {"uses": 9}, {"expires_ms": time.time_ns() // 1_000_000 + 3_600_000}):
        read = read_line(late)
        signed = msgspec.structs.replace(read.signed, payload=encode(msgspec.structs.replace(read.invite, **wanted)))
        forged = write_line(read.seed, signed, read.addresses)
        tampered = newcomer.run("mesh", "join", forged, "--data", str(newcomer.data), *LOOPBACK, "-y", "--json")
        assert tampered.code == 1
        assert "invite.malformed" in tampered.json["error"]["message"]
    members = three
    for rule in ("invite.spent", "invite.expired", "invite.malformed"):
        assert sum(counted(member, rule) for member in members) > 0, f"{rule} is counted by whoever refused"
        logged = members[0].ok("logs", "--contains", rule)["lines"]
        assert any(entry.get("rule") == rule for entry in logged)
    cut = newcomer.run("mesh", "join", line[:-7], "--data", str(newcomer.data), "-y", "--json")
    assert cut.code == 2
    assert "copy it again" in cut.json["error"]["message"]
    assert not newcomer.data.exists()


def test_a_stranger_never_gets_past_hello_and_is_told_why(
    fleet: Fleet, three: tuple[Machine, Machine, Machine]
) -> None:
    machine = three[0]
    intruder = fleet.machine("stranger")
    shutil.copytree(machine.data, intruder.data, ignore=shutil.ignore_patterns("*.db*", "fence", "lock", "logs", "key"))
    (intruder.data / "node.key").unlink()
    seed = SystemEntropy().random_bytes(32)
    write_private(intruder.data / "node.key", seed.hex().encode())
    genesis = read_identity(machine.data).genesis
    write_private(intruder.data / "credentials", encode(NodeIdentity(genesis, ()).credentials))
    node = peer_id(Ed25519Signer(seed).public_key)
    intruder.start()
    wanted = ("logs", "--node", "one", "--contains", node)
    until(lambda: bool(machine.ok(*wanted)["lines"]), 15, "a refusal")
    assert {entry["rule"] for entry in machine.ok(*wanted)["lines"]} <= {"hello.stranger", "hello.not-connected"}
    assert counted(machine, "hello.stranger") > 0
    assert intruder.status()["peers"] == []
    assert any("hello.stranger" in warning for warning in intruder.status()["warnings"])
    assert node not in machine.members()
    intruder.stop()


async def say_hello(address: Multiaddr, mesh: bytes, signer: Ed25519Signer, shown: tuple[Credentials, ...]) -> Refused:
    """Dial a node as one that shows these credentials; return its refusal."""
    entropy = SystemEntropy()
    transport = Transport(TransportSettings(), signer=signer, verifier=Ed25519Verifier(), entropy=entropy)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        running = group.create_task(transport.run())
        await transport.started.wait()
        link = await transport.dial((address,))
        mine = Hello(mesh, 1, 1, entropy.random_bytes(8), entropy.random_bytes(16), ChainHead(), *shown)
        assert transport.send(link, ChannelName.HELLO, encode(mine))
        async for event in transport.events():
            frames = event.frames if isinstance(event, FramesReceived) else ()
            for refused in (said for said in map(decode_message, frames) if isinstance(said, Refused)):
                running.cancel()
                return refused
    raise AssertionError("no word of refusal")


def test_forged_papers_are_refused_by_the_rule_that_each_of_them_breaks(
    three: tuple[Machine, Machine, Machine],
) -> None:
    machine = three[0]
    mesh = mesh_id(read_identity(machine.data).genesis)
    address = multiaddr.parse(machine.status()["mesh_addresses"][0])
    me, founder = (Ed25519Signer(SystemEntropy().random_bytes(32)) for _ in range(2))
    member = Ed25519Signer(bytes.fromhex((three[1].data / "node.key").read_text()))
    now_ms = time.time_ns() // 1_000_000

    def certificate(by: Ed25519Signer, **given: Any) -> Signed:
        given = {"roles": NODE_ROLES, "labels": (), "serial": 1, "wall_ms": now_ms, **given}
        return issue(by, mesh, peer_id(me.public_key), **given)

    good = certificate(member)
    altered = msgspec.structs.replace(good, payload=good.payload[:-1] + bytes([good.payload[-1] ^ 1]))
    for papers, rule in (
        (certificate(me), "certificate.not-an-issuer"),
        (certificate(founder), "certificate.not-an-issuer"),
        (certificate(member), "certificate.not-invited"),
        (altered, "certificate.signature"),
    ):
        refused = asyncio.run(say_hello(address, mesh, me, (Credentials((papers,)),)))
        assert refused.rule == rule, refused
        assert "this mesh does not know the node" in refused.detail
        assert counted(machine, rule) > 0
        logged = machine.ok("logs", "--node", "one", "--contains", rule)["lines"]
        assert peer_id(me.public_key) in {entry["peer"] for entry in logged}
    elsewhere = asyncio.run(say_hello(address, bytes(32), me, (Credentials(()),)))
    assert elsewhere.rule == "hello.wrong-mesh"
    assert peer_id(me.public_key) not in machine.members()


def test_a_killed_node_comes_back_with_what_it_had(three: tuple[Machine, Machine, Machine]) -> None:
    machine, _, third = three
    before = third.status()
    with machine.follow("logs", "-f", "--contains", "node.started") as followed:
        until(lambda: followed.read_text().count("three · node.started") == 1, 20, "the lines that there are")
        third.kill()
        until(lambda: connected(machine) == 2, 10, "the loss to be seen")
        until(lambda: "does not answer; its lines are missing" in followed.read_text(), 20, "the loss to be told")
        sick = machine.run("doctor", "--data", str(machine.data), "--json")
        assert sick.code == 1
        assert any("one more lost voter" in entry["what"] for entry in sick.json["findings"])
        machine.typed_ok("project", "create", "meanwhile")
        third.start()
        until(lambda: connected(third) == 3, 20, "it to be connected again")
        until(
            lambda: followed.read_text().count("three · node.started") == 2, 20, "its new lines, and no old one again"
        )
    until(lambda: third.status()["slot"] > before["slot"], 10, "it to catch up")
    assert third.status()["node"] == before["node"]
    assert third.status()["speaking"]


def test_the_logs_of_every_node_are_read_from_any(three: tuple[Machine, Machine, Machine]) -> None:
    lines = three[1].ok("logs", "--contains", "node.started")
    assert {entry["node"] for entry in lines["lines"]} == {"one", "two", "three"}
    assert lines["silent"] == []
    only = three[1].ok("logs", "--node", "one", "--contains", "node.started")
    assert {entry["node"] for entry in only["lines"]} == {"one"}


def test_a_second_daemon_on_a_folder_and_a_busy_port_are_refused_with_the_owner(
    fleet: Fleet, three: tuple[Machine, Machine, Machine]
) -> None:
    machine = three[0]
    again = machine.run("node", "run", "--data", str(machine.data), "--json")
    assert again.code == 75
    assert "another process runs the node" in again.json["error"]["message"]
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        idle = fleet.machine("idle")
        created = idle.typed("mesh", "create", "other", "--data", str(idle.data), "-y", typing=(PASSPHRASE, PASSPHRASE))
        assert created.code == 0, created
        busy = idle.run(
            "node", "run", "--data", str(idle.data), "--listen", address, "--ingress", "127.0.0.1:0", "--json"
        )
        assert busy.code == 75, busy
        assert "pid " in busy.json["error"]["message"]


def test_a_voter_that_lost_its_disk_votes_again_after_one_command(three: tuple[Machine, Machine, Machine]) -> None:
    machine, two, _ = three
    two.stop()
    for path in (*two.data.glob("vote.db*"), two.data / "fence"):
        path.unlink()
    two.start()

    def fault() -> bool:
        entry = machine.run("doctor", "--data", str(machine.data), "--json").json["findings"]
        return any("its disk was lost" in finding["what"] for finding in entry)

    until(fault, 20, "the lost store to be noticed")
    machine.typed_ok("mesh", "voters", "--replace", "two", "two", "-y")
    until(lambda: two.status()["speaking"], 15, "it to vote with its new store")
    assert machine.ok("mesh", "voters")["up"] == 3
    assert machine.ok("doctor", "--data", str(machine.data))["faults"] == 0


def findings(machine: Machine) -> dict[str, bool]:
    """What doctor finds, and whether each is a fault."""
    answer = machine.run("doctor", "--data", str(machine.data), "--json").json
    assert all(entry["advice"] for entry in answer["findings"])
    return {entry["what"]: entry["fault"] for entry in answer["findings"]}


def test_doctor_names_a_boot_read_that_waits_and_a_clock_that_is_wrong(three: tuple[Machine, Machine, Machine]) -> None:
    machine, two, third = three
    third.kill()
    two.stop()
    for path in two.runtime.glob("*/fence"):
        path.unlink()  # as after a reboot: the volatile folder is empty
    two.start()
    until(lambda: connected(machine) == 2, 20, "it to be connected again")
    until(
        lambda: any("rebooted and does not vote before 2 other" in what for what, fault in findings(machine).items() if fault),
        20, "the boot read to be noticed",
    )  # fmt: skip
    third.start(under=(sys.executable, skewed.__file__, "90"))
    until(lambda: two.status()["speaking"], 20, "both others to have answered")
    until(lambda: connected(machine) == 3, 20, "all to be connected")
    wrong = [what for what, fault in findings(machine).items() if fault]
    assert len(wrong) == 1, wrong
    assert wrong[0].startswith("the clock of three ")
    assert "ahead of" in wrong[0]
    third.stop()
    third.start()
    until(lambda: connected(machine) == 3, 20, "all to be connected")
    until(lambda: third.status()["speaking"], 20, "it to vote")
    assert not any(findings(machine).values())


def test_a_backup_taken_while_it_runs_brings_a_node_back(three: tuple[Machine, Machine, Machine]) -> None:
    machine, two, _ = three
    before = two.status()
    file = two.folder / "two.tar.gz"
    two.ok("mesh", "backup", str(file), "--data", str(two.data))
    assert file.stat().st_mode & 0o777 == 0o600
    two.kill()
    shutil.rmtree(two.data)
    two.ok("mesh", "restore", str(file), "--data", str(two.data), "-y")
    two.start()
    until(lambda: connected(two) == 3, 20, "it to be connected again")
    until(lambda: two.status()["speaking"], 15, "it to have read what the other voters hold")
    after = two.status()
    assert (after["node"], after["quarantined"]) == (before["node"], "")
    assert connected(machine) == 3


def test_a_node_leaves_by_itself_and_takes_its_folder_along(
    fleet: Fleet, three: tuple[Machine, Machine, Machine]
) -> None:
    machine = three[0]
    guest = fleet.join(fleet.invite(machine, "--role", "worker"), "guest")
    until(lambda: connected(guest) == 4, 20, "four members")
    node = guest.status()["node"]
    needed = machine.run("mesh", "leave", "--data", str(machine.data), "--json")
    assert needed.json["error"]["kind"] == "not-confirmed"
    votes = machine.run("mesh", "leave", "--data", str(machine.data), "-y", "--json")
    assert (votes.code, votes.json["error"]["kind"]) == (3, "leave.votes")
    left = guest.ok("mesh", "leave", "--data", str(guest.data), "--purge", "-y")
    assert (left["stopped"], left["purged"], guest.data.exists()) == (True, True, False)
    assert machine.members()[node]["standing"] == "revoked"
    (told,) = [entry for entry in machine.ok("audit")["entries"] if (entry["node"], entry["verb"]) == (node, "leave")]
    assert told["result"] == "begun", "what a node says after it revoked itself counts nowhere"
    machine.typed_ok("mesh", "remove", "guest", "-y")
    assert node not in machine.members()


def test_a_revoked_node_is_cut_off_within_seconds(three: tuple[Machine, Machine, Machine]) -> None:
    machine, _, third = three
    until(lambda: connected(machine) == 3, 30, "three members")
    gone = third.status()["node"]
    assert machine.ok("mesh", "voters")["majority"] == 2
    machine.typed_ok("env", "create", "vault", "-y")
    machine.typed_ok("project", "create", "kept")
    assert machine.run("secret", "set", "API_KEY", "--project", "kept", "--env", "vault", stdin="a value").code == 0
    removed = machine.typed_ok("mesh", "remove", "three", "--compromised", "-y")
    assert removed["rotate"] == [{"project": "kept", "environment": "vault", "name": "API_KEY"}]
    (listed,) = machine.ok("secret", "list", "--project", "kept")["secrets"]
    assert listed["exposed"] == [gone]
    cut_s = time.monotonic()
    until(lambda: third.status()["peers"] == [], SECONDS_TO_CUT_OFF, "the revoked node to be alone")
    assert time.monotonic() - cut_s < SECONDS_TO_CUT_OFF
    assert gone not in machine.members()
    assert gone not in machine.status()["peers"]
    assert third.run("doctor", "--data", str(third.data)).code == 1


def test_a_cloned_folder_that_runs_beside_its_original_is_noticed(
    fleet: Fleet, three: tuple[Machine, Machine, Machine]
) -> None:
    machine, two, _ = three
    file = two.folder / "clone.tar.gz"
    two.ok("mesh", "backup", str(file), "--data", str(two.data))
    clone = fleet.machine("clone")
    clone.ok("mesh", "restore", str(file), "--data", str(clone.data), "-y")
    clone.start("--listen", "127.0.0.1:0")
    double = two.status()["node"]
    until(lambda: machine.status()["doubles"] == [double], 40, "the double to be noticed")
    answer = machine.run("doctor", "--data", str(machine.data), "--json")
    assert answer.code == 1
    assert any("two machines use the key" in finding["what"] for finding in answer.json["findings"])
