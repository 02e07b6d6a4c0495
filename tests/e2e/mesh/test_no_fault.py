"""`doctor` of a healthy mesh under load says "no fault" for an hour: visitors, deploys, and a look every ten seconds.

Each look is the real command, at one node after the other. A deploy is under way at about every third look.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mesh.nodes import Fleet, until
from tests.support.mesh.site import Site, visitors

HOUR_S = 3600.0
LOOK_EVERY_S = 10.0
DEPLOY_EVERY_S = 30.0


@pytest.fixture
def mesh(tmp_path: Path, component: Callable[[str], Path]) -> Iterator[tuple[Fleet, Site]]:
    fleet = Fleet(tmp_path / "m", tmp_path / "compiled")
    try:
        first = fleet.found("one")
        first.typed_ok("env", "create", "production", "-y")
        first.typed_ok("project", "create", "site")
        fleet.grow(3)
        until(lambda: sum(member["voter"] for member in first.members().values()) == 3, 90, "three voters")
        site = Site(tmp_path, component("services"))
        site.configure("release 0")
        answer = site.deploy(first)
        assert answer.code == 0, answer
        yield fleet, site
    finally:
        fleet.close()


@pytest.mark.long
@pytest.mark.timeout(HOUR_S + 900)
def test_doctor_finds_no_fault_in_a_busy_healthy_mesh_for_an_hour(mesh: tuple[Fleet, Site]) -> None:
    fleet, site = mesh
    first = fleet.machines[0]
    until(lambda: first.run("doctor").code == 0, 60, "what has just begun to be well")
    faults: Counter[str] = Counter()
    deploys: list[int] = []
    over = threading.Event()

    def deploy() -> None:
        while not over.wait(DEPLOY_EVERY_S):
            site.configure(f"release {len(deploys) + 1}")
            deploys.append(site.deploy(first).code)

    looks = 0
    deploying = threading.Thread(target=deploy)
    with visitors(fleet.machines, every_s=0.05) as visits:
        deploying.start()
        try:
            ends_s = time.monotonic() + HOUR_S
            while (began_s := time.monotonic()) < ends_s:
                answer = fleet.machines[looks % len(fleet.machines)].run("doctor", "--json")
                faults.update(
                    f"{finding['what']} ({finding['advice']})"
                    for finding in answer.json["findings"]
                    if finding["fault"]
                )
                looks += 1
                time.sleep(max(0.0, began_s + LOOK_EVERY_S - time.monotonic()))
        finally:
            over.set()
            deploying.join()
    print(
        f"{looks} looks, {len(deploys)} deploys, {len(visits.seen)} visits, slowest {visits.slowest_s():.2f} s, {faults}"
    )
    assert not faults, faults
    assert set(deploys) == {0}, deploys
    assert visits.failed() == [], visits.failed()[:5]
    assert looks > 0.9 * HOUR_S / LOOK_EVERY_S, "it looked as often as it says"
