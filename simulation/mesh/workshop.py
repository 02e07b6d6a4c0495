"""Scripted workloads: stands in for a node's sandboxes by answering what its rollout agent orders.

A change behaves as its `Script` says on every host where it is prepared and run. Not here: real sandboxes (runtime/).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from protocols.changes.statements import LATENCY_BUCKETS, Counts
from protocols.core import NodeCore
from protocols.machine import Digest
from protocols.rollout.orders import (
    Observe,
    PreparationDone,
    PrepareRelease,
    ReplaySmoke,
    Run,
    SmokeReplayed,
    Stop,
    WorkObserved,
)
from simulation.world.world import Host, World

WORK_EVERY_MS = 1_000
"""How often a supervisor reports what it sees of a candidate."""
LATENCY_BUCKET = 5
"""Scripted requests take 16 to 32 ms."""


@dataclass(frozen=True)
class Script:
    """How a change behaves wherever it is prepared and run; `ill_on` names the hosts where it misbehaves (() for all).

    `error_ppm` of its requests fail, and it crashes every `crash_ms` (0: never) once it has run for `ready_ms`.
    """

    prepare_ms: int = 500
    prepares: bool = True
    smoke: Literal["passed", "failed", "absent"] = "passed"
    ready_ms: int = 1_000
    crash_ms: int = 0
    requests_per_s: int = 20
    error_ppm: int = 0
    ill_on: tuple[str, ...] = ()


@dataclass
class _Work:
    """One lane on one host as its supervisor sees it."""

    change: Digest
    since_ms: int
    opened: int = -1
    opened_ms: int = 0
    crashes: int = 0


class Workshop:
    """The supervisors of all hosts of one world."""

    def __init__(self, world: World) -> None:
        """Listen to every host's orders from now on."""
        self._world = world
        self._hosts: dict[str, Host] = {}
        self.scripts: dict[Digest, Script] = {}
        self._work: dict[tuple[str, str, str], _Work] = {}
        world.observers.append(self._observed)
        world.after(WORK_EVERY_MS, self._report_work)

    def restarted(self, name: str) -> None:
        """A host's process started anew: nothing runs there."""
        for key in [key for key in self._work if key[0] == name]:
            del self._work[key]

    def _observed(self, host: Host, event: Any) -> None:
        match event:
            case PrepareRelease(change):
                script = self.scripts.get(change, Script())
                ok = script.prepares and script.smoke != "failed"
                smoke: Literal["passed", "absent"] = "passed" if script.smoke == "passed" else "absent"
                done = PreparationDone(change, ok, smoke, "" if ok else "its smoke check failed")
                self._world.after(script.prepare_ms, host.receive, done, host.boot_count)
            case Run(project, environment, deployed, _, _):
                key = (host.name, project, environment)
                self._hosts[host.name] = host
                if key not in self._work or self._work[key].change != deployed.change:
                    self._work[key] = _Work(deployed.change, self._world.now_ms)
            case Stop(project, environment):
                self._work.pop((host.name, project, environment), None)
            case ReplaySmoke(project, environment, change):
                replayed = SmokeReplayed(project, environment, change, self.scripts.get(change, Script()).smoke)
                self._world.after(200, host.receive, replayed, host.boot_count)
            case Observe(project, environment, _):
                self._world.after(1, self._report, (host.name, project, environment))
            case _:
                pass

    def _report_work(self) -> None:
        for key in list(self._work):
            self._report(key)
        self._world.after(WORK_EVERY_MS, self._report_work)

    def _report(self, key: tuple[str, str, str]) -> None:
        name, project, environment = key
        work, host = self._work.get(key), self._hosts[name]
        if work is None or not host.up or not isinstance(host.machine, NodeCore):
            return
        lane = host.machine.state.lane(project, environment)
        if lane is not None and lane.rollout is not None:
            if work.opened != lane.rollout.opened:
                work.opened, work.opened_ms = lane.rollout.opened, self._world.now_ms
            seen = self._seen(name, work)
            host.receive(WorkObserved(project, environment, work.change, *seen))

    def _seen(self, name: str, work: _Work) -> tuple[bool, int, Counts, Counts]:
        """What a supervisor reports: ready or not, new crashes, and the counts of candidate and base."""
        script = self.scripts.get(work.change, Script())
        ill = not script.ill_on or name in script.ill_on
        ran_ms = self._world.now_ms - work.since_ms
        crashes = (ran_ms - script.ready_ms) // script.crash_ms if script.crash_ms and ill else 0
        new, work.crashes = max(0, crashes - work.crashes), max(crashes, work.crashes)
        requests = script.requests_per_s * (self._world.now_ms - max(work.opened_ms, work.since_ms)) // 1_000
        errors = requests * (script.error_ppm if ill else 0) // 1_000_000
        return ran_ms >= script.ready_ms, new, _counts(requests, errors), _counts(requests, 0)


def _counts(requests: int, errors: int) -> Counts:
    buckets = [0] * LATENCY_BUCKETS
    buckets[LATENCY_BUCKET] = requests
    return Counts(requests, errors, tuple(buckets))
