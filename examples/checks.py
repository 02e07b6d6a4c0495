"""How the demo tells and checks: chapters with their seconds, claims that are counted, visitors, what is skipped.

Nothing of Freehold is known here but HTTP and a machine's address. Not here: the story (story.py).
"""

from __future__ import annotations

import contextlib
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence

from tests.support.mesh.nodes import Machine

WIDTH = 78


class Teller:
    """What was told so far: the claims that failed, the parts that were skipped, the seconds of each chapter."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.skipped: list[str] = []
        self.seconds: list[tuple[str, float]] = []
        self.claims = 0

    def say(self, text: str = "") -> None:
        """Print one line of the story."""
        print(f"   {text}" if text else "", flush=True)

    def quote(self, text: str, lines_max: int = 40) -> None:
        """Print what a command or a file said, so that it can be told from the story; long lines are folded."""
        lines = text.strip("\n").splitlines()
        for line in lines[:lines_max]:
            inside = " " * (len(line) - len(line.lstrip()) + 4)
            folded = textwrap.wrap(line, WIDTH - 5, subsequent_indent=inside, drop_whitespace=False) or [""]
            for part in folded:
                print(f"   | {part}".rstrip(), flush=True)
        if len(lines) > lines_max:
            print(f"   | ... {len(lines) - lines_max} more lines", flush=True)

    def check(self, what: str, holds: bool, seen: object = "") -> None:
        """Say what was expected and whether it was so."""
        self.claims += 1
        print(f"   {'ok  ' if holds else 'FAIL'} {what}" + ("" if holds else f"\n        seen: {seen!r}"[:2000]), flush=True)
        if not holds:
            self.failures.append(what)

    def skip(self, what: str, why: str) -> None:
        """Leave a part out, by name."""
        self.skipped.append(what)
        print(f"   skip {what}: {why}", flush=True)

    @contextlib.contextmanager
    def chapter(self, title: str) -> Iterator[None]:
        """Announce a chapter and keep its seconds."""
        print(f"\n{title}\n{'-' * len(title)}", flush=True)
        began_s = time.monotonic()
        try:
            yield
        finally:
            self.seconds.append((title, time.monotonic() - began_s))
            print(f"   ({self.seconds[-1][1]:.1f} s)", flush=True)


def address_of(machine: Machine) -> str:
    """Return host:port where a machine serves apps."""
    return next(one for one in machine.status()["ingress"] if not one.startswith("unix:"))


def call(address: str, path: str, body: bytes | None = None, kind: str = "application/json",
         timeout_s: float = 30) -> tuple[int, str, dict[str, str]]:  # fmt: skip
    """Return status, body and fields; status 0 means that the connection broke."""
    request = urllib.request.Request(f"http://{address}{path}", data=body, headers={"content-type": kind} if body else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return answer.status, answer.read().decode(), {name.lower(): text for name, text in answer.headers.items()}
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, answer.read().decode(), {}
    except OSError as error:
        return 0, str(error), {}


def answers(machines: Sequence[Machine], path: str) -> list[tuple[int, str]]:
    """Return what each machine answers."""
    return [call(address_of(machine), path)[:2] for machine in machines]


class Visitors:
    """A stream of requests to each address, counted by what came back, until the block ends."""

    def __init__(self, *targets: tuple[str, str], pause_s: float = 0.05) -> None:
        self.seen: Counter[tuple[int, str]] = Counter()
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._visit, args=target) for target in targets]

    def __enter__(self) -> Visitors:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def count(self) -> int:
        """How many were answered, one way or another."""
        return sum(self.seen.values())

    @property
    def statuses(self) -> set[int]:
        """What they got; 0 stands for a broken connection."""
        return {status for status, _ in self.seen}

    def _visit(self, address: str, path: str) -> None:
        while not self._stop.wait(self._pause_s):
            status, body, _ = call(address, path, timeout_s=10)
            self.seen[status, body.strip() if status == 200 else ""] += 1
