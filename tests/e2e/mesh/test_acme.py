"""Certificates by the mesh, against Pebble: three nodes on loopback, of which any may be asked and one orders for all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import ssl
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from node.membership.backup import write_backup
from protocols.machine import PeerId
from protocols.state.placement import rendezvous
from tests.support.mesh.nodes import PASSPHRASE, Fleet, Machine, until
from tests.support.mesh.pebble import NoPebbleError, Pebble, pebble, tools
from tests.support.mesh.site import Site

ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
ON_ALL_NODES_S = 2.0
LIMITED_S = 7200
LIFETIME_S = 36


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    try:
        tools()
    except NoPebbleError as error:
        pytest.skip(str(error))


class House:
    """A mesh whose nodes take part, with the address each serves visitors at."""

    def __init__(self, fleet: Fleet, authority: Pebble, site: Site) -> None:
        self.fleet, self.authority, self.site = fleet, authority, site
        self.names: tuple[str, ...] = ()
        """What the app answers for."""

    def address(self, machine: Machine) -> str:
        return ADDRESSES[self.fleet.machines.index(machine)]

    def add(self, name: str, more: str, line: str = "") -> Machine:
        """Have a node made that takes part from its first start: the founder's, or by an invite line."""
        machine = self.fleet.machine(name)
        http, tls = self.authority.http_port, self.authority.tls_port
        options = ("--data", str(machine.data), "--listen", "127.0.0.1:0", "--node-name", name, "-y")
        options += ("--ingress", f"{self.address(machine)}:{http}")
        if line:
            machine.ok("mesh", "join", line, *options)
        else:
            answer = machine.typed("mesh", "create", "home", "--json", *options, typing=(PASSPHRASE, PASSPHRASE))
            assert answer.code == 0, answer
        path = machine.data / "node.toml"
        text = path.read_text().replace("ingress_tls = []", f'ingress_tls = ["{self.address(machine)}:{tls}"]')
        path.write_text(
            f'{text}\n[acme]\nterms_agreed = true\ndirectory = "{self.authority.directory}"\n'
            f'authority = "{self.authority.authority}"\n{more}'
        )
        machine.start()
        return machine

    def configure(self, *names: str) -> None:
        """Write a project whose app answers for these names."""
        self.names = names
        self.site.configure("hello " + " ".join(names), '["100%"]')
        path = self.site.folder / "freehold.toml"
        path.write_text(path.read_text().replace('routes = ["site.test"]', f"routes = {json.dumps(names)}"))

    def deploy(self, *names: str) -> None:
        """Deploy a release whose app answers for these names."""
        self.configure(*names)
        answer = self.site.deploy(self.fleet.machines[0])
        assert answer.code == 0, answer

    @contextlib.contextmanager
    def killed_while_it_orders(self, prefix: str) -> Iterator[tuple[Machine, str]]:
        """Have an app answer for one name more, and kill whoever orders for it before it has what it ordered.

        A name is claimed, and so ordered, while its release still starts: the command goes on beside the block, on the
        first machine, which must not be the one that is killed.
        """
        first = self.fleet.machines[0]
        name = next(text for n in range(99) if self.likely_orderer(text := f"{prefix}{n}.test") is not first)
        self.authority.lead(name, [self.address(machine) for machine in self.fleet.machines])
        self.configure(*self.names, name)
        starting = threading.Thread(target=self.site.deploy, args=(first,))
        starting.start()
        until(lambda: any(self.ordering()), 60, "an order on disk", every_s=0.005)
        [orderer] = self.ordering()
        orderer.kill()
        assert not self.issued(name)
        yield orderer, name
        starting.join()

    def likely_orderer(self, name: str) -> Machine:
        """Who is first for a name while all are up."""
        nodes = {PeerId(machine.status()["node"]): machine for machine in self.fleet.machines}
        return nodes[rendezvous(name, list(nodes))[0]]

    def ordering(self) -> list[Machine]:
        """Who has an order on disk."""
        machines = []
        for machine in self.fleet.machines:
            texts = [path.read_text() for path in (machine.data / "acme").glob("*.json")]
            machines += [machine] * any('"order":"h' in text for text in texts)
        return machines

    def problems(self, name: str) -> list[str]:
        """Why nodes have no (newer) certificate of a name."""
        views = [load for machine in self.fleet.machines for load in json.loads(machine.get("/v1/names"))]
        return [view["problem"] for view in views if view["name"] == name and view["problem"]]

    def issued(self, name: str) -> bool:
        """Whether a node says that it got a certificate."""
        return any(name in logged(machine, "acme.issued") for machine in self.fleet.machines)

    def served(self, machine: Machine, name: str) -> x509.Certificate | None:
        """What a visitor of a node gets, verified against the authority; None for nothing."""
        context = ssl.create_default_context(cadata=self.authority.root().decode())
        try:
            with (
                socket.create_connection((self.address(machine), self.authority.tls_port), timeout=10) as plain,
                context.wrap_socket(plain, server_hostname=name) as secure,
            ):
                secure.sendall(f"GET /config/get?key=GREETING HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                assert b" 200 " in secure.recv(4096).partition(b"\r\n")[0]
                return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
        except (OSError, ssl.SSLError):
            return None

    def next_one(self, name: str, before: x509.Certificate | None) -> x509.Certificate:
        """Wait for the certificate after one; visitors of the first node have a good one all the time between."""
        certificates = list[x509.Certificate]()

        def there() -> bool:
            certificate = self.served(self.fleet.machines[0], name)
            assert certificate is not None or before is None, "a visitor came to no certificate"
            certificates.extend([certificate] if certificate is not None and certificate != before else [])
            return bool(certificates)

        until(there, 60, f"the next certificate of {name}", every_s=0.3)
        return certificates[0]

    def certificates(self, name: str) -> set[int]:
        """The serial numbers that visitors of each node see; 0 for no certificate."""
        entries = [self.served(machine, name) for machine in self.fleet.machines]
        return {entry.serial_number if entry is not None else 0 for entry in entries}

    def spread_s(self, name: str) -> float:
        """How long after the first node the last one held a certificate for its visitors."""
        file = f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.pem"
        paths = [next(machine.runtime.rglob(f"front/certificates/{file}")) for machine in self.fleet.machines]
        times = [path.stat().st_mtime for path in paths]
        print(f"{name}: on all nodes within {max(times) - min(times):.2f} s")
        return max(times) - min(times)

    def has_one(self, name: str) -> bool:
        """Whether all nodes serve the same certificate."""
        numbers = self.certificates(name)
        return len(numbers) == 1 and 0 not in numbers


def logged(machine: Machine, event: str) -> list[str]:
    """What the log lines of an event are about."""
    text = machine.log.read_text(errors="replace")
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{") and event in line]
    return [line.get("detail", "") for line in lines if line.get("event") == event]


@contextlib.contextmanager
def house(
    folder: Path, component: Path, more: str = "", count: int = 3, *, lifetime_s: int = 7_776_000, sleep_s: int = 0
) -> Iterator[House]:
    with pebble(folder / "authority", lifetime_s=lifetime_s, sleep_s=sleep_s) as authority:
        fleet = Fleet(folder, folder / "compiled")
        new_house = House(fleet, authority, Site(folder, component))
        try:
            first = new_house.add("one", more)
            if count > 1:
                line = fleet.invite(first, "--uses", str(count - 1))
                for name in ("two", "three")[: count - 1]:
                    new_house.add(name, more, line)
                until(
                    lambda: sum(member["confirmed"] for member in first.members().values()) == count,
                    60,
                    "confirmed nodes",
                )
            first.typed_ok("env", "create", "production", "-y")
            first.typed_ok("project", "create", "site")
            authority.lead("site.test", ADDRESSES[:count])
            until(lambda: all(machine.connected() == count for machine in fleet.machines), 60, "connections")
            yield new_house
        finally:
            fleet.close()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("t"), component("services"), sleep_s=3) as new_house:
        yield new_house


def test_one_node_orders_for_all_and_any_of_them_answers(three: House) -> None:
    for host, address in zip(("site.test", "shop.test", "blog.test"), ADDRESSES, strict=True):
        three.authority.lead(host, [address])  # each name leads to one node, whoever orders it
    three.deploy("site.test", "shop.test", "blog.test")
    until(lambda: all(three.issued(name) for name in ("site.test", "shop.test", "blog.test")), 90, "certificates")
    for name in ("site.test", "shop.test", "blog.test"):
        until(lambda name=name: three.has_one(name), 10, f"{name} on all nodes")  # type: ignore[misc]
        assert three.spread_s(name) <= ON_ALL_NODES_S
    assert three.authority.orders() == 3


def test_no_key_lies_in_clear_in_a_folder_a_log_or_a_backup(three: House, tmp_path: Path) -> None:
    for machine in three.fleet.machines:
        files = list(machine.runtime.rglob("front/certificates/*.pem"))
        assert len(files) == 3
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        write_backup(machine.data, tmp_path / machine.name, "node", "mesh")
        with tarfile.open(tmp_path / machine.name) as archive:
            entries = [archive.extractfile(tar_info).read() for tar_info in archive if tar_info.isfile()]  # type: ignore[union-attr]
        entries += [path.read_bytes() for path in machine.data.rglob("*") if path.is_file()]
        entries.append(machine.log.read_bytes())
        for path in files:
            private = load_pem_private_key(path.read_bytes(), None)
            assert isinstance(private, ec.EllipticCurvePrivateKey)
            scalar = private.private_numbers().private_value.to_bytes(32)
            line = path.read_bytes().partition(b"BEGIN PRIVATE KEY-----\n")[2][:40]
            assert line
            assert not [
                entry for entry in entries if scalar in entry or scalar.hex().encode() in entry or line in entry
            ]


def test_an_orderer_that_is_killed_between_order_and_finalise_takes_up_its_order(three: House) -> None:
    with three.killed_while_it_orders("late") as (orderer, name):
        [path] = (orderer.data / "acme").glob("*.json")
        order = json.loads(path.read_text())["order"].rpartition("/")[2]
        orderer.start()
        until(lambda: name in logged(orderer, "acme.issued"), 90, "the certificate of the order before")
    until(lambda: three.has_one(name), 60, "one certificate on all nodes")
    assert f"for order {order}" in three.authority.log.read_text()
    assert not path.exists()


def test_nobody_asks_again_for_a_name_where_the_authority_says_that_it_was_too_much(three: House) -> None:
    before = three.names
    three.authority.limits.retry_after_s["many.test"] = LIMITED_S
    three.authority.lead("many.test", ADDRESSES)
    three.deploy(*before, "many.test")
    until(lambda: bool(three.problems("many.test")), 30, "a node that says why")
    [problem] = three.problems("many.test")
    assert "too many orders for many.test" in problem
    time.sleep(5)  # each node looks five times
    assert three.authority.limits.refused == ["many.test"]
    assert all(three.has_one(name) for name in before), "another name is none of the limit's business"
    three.deploy(*before)


@pytest.mark.long
def test_the_next_one_orders_for_an_orderer_that_stays_away(three: House) -> None:
    with three.killed_while_it_orders("last") as (orderer, name):
        others = [machine for machine in three.fleet.machines if machine is not orderer]
        three.authority.lead(name, [three.address(machine) for machine in others])
        until(
            lambda: any(name in logged(machine, "acme.issued") for machine in others), 90, "another node's certificate"
        )
        orderer.start()
    until(lambda: three.has_one(name), 60, "the certificate on all nodes, also on the one that was away")


def test_a_removed_node_loses_what_it_could_do_with_its_keys(three: House) -> None:
    machine, _, gone = three.fleet.machines
    old = {name: three.served(machine, name) for name in three.names}
    for name in old:
        three.authority.lead(name, ADDRESSES[:2])
    machine.typed_ok("mesh", "remove", gone.status()["node"], "-y")
    gone.stop()
    gone.kill_workers()
    three.fleet.machines.remove(gone)
    serials = [leaf.serial_number for leaf in old.values() if leaf is not None]
    assert len(serials) == len(three.names) >= 3
    until(lambda: {three.authority.status_of(serial) for serial in serials} == {"Revoked"}, 90, "the revocation of all")

    def served() -> set[int]:
        return {leaf.serial_number for name in old if (leaf := three.served(machine, name)) is not None}

    until(lambda: len(served()) == len(serials) and served().isdisjoint(serials), 30, "new certificates for all names")
    new = served()
    assert {three.authority.status_of(number) for number in new} == {"Valid"}


@pytest.mark.long
def test_a_certificate_is_shown_over_tls_and_renewed_with_a_third_of_its_life_left_or_when_the_authority_says(
    tmp_path: Path, component: Callable[[str], Path]
) -> None:
    with house(tmp_path, component("services"), 'proof = "tls-alpn-01"\n', 1, lifetime_s=LIFETIME_S) as new_house:
        new_house.authority.limits.says_when = False
        new_house.deploy("site.test")
        first = new_house.next_one("site.test", None)
        time.sleep(3)  # it has asked by then, and asks again with the next certificate
        new_house.authority.limits.says_when = True
        second = new_house.next_one("site.test", first)
        left_s = (first.not_valid_after_utc - second.not_valid_before_utc).total_seconds()
        assert 0 < left_s <= LIFETIME_S / 3
        third = new_house.next_one("site.test", second)  # its window is the whole life of the certificate
        assert second.not_valid_before_utc < third.not_valid_before_utc < second.not_valid_after_utc
        assert new_house.authority.log.read_text().count("/renewalInfo/") >= 1
