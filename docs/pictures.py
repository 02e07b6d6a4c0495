"""Makes the pictures of the docs: `make pictures` runs a mesh of three, looks at it in a real browser, and records a terminal.

Nothing is drawn by hand: a change is reviewed and approved by a passkey on the page, released in stages, and one that fails
its visitors goes back. Each view is taken wide and narrow, light and dark. Needs a Chromium.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from recording import Recorder, draw

from tests.support.mesh.looking_on import SAYS_S, Greeter, Team, a_team
from tests.support.mesh.nodes import until
from tests.support.mesh.site import visitors

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
WIDTHS = {1440: 1000, 360: 1100}
"""Of the window, and at most how much of the page is kept below its top."""
BOTTOM = "Math.ceil(document.getElementById('main').getBoundingClientRect().bottom + scrollY) + 16"
FILTER = """(() => {
  const field = document.querySelector('input[data-field=contains]');
  field.value = 'ValueError';
  field.dispatchEvent(new Event('change', { bubbles: true }));
})()"""
RELEASED_S = 300.0


@dataclass
class Stage:
    """Who and what the pictures show."""

    team: Team
    greeter: Greeter

    def proposed(self, request: str) -> str:
        """Deploy without waiting; return the change, which wants an approval."""
        return self.team.proposed(self.greeter.deploy(self.team.dev, request))

    def waiting(self, request: str) -> str:
        """Wait until a change with this request stands in the mesh; return it."""
        found = list[str]()

        def there() -> bool:
            changes = self.team.dev.ok("changes")["changes"]
            found.extend(one["id"] for one in changes if one["request"] == request)
            return bool(found)

        until(there, RELEASED_S, f"the change {request!r}", every_s=1.0)
        return found[0]

    def runs(self, change: str) -> bool:
        """Whether a change is what runs."""
        return self.greeter.runs(self.team.dev, change)

    def take(self, name: str) -> None:
        """Keep what the page shows: wide and narrow, light and dark."""
        for width, tall in WIDTHS.items():
            for dark in (False, True):
                self.team.page.resize(width=width, height=800, dark=dark)
                time.sleep(0.3)  # the page's own redraw, which nothing announces
                path = PICTURES / f"{name}-{width}-{'dark' if dark else 'light'}.png"
                _shrink(self.team.page.picture(path), min(tall, int(self.team.page.js(BOTTOM))))
        self.team.page.resize(width=1440, height=900)


def _shrink(path: Path, tall: int) -> None:
    """Cut what stands below, and keep 128 colours: text on flat ground loses nothing that an eye sees."""
    with Image.open(io.BytesIO(path.read_bytes())) as full:
        cut = full.convert("RGB").crop((0, 0, full.width, min(full.height, tall)))
    cut.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """Three machines, one mesh, a developer, and Ann with a passkey and the console."""
    grown, owned = ("--role", "voter", "--role", "worker"), ("--owner", "web-team")
    compiled = ROOT / ".cache" / "pictures"
    with a_team(folder, "greeter", nodes=3, grown=grown, owned=owned, compiled=compiled) as team:
        yield Stage(team, Greeter(folder))


def tell(scene: Stage, recorder: Recorder) -> None:
    """The story that is recorded and looked at."""
    scene.greeter.configure("hello")
    first = scene.proposed("greet visitors")
    scene.team.approve(first)
    until(lambda: scene.runs(first), RELEASED_S, "the first release")
    scene.greeter.configure("good day", hosts='allow_hosts = ["telemetry.example:443"]')
    hidden = scene.proposed("greet more kindly")
    scene.team.show("/")
    scene.team.page.has("Waits for approval", SAYS_S)
    scene.take("home")
    scene.team.show(f"/change/{hidden}")
    scene.team.page.has("It newly reaches", SAYS_S)
    scene.take("change")
    assert scene.team.ann.typed("reject", hidden, "-m", "greetings need no telemetry", "--json").code == 0
    with visitors(scene.team.fleet.machines, "greeter", "/greeter", every_s=0.05):
        scene.greeter.configure("good day", healthy="20s")
        recorder.run("freehold diff")
        good = _deployed(scene, recorder, "greet more kindly, without the telemetry", "0.0 %", "rollout")
        assert scene.runs(good)
        scene.greeter.configure("", healthy="20s")
        _deployed(scene, recorder, "greet nobody", "Last log lines on", "back")
    recorder.run("freehold why greeter | head -24")
    newest = scene.team.dev.ok("rollouts", "--project", "greeter")["rollouts"][0]
    scene.team.show(f"/logs/{next(one['node'] for one in newest['numbers'] if one['errors'])}/greeter")
    scene.team.page.until("!!document.querySelector('input[data-field=contains]')")
    scene.team.page.js(FILTER)  # most lines are of the requests that went well since
    scene.team.page.has("ValueError", SAYS_S)
    scene.take("logs")


def _deployed(scene: Stage, recorder: Recorder, request: str, awaited: str, name: str) -> str:
    """Deploy in the recorded terminal, approve on the page, and take its picture once the page says `awaited`."""
    typing = threading.Thread(target=recorder.run, args=(f'freehold deploy -m "{request}" --wait 5m',))
    typing.start()
    change = scene.waiting(request)
    scene.team.approve(change)
    scene.team.show("/lane/greeter/production")
    scene.team.page.has("Stage 1 of 3", RELEASED_S)
    scene.team.page.has(awaited, RELEASED_S)
    scene.take(name)
    typing.join()
    return change


def main() -> None:
    """Make every picture and the recording."""
    PICTURES.mkdir(exist_ok=True)
    (ROOT / ".cache" / "pictures").mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(ROOT / ".cache" / "xdg")
    with tempfile.TemporaryDirectory(prefix="fh-pictures-") as folder, stage(Path(folder)) as scene:
        environment = {name: value for name, value in scene.team.dev.environment.items() if name != "NO_COLOR"}
        path = f"{Path(sys.executable).parent}:{environment['PATH']}"
        recorder = Recorder(scene.greeter.folder, {**environment, "PATH": path})
        try:
            tell(scene, recorder)
        finally:
            recorder.close()
    cast = recorder.cast("freehold diff, a deploy in stages, and a release that goes back by itself")
    (PICTURES / "deploy.cast").write_text(cast)
    (PICTURES / "deploy.svg").write_text(draw(cast))


if __name__ == "__main__":
    main()
