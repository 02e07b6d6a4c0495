"""An app that reaches a server inside: its file asks, its environment allows, and both are needed, at each moment."""

from __future__ import annotations

import http.client
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mesh import beside
from tests.support.mesh.beside import PORT, networks
from tests.support.mesh.nodes import Answer, Fleet, Machine, until

pytestmark = pytest.mark.skipif(bool(beside.problem()), reason=beside.problem() or "can be made")

PROJECT = """
[project]
name = "{name}"
owners = ["me"]

[app.web]
language = "component"
source = "web.wasm"
routes = ["{name}.test"]
allow_hosts = ["*.office:9000"]
{asks}

[env.staging]
app.web.routes = ["staging.test"]

[rollout]
stages = ["100%"]
min_healthy_time = "0s"
"""
ASKS = 'private_networks = ["10.0.5.0/24"]'
REFUSED = "destination-IP-prohibited"
TAKEN_BACK_WITHIN_S = 10.0


class Office:
    """A node in the first network, and what its apps reach in the other."""

    def __init__(self, folder: Path, component: Path, node: Machine) -> None:
        self.folder, self.node = folder, node
        self.folder.mkdir()
        shutil.copyfile(component, self.folder / "web.wasm")

    def deploy(self, name: str, asks: str, environment: str = "production") -> Answer:
        (self.folder / "freehold.toml").write_text(PROJECT.format(name=name, asks=asks))
        return self.node.run(
            "deploy", "--folder", str(self.folder), "--env", environment, "--json", timeout_s=100,
        )  # fmt: skip

    def allow(self, *options: str, environment: str = "production") -> None:
        self.node.typed_ok("env", "networks", environment, *options, "-y")

    def reaches(self, app: str, name: str) -> str:
        """What the app's guest is answered by a host of the office, or the error it is told."""
        connection = http.client.HTTPConnection("node", timeout=20)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(20)
        connection.sock.connect(str(next(self.node.runtime.glob("*/ingress.sock"))))
        connection.request("GET", f"/proxy?authority={name}:{PORT}&path=/", headers={"Host": f"{app}.test"})
        answer = connection.getresponse()
        said = answer.read().decode()
        connection.close()
        assert answer.status == 200, (answer.status, said)
        return said


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]) -> Iterator[Office]:
    folder = tmp_path_factory.mktemp("n")
    with networks(folder) as new_networks:
        fleet = Fleet(folder)
        try:
            node = fleet.found("one")
            assert node.stop() == 0
            node.start(under=new_networks.under)
            node.typed_ok("env", "create", "production", "-y")
            node.typed_ok("env", "create", "staging", "-y")
            for name in ("asks", "silent"):
                node.typed_ok("project", "create", name)
            yield Office(folder / "project", component("probe"), node)
        finally:
            fleet.close()


@pytest.mark.timeout(300)
def test_an_app_reaches_inside_while_its_file_asks_and_its_environment_allows(office: Office) -> None:
    answer = office.deploy("silent", "")
    assert answer.code == 0, answer
    assert REFUSED in office.reaches("silent", "db.office")

    before = office.deploy("asks", ASKS)
    assert before.json["error"]["kind"] == "not-prepared"
    assert "freehold env networks production --allow 10.0.5.0/24" in before.json["error"]["message"]

    office.allow("--allow", "10.0.5.0/24")
    answer = office.deploy("asks", ASKS)
    assert answer.code == 0, answer
    assert office.reaches("asks", "db.office").endswith("inside")
    for near in ("next.office", "cloud.office", "own.office"):
        assert REFUSED in office.reaches("asks", near), near
    assert REFUSED in office.reaches("silent", "db.office"), "it does not ask"
    other = office.deploy("asks", ASKS, "staging")
    assert other.json["error"]["kind"] == "not-prepared", "another environment's decision"
    assert "freehold env networks staging --allow 10.0.5.0/24" in other.json["error"]["message"]

    office.allow("--allow", "10.0.0.0/8")
    assert office.reaches("asks", "db.office").endswith("inside")
    for near in ("next.office", "cloud.office", "own.office"):
        assert REFUSED in office.reaches("asks", near), near

    office.allow("--none")
    until(lambda: REFUSED in office.reaches("asks", "db.office"), TAKEN_BACK_WITHIN_S, "the network to be out of reach")
    for _ in range(20):
        assert REFUSED in office.reaches("asks", "db.office")
