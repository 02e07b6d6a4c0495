"""Whom a name leads to is judged per app, at the moment of connecting, and one app's slow names are its own."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

from runtime.call import Waker
from runtime.outbound.client import Outbound, OutboundCall, OutboundRequest, Timeouts
from runtime.outbound.destinations import address_inside, permitted
from runtime.outbound.lookups import LOOKUPS_MAX, Lookups
from tests.support.runtime.wasm_parts import a_spec

INSIDE = (
    "127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.8", "0.0.0.0",
    "::1", "::", "fe80::1", "fec0::1", "fd00:ec2::254", "::ffff:10.0.0.1", "::ffff:a00:1", "::10.0.0.1", "::ffff:0:10.0.0.1",
    "64:ff9b::a00:1", "64:ff9b:1::a00:1", "64:ff9b:1:ffff::808:808", "2002:a00:1::", "2001:0:a00:1::", "3fff::1", "5f00::1",
    "2606:4700::5efe:a00:1", "2606:4700::200:5efe:7f00:1", "fe80::1%1", "224.0.0.1", "ff02::1", "255.255.255.255",
)  # fmt: skip
OUTSIDE = (
    "1.1.1.1",
    "93.184.216.34",
    "2606:4700:4700::1111",
    "64:ff9b::808:808",
    "2002:808:808::1",
    "2606:4700::5efe:808:808",
)


@pytest.mark.parametrize("address", INSIDE)
def test_no_spelling_of_an_address_inside_is_connected_to(address: str) -> None:
    assert not permitted(address, allow_loopback=False)


@pytest.mark.parametrize("address", OUTSIDE)
def test_what_is_outside_is_connected_to_also_where_it_carries_an_address(address: str) -> None:
    assert permitted(address, allow_loopback=False)


@pytest.mark.parametrize(
    ("entry", "inside"),
    [
        ("127.0.0.1:9000", True), ("10.0.0.1:80", True), ("2130706433:80", True), ("0x7f000001:80", True),
        ("0177.0.0.1:80", True),        ("127.1:80", True), ("0xa.0x0.0.1:443", True), ("[::1]:80", True),
        ("[fd00::1]:443", True),
        ("localhost:80", True),
        ("app.localhost:80", True), ("169.254.169.254:80", True), ("127.0.0.1", True), ("999.1.1.1:80", True),
        ("1.1.1.1:443", False), ("api.example:443", False), ("*.example.org:443", False), ("10.example:80", False),
        ("localhost.example:80", False), ("0x7f.example:80", False), ("[2606:4700:4700::1111]:443", False),
    ],
)  # fmt: skip
def test_a_list_of_hosts_that_names_an_address_inside_is_refused_before_it_is_deployed(
    entry: str, *, inside: bool
) -> None:
    assert address_inside(entry) is inside


def ended(call: OutboundCall | tuple[str, object], waker: Waker) -> object:
    assert isinstance(call, OutboundCall), call
    end_s = time.monotonic() + 5
    while not call.settled:
        assert time.monotonic() < end_s
        waker.wait(0.1)
    return call.failure


def request(authority: str) -> OutboundRequest:
    return OutboundRequest("GET", False, authority, "/", (), 0, Timeouts(None, None, None))


def test_a_name_that_moves_inside_between_two_answers_leads_nowhere() -> None:
    """DNS rebinding: one lookup a call, and its answer alone is judged and connected to."""
    answers, asked = [["93.184.216.34", "127.0.0.1"], ["127.0.0.1"], ["::ffff:7f00:1", "10.0.0.1"]], []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        port = listener.getsockname()[1]

        def resolve(host: str, _port: int) -> list[str]:
            asked.append(host)
            return answers[len(asked) - 1]

        outbound = Outbound(resolve)
        spec = a_spec(allow_hosts=(f"moves.example:{port}",), outbound_connect_timeout_ms=300)
        try:
            entries = []
            for _ in answers:
                waker = Waker()
                entries.append(ended(outbound.start(request(f"moves.example:{port}"), spec, waker.wake), waker))
        finally:
            outbound.close()
        assert entries[1:] == [("destination-IP-prohibited", None)] * 2
        assert entries[0] != ("destination-IP-prohibited", None), "its public address is tried, and it alone"
        assert asked == ["moves.example"] * 3
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_name_that_cannot_be_one_is_an_error_of_names() -> None:
    outbound = Outbound()
    name = "a" * 70 + ".example"
    try:
        waker = Waker()
        answer = outbound.start(request(f"{name}:80"), a_spec(allow_hosts=(f"{name}:80",)), waker.wake)
        failure = ended(answer, waker)
    finally:
        outbound.close()
    assert isinstance(failure, tuple)
    assert failure[0] == "DNS-error"


async def test_an_app_whose_names_hang_waits_alone_and_holds_a_few_threads() -> None:
    release = threading.Event()

    def resolve(host: str, _port: int) -> list[str]:
        if host == "hangs.example":
            release.wait(10)
        return ["93.184.216.34"]

    lookups = Lookups(resolve)
    bad, good = ("p", "bad"), ("p", "good")
    before = threading.active_count()
    hanging = [asyncio.ensure_future(lookups.addresses(bad, "hangs.example", 80)) for _ in range(50)]
    await asyncio.sleep(0.05)
    assert threading.active_count() - before <= LOOKUPS_MAX
    async with asyncio.timeout(2):
        assert await lookups.addresses(good, "up.example", 80) == ["93.184.216.34"]
    for task in hanging[: LOOKUPS_MAX + 3]:
        task.cancel()
    await asyncio.sleep(0.05)
    late = asyncio.ensure_future(lookups.addresses(bad, "up.example", 80))
    await asyncio.sleep(0.05)
    assert not late.done(), "what was given up still holds its threads"
    assert threading.active_count() - before <= LOOKUPS_MAX
    release.set()
    async with asyncio.timeout(5):
        assert await late == ["93.184.216.34"]
        await asyncio.gather(*hanging, return_exceptions=True)
        while lookups._asked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not lookups._gates
