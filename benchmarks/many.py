"""What many apps and many releases cost one node: memory and processor time at rest, disk, and the time of a deploy.

One real daemon with one worker. Thirty projects are deployed, each a compiled component of its own that was visited once;
then nothing happens for half a minute. Memory is proportional (shared pages divided among their users); disk is what
the node's folder takes, compiled code among it. Then one project is released a hundred times, each release a component
that the node has not seen; a deploy runs from the submitted start to its last promotion, less the health window
(`deploying`). Its last ten are held against its first ten. Not here: several nodes, and apps in Python or JavaScript.
"""

from __future__ import annotations

import asyncio
import http.client
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks import fleet
from benchmarks.deploying import ANSWERS, ENVIRONMENT, Went, release, write_project
from benchmarks.idling import children
from benchmarks.processes import proportional_mib, threads_cpu_s
from benchmarks.rows import Row, at_most
from protocols.state.commands import CreateEnvironment, CreateProject

APPS: Final = 30
RELEASES: Final = 100
COMPARED: Final = 10
WATCH_S: Final = 30.0
SETTLE_S: Final = 10.0
STAGES: Final = ["100%"]
LATER_AIM: Final = 1.2
"""The last deploys may take so many times the first ones."""


def run(quick: bool) -> Iterator[Row]:
    apps, count = (6, 10) if quick else (APPS, RELEASES)
    with fleet.running(1) as (machine,):
        yield from _apps(machine, apps, WATCH_S / (5 if quick else 1))
    with fleet.running(1) as (machine,):
        yield from _releases(machine, count)


def _apps(machine: fleet.Machine, count: int, watch_s: float) -> Iterator[Row]:
    assert machine.process is not None
    daemon, (worker,) = machine.process.pid, children(machine.process.pid)
    empty = (proportional_mib(daemon), proportional_mib(worker), _disk_mib(machine))
    went = asyncio.run(_deploy(machine, [f"app{number}" for number in range(count)]))
    for number in range(count):
        _visit(machine, f"app{number}.test")
    time.sleep(SETTLE_S)
    before, began_s = [threads_cpu_s(pid) for pid in (daemon, worker)], time.monotonic()
    time.sleep(watch_s)
    took_s = time.monotonic() - began_s
    daemon_s, worker_s = (threads_cpu_s(pid) - was for pid, was in zip((daemon, worker), before, strict=True))
    note = f"over {watch_s:.0f} s"
    yield Row(f"{count} apps at rest: CPU of the daemon", round(daemon_s / took_s * 100, 2), "%", note=note)
    yield Row(f"{count} apps at rest: CPU of the worker", round(worker_s / took_s * 100, 2), "%", note=note)
    for what, now, was in (
        ("memory of the daemon", proportional_mib(daemon), empty[0]),
        ("memory of the worker", proportional_mib(worker), empty[1]),
        ("disk", _disk_mib(machine), empty[2]),
    ):
        note = f"{now:.1f} MiB with {count} apps, {was:.1f} without"
        yield Row(f"each of {count} apps: {what}", round((now - was) / count, 2), "MiB", note=note)
    yield from _deploys(f"the last of {count} apps", went)


def _releases(machine: fleet.Machine, count: int) -> Iterator[Row]:
    assert machine.process is not None
    daemon = machine.process.pid
    asyncio.run(_deploy(machine, ["site"] * COMPARED))
    before = (proportional_mib(daemon), _disk_mib(machine))
    went = asyncio.run(_deploy(machine, ["site"] * count, COMPARED))
    yield from _deploys(f"the last of {count} releases", went)
    for what, now, was in (
        ("memory of the daemon", proportional_mib(daemon), before[0]), ("disk", _disk_mib(machine), before[1]),
    ):  # fmt: skip
        note = f"{was:.1f} MiB after {COMPARED} releases, {now:.1f} after {count + COMPARED}"
        yield Row(f"each of {count} releases: {what}", round((now - was) / count, 3), "MiB", note=note)


def _deploys(what: str, went: list[Went]) -> Iterator[Row]:
    overheads = [deploy.live_s - deploy.asked_s for deploy in went]
    first, last = median(overheads[:COMPARED]), median(overheads[-COMPARED:])
    note = f"medians of {COMPARED}: {last * 1000:.0f} ms, the first {first * 1000:.0f} ms"
    yield at_most(f"{what}: deploy, beside the first", round(last / first, 2), "x", LATER_AIM, note=note)


async def _deploy(machine: fleet.Machine, projects: list[str], first: int = 0) -> list[Went]:
    """Deploy these projects one after the other; what is not there yet is created. `first` numbers the components."""
    folder = Path(tempfile.mkdtemp(prefix="fh"))
    signer, went = fleet.admin(machine), []
    try:
        async with fleet.clients([machine]) as clients:
            for number, project in enumerate(projects, first):
                state = await clients[0].state()
                if ENVIRONMENT not in {environment.name for environment in state.environments}:
                    await clients[0].decide(signer, CreateEnvironment(ENVIRONMENT), expect=state.sequence)
                    state = await clients[0].state()
                if project not in {entry.name for entry in state.projects}:
                    await clients[0].decide(signer, CreateProject(project, ("bench",)), expect=state.sequence)
                write_project(folder, list(ANSWERS)[number % 2], number, STAGES, project, f"{project}.test")
                went.append(await release(clients, signer, folder, len(STAGES)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return went


def _visit(machine: fleet.Machine, host: str) -> None:
    connection = http.client.HTTPConnection(machine.ingress, timeout=20)
    connection.request("GET", "/", headers={"Host": host})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200, f"{host} answers {answer.status} {body!r}"


def _disk_mib(machine: fleet.Machine) -> float:
    paths = [path for path in machine.data.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(path.stat().st_blocks * 512 for path in paths) / (1 << 20)
