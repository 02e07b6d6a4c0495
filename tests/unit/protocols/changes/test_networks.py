"""Private networks: what may be named, who allows it, and that what allows none is written as before."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from protocols.changes.demands import Demands
from protocols.changes.effective import Effective, EffectiveApp, effective_problem
from protocols.changes.networks import NETWORKS_MAX, PRIVATE, network_problem, networks_problem, within
from protocols.envelope import decode, encode
from protocols.state.commands import CreateEnvironment, SetNetworks, SetPolicy, SetRules
from protocols.state.governance import NETWORK_RULES
from protocols.state.model import Environment, MeshState
from protocols.state.policy import gate
from runtime.outbound import destinations
from tests.support.protocols.mesh_world import MeshWorld, refused

OFFICE = "10.0.5.0/24"


@pytest.mark.parametrize(
    "text", ["10.0.0.0/8", OFFICE, "10.0.5.7/32", "172.16.0.0/12", "192.168.7.0/24", "100.64.0.0/10", "fd12:3456::/32"]
)
def test_private_networks_may_be_named(text: str) -> None:
    assert network_problem(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.0/8", "127.0.0.1/32", "169.254.0.0/16", "169.254.169.254/32", "::1/128", "fe80::/10", "0.0.0.0/0", "::/0",
        "8.8.8.0/24", "10.0.0.0/7", "9.255.255.0/24", "172.32.0.0/12", "192.169.0.0/16", "192.0.0.0/8", "fb00::/8",
        "fc00::/6", "100.128.0.0/16", "224.0.0.0/4", "::ffff:10.0.0.0/104", "64:ff9b::/96",
        "10.0.5.1/24", "10.0.5.0", "10.0.5.0/024", "10.0.05.0/24", "10.0.5.0/255.255.255.0", "FD00::/8", "office", "", "/8",
    ],
)  # fmt: skip
def test_anything_else_is_named_in_its_refusal(text: str) -> None:
    problem = network_problem(text)
    assert problem is not None
    assert text in problem


def test_a_list_is_bounded_and_names_each_once() -> None:
    many = tuple(f"10.0.{number}.0/24" for number in range(NETWORKS_MAX + 1))
    assert networks_problem(many[:-1]) is None
    assert networks_problem(many) == networks_problem((OFFICE, OFFICE)) is not None


@pytest.mark.parametrize(
    ("network", "allowed", "holds"),
    [
        (OFFICE, (OFFICE,), True), (OFFICE, ("10.0.0.0/8",), True), ("10.0.0.0/8", (OFFICE,), False),
        ("10.0.4.0/23", (OFFICE,), False), ("10.0.6.0/24", (OFFICE,), False), (OFFICE, (), False),
        (OFFICE, ("192.168.0.0/16", "10.0.5.0/25"), False), (OFFICE, ("fd00::/8", "10.0.4.0/23"), True),
        ("fd00::/64", ("10.0.0.0/8",), False),
    ],
)  # fmt: skip
def test_an_allowed_network_holds_another_whole_or_not_at_all(
    network: str, allowed: tuple[str, ...], *, holds: bool
) -> None:
    assert within(network, allowed) is holds


def world() -> MeshWorld:
    mesh_world = MeshWorld().furnish()
    assert isinstance(mesh_world.govern(SetRules(NETWORK_RULES), mesh_world.admin), MeshState)
    return mesh_world


def allowed(made: MeshWorld, name: str = "prod") -> tuple[str, ...]:
    return next(environment.networks for environment in made.state.environments if environment.name == name)


def test_an_environment_allows_networks_and_another_does_not() -> None:
    mesh_world = world()
    assert isinstance(mesh_world.govern(CreateEnvironment("staging"), mesh_world.admin), MeshState)
    assert isinstance(mesh_world.govern(SetNetworks("prod", (OFFICE, "192.168.0.0/16")), mesh_world.admin), MeshState)
    assert allowed(mesh_world) == (OFFICE, "192.168.0.0/16")
    assert allowed(mesh_world, "staging") == ()
    again = CreateEnvironment("prod", (("zone", "n1"),), protected=True, replace=True)
    assert isinstance(mesh_world.govern(again, mesh_world.admin), MeshState)
    environment = next(entry for entry in mesh_world.state.environments if entry.name == "prod")
    assert (environment.protected, environment.networks) == (True, (OFFICE, "192.168.0.0/16")), (
        "its nodes changed, nothing else"
    )
    assert isinstance(mesh_world.govern(SetPolicy(mesh_world.state.policy, "prod"), mesh_world.admin), MeshState)
    assert allowed(mesh_world) == (OFFICE, "192.168.0.0/16")
    assert isinstance(mesh_world.govern(SetNetworks("prod"), mesh_world.admin), MeshState)
    assert allowed(mesh_world) == ()


@pytest.mark.parametrize(
    ("action", "rule"),
    [
        (SetNetworks("prod", ("127.0.0.0/8",)), "networks.malformed"),
        (SetNetworks("prod", ("192.168.0.0/16", OFFICE)), "networks.malformed"),
        (SetNetworks("prod", (OFFICE, OFFICE)), "networks.malformed"),
        (SetNetworks("nowhere", (OFFICE,)), "environment.unknown"),
    ],
)
def test_what_cannot_be_allowed_is_refused(action: SetNetworks, rule: str) -> None:
    mesh_world = world()
    assert refused(mesh_world.govern(action, mesh_world.admin)) == rule


def test_before_its_rules_nothing_is_allowed() -> None:
    mesh_world = MeshWorld().furnish()
    assert refused(mesh_world.govern(SetNetworks("prod", (OFFICE,)), mesh_world.admin)) == "rules.networks"
    assert isinstance(mesh_world.govern(SetRules(NETWORK_RULES - 1), mesh_world.admin), MeshState)
    assert refused(mesh_world.govern(SetNetworks("prod", (OFFICE,)), mesh_world.admin)) == "rules.networks"


def test_an_environment_that_allows_none_is_written_as_before_and_its_gate_is_the_same() -> None:
    mesh_world = world()
    before = next(environment for environment in mesh_world.state.environments if environment.name == "prod")
    assert encode(before).hex() == "94a470726f6490c0c2", (
        "name, selector, policy, protected: as the first release wrote it"
    )
    demanded = gate(mesh_world.state.policy, before.protected, before.policy, Demands())
    assert isinstance(mesh_world.govern(SetNetworks("prod", (OFFICE,)), mesh_world.admin), MeshState)
    after = next(environment for environment in mesh_world.state.environments if environment.name == "prod")
    assert decode(encode(after), Environment) == after
    assert gate(mesh_world.state.policy, after.protected, after.policy, Demands()) == demanded
    assert isinstance(mesh_world.govern(SetNetworks("prod"), mesh_world.admin), MeshState)
    assert next(environment for environment in mesh_world.state.environments if environment.name == "prod") == before


APP = EffectiveApp("web", b"c" * 32, "http", 1_000, 1 << 20, "fresh", allow_hosts=("db.example:443",))


def test_a_configuration_without_networks_is_written_as_before() -> None:
    assert b"private_networks" not in encode(APP)
    asking = replace(APP, private_networks=(OFFICE,))
    assert decode(encode(asking), EffectiveApp).networks == (OFFICE,)
    assert effective_problem(Effective("shop", "prod", (asking,))) is None
    for wrong in (("127.0.0.0/8",), ("8.8.8.0/24",), ("x",), (OFFICE, OFFICE)):
        problem = effective_problem(Effective("shop", "prod", (replace(APP, private_networks=wrong),)))
        assert problem is not None
        assert "web" in problem


def test_the_runtime_connects_to_the_same_ranges_as_may_be_named() -> None:
    assert destinations._PRIVATE == PRIVATE
