"""The second part of `make demo`: three machines, one mesh; a release in stages, one that goes back by itself, a power cut.

Three daemons run on loopback with a folder, a home and a wire of their own; a person types the admin's passphrase on a
terminal. Everything is done with the commands an operator and a developer would use. Not here: the first part (demo.py).
"""

from __future__ import annotations

import shutil
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.e2e.nodes import Fleet, Machine, until

EXAMPLES = Path(__file__).resolve().parent
Check = Callable[..., None]
Say = Callable[[str], None]


def fetch(machine: Machine, path: str, timeout_s: float = 20.0) -> tuple[int, str]:
    """Call one machine's ingress; status 0 means that the connection broke."""
    address = next(one for one in machine.status()["ingress"] if not one.startswith("unix:"))
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=timeout_s) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.read().decode()
    except OSError as error:
        return 0, str(error)


class Visitors:
    """A stream of requests to every machine that is up, counted by what came back."""

    def __init__(self, machines: list[Machine], path: str) -> None:
        self.addresses = {
            machine.folder.name: next(one for one in machine.status()["ingress"] if not one.startswith("unix:"))
            for machine in machines
        }
        self.path = path
        self.seen: Counter[tuple[int, str]] = Counter()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._visit, args=(address,)) for address in self.addresses.values()]

    def __enter__(self) -> Visitors:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _visit(self, address: str) -> None:
        while not self._stop.wait(0.05):
            try:
                with urllib.request.urlopen(f"http://{address}{self.path}", timeout=10) as answer:
                    self.seen[answer.status, answer.read().decode().strip()] += 1
            except urllib.error.HTTPError as answer:
                self.seen[answer.code, "error"] += 1
            except OSError:
                self.seen[0, "no connection"] += 1


def deploy(machine: Machine, project: Path, message: str, say: Say) -> tuple[int, float]:
    """Deploy as a developer would; tell what the command told."""
    began_s = time.monotonic()
    answer = machine.run("deploy", "--folder", str(project), "-m", message, timeout_s=400)
    for line in answer.stderr.splitlines():
        say(f"     {line.strip()}")
    return answer.code, time.monotonic() - began_s


def configure(project: Path, greeting: str) -> None:
    """The edit of this story: configuration lives in freehold.toml and nowhere else."""
    file = project / "freehold.toml"
    text = file.read_text()
    start = text.index("config = {")
    file.write_text(text[:start] + f'config = {{ GREETING = "{greeting}" }}' + text[text.index("\n", start) :])


def tell(folder: Path, say: Say, check: Check) -> None:
    """Tell the story; every claim goes through `check`."""
    fleet = Fleet(folder)
    try:
        machines = _found(fleet, say, check)
        _greeter(machines, folder, say, check)
        _guestbook(machines, folder, say, check)
    finally:
        fleet.close()


def _found(fleet: Fleet, say: Say, check: Check) -> list[Machine]:
    say("\n7. A mesh. One machine founds it; two join with a line that one person pastes to another.")
    first = fleet.found("one", "--policy", "solo")
    say("   machine one: freehold mesh create home; freehold node run")
    machines = [first]
    for name in ("two", "three"):
        began_s = time.monotonic()
        line = fleet.invite(first, "--role", "voter", "--role", "worker")
        machines.append(fleet.join(line, name))
        say(f"   machine {name}: freehold mesh join {line[:14]}... ({time.monotonic() - began_s:.1f} s)")
    until(lambda: sum(one["voter"] for one in first.members().values()) == 3, 60, "three voters")
    members = first.members()
    check("all three are members, and all three vote", all(one["confirmed"] for one in members.values()), members)
    refused = first.run("env", "create", "production", "-y")
    check("without the passphrase nobody creates an environment, not even this user's scripts", refused.code == 3, refused)
    for command in (("env", "create", "production", "-y"), ("project", "create", "greeter"), ("project", "create", "guestbook")):
        first.typed_ok(*command)
    return machines


def _greeter(machines: list[Machine], folder: Path, say: Say, check: Check) -> None:
    first, _, third = machines
    project = Path(shutil.copytree(EXAMPLES / "greeter", folder / "greeter", ignore=shutil.ignore_patterns(".freehold")))
    say("\n8. A first release, on all three machines, in stages of one, two and three.")
    code, seconds = deploy(first, project, "greet visitors", say)
    check(f"the deploy succeeded ({seconds:.0f} s)", code == 0, code)
    answers = [fetch(machine, "/greeter") for machine in machines]
    check("every machine greets", answers == [(200, "hello\n")] * 3, answers)

    say("\n9. A second release, while visitors come; machine three loses its power in the middle and returns.")
    configure(project, "good day")
    with Visitors(machines[:2], "/greeter") as visitors:
        cut = threading.Timer(3.0, third.kill)
        cut.start()
        back = threading.Timer(7.0, third.start)
        back.start()
        code, seconds = deploy(first, project, "greet more kindly", say)
        cut.join()
        back.join()
    check(f"the release went through ({seconds:.0f} s)", code == 0, code)
    statuses = {status for status, _ in visitors.seen}
    check(f"{sum(visitors.seen.values())} visitors of the others were all answered", statuses == {200}, visitors.seen)
    until(lambda: fetch(third, "/greeter") == (200, "good day\n"), 60, "machine three to serve the new release")
    check("machine three came back to the release that was decided without it", True)

    say("\n10. A third release passes its smoke check and fails its visitors. It goes back by itself.")
    configure(project, "")
    with Visitors(machines, "/greeter") as visitors:
        code, seconds = deploy(first, project, "greet nobody", say)
    check(f"the deploy ended with exit code 4, rolled back, after {seconds:.0f} s", code == 4, code)
    answers = [fetch(machine, "/greeter") for machine in machines]
    check("every machine serves the release before", answers == [(200, "good day\n")] * 3, answers)
    newest = first.ok("rollouts", "--project", "greeter")["rollouts"][0]
    numbers = [(one["verdict"], one["errors"], one["requests"]) for one in newest["numbers"]]
    check(f"the decision kept the numbers that made it: {numbers}", newest["action"] == "abort" and numbers != [], newest)


def _guestbook(machines: list[Machine], folder: Path, say: Say, check: Check) -> None:
    first = machines[0]
    say("\n11. An app that keeps data runs on one machine; the others lead visitors to it.")
    ignored = shutil.ignore_patterns(".freehold")
    project = Path(shutil.copytree(EXAMPLES / "guestbook", folder / "guestbook-mesh", ignore=ignored))
    code, seconds = deploy(first, project, "let visitors sign", say)
    check(f"the deploy succeeded ({seconds:.0f} s)", code == 0, code)
    lane = next(one for one in first.ok("status", "--project", "guestbook")["lanes"])
    check(f"its data is on one machine, {lane['data_node'][-6:]}", bool(lane["data_node"]), lane)
    answers = [fetch(machine, "/guestbook/")[0] for machine in machines]
    check("and it is reached through any", answers == [200, 200, 200], answers)
