"""Shows the whole thing working, told for a newcomer: `make demo`. Exits 0 only if all was as said.

Part one: two ordinary web apps, one in Python and one in JavaScript, are built into sandboxed components, served and
called; then a third app misbehaves in three ways while the others go on answering. Uses only the commands a developer
would. Everything is built into .cache/, so a second run is quick. Part two (mesh.py): three machines, one mesh.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from examples import mesh

EXAMPLES = Path(__file__).resolve().parent
ROOT = EXAMPLES.parent
FREEHOLD = [sys.executable, "-c", "from cli.main import main; main()"]
ENVIRONMENT = {**os.environ, "XDG_CACHE_HOME": str(ROOT / ".cache" / "xdg"), "PYTHONPATH": str(ROOT)}
START_TIMEOUT_S = 600
BACKGROUND_THREADS = 3

failures: list[str] = []


def say(text: str) -> None:
    print(text, flush=True)


def check(what: str, holds: bool, seen: object = "") -> None:
    """Say what was expected and whether it was so."""
    say(f"   {'ok  ' if holds else 'FAIL'} {what}" + ("" if holds else f" (seen: {seen!r})"))
    if not holds:
        failures.append(what)


class Served:
    """One project under `freehold dev`, from its first answer to its clean end."""

    def __init__(self, project: Path) -> None:
        command = [*FREEHOLD, "dev", "--exact", "--port", "0", "--json", "--folder", str(project)]
        self.errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=self.errors)
        self.logs: list[dict] = []
        self.address = ""
        self._ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout:
            event = json.loads(line)
            match event["event"]:
                case "serving":
                    self.address = event["address"]
                    self._ready.set()
                case "failed":
                    say(f"   {event['error']['message']}")
                    self._ready.set()
                case "log":
                    self.logs.append(event["log"])
        self._ready.set()

    def wait(self) -> None:
        if not self._ready.wait(START_TIMEOUT_S) or not self.address:
            self.errors.seek(0)
            sys.exit(f"it did not start:\n{self.errors.read().decode()[-3000:]}")

    def call(self, path: str, body: bytes | None = None, kind: str = "application/json", timeout_s: float = 30) -> tuple[int, str]:
        """Return status and body; 0 if the connection broke."""
        request = urllib.request.Request(f"http://{self.address}{path}", data=body, headers={"content-type": kind} if body else {})
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as answer:
            return answer.code, answer.read().decode()
        except OSError as error:
            return 0, str(error)

    def stop(self) -> int:
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(60)


def build(project: Path) -> dict:
    """Build one project and return the command's answer."""
    command = [*FREEHOLD, "build", "--json", "--folder", str(project)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        told = []
        for line in running.stderr:
            told.append(line)
            if line.startswith("  "):  # what is being done; a first build takes a while
                say(f"   {project.name} {line.strip()}")
        answer = json.loads(running.stdout.read() or '{"ok": false}')
    if not answer["ok"]:
        sys.exit(f"{project.name} could not be built:\n{''.join(told)}")
    return answer


def copy(name: str, folder: Path) -> Path:
    """Copy an example out of the repository, so that its data starts empty."""
    return Path(shutil.copytree(EXAMPLES / name, folder / name, ignore=shutil.ignore_patterns(".freehold", "node_modules")))


def show_builds(projects: dict[str, Path]) -> None:
    say("\n1. Build. Each project folder becomes a release: components named by their digest, and a manifest.")
    for name, project in projects.items():
        answer = build(project)
        for app, facts in answer["apps"].items():
            size = facts["size_bytes"] / (1 << 20)
            granted = [item.partition("@")[0] for item in facts["capabilities"] if "keyvalue" in item or "outgoing" in item]
            say(f"   {name}: release {answer['release'][:12]}, {app} is component {facts['component'][:12]} ({size:.0f} MiB)")
            say(f"     beyond answering requests it can reach: {', '.join(granted) or 'nothing'}")
    again = build(projects["guestbook"])
    check("building again gives the same release", again["release"] == build(projects["guestbook"])["release"])
    listed = sorted(path.name for path in (Path(again["folder"]) / "artifacts").iterdir())
    check("the bundle holds exactly the components its manifest names", listed == [again["apps"]["web"]["component"]], listed)


def show_guestbook(served: Served) -> None:
    say(f"\n3. A Flask app with Jinja templates and a key-value store, on http://{served.address}/guestbook/")
    status, page = served.call("/guestbook/")
    check("the page is there, with the greeting from freehold.toml", status == 200 and "Welcome" in page, (status, page))
    for name in ("Ann", "<script>Bob"):
        form = urllib.parse.urlencode({"name": name, "words": "hello"}).encode()
        status, page = served.call("/guestbook/sign", form, "application/x-www-form-urlencoded")
    check("an entry is kept, and the redirect leads back to the page", status == 200 and "<b>Ann</b>" in page, (status, page))
    check("Jinja escapes what visitors write", "&lt;script&gt;Bob" in page and "<script>Bob" not in page, page)
    check("the counter counted both", "2 signed so far" in page, page)


def show_notes(served: Served) -> None:
    say(f"\n4. A Hono app in JavaScript, on http://{served.address}/notes")
    status, body = served.call("/notes", json.dumps({"text": "buy milk"}).encode())
    check("a note is created", status == 201 and json.loads(body) == {"id": 1, "text": "buy milk"}, (status, body))
    status, body = served.call("/notes")
    check("and listed", status == 200 and json.loads(body) == [{"id": 1, "text": "buy milk"}], (status, body))
    status, body = served.call("/nothing")
    check("an unknown path is the app's own 404", status == 404 and json.loads(body) == {"error": "not found"}, (status, body))


def show_faults(faults: Served, others: list[tuple[Served, str]]) -> None:
    say(f"\n5. An app that misbehaves, on http://{faults.address}, while the others are called without a pause.")
    stop = threading.Event()

    def keep_calling(served: Served, path: str) -> list[int]:
        statuses = []
        while not stop.is_set():
            statuses.append(served.call(path)[0])
        return statuses

    with concurrent.futures.ThreadPoolExecutor(BACKGROUND_THREADS * len(others)) as pool:
        running = [pool.submit(keep_calling, *other) for other in others for _ in range(BACKGROUND_THREADS)]
        for path, what in (("/trap", "a trap"), ("/spin", "a loop without end (limit 1 s)"), ("/grow", "memory without end (limit 96 MiB)")):
            began_s = time.monotonic()
            status, body = faults.call(path)
            seconds = time.monotonic() - began_s
            check(f"{what} is answered with a plain 5xx, here {status} after {seconds:.1f} s", 500 <= status < 600, (status, body))
            check("  which tells the caller nothing of the inside", "Traceback" not in body and "wasm" not in body, body)
            status, body = faults.call("/")
            check("  and the same app answers the next request", (status, body) == (200, "fine\n"), (status, body))
        stop.set()
        statuses = [status for future in running for status in future.result()]
    check(f"meanwhile {len(statuses)} requests to the other apps were all answered 200", set(statuses) == {200}, sorted(set(statuses)))
    outcomes = [log.get("outcome") for log in faults.logs if log.get("event") == "request" and log.get("outcome") != "completed"]
    say(f"   the log names what happened: {', '.join(map(str, outcomes))}")


def main() -> int:
    say("Freehold: ordinary apps in a sandbox, released, served and kept apart.")
    if shutil.which("node") is None or shutil.which("npm") is None:
        sys.exit("The JavaScript part needs Node.js 20 or newer and npm: apt-get install nodejs npm")
    with tempfile.TemporaryDirectory() as folder:
        projects = {name: copy(name, Path(folder)) for name in ("guestbook", "hono", "faults")}
        show_builds(projects)
        say("\n2. Serve. Each project gets its own workers; the first time, components are compiled to machine code.")
        served = {name: Served(project) for name, project in projects.items()}
        try:
            for name, project in served.items():
                project.wait()
                say(f"   {name} is served on http://{project.address}")
            show_guestbook(served["guestbook"])
            show_notes(served["hono"])
            show_faults(served["faults"], [(served["guestbook"], "/guestbook/"), (served["hono"], "/notes")])
        finally:
            codes = {name: project.stop() for name, project in served.items()}
        say("\n6. Stop. Requests under way are finished, then the workers end.")
        check("every server ended cleanly", set(codes.values()) == {0}, codes)
        mesh.tell(Path(folder) / "mesh", say, check)
    if failures:
        say(f"\n{len(failures)} of the claims did not hold:")
        for failure in failures:
            say(f"   {failure}")
        return 1
    say("\nAll was as said.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
