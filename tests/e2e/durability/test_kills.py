"""Nodes die at random moments: nothing acknowledged is lost, and nothing runs that was not decided."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mesh.durable import ENVIRONMENT, Site, call, ingress_of, ports
from tests.support.mesh.kills import APP, Killing
from tests.support.mesh.nodes import Fleet, until


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]) -> Iterator[Site]:
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    new_site = Site(fleet, component)
    try:
        new_site.found()
        first = new_site.machines[0]
        new_site.ask(first, lambda client: new_site.write_project(client, APP))
        new_site.deploy(first, APP, "services", "first", smoke="/config?key=TEXT")
        yield new_site
    finally:
        fleet.close()


@pytest.mark.timeout(300)
def test_six_cycles_of_kill_nine_lose_nothing_and_serve_nothing_undecided(site: Site) -> None:
    print(Killing(site, seed=1).run(6))


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_two_hundred_cycles_of_kill_nine_lose_nothing_and_serve_nothing_undecided(site: Site) -> None:
    print(Killing(site, seed=2).run(200))


@pytest.mark.timeout(200)
def test_no_request_of_any_project_fails_while_a_daemon_dies_and_returns(
    tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]
) -> None:
    fleet = Fleet(tmp_path_factory.mktemp("sole"))
    try:
        sole = fleet.found("one", "--policy", "solo", *ports())
        new_site = Site(fleet, component)
        new_site.ask(sole, lambda client: new_site.write_environment(client, ENVIRONMENT))
        for name in ("aa", "mm", "zz"):
            new_site.ask(sole, lambda client, name=name: new_site.write_project(client, name))  # type: ignore[misc]
            new_site.deploy(sole, name, "probe", "first")
        address, stop, answers = ingress_of(sole), threading.Event(), set()

        def visit(host: str) -> None:
            while not stop.wait(0.005):
                answers.add((host, call(address, host)[0]))

        hosts = ("aa.test", "mm.test", "zz.test")
        visitors = [threading.Thread(target=visit, args=(host,)) for host in hosts]
        for visitor in visitors:
            visitor.start()
        try:
            for _ in range(4):
                sole.kill()
                sole.start()
                until(lambda: len(sole.status()["running"]) == len(hosts), 30, "all of them to be loaded again")
        finally:
            stop.set()
            for visitor in visitors:
                visitor.join()
        assert answers == {(host, 200) for host in hosts}
    finally:
        fleet.close()
