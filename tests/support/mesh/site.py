"""A project of one prebuilt component that answers with its configuration: a deploy of it takes no build. Not: any test.

Releases differ by their greeting. Visitors call at a steady pace and note every answer with the second it came.
"""

from __future__ import annotations

import http.client
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.mesh.nodes import Answer, Machine

DEPLOY_TIMEOUT_S = 200.0
CUT_OFF = -1
"""The status of an answer that began and did not end."""

GREETING = "/config/get?key=GREETING"
COUNT = "/kv/increment?store=visits&key=count"

PROJECT = """
[project]
name = "{name}"
owners = ["me"]

[app.web]
language = "component"
source = "web.wasm"
routes = ["{name}.test"]
config = {{ GREETING = "{greeting}" }}
{app}

[[test.smoke]]
app = "web"
path = "/config/all"

[rollout]
stages = {stages}
min_healthy_time = "1s"
{rollout}
"""


class Site:
    """One project's folder; its apps answer at the host NAME.test."""

    def __init__(self, folder: Path, component: Path, name: str = "site") -> None:
        self.folder, self.name = folder / name, name
        self.folder.mkdir()
        shutil.copyfile(component, self.folder / "web.wasm")

    def configure(
        self, greeting: str, stages: str = '["1", "100%"]', *, rollout: str = "", app: str = "", overlays: str = ""
    ) -> None:
        text = PROJECT.format(name=self.name, greeting=greeting, stages=stages, rollout=rollout, app=app) + overlays
        (self.folder / "freehold.toml").write_text(text)

    def deploy(self, machine: Machine, *options: str, timeout_s: float = DEPLOY_TIMEOUT_S) -> Answer:
        return machine.run("deploy", "--folder", str(self.folder), "--json", *options, timeout_s=timeout_s)

    def lane(self, machine: Machine) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(machine.get(f"/v1/lanes/{self.name}/production"))
        return document

    def greetings(self, machines: Sequence[Machine]) -> list[str]:
        """What each machine answers, or its status where that is not 200."""
        return [said if status == 200 else str(status) for status, said in map(self.ask, machines)]

    def ask(self, machine: Machine, path: str = GREETING) -> tuple[int, str]:
        return ask(machine.ingress, self.name, path)


def ask(address: str, name: str, path: str) -> tuple[int, str]:
    """One request on a connection of its own; status 0 is no answer at all."""
    connection = http.client.HTTPConnection(address, timeout=15)
    try:
        connection.request("GET", path, headers={"Host": f"{name}.test"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


@dataclass
class Visits:
    """What visitors saw: each answer with its machine, when it was asked for (monotonic s), how long it took.

    Status 0 is no answer at all.
    """

    seen: list[tuple[str, float, float, int, str]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def statuses(self, machine: str = "") -> Counter[int]:
        return Counter(pair[3] for pair in self.seen if not machine or pair[0] == machine)

    def bodies(self) -> set[str]:
        return {pair[4] for pair in self.seen if pair[3] == 200}

    def failed(self) -> list[tuple[str, float, float, int, str]]:
        return [pair for pair in self.seen if pair[3] != 200]

    def slowest_s(self) -> float:
        return max(pair[2] for pair in self.seen)


@contextmanager
def visitors(
    machines: Sequence[Machine], name: str = "site", path: str = GREETING, *, keep_alive: bool = False,
    every_s: float = 0.1,
) -> Iterator[Visits]:  # fmt: skip
    """Call every machine at a steady pace for the duration of the block, on kept or on new connections."""
    visits = Visits()

    def visit(machine: str, address: str) -> None:
        connection = http.client.HTTPConnection(address, timeout=15)
        while not visits.stop.wait(every_s):
            began_s = time.monotonic()
            status, body = 0, ""
            try:
                connection.request("GET", path, headers={"Host": f"{name}.test"})
                answer = connection.getresponse()
                status = CUT_OFF
                body = answer.read().decode()
                status = answer.status
                if not keep_alive:
                    connection.close()
            except (OSError, http.client.HTTPException) as error:
                # Refused, or a kept connection that the server closed while it was idle: HTTP has the client ask again.
                body = repr(error)
                connection.close()
            visits.seen.append((machine, began_s, time.monotonic() - began_s, status, body))
        connection.close()

    threads = [threading.Thread(target=visit, args=(machine.name, machine.ingress)) for machine in machines]
    for thread in threads:
        thread.start()
    try:
        yield visits
    finally:
        visits.stop.set()
        for thread in threads:
            thread.join()


__all__ = ["COUNT", "GREETING", "Site", "Visits", "ask", "visitors"]
