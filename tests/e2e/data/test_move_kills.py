"""Moves of data between real processes that are killed: the sum of the increments is what was acknowledged, plus in doubt.

Each move has a kill of its source or its target at another moment; the long tests make 200. Ends at stated steps of a move
are test_moves.py's.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.access.client import NodeClient
from cli.commands.mesh.data import move_ticket
from cli.errors import CommandError
from protocols.machine import PeerId
from tests.support.mesh.durable import ENVIRONMENT, Site, call
from tests.support.mesh.nodes import Fleet, Machine, until

CYCLES = 3
CYCLES_LONG = 200
PATH = "/kv/increment?store=default&key=n"
HOST = "shop.test"
KILL_WITHIN_S = 2.5
"""A move of this little data takes a second or two; a kill falls anywhere in it, or just behind."""


@pytest.fixture(scope="module")
def site(component: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    fleet = Fleet(tmp_path_factory.mktemp("kills"))
    new_site = Site(fleet, component)
    try:
        new_site.found()
        first = new_site.machines[0]
        new_site.ask(first, lambda client: new_site.write_project(client, "shop"))
        new_site.deploy(first, "shop", "services", "first", more='keyvalue = ["default"]', smoke="/env")
        yield new_site
    finally:
        fleet.close()


class Visitors:
    """Increments through every node in turn."""

    def __init__(self, site: Site) -> None:
        self.ingress = [machine.ingress for machine in site.machines]
        self.acknowledged: list[int] = []
        self.doubtful = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(2)]

    def __enter__(self) -> Visitors:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, turn: int) -> None:
        while not self._stop.is_set():
            turn += 1
            status, _, body = call(self.ingress[turn % len(self.ingress)], HOST, PATH, 25.0)
            if status == 200:
                self.acknowledged.append(int(body))
            elif status != 503:
                self.doubtful += 1
                time.sleep(0.05)


def data_of(site: Site, machine: Machine) -> dict[str, Any]:
    document: dict[str, Any] = site.ask(machine, lambda client: client.get(f"/v1/data/shop/{ENVIRONMENT}"))
    return document


def machine_of(site: Site, node: str) -> Machine:
    return next(machine for machine in site.machines if machine.status()["node"] == node)


def move(site: Site, through: Machine, target: str) -> None:
    async def conversation(client: NodeClient) -> None:
        lane = (await client.state()).lane("shop", ENVIRONMENT)
        assert lane is not None
        ticket = await move_ticket(client, site.admin, lane, PeerId(target))
        await client.post(f"/v1/data/shop/{ENVIRONMENT}/move", ticket)

    site.ask(through, conversation)


@pytest.mark.timeout(7_000)
@pytest.mark.parametrize("cycles", [CYCLES, pytest.param(CYCLES_LONG, marks=pytest.mark.long)])
def test_no_kill_in_a_move_loses_an_acknowledged_write(site: Site, cycles: int) -> None:
    chance = random.Random(20_261_130)
    first = site.machines[0]
    moved = 0
    with Visitors(site) as visitors:
        until(lambda: len(visitors.acknowledged) > 10, 60, "visitors to be served")
        for number in range(cycles):
            source = machine_of(site, data_of(site, first)["node"])
            target = chance.choice([machine for machine in site.machines if machine is not source])
            victim = chance.choice([source, target])
            through = chance.choice([machine for machine in site.machines if machine is not victim])
            wanted = target.status()["node"]
            with contextlib.suppress(CommandError):  # a lane that something else was decided on is asked for again
                move(site, through, wanted)
            time.sleep(chance.uniform(0, KILL_WITHIN_S))
            victim.kill()
            if chance.random() < 0.5:
                victim.kill_workers()
            time.sleep(chance.uniform(0, 1))
            victim.start()
            answered = len(visitors.acknowledged)
            until(
                lambda answered=answered: len(visitors.acknowledged) > answered + 6,  # type: ignore[misc]
                150,
                f"visitors to be served after kill {number} of {victim.name}: {[data_of(site, m) for m in site.machines]}",
            )
            moved += data_of(site, first)["node"] == wanted
    seen = visitors.acknowledged
    status, _, body = call(first.ingress, HOST, PATH, 25.0)
    assert status == 200
    assert len(set(seen)) == len(seen), f"two nodes gave out the same number: {len(seen) - len(set(seen))}"
    assert len(seen) < int(body) <= len(seen) + visitors.doubtful + 1, (len(seen), visitors.doubtful, body)
    print(f"{cycles} moves begun, {moved} of them done, {len(seen)} writes acknowledged, {visitors.doubtful} in doubt")
    if cycles == CYCLES_LONG:
        assert 0 < moved < cycles, "every kill came too late, or too soon: the test shows nothing"
