"""From saving a file to being served by it, in `freehold dev` and in the reloaders that people know.

Each project is what `freehold new` writes. A save changes the text of the app's first page; the time runs until a visitor
who asks every few milliseconds sees it. Ours includes the smoke check and two decisions of the mesh of one. The peers
run the same app without sandbox, check or decision: Flask in debug mode, Werkzeug's reloader around the handler (both as
they are installed: they look for a change once a second), and `node --watch`, which hears of it. Saves alternate between
us and the peer. Not here: building a release (`freehold build`).
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from benchmarks.rows import Row, beside
from cli.project.scaffold import CHOICES, create
from tests.support.mesh.dev_process import serving

SAVES: Final = 8
PAUSE_S: Final = 1.5
"""Between two saves, as somebody who types leaves it; also for what goes on after an answer was given."""

ASK_EVERY_S: Final = 0.005
SERVED_TIMEOUT_S: Final = 60.0
REQUIREMENTS: Final = ("flask",)

SERVE_PYTHON: Final = """
import sys
from werkzeug.serving import run_simple
from app import handle
from freehold import Request

def app(environ, start):
    answer = handle(Request(environ["REQUEST_METHOD"], environ["PATH_INFO"]))
    start(f"{answer.status} OK", [("content-type", "text/plain")])
    return [answer.body.encode() if isinstance(answer.body, str) else answer.body]

run_simple("127.0.0.1", int(sys.argv[1]), app, use_reloader=True)
"""

SERVE_JAVASCRIPT: Final = """
import http from "node:http";
import app from "./app.js";

http.createServer(async (request, response) => {
  const answer = await app.fetch(new Request(`http://${request.headers.host}${request.url}`));
  response.writeHead(answer.status);
  response.end(await answer.text());
}).listen(Number(process.argv[2]), "127.0.0.1");
"""


class Guest(NamedTuple):
    """A template, the file that is saved, the text in it that every save replaces, and how the peer runs it."""

    template: str
    spoken: str
    file: str
    text: str
    saved: str
    peer: str
    command: Sequence[str]
    wrapper: tuple[str, str] = ("", "")


GUESTS: Final = (
    Guest("python", "Python handler", "app.py", "{config.get('GREETING', 'hello')}", "hello {mark}",
          "Werkzeug's reloader", (sys.executable, "serve.py", "{port}"), ("serve.py", SERVE_PYTHON)),
    Guest("wsgi", "Flask", "app.py", 'freehold.config.get("GREETING", "hello")', '"hello {mark}"',
          "flask run --debug", (sys.executable, "-m", "flask", "--app", "app", "run", "--debug", "--port", "{port}")),
    Guest("javascript", "JavaScript", "app.js", '${config.get("GREETING", "hello")}', "hello {mark}",
          "node --watch", ("node", "--watch", "serve.mjs", "{port}"), ("serve.mjs", SERVE_JAVASCRIPT)),
)  # fmt: skip


def run(quick: bool) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packages = installed(folder / "packages")
        for guest in GUESTS:
            runs = shutil.which(guest.command[0]) and (packages is not None or guest.template == "javascript")
            ours, theirs = measured(folder / guest.template, guest, packages, 3 if quick else SAVES, bool(runs))
            what = f"save to served in dev, {guest.spoken}"
            if theirs:
                yield beside(what, round(median(ours), 2), "s", guest.peer, round(median(theirs), 2))
            else:
                yield Row(what, round(median(ours), 2), "s", note=f"{guest.peer} is not here")


def installed(folder: Path) -> Path | None:
    """Install what the peers need; None if that cannot be had."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), *REQUIREMENTS]
    return folder if subprocess.run(command, check=False).returncode == 0 else None


def measured(
    folder: Path, guest: Guest, packages: Path | None, saves: int, beside_peer: bool
) -> tuple[list[float], list[float]]:
    """The seconds from each save to the first answer that has it: ours, the peer's."""
    folder.mkdir()
    project, _ = create("hello", CHOICES[guest.template], folder)
    copy = folder / "peer"
    shutil.copytree(project / "web", copy)
    taken: tuple[list[float], list[float]] = ([], [])
    with contextlib.ExitStack() as stack:
        dev = stack.enter_context(serving(project))
        sides = [(project / "web" / guest.file, int(dev.address.rpartition(":")[2]))]
        if beside_peer:
            sides.append((copy / guest.file, stack.enter_context(reloader(copy, guest, packages))))
        texts = [file.read_text() for file, _ in sides]
        for number in range(saves):
            for side, (file, port) in enumerate(sides):
                time.sleep(PAUSE_S)
                mark = f"save {number}."
                file.write_text(texts[side].replace(guest.text, guest.saved.format(mark=mark)))
                taken[side].append(until_served(port, mark))
    return taken


@contextlib.contextmanager
def reloader(folder: Path, guest: Guest, packages: Path | None) -> Iterator[int]:
    """Run the peer until the block ends, with its children; give its port."""
    if guest.wrapper[0]:
        (folder / guest.wrapper[0]).write_text(guest.wrapper[1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    if guest.template == "javascript":
        (folder / "package.json").write_text('{"type": "module"}')
    process = subprocess.Popen(
        [part.format(port=port) for part in guest.command], cwd=folder, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(packages or "")}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until_served(port, "hello")
        yield port
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def until_served(port: int, text: str) -> float:
    """Ask until an answer has `text`; return the seconds that took."""
    began_s = time.perf_counter()
    while time.perf_counter() - began_s < SERVED_TIMEOUT_S:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SERVED_TIMEOUT_S)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/")
            if text in connection.getresponse().read().decode():
                return time.perf_counter() - began_s
        connection.close()
        time.sleep(ASK_EVERY_S)
    raise TimeoutError(f"nobody answered with {text!r} within {SERVED_TIMEOUT_S:.0f} s")
