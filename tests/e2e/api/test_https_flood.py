"""Some hundreds of connections that begin no TLS handshake, or a wrong one: a real daemon bounds them and answers on."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.api.listening import HANDSHAKE_TIMEOUT_S, HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS_MAX, STRANGERS_MAX
from tests.support.mesh.nodes import Fleet, Machine, until

OWN_DESCRIPTORS = 24
"""What the daemon may open beside the flood: databases, peers, the calls of this test."""

HELLO = bytes.fromhex("1603010200010001fc0303")
"""The first bytes of a client's hello, as long as a TLS record is."""


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    """A node with an HTTPS API, and a machine whose person logged in there."""
    fleet = Fleet(tmp_path)
    try:
        machine = fleet.found("one", "--api", "127.0.0.1:0")
        line = fleet.invite(machine, "--kind", "principal", "--role", "viewer", "--for", "ann")
        ann = Machine(tmp_path / "ann")
        ann.ok("login", line)
        yield machine, ann
    finally:
        fleet.close()


def descriptors(machine: Machine) -> int:
    assert machine.process is not None
    return len(list(Path(f"/proc/{machine.process.pid}/fd").iterdir()))


def resident_bytes(machine: Machine) -> int:
    assert machine.process is not None
    return int(Path(f"/proc/{machine.process.pid}/statm").read_text().split()[1]) * 4096


@contextlib.contextmanager
def connections(address: str, sources: list[str], said: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections from each of these addresses, all of which say the same."""
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as stack:
        sockets = []
        for source in sources:
            chosen_socket = stack.enter_context(
                socket.create_connection((host, int(port)), timeout=20, source_address=(source, 0))
            )
            with contextlib.suppress(OSError):  # it gave way already
                chosen_socket.sendall(said)
            chosen_socket.setblocking(False)
            sockets.append(chosen_socket)
        yield sockets


def left(found: list[socket.socket]) -> int:
    """How many the node has not closed."""
    count = 0
    for entry in found:
        try:
            count += bool(entry.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            count += 1
        except OSError:
            continue
    return count


@pytest.mark.timeout(200)
def test_a_flood_of_unfinished_handshakes_is_bounded_and_the_api_answers_its_members(
    machines: tuple[Machine, Machine],
) -> None:
    machine, ann = machines
    address, before, resident = machine.status()["api"], descriptors(machine), resident_bytes(machine)
    own = ["127.0.0.1"] * 300
    many = [f"127.0.{number % 40}.2" for number in range(400)]
    for sources, bound in ((own, HANDSHAKES_PER_ADDRESS_MAX), (many, HANDSHAKES_MAX)):
        for said in (b"", HELLO):
            with connections(address, sources, said) as sockets:
                # Well before they end of their age.
                until(lambda: left(sockets) <= bound, HANDSHAKE_TIMEOUT_S * 0.7, f"at most {bound} to be left")  # noqa: B023
                assert descriptors(machine) <= before + bound + OWN_DESCRIPTORS
                assert ann.ok("status")["lanes"] == [], "the member was kept out"
    print(f"{(resident_bytes(machine) - resident) / (1 << 20):.1f} MiB more")
    garbage = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\xff\xff" + bytes(70_000),
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\0",
    ]
    for said in garbage:
        with connections(address, own[:100], said) as sockets:
            assert ann.ok("status")["lanes"] == []
            for connection in sockets:  # reset
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: descriptors(machine) <= before + 4, HANDSHAKE_TIMEOUT_S + 20, "every descriptor to be given back")
    assert ann.ok("status")["lanes"] == []


@pytest.mark.timeout(200)
def test_strangers_who_finish_their_handshakes_and_ask_nothing_are_bounded_too(
    machines: tuple[Machine, Machine],
) -> None:
    machine, ann = machines
    address, before = machine.status()["api"], descriptors(machine)
    host, _, port = address.rpartition(":")
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    with contextlib.ExitStack() as stack:
        for _ in range(400):
            plain = socket.create_connection((host, int(port)), timeout=20)
            stack.enter_context(anybody.wrap_socket(plain))
        until(
            lambda: descriptors(machine) <= before + STRANGERS_MAX + OWN_DESCRIPTORS, 10, "the oldest to have given way"
        )
        assert ann.ok("status")["lanes"] == []
    until(lambda: descriptors(machine) <= before + 4, 30, "every descriptor to be given back")
