"""Addresses inside: an app reaches those of its networks, and never this machine, a cloud's own or what lies beside."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from runtime.call import Waker
from runtime.outbound import client
from runtime.outbound.client import Outbound, OutboundCall, OutboundRequest, Timeouts
from runtime.outbound.destinations import address_inside, is_own, permitted
from tests.support.runtime.wasm_parts import a_spec

OFFICE = ("10.0.5.0/24",)
EVERY = ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
"""The most that can be allowed."""


@pytest.mark.parametrize("address", ["10.0.5.0", "10.0.5.7", "10.0.5.255", "::ffff:10.0.5.7"])
def test_an_address_of_an_allowed_network_is_connected_to(address: str) -> None:
    assert permitted(address, allow_loopback=False, networks=OFFICE)
    assert not permitted(address, allow_loopback=False)


@pytest.mark.parametrize(
    "address",
    ["10.0.4.255", "10.0.6.0", "10.1.5.7", "192.168.5.7", "fd00::1", "2002:a00:507::1", "64:ff9b::a00:507",
     "fd00::5efe:10.0.5.7", "127.0.0.1", "0.0.0.0", "169.254.5.7"],
)  # fmt: skip
def test_the_next_address_and_another_spelling_of_it_are_not(address: str) -> None:
    assert not permitted(address, allow_loopback=False, networks=OFFICE)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "169.254.169.254", "::ffff:169.254.169.254", "fe80::1",
     "fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "0.0.0.0", "::", "224.0.0.1",
     "255.255.255.255", "64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "2002:7f00:1::", "fec0::1"],
)  # fmt: skip
def test_nothing_that_can_be_allowed_holds_the_machine_itself_or_what_a_cloud_answers_at(address: str) -> None:
    assert not permitted(address, allow_loopback=False, networks=EVERY)


def test_an_address_that_a_project_file_names_is_judged_by_its_networks() -> None:
    assert not address_inside("10.0.5.7:5432", OFFICE)
    assert address_inside("10.0.6.7:5432", OFFICE)
    assert address_inside("10.0.5.7:5432")
    assert address_inside("169.254.169.254:80", EVERY)
    assert address_inside("localhost:80", EVERY)


def test_a_machine_knows_its_own_addresses() -> None:
    assert is_own("127.0.0.1")
    assert is_own("127.0.0.9")
    assert not is_own("10.255.255.254")
    assert not is_own("192.0.2.1")
    for address in own_addresses():
        assert is_own(address)


def own_addresses() -> list[str]:
    """This machine's address towards the world, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [probe.getsockname()[0]]


@pytest.fixture
def resolved() -> list[str]:
    return []


@pytest.fixture
def outbound(resolved: list[str]) -> Iterator[Outbound]:
    new_outbound = Outbound(lambda host, port: list(resolved))
    yield new_outbound
    new_outbound.close()


def failure(outbound: Outbound, networks: tuple[str, ...]) -> str:
    """How a call to a name that resolves as the test says ends; some networks answer for every address."""
    spec = a_spec(allow_hosts=("db.example:80",), private_networks=networks, outbound_connect_timeout_ms=300)
    waker = Waker()
    request = OutboundRequest("GET", False, "db.example:80", "/", (), 0, Timeouts(None, 0.3, None))
    call = outbound.start(request, spec, waker.wake)
    assert isinstance(call, OutboundCall)
    end_s = time.monotonic() + 5
    while not call.settled:
        assert time.monotonic() < end_s, "waited too long"
        waker.wait(0.1)
    return call.failure[0] if call.failure is not None else "answered"


PROHIBITED = "destination-IP-prohibited"


@pytest.mark.parametrize(
    ("answers", "reached"),
    [
        (["10.0.5.7"], True), (["10.0.6.7"], False), (["127.0.0.1"], False), (["169.254.169.254"], False),
        (["10.0.6.7", "127.0.0.1", "10.0.5.7"], True), (["fd00::1", "::1"], False),
    ],
)  # fmt: skip
def test_a_name_leads_to_allowed_addresses_alone_wherever_it_points(
    outbound: Outbound, resolved: list[str], answers: list[str], *, reached: bool
) -> None:
    """Rebinding: a name is judged by what it says now, and the address that was judged is the one connected to."""
    resolved[:] = answers
    assert (failure(outbound, OFFICE) != PROHIBITED) is reached
    assert failure(outbound, ()) == PROHIBITED


def test_the_machines_own_address_stays_out_of_reach_in_an_allowed_network(
    outbound: Outbound, resolved: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved[:] = ["10.0.5.7"]
    monkeypatch.setattr(client, "is_own", lambda address: address == "10.0.5.7")
    assert failure(outbound, OFFICE) == PROHIBITED
    resolved[:] = ["10.0.5.7", "10.0.5.8"]
    assert failure(outbound, OFFICE) != PROHIBITED
