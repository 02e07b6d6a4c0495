"""Makes the pictures of the docs: `make pictures` runs a mesh of three, looks at it in a real browser, and records a terminal.

Nothing is drawn by hand: a change is reviewed and approved by a passkey on the page, released in stages, and one that fails
its visitors goes back. Each view is taken wide and narrow, light and dark. Needs a Chromium.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from recording import Recorder, draw

from tests.support.browser import Browser, Page
from tests.support.mesh.nodes import PASSPHRASE, Fleet, Machine, free_port, until
from tests.support.mesh.terminal import Terminal

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
LINK = r"http://localhost:\d+/#[\w-]+"
WIDTHS = {1440: 1000, 360: 1100}
"""Of the window, and at most how much of the page is kept below its top."""
BOTTOM = "Math.ceil(document.getElementById('main').getBoundingClientRect().bottom + scrollY) + 16"
FILTER = """(() => {
  const field = document.querySelector('input[data-field=contains]');
  field.value = 'ValueError';
  field.dispatchEvent(new Event('change', { bubbles: true }));
})()"""
SAYS_S = 120.0
RELEASED_S = 300.0


@dataclass
class Stage:
    """Who and what the pictures show."""

    fleet: Fleet
    dev: Machine
    ann: Machine
    project: Path
    page: Page

    def configure(self, greeting: str, *, healthy: str, hosts: str = "") -> None:
        """Write the project's freehold.toml."""
        text = (ROOT / "examples" / "greeter" / "freehold.toml").read_text()
        text = text.replace('GREETING = "hello"', f'GREETING = "{greeting}"').replace(
            "[app.web]", f"[app.web]\n{hosts}"
        )
        text = text.replace('min_healthy_time = "2s"', f'min_healthy_time = "{healthy}"')
        (self.project / "freehold.toml").write_text(text.replace("\n\n\n", "\n\n"))

    def proposed(self, request: str) -> str:
        """Deploy without waiting; return the change, which wants an approval."""
        pair = ("--folder", str(self.project), "-m", request, "--detach", "--json")
        answer = self.dev.run("deploy", *pair, timeout_s=RELEASED_S)
        assert answer.code == 5, answer
        return str(answer.json["change"])

    def waiting(self, request: str) -> str:
        """Wait until a change with this request stands in the mesh; return it."""
        texts = list[str]()

        def there() -> bool:
            changes = self.dev.ok("changes")["changes"]
            texts.extend(change["id"] for change in changes if change["request"] == request)
            return bool(texts)

        until(there, RELEASED_S, f"the change {request!r}", every_s=1.0)
        return texts[0]

    def show(self, view: str) -> None:
        """Open a view of the console."""
        self.page.js(f"location.hash = {'#' + view!r}")
        self.page.until(f"location.hash === {'#' + view!r} && document.querySelector('h1').innerText !== 'One moment'")

    def approve(self, change: str) -> None:
        """Approve on the page, with the passkey."""
        self.show(f"/change/{change}")
        self.page.has("Approve with passkey", SAYS_S)
        self.page.tab_to("Approve with passkey")
        self.page.key("Enter")
        self.page.has("Approved.", SAYS_S)

    def runs(self, change: str) -> bool:
        """Whether a change is what runs."""
        base = json.loads(self.dev.get("/v1/lanes/greeter/production"))["base"]
        return bool(base and base["change"] == change)

    def take(self, name: str) -> None:
        """Keep what the page shows: wide and narrow, light and dark."""
        for width, tall in WIDTHS.items():
            for dark in (False, True):
                self.page.resize(width=width, height=800, dark=dark)
                time.sleep(0.3)  # the page's own redraw, which nothing announces
                path = PICTURES / f"{name}-{width}-{'dark' if dark else 'light'}.png"
                _shrink(self.page.picture(path), min(tall, int(self.page.js(BOTTOM))))
        self.page.resize(width=1440, height=900)


def _shrink(path: Path, tall: int) -> None:
    """Cut what stands below, and keep 128 colours: text on flat ground loses nothing that an eye sees."""
    with Image.open(io.BytesIO(path.read_bytes())) as full:
        cut = full.convert("RGB").crop((0, 0, full.width, min(full.height, tall)))
    cut.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """Three machines, one mesh, a developer, and Ann with a passkey and the console."""
    fleet, browser, terminals = Fleet(folder / "m", compiled=ROOT / ".cache" / "pictures"), Browser(), list[Terminal]()
    try:
        dev = fleet.found("one", "--policy", "team", "--api", "127.0.0.1:0")
        fleet.grow(3, "--role", "voter", "--role", "worker")
        dev.typed_ok("env", "create", "production", "-y")
        dev.typed_ok("project", "create", "greeter", "--owner", "web-team")
        ann = Machine(folder / "ann")
        line = fleet.invite(dev, "--kind", "principal", "--role", "approver", "--role", "deployer", "--for", "ann")
        assert ann.typed("login", line, "--name", "work", typing=(PASSPHRASE, PASSPHRASE)).code == 0
        ignored = shutil.ignore_patterns(".freehold")
        project = Path(shutil.copytree(ROOT / "examples" / "greeter", folder / "greeter", ignore=ignored))
        port, page = free_port(), browser.page(width=1440, height=900)
        page.authenticator()
        adding = _freehold(ann, "passkey", "add", "--port", str(port))
        terminals.append(adding)
        page.go(adding.wait_for(LINK, SAYS_S)[0])
        page.has("Make the passkey")
        page.js("document.querySelector('button').click()")
        assert adding.end(SAYS_S, [("Passphrase of .*: ", PASSPHRASE)])[0] == 0
        console = _freehold(ann, "console", "--port", str(port))
        terminals.append(console)
        page.go(console.wait_for(LINK, SAYS_S)[0])
        page.has("What needs you")
        yield Stage(fleet, dev, ann, project, page)
    finally:
        for terminal in terminals:
            terminal.kill()
        fleet.close()
        browser.close()


def _freehold(machine: Machine, *arguments: str) -> Terminal:
    command = shlex.join([sys.executable, "-c", "from cli.main import main; main()", *arguments])
    return Terminal(command, ROOT, machine.environment)


@contextmanager
def visitors(fleet: Fleet) -> Iterator[None]:
    """Somebody calls every node all the time."""
    stop = threading.Event()

    def visit(address: str) -> None:
        while not stop.wait(0.05):
            with contextlib.suppress(OSError):  # a release that fails answers with errors
                urllib.request.urlopen(f"http://{address}/greeter", timeout=10).close()

    threads = [threading.Thread(target=visit, args=(machine.ingress,)) for machine in fleet.machines]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def tell(scene: Stage, recorder: Recorder) -> None:
    """The story that is recorded and looked at."""
    scene.configure("hello", healthy="1s")
    first = scene.proposed("greet visitors")
    scene.approve(first)
    until(lambda: scene.runs(first), RELEASED_S, "the first release")
    scene.configure("good day", healthy="1s", hosts='allow_hosts = ["telemetry.example:443"]\n')
    hidden = scene.proposed("greet more kindly")
    scene.show("/")
    scene.page.has("Waits for approval", SAYS_S)
    scene.take("home")
    scene.show(f"/change/{hidden}")
    scene.page.has("It newly reaches", SAYS_S)
    scene.take("change")
    assert scene.ann.typed("reject", hidden, "-m", "greetings need no telemetry", "--json").code == 0
    with visitors(scene.fleet):
        scene.configure("good day", healthy="20s")
        recorder.run("freehold diff")
        good = _deployed(scene, recorder, "greet more kindly, without the telemetry", "Stage 2 of 3", "rollout")
        assert scene.runs(good)
        scene.configure("", healthy="20s")
        _deployed(scene, recorder, "greet nobody", "Why the last release went back", "back")
    recorder.run("freehold why greeter | head -24")
    newest = scene.dev.ok("rollouts", "--project", "greeter")["rollouts"][0]
    scene.show(f"/logs/{next(entry['node'] for entry in newest['numbers'] if entry['errors'])}/greeter")
    scene.page.until("!!document.querySelector('input[data-field=contains]')")
    scene.page.js(FILTER)  # most lines are of the requests that went well since
    scene.page.has("ValueError", SAYS_S)
    scene.take("logs")


def _deployed(scene: Stage, recorder: Recorder, request: str, awaited: str, name: str) -> str:
    """Deploy in the recorded terminal, approve on the page, and take its picture once the page says `awaited`."""
    typing = threading.Thread(target=recorder.run, args=(f'freehold deploy -m "{request}" --wait 5m',))
    typing.start()
    change = scene.waiting(request)
    scene.approve(change)
    scene.show("/lane/greeter/production")
    scene.page.has(awaited, RELEASED_S)
    scene.take(name)
    typing.join()
    return change


def main() -> None:
    """Make every picture and the recording."""
    PICTURES.mkdir(exist_ok=True)
    (ROOT / ".cache" / "pictures").mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(ROOT / ".cache" / "xdg")
    with tempfile.TemporaryDirectory(prefix="fh-pictures-") as folder, stage(Path(folder)) as scene:
        environment = {name: value for name, value in scene.dev.environment.items() if name != "NO_COLOR"}
        path = f"{Path(sys.executable).parent}:{environment['PATH']}"
        recorder = Recorder(scene.project, {**environment, "PATH": path})
        try:
            tell(scene, recorder)
        finally:
            recorder.close()
    cast = recorder.cast("freehold diff, a deploy in stages, and a release that goes back by itself")
    (PICTURES / "deploy.cast").write_text(cast)
    (PICTURES / "deploy.svg").write_text(draw(cast))


if __name__ == "__main__":
    main()
