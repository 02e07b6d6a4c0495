"""The local environment: projects under `freehold dev`, called, edited, and one of them misbehaving in the sandbox.

A Python app that is being changed, a JavaScript app with Hono, new projects with Express and FastAPI, and one that traps,
spins and eats memory. Not here: the mesh (story.py).
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from cli.project.scaffold import CHOICES, create
from examples.checks import Teller, Visitors, call
from tests.support.mesh.nodes import Machine

START_TIMEOUT_S = 900.0
RELOAD_TIMEOUT_S = 60.0
FAULTS = (("/trap", "a trap"), ("/spin", "a loop without end, limit 1 s"), ("/grow", "memory without end, limit 96 MiB"))


class Dev:
    """One project under `freehold dev --json`, from its start to its clean end."""

    def __init__(self, project: Path, environment: dict[str, str]) -> None:
        code = "from cli.main import main; main()"
        command = [sys.executable, "-c", code, "dev", "--port", "0", "--json", "--folder", str(project)]
        self.project = project
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=self.errors)
        self.logs: list[dict[str, Any]] = []
        self.address = ""
        self.versions = 0
        self.failure = ""
        self._told = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            event = json.loads(line)
            with self._told:
                if event["event"] == "serving":
                    self.address = event["address"]
                    self.versions += 1
                elif event["event"] == "failed":
                    self.failure = f"{event['error']['message']}; next: {event['error']['next_step']}"
                elif event["event"] == "log":
                    self.logs.append(event["log"])
                self._told.notify_all()

    def wait(self, version: int, timeout_s: float) -> None:
        """Wait until so many versions were served."""
        with self._told:
            told = self._told.wait_for(lambda: self.versions >= version or self.failure != "", timeout_s)
            if not told or self.failure:
                self.errors.seek(0)
                said = self.failure or self.errors.read().decode()[-2000:]
                raise AssertionError(f"{self.project.name} is not served: {said}")

    def log_with(self, outcome: str, timeout_s: float = 5.0) -> dict[str, Any]:
        """Return the access log's entry of an outcome; log lines travel a moment after the answer."""
        with self._told:
            self._told.wait_for(lambda: any(one.get("outcome") == outcome for one in self.logs), timeout_s)
        return next((one for one in self.logs if one.get("outcome") == outcome), {})

    def call(self, path: str, body: bytes | None = None) -> tuple[int, str]:
        return call(self.address, path, body)[:2]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


def tell(teller: Teller, machine: Machine, greeter: Path, notes: Path, faults: Path) -> None:
    """Serve the edited greeter and the other apps on this laptop; call them; break one."""
    environment = machine.environment
    served = {"greeter": Dev(greeter, environment), "faults": Dev(faults, environment)}
    if shutil.which("node") and shutil.which("npm"):
        served["notes"] = Dev(notes, environment)
    else:
        teller.skip("the JavaScript app", "it needs Node.js 20 or newer and npm: apt-get install nodejs npm")
    for template in _templates(teller, machine):
        served[template] = Dev(create(f"new-{template}", CHOICES[template], greeter.parent)[0], environment)
    try:
        for one in served.values():
            one.wait(1, START_TIMEOUT_S)
            teller.say(f"freehold dev serves {one.project.name} on http://{one.address}")
        _edit_and_save(teller, served["greeter"])
        if "notes" in served:
            created = served["notes"].call("/notes", b'{"text": "buy milk"}')
            listed = served["notes"].call("/notes")
            held = created[0] == 201 and json.loads(listed[1]) == [{"id": 1, "text": "buy milk"}]
            teller.check("a Hono app in JavaScript keeps a note and lists it", held, (created, listed))
        _call_templates(teller, served)
        others = [(one.address, path) for name, path in (("greeter", "/greeter"), ("notes", "/notes"))
                  if (one := served.get(name))]  # fmt: skip
        _break(teller, served["faults"], others)
    finally:
        codes = {name: one.stop() for name, one in served.items()}
    teller.check("Ctrl-C ends each with exit code 0", set(codes.values()) == {0}, codes)


def _templates(teller: Teller, machine: Machine) -> list[str]:
    """Return the templates of well-known frameworks that this laptop has the tools for."""
    found = []
    if shutil.which("node") and shutil.which("npm"):
        found.append("express")
    else:
        teller.skip("the Express app", "it needs Node.js 20 or newer and npm: apt-get install nodejs npm")
    if any(one["name"] == "pydantic-core" and one["built"] for one in machine.ok("wheels", "list")["wheels"]):
        found.append("fastapi")
    else:
        teller.skip("the FastAPI app", "it needs a package built once for the sandbox: freehold wheels build pydantic-core")
    return found


def _call_templates(teller: Teller, served: dict[str, Dev]) -> None:
    if express := served.get("express"):
        visits = [express.call("/")[0], express.call("/")[0], express.call("/api/visits")]
        teller.check("a new Express app counts its visits", visits == [200, 200, (200, '{"visits":2}')], visits)
    if fastapi := served.get("fastapi"):
        seen = [fastapi.call("/api/squares/7"), fastapi.call("/api/squares/seven")]
        held = seen[0] == (200, "49") and seen[1][0] == 422 and "int_parsing" in seen[1][1]
        teller.check("a new FastAPI app validates: 7 gives 49, seven is refused with 422", held, seen)


def _edit_and_save(teller: Teller, dev: Dev) -> None:
    file = dev.project / "web" / "app.py"
    before = file.read_text()
    status, body, fields = call(dev.address, "/greeter")
    teller.check("the edit greets, and signs", status == 200 and len(fields.get("x-signature", "")) == 64, (status, body))
    file.write_text(before.replace('f"{greeting}\\n"', 'f"{greeting}!\\n"'))
    began_s = time.monotonic()
    dev.wait(2, RELOAD_TIMEOUT_S)
    seconds = time.monotonic() - began_s
    status, body = dev.call("/greeter")
    teller.check(f"a save is served {seconds:.2f} s later: {body.strip()!r}", body.endswith("!\n"), (status, body))
    file.write_text(before)
    dev.wait(3, RELOAD_TIMEOUT_S)


def _break(teller: Teller, dev: Dev, others: list[tuple[str, str]]) -> None:
    teller.say("Now an app that misbehaves, while the others are called without a pause:")
    with Visitors(*others, *others, pause_s=0) as visitors:
        for path, what in FAULTS:
            began_s = time.monotonic()
            status, body = dev.call(path)
            seconds = time.monotonic() - began_s
            plain = 500 <= status < 600 and "Traceback" not in body and "wasm" not in body
            after = dev.call("/")
            held = plain and after == (200, "fine\n")
            teller.check(f"{what}: {status} after {seconds:.1f} s; the next request is fine", held, (status, body, after))
    teller.check(f"{visitors.count} requests to the others were all answered 200", visitors.statuses == {200}, visitors.seen)
    outcomes = [str(one.get("outcome")) for one in dev.logs if one.get("event") == "request"]
    teller.say(f"its log names what happened: {', '.join(sorted({*outcomes} - {'completed'}))}")
