"""The audit log under kill -9: what was answered is in it, also on a node that waits for the records it lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.errors import CommandError
from cli.views.audit import verify_chains
from node.journal.audit_backlog import BACKLOG_FILE_NAME
from protocols.envelope import digest
from tests.support.mesh.durable import client_of, ports
from tests.support.mesh.nodes import Fleet, Machine, until


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    new_fleet = Fleet(tmp_path)
    try:
        new_fleet.found("one", *ports())
        new_fleet.join(new_fleet.invite(new_fleet.machines[0]), "two", *ports())
        for machine in new_fleet.machines:
            until(lambda machine=machine: confirmed(machine) == 2, 60, "two confirmed nodes")  # type: ignore[misc]
        yield new_fleet
    finally:
        new_fleet.close()


def confirmed(machine: Machine) -> int:
    return sum(member["confirmed"] for member in machine.members().values())


def upload(machine: Machine, text: str) -> str:
    """A write that needs no other node; return the digest, which its audit entry names."""

    async def run() -> str:
        async with client_of(machine) as client:
            await client.put_artifact(text.encode(), digest(text.encode()))
        return digest(text.encode()).hex()

    return asyncio.run(run())


def log(machine: Machine) -> list[dict[str, Any]]:
    async def run() -> list[dict[str, Any]]:
        async with client_of(machine) as client:
            _, _, faults = await verify_chains(client)
            assert faults == ()
            rows: list[dict[str, Any]] = await client.get("/v1/audit")
            return rows

    return asyncio.run(run())


def uploads(machine: Machine) -> list[str]:
    """Digests of the uploads that a node's log shows, oldest first."""
    return [row["digest"] for row in reversed(log(machine)) if "upload" in row["verb"] or "artifact" in row["verb"]]


@pytest.mark.timeout(200)
def test_what_was_answered_is_in_the_audit_log_though_the_node_was_killed_at_once(fleet: Fleet) -> None:
    machine = fleet.machines[0]
    written = []
    for number in range(6):
        written.append(upload(machine, f"bytes {number}"))
        machine.kill()
        machine.start()
    assert uploads(machine) == written


@pytest.mark.timeout(200)
def test_what_a_node_without_its_records_answered_survives_its_ends_and_follows_what_the_others_hold(
    fleet: Fleet,
) -> None:
    chosen_machine, two = fleet.machines
    written = [upload(two, "before")]
    until(lambda: uploads(chosen_machine) == written, 20, "the other node to hold the entry")
    chosen_machine.stop()
    two.stop()
    (two.data / "state.db").unlink()
    two.start()
    for text in ("first", "second", "third"):
        written.append(upload(two, text))
        assert any("waits for its place in the audit log" in warning for warning in two.status()["warnings"])
        two.kill()
        two.start()
    assert uploads(two) == [], "a chain begun anew would overwrite the one that the other node holds"
    chosen_machine.start()
    for machine in (chosen_machine, two):
        until(lambda machine=machine: uploads(machine) == written, 60, "every entry, once, in order")  # type: ignore[misc]
    until(lambda: not (two.data / BACKLOG_FILE_NAME).exists(), 20, "the wait to be over")
    assert not any("audit log" in warning for warning in two.status()["warnings"])
    written.append(upload(two, "after"))
    two.kill()
    two.start()
    assert uploads(two) == written


@pytest.mark.timeout(200)
def test_a_restored_node_does_not_write_over_what_the_others_hold_of_its_log(fleet: Fleet) -> None:
    chosen_machine, two = fleet.machines
    written = [upload(two, "in the backup")]
    backup = two.folder / "backup.tar.gz"
    two.ok("mesh", "backup", str(backup), "--data", str(two.data))
    written.append(upload(two, "after the backup"))
    until(lambda: uploads(chosen_machine) == written, 20, "the other node to hold both entries")
    chosen_machine.stop()
    two.stop()
    two.data.rename(two.folder / "lost")
    two.ok("mesh", "restore", str(backup), "--data", str(two.data), "-y")
    two.start()
    written.append(upload(two, "after the restore"))
    chosen_machine.start()
    for machine in (chosen_machine, two):
        until(lambda machine=machine: uploads(machine) == written, 60, "every entry, once, in order")  # type: ignore[misc]


@pytest.mark.timeout(200)
def test_a_node_that_cannot_keep_an_entry_says_so(fleet: Fleet) -> None:
    machine, two = fleet.machines
    machine.stop()
    two.stop()
    (two.data / "state.db").unlink()
    two.start()
    (two.data / BACKLOG_FILE_NAME).unlink()  # what an append then meets is an error of the disk like any other
    with pytest.raises(CommandError, match="the log does not hold it yet") as told:
        upload(two, "bytes")
    assert told.value.kind == "audit.unsettled"
