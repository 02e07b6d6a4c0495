"""Caddy in front of the only entry node, which is stopped, started and upgraded: no visitor behind Caddy notices.

Caddy is configured as docs/guides/ingress.md says. Without a `caddy` on PATH, or named by CADDY, the tests are skipped.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.mesh.test_upgrade import started
from tests.support.mesh.in_process import PROJECT
from tests.support.mesh.nodes import Fleet, Machine, free_port, until
from tests.support.mesh.site import ask
from tests.support.mesh.wheels import changed_text, make_wheel

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "ingress.md"
CADDY = os.environ.get("CADDY") or shutil.which("caddy")
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(400),
    pytest.mark.skipif(CADDY is None, reason="there is no caddy here, and CADDY names none"),
]
VISITORS = 8
VISITS_PER_S = 200
LASTS_S = 10
POST_EVERY = 4


def caddyfile(site: str, node: str) -> str:
    """The guide's site, for addresses of this test; the rest stands as the guide prints it."""
    blocks: list[str] = re.findall(r"```\n(guestbook\.example\.com \{\n.*?\n\})\n```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) == 1, "the guide shows one site of Caddy's"
    text = blocks[0].replace("guestbook.example.com", f"http://{site}")
    assert text.count("127.0.0.1:8080") == 1
    return "{\n  admin off\n  auto_https off\n}\n" + text.replace("127.0.0.1:8080", node) + "\n"


@dataclass
class Seen:
    """What visitors saw: how often each status (0 is no answer at all), and what lasting requests lacked."""

    statuses: Counter[int] = field(default_factory=Counter)
    lasting: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def is_untroubled(self) -> bool:
        return set(self.statuses) == {200} and set(self.lasting) == {""} and self.statuses[200] > VISITS_PER_S


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]) -> Iterator[tuple[Machine, str]]:
    """A node that believes Caddy, with an app on it, and the address of Caddy in front of it."""
    folder = tmp_path_factory.mktemp("c")
    fleet = Fleet(folder)
    try:
        machine = fleet.found("one", "--ingress", f"127.0.0.1:{free_port()}", "--listen", f"127.0.0.1:{free_port()}")
        machine.stop()
        settings = machine.data / "node.toml"
        text = settings.read_text()
        assert text.count("proxies = []") == 1
        settings.write_text(text.replace("proxies = []", 'proxies = ["127.0.0.1/32"]'))
        machine.start()
        machine.typed_ok("env", "create", "production", "-y")
        machine.typed_ok("project", "create", "site")
        (project := folder / "site").mkdir()
        shutil.copyfile(component("probe"), project / "web.wasm")
        (project / "freehold.toml").write_text(PROJECT.format(app='timeout = "1m"', smoke="/", healthy="0s"))
        machine.ok("deploy", "--folder", str(project), "-m", "to be visited")
        address = f"127.0.0.1:{free_port()}"
        (folder / "Caddyfile").write_text(caddyfile(f"site.test:{address.rpartition(':')[2]}", machine.ingress))
        with caddy(folder) as process:
            until(
                lambda: process.poll() is None and ask(address, "site", "/") == (200, "probe\n"), 30, "Caddy to serve"
            )
            yield machine, address
    finally:
        fleet.close()


@contextmanager
def caddy(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    assert CADDY is not None
    environment = {**os.environ, "XDG_DATA_HOME": str(folder / "caddy"), "XDG_CONFIG_HOME": str(folder / "caddy")}
    with (folder / "caddy.log").open("wb") as log:
        process = subprocess.Popen(
            [CADDY, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def visited(address: str) -> Iterator[Seen]:
    """Visit VISITS_PER_S times a second on kept connections, every fourth time with a body; two requests last."""
    seen, stop = Seen(), threading.Event()

    def visit() -> None:
        connection, number = http.client.HTTPConnection(address, timeout=20), 0
        while not stop.wait(VISITORS / VISITS_PER_S):
            number += 1
            method, path, body = ("POST", "/count", "a visit") if number % POST_EVERY == 0 else ("GET", "/", None)
            try:
                connection.request(method, path, body, {"Host": "site.test"})
                answer = connection.getresponse()
                text = answer.read().decode()
                seen.statuses[answer.status] += 1
                if answer.status != 200:
                    seen.said.append(f"{method} {answer.status} {text[:200]}")
            except (OSError, http.client.HTTPException) as error:
                seen.statuses[0] += 1
                seen.said.append(f"{method} {error!r}")
                connection.close()
        connection.close()

    threads = [threading.Thread(target=visit) for _ in range(VISITORS)]
    threads += [
        threading.Thread(target=lambda lasting=lasting: seen.lasting.append(lasting(address)))  # type: ignore[misc]
        for lasting in (slow, streamed)
    ]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        for thread in threads[VISITORS:]:
            thread.join()
        stop.set()
        for thread in threads[:VISITORS]:
            thread.join()


def slow(address: str) -> str:
    """Send a body over LASTS_S seconds; return what was wrong with the answer, "" if nothing."""
    connection = http.client.HTTPConnection(address, timeout=LASTS_S + 20)

    def body() -> Iterator[bytes]:
        for _ in range(LASTS_S):
            yield b"x" * 100
            time.sleep(1)

    return _end(connection, "POST", "/count", body(), f"{LASTS_S * 100} bytes")


def streamed(address: str) -> str:
    """Follow a stream of one event a second; return what was wrong with it, "" if nothing."""
    connection = http.client.HTTPConnection(address, timeout=LASTS_S + 20)
    return _end(connection, "GET", f"/stream?n={LASTS_S}&ms=1000", None, f"chunk {LASTS_S - 1}\n")


def _end(connection: http.client.HTTPConnection, method: str, path: str, body: object, expected: str) -> str:
    try:
        connection.request(method, path, body, {"Host": "site.test"}, encode_chunked=body is not None)  # type: ignore[arg-type]
        answer = connection.getresponse()
        text = answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return f"{method} {path}: {error!r}"
    finally:
        connection.close()
    return "" if answer.status == 200 and expected in text else f"{method} {path}: {answer.status} {text[:200]}"


def test_a_stop_and_a_start_of_the_node(entry: tuple[Machine, str]) -> None:
    machine, address = entry
    with visited(address) as seen:
        time.sleep(2)
        assert machine.stop() == 0
        time.sleep(2)
        machine.start()
        time.sleep(2)
    assert seen.is_untroubled(), (seen.statuses, seen.lasting, seen.said[:5])


def test_a_daemon_that_is_killed_and_started(entry: tuple[Machine, str]) -> None:
    machine, address = entry
    with visited(address) as seen:
        time.sleep(2)
        machine.kill()
        time.sleep(2)
        machine.start()
        time.sleep(2)
    assert seen.is_untroubled(), (seen.statuses, seen.lasting, seen.said[:5])


def test_a_bad_upgrade_and_a_good_one(entry: tuple[Machine, str], tmp_path: Path) -> None:
    machine, address = entry
    opened = "        vote, state, fence = await storage.open()\n"
    crash = changed_text("node/daemon.py", opened, f'{opened}        raise RuntimeError("bad")\n')
    for wheel, phase in (
        (make_wheel(tmp_path / "bad", "0.2.0", crash), "failed"),
        (make_wheel(tmp_path / "good", "0.2.1"), "done"),
    ):
        with visited(address) as seen:
            started(machine, wheel, phase)
            time.sleep(2)
        assert seen.is_untroubled(), (phase, seen.statuses, seen.lasting, seen.said[:5])
    assert machine.status()["version"] == "0.2.1"
