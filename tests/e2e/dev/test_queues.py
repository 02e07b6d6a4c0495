"""Queues in a sandbox: what was published is handled, through killed workers; what keeps failing becomes a dead letter."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.mesh.dev_process import DevProcess, serving

SETTINGS = """
[project]
name = "queues"
[app.web]
language = "{language}"
source = "web"
routes = ["/"]
keyvalue = ["done"]
publish = ["jobs"]
[app.worker]
language = "{language}"
source = "worker"
subscribe = ["jobs"]
keyvalue = ["done"]
[app.morgue]
language = "{language}"
source = "morgue"
subscribe = ["jobs.dead"]
keyvalue = ["done"]
"""

PYTHON = {
    "web/app.py": """
import freehold

def handle(request):
    if request.method == "POST":
        if request.path.startswith("/.freehold"):
            return "forged"
        freehold.messaging.publish("jobs", request.body)
        return "kept"
    if request.path == "/refused":
        try:
            freehold.messaging.publish("jobs.dead", b"")
        except freehold.FreeholdError as error:
            return str(error)
    done = freehold.store("done")
    return freehold.Response.json({key: done.get(key).decode() for key in done.keys()})
""",
    "worker/app.py": """
import time
import freehold

def message(message):
    job = message.json()
    if job.get("bad"):
        raise ValueError("a bad job")
    time.sleep(job.get("sleep_s", 0))
    freehold.store("done").increment(f"{message.subject} {job['name']}")
""",
    "morgue/app.py": """
import freehold

def message(message):
    freehold.store("done").set(message.subject, message.data)
""",
}

JAVASCRIPT = {
    "web/app.js": """
import { messaging, store } from "freehold";

export default {
  async fetch(request) {
    const { pathname } = new URL(request.url);
    if (request.method === "POST") {
      if (pathname.startsWith("/.freehold")) return new Response("forged");
      messaging.publish("jobs", new Uint8Array(await request.arrayBuffer()));
      return new Response("kept");
    }
    if (pathname === "/refused") {
      try {
        messaging.publish("jobs.dead", "");
      } catch (error) {
        return new Response(error.message);
      }
    }
    const done = store("done");
    return Response.json(Object.fromEntries(done.keys().map((key) => [key, done.getText(key)])));
  },
};
""",
    "worker/app.js": """
import { store } from "freehold";

export default {
  async message(message) {
    const job = message.json();
    if (job.bad) throw new Error("a bad job");
    store("done").increment(`${message.subject} ${job.name}`);
  },
};
""",
    "morgue/app.js": """
import { store } from "freehold";

export function message(message) {
  store("done").set(message.subject, message.data);
}
""",
}


def write(folder: Path, language: str, files: dict[str, str]) -> Path:
    (folder / "freehold.toml").write_text(SETTINGS.format(language=language))
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(content)
    return folder


def publish(dev: DevProcess, **job: Any) -> None:
    answer = dev.call("/", "POST", json.dumps(job).encode())
    assert (answer.status, answer.text) == (200, "kept"), answer.text


def done(dev: DevProcess) -> dict[str, str]:
    table: dict[str, str] = json.loads(dev.call("/").text)
    return table


def until_done(dev: DevProcess, names: set[str], timeout_s: float = 90) -> dict[str, str]:
    end_s = time.monotonic() + timeout_s
    table: dict[str, str] = {}
    while not names <= table.keys():
        assert time.monotonic() < end_s, f"handled: {table}"
        time.sleep(0.1)
        with suppress(OSError):  # a killed worker is not back yet
            table = done(dev)
    return table


def check(dev: DevProcess) -> None:
    before = done(dev)
    publish(dev, name="a")
    table = until_done(dev, {"jobs a"})
    assert table == {**before, "jobs a": "1"}
    forged = dev.call("/.freehold/messages/jobs", "POST", b'{"name": "forged"}', {"freehold-message": "1"})
    assert forged.status == 404
    assert "publish" in dev.call("/refused").text
    publish(dev, bad=True, name="bad")
    table = until_done(dev, {"jobs.dead"})  # 1 + 2 + 4 + 8 s of pauses
    assert json.loads(table["jobs.dead"]) == {"bad": True, "name": "bad"}
    assert set(table) == {*before, "jobs a", "jobs.dead"}


@pytest.mark.skipif(shutil.which("npm") is None, reason="Node.js is not on this machine")
def test_queues_of_javascript(tmp_path: Path) -> None:
    with serving(write(tmp_path, "javascript", JAVASCRIPT)) as dev:
        check(dev)


def test_queues_of_python_lose_nothing_when_workers_are_killed(tmp_path: Path) -> None:
    with serving(write(tmp_path, "python", PYTHON)) as dev:
        publish(dev, name="first", sleep_s=3)
        time.sleep(1)
        names = {"jobs first"}
        for number in range(30):
            if number % 15 == 0:
                assert kill_workers(dev.process.pid), "no worker was found"
            name = f"j{number}"
            try:
                publish(dev, name=name, sleep_s=0.05)
            except (OSError, AssertionError):
                continue  # in doubt
            names.add(f"jobs {name}")
        assert len(names) > 10
        until_done(dev, names)
        check(dev)


def kill_workers(daemon: int) -> int:
    """Kill -9 every worker among the descendants of a process; return how many."""
    parents, commands = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(path.name)] = (path / "cmdline").read_bytes()
        except OSError:
            continue

    def descends(pid: int) -> bool:
        while pid > 1 and pid != daemon:
            pid = parents.get(pid, 0)
        return pid == daemon

    workers = [pid for pid, command in commands.items() if b"runtime.workers.worker" in command and descends(pid)]
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    return len(workers)
