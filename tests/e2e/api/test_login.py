"""A laptop logs in with one line and speaks to the mesh over HTTPS, on real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.mesh.nodes import PASSPHRASE, Fleet, Machine


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    new_fleet = Fleet(tmp_path_factory.mktemp("login"))
    try:
        new_fleet.found("one", "--api", "127.0.0.1:0")
        yield new_fleet
    finally:
        new_fleet.close()


def test_a_developer_logs_in_and_sees_the_mesh_from_elsewhere(fleet: Fleet) -> None:
    node = fleet.machines[0]
    line = fleet.invite(node, "--kind", "principal", "--role", "deployer", "--for", "ada")
    laptop = Machine(fleet.folder / "laptop")
    answer = laptop.ok("login", line, "--name", "work")
    assert answer["url"].startswith("https://127.0.0.1:")
    assert answer["roles"] == ["deployer"]
    assert answer["admin_key"] == ""
    assert [entry["name"] for entry in laptop.ok("mesh", "members")["members"]] == ["one"]
    refused = laptop.run("login", line, "--name", "again", "--json")
    assert refused.code == 3, refused
    assert "invite.spent" in refused.stdout + refused.stderr
    assert not list((laptop.folder / "home" / "keys").glob("again-*")), "a key that nobody knows was left behind"


def test_who_may_approve_types_a_passphrase_at_login(fleet: Fleet) -> None:
    node = fleet.machines[0]
    line = fleet.invite(node, "--kind", "principal", "--role", "approver", "--role", "deployer", "--for", "grace")
    laptop = Machine(fleet.folder / "other-laptop")
    alone = laptop.run("login", line, "--name", "work")
    assert alone.code == 3, alone
    assert "needs a person" in alone.stderr
    answer = laptop.typed("login", line, "--name", "work", "--json", typing=(PASSPHRASE, PASSPHRASE))
    assert answer.code == 0, answer
    assert answer.json["admin_key"] == "work-approver"
    assert [entry["name"] for entry in laptop.ok("mesh", "members")["members"]] == ["one"]
