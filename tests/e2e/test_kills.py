"""Nodes die at random moments: nothing acknowledged is lost, and nothing runs that was not decided."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.durable import Site
from tests.e2e.kills import APP, Killing
from tests.e2e.nodes import Fleet


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]) -> Iterator[Site]:
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    made = Site(fleet, component)
    try:
        made.found()
        first = made.machines[0]
        made.ask(first, lambda client: made.write_project(client, APP))
        made.deploy(first, APP, "services", "first", smoke="/config?key=TEXT")
        yield made
    finally:
        fleet.close()


@pytest.mark.timeout(300)
def test_ten_cycles_of_kill_nine_lose_nothing_and_serve_nothing_undecided(site: Site) -> None:
    print(Killing(site, seed=1).run(10))


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_two_hundred_cycles_of_kill_nine_lose_nothing_and_serve_nothing_undecided(site: Site) -> None:
    print(Killing(site, seed=2).run(200))
