"""A stage for going back when much is lost: three daemons, an author's laptop, and two releases that differ in everything.

The second release has other code, another configuration, another version of a secret and one more host. Used by the test
of rollbacks and by the measurement of them. Not here: what is lost, and what must hold then.
"""

from __future__ import annotations

import http.client
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.support.mesh.nodes import Fleet, Machine, until

PROJECT = """\
[project]
name = "site"
owners = ["web-team"]

[app.web]
language = "component"
source = "web.wasm"
routes = {routes}
config = {{ GREETING = "{greeting}" }}
secrets = ["API_KEY"]

[[test.smoke]]
app = "web"
path = "/config?key=GREETING"
contains = "{greeting}"

[rollout]
stages = ["1", "100%"]
min_healthy_time = "1s"
"""
CUSTOM_SECTION = b"\x00\x08\x07another"
"""Appended to a component it changes the digest and nothing else (WebAssembly core specification, section 5.5.3)."""

FIRST = ("one", "key-of-the-first", False)
SECOND = ("two", "key-of-the-second", True)
Seen = tuple[str, str, bool]
"""What a visitor sees of a release: its greeting, its secret, and whether it answers for the second host."""


class Losses:
    """The running stage; `close` ends it."""

    def __init__(self, folder: Path, component: Callable[[str], Path]) -> None:
        self.fleet = Fleet(folder)
        self.laptop = Machine(folder / "laptop")
        self.project = self.laptop.folder / "site"
        self.project.mkdir()
        self._component = component("services").read_bytes()
        first = self.fleet.found("one", "--policy", "solo", "--api", "127.0.0.1:0")
        line = ("--role", "voter", "--role", "worker")
        for name in ("two", "three"):
            self.fleet.join(self.fleet.invite(first, *line), name)
        until(lambda: sum(member["voter"] for member in first.members().values()) == 3, 60, "three voters")
        first.typed_ok("env", "create", "production", "-y")
        first.typed_ok("project", "create", "site")
        author = self.fleet.invite(first, "--kind", "principal", "--role", "deployer", "--for", "ada")
        self.laptop.ok("login", author, "--name", "work")
        self._addresses: dict[int, tuple[int, str]] = {}

    def close(self) -> None:
        self.fleet.close()

    def deploy(self, greeting: str, secret: str, more: bool) -> None:
        """Deploy a release from the author's laptop, through its stages."""
        routes = '["site.test", "more.test"]' if more else '["site.test"]'
        (self.project / "freehold.toml").write_text(PROJECT.format(greeting=greeting, routes=routes))
        (self.project / "web.wasm").write_bytes(self._component + (CUSTOM_SECTION if more else b""))
        given_answer = self.laptop.run("secret", "set", "API_KEY", "--project", "site", stdin=secret)
        assert given_answer.code == 0, given_answer
        answer = self.laptop.run("deploy", "--folder", str(self.project), "-m", greeting, "--json", timeout_s=240)
        assert (answer.code, answer.json["outcome"]) == (0, "succeeded"), answer

    def lose_the_author(self) -> None:
        """The author's machine is gone: keys, contexts, project, builds."""
        shutil.rmtree(self.laptop.folder)

    def seen(self, index: int) -> Seen | None:
        """What a visitor of one node sees; None where something does not answer."""
        pairs = [self.ask(index, host, path) for host, path in (
            ("site.test", "/config?key=GREETING"), ("site.test", "/config?key=API_KEY"),
            ("more.test", "/config?key=GREETING"),
        )]  # fmt: skip
        (greeting_status, greeting), (secret_status, secret), (more_status, _) = pairs
        if (greeting_status, secret_status) != (200, 200) or more_status not in {200, 404}:
            return None
        return greeting, secret, more_status == 200

    def ask(self, index: int, host: str, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._address(index), timeout=10)
        try:
            connection.request("GET", path, headers={"Host": host})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def _address(self, index: int) -> str:
        """Where a node serves apps; a daemon that was started again may serve elsewhere."""
        process = self.fleet.machines[index].process
        assert process is not None
        if self._addresses.get(index, (0, ""))[0] != process.pid:
            ingress = self.fleet.machines[index].status()["ingress"]
            self._addresses[index] = (process.pid, next(entry for entry in ingress if not entry.startswith("unix:")))
        return self._addresses[index][1]
