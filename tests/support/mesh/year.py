"""An operator's year with a mesh of five: what happens to it, each with its visitors, its cost and its row in a table.

Two projects run: `site` on every node, and `counter`, whose data one node holds and another one copies. Visitors call both
through every node, all year. Not here: which events there are, and when (tests/e2e/mesh/test_year.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.idling import children
from benchmarks.processes import proportional_mib
from protocols.records.key_table import DAY_MS
from tests.support.mesh.jumping import JumpingFleet
from tests.support.mesh.nodes import Machine, until
from tests.support.mesh.site import COUNT, GREETING, Site, Visits, visitors

SETTLED_S = 90.0
CERTIFICATE_LEFT_MS = 59 * DAY_MS
"""What a certificate has left at least: 90 days, and 30 when it is renewed."""

VISIT_EVERY_S = 0.25


@dataclass(frozen=True)
class Row:
    """What one event cost. Memory is proportional, of all daemons and workers; disk is every node's folder."""

    day: int
    event: str
    took_s: float
    visits: int
    failed: int
    deploy_s: float
    memory_mib: float
    disk_mib: float


@dataclass
class Year:
    """The mesh, its projects, its visitors, and the table that grows."""

    fleet: JumpingFleet
    site: Site
    counter: Site
    visiting: ExitStack
    rows: list[Row] = field(default_factory=list)
    deploys_s: list[float] = field(default_factory=list)
    _visits: list[tuple[str, Visits]] = field(default_factory=list)

    @property
    def first(self) -> Machine:
        return self.fleet.machines[0]

    def named(self, name: str) -> Machine:
        return next(machine for machine in self.fleet.machines if machine.name == name)

    # --- visitors -----------------------------------------------------------------------------------------------------

    def visit(self, machine: Machine) -> None:
        """Have visitors call both projects through this machine from now on."""
        for site, path in ((self.site, GREETING), (self.counter, COUNT)):
            until(lambda site=site, path=path: site.ask(machine, path)[0] == 200, 60, f"{machine.name} to serve")  # type: ignore[misc]
            seen = self.visiting.enter_context(visitors([machine], site.name, path, every_s=VISIT_EVERY_S))
            self._visits.append((site.name, seen))

    def failed(self) -> list[tuple[str, str, float, int, str]]:
        """Every failed visit: project, machine, when, status, what was said."""
        return [
            (project, visit[0], visit[1], visit[3], visit[4])
            for project, visits in self._visits
            for visit in list(visits.seen)
            if visit[3] != 200
        ]

    def counted(self) -> dict[str, list[int]]:
        """What each machine's visitors of the counter were told, in order."""
        told: dict[str, list[int]] = {}
        for project, visits in self._visits:
            if project == self.counter.name:
                for visit in visits.seen:
                    if visit[3] == 200:
                        told.setdefault(visit[0], []).append(int(visit[4]))
        return told

    # --- what happens -------------------------------------------------------------------------------------------------

    def on(self, day: int, event: str, act: Callable[[Year], None]) -> None:
        """Let it be that day, do what happens then, deploy, and see that all is well."""
        if day > self.fleet.ahead_days:
            self.fleet.jump(day - self.fleet.ahead_days)
            until(self._renewed, SETTLED_S, f"certificates at day {day}")
        began_s, visits, failed = time.monotonic(), self._count(), len(self.failed())
        act(self)
        self.deploy()
        self._be_well(event)
        self.rows.append(
            Row(
                day, event, time.monotonic() - began_s, self._count() - visits, len(self.failed()) - failed,
                self.deploys_s[-1], self.memory_mib(), self.disk_mib(),
            )
        )  # fmt: skip
        print(self.rows[-1], self.failed()[-3:], flush=True)

    def deploy(self) -> None:
        """Deploy the next release of the site, to every node that works; every node then serves it or leads to it."""
        greeting = f"release {len(self.deploys_s) + 1}"
        self.site.configure(greeting, '["1", "100%"]')
        began_s = time.monotonic()
        answer = self.site.deploy(self.first)
        assert answer.code == 0, answer
        self.deploys_s.append(time.monotonic() - began_s)
        running = [machine for machine in self.fleet.machines if machine.process is not None]
        until(lambda: self.site.greetings(running) == [greeting] * len(running), 60, f"all nodes to serve {greeting}")

    def findings(self) -> list[str]:
        """The faults that `doctor` names."""
        said = self.first.run("doctor", "--json").json["findings"]
        return [f"{finding['what']} ({finding['advice']})" for finding in said if finding["fault"]]

    def _be_well(self, event: str) -> None:
        ends_s = time.monotonic() + SETTLED_S
        while findings := self.findings():
            assert time.monotonic() < ends_s, f"after {event}: {findings}"

    def _renewed(self) -> bool:
        running = [machine for machine in self.fleet.machines if machine.process is not None]
        members = [member for machine in running for member in machine.members().values()]
        fresh = all(member["expires_ms"] - self.fleet.now_ms > CERTIFICATE_LEFT_MS for member in members)
        return fresh and all(machine.connected() == len(self.fleet.machines) for machine in running)

    # --- what it costs ------------------------------------------------------------------------------------------------

    def _count(self) -> int:
        return sum(len(visits.seen) for _, visits in self._visits)

    def memory_mib(self) -> float:
        """What every daemon and its workers hold, shared pages divided among their users."""
        total = 0.0
        for machine in self.fleet.machines:
            if machine.process is not None:
                for pid in family(machine.process.pid):
                    try:
                        total += proportional_mib(pid)
                    except (OSError, KeyError):  # it ended meanwhile
                        continue
        return total

    def disk_mib(self) -> float:
        """What lies in every node's folder, compiled code left out, which all share here."""
        total = 0
        for machine in self.fleet.machines:
            for folder, _, names in os.walk(machine.data):
                for name in names:
                    try:
                        total += (Path(folder) / name).lstat().st_blocks * 512
                    except OSError:
                        continue
        return total / (1 << 20)

    def table(self) -> str:
        """The rows as Markdown."""
        head = (
            "| day | event | took, s | visits | failed | deploy, s | memory, MiB | disk, MiB |\n"
            "|--:|---|--:|--:|--:|--:|--:|--:|\n"
        )
        lines = [
            f"| {row.day} | {row.event} | {row.took_s:.0f} | {row.visits} | {row.failed} | {row.deploy_s:.1f} "
            f"| {row.memory_mib:.0f} | {row.disk_mib:.0f} |\n"
            for row in self.rows
        ]
        return head + "".join(lines)


def family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        return [pid, *(below for child in children(pid) for below in family(child))]
    except OSError:
        return []


def flat(values: list[float], times: float) -> bool:
    """Whether the last fifth is at most so many times the first."""
    fifth = max(1, len(values) // 5)
    return median(values[-fifth:]) <= times * median(values[:fifth])
