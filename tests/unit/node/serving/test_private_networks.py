"""What an app asks for and an environment allows: a release that asks for more is refused, and loses what is taken back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.serving.releases import PreparedRelease, networks_problem_of, with_networks
from node.serving.workloads import Running, Workloads
from protocols.changes.effective import Effective, EffectiveApp
from protocols.machine import Digest
from protocols.rollout.orders import Run
from protocols.state.model import Environment, guarded
from runtime.messages import AppLimits, AppLoad, ReleaseLoad
from tests.support.runtime.wasm_parts import a_spec

OFFICE, LAB = "10.0.5.0/24", "192.168.7.0/24"
CHANGE = Digest(b"c" * 32)


def asking(*networks: str) -> PreparedRelease:
    app = EffectiveApp(
        "web", b"c" * 32, "http", 1_000, 1 << 20, "fresh", allow_hosts=("db.example:443",), private_networks=networks
    )
    effective = Effective("site", "production", (app,))
    loads = (AppLoad(a_spec(private_networks=networks), AppLimits(concurrency=3)),)
    key = f"{'a' * 64}.{'b' * 32}"
    return PreparedRelease(key, Digest(b"r" * 32), effective, ReleaseLoad(key, "a" * 64, "site", loads, "production"))


def test_what_nobody_allows_is_refused_with_what_the_project_wrote_and_what_an_admin_does() -> None:
    said = networks_problem_of(asking(OFFICE).effective, ())
    assert "app web" in said
    assert OFFICE in said
    assert said.endswith(f"freehold env networks production --allow {OFFICE}")
    more = networks_problem_of(asking(OFFICE, LAB).effective, (OFFICE,))
    assert LAB in more
    assert more.endswith(f"--allow {OFFICE} --allow {LAB}"), "what is allowed stays so"
    assert networks_problem_of(asking(OFFICE, LAB).effective, (LAB, "10.0.0.0/8")) == ""
    assert networks_problem_of(asking().effective, ()) == ""
    assert networks_problem_of(asking("10.0.4.0/23").effective, (OFFICE,)), "a wider one than is allowed"


def test_a_release_runs_with_what_is_allowed_now_under_a_key_of_its_own() -> None:
    whole = asking(OFFICE, LAB)
    assert with_networks(whole, (OFFICE, LAB)) is whole
    less = with_networks(whole, (LAB,))
    assert [app.spec.private_networks for app in less.load.apps] == [(LAB,)]
    assert less.load.apps[0].limits == whole.load.apps[0].limits
    none = with_networks(whole, ())
    assert [app.spec.private_networks for app in none.load.apps] == [()]
    keys = {whole.key, less.key, none.key}
    assert len(keys) == 3
    assert {len(key) for key in keys} == {len(whole.key)}
    assert (less.load.key, with_networks(whole, (LAB,)).key) == (less.key, less.key)


class Pool:
    """Workers that note what is loaded and let go."""

    def __init__(self) -> None:
        self.loaded: dict[str, ReleaseLoad] = {}

    async def load(self, load: ReleaseLoad) -> None:
        self.loaded[load.key] = load

    async def unload(self, key: str) -> None:
        self.loaded.pop(key, None)

    async def activate(self, routes: list[Any]) -> None:
        assert {route.key for route in routes if route.key} <= set(self.loaded)

    def slots(self) -> tuple[Any, ...]:
        return ()


async def test_a_narrower_decision_takes_a_network_from_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    environment = Environment("production", (), None, guarded(False, (LAB, OFFICE)))
    state = SimpleNamespace(environments=[environment], lanes=(), lane=lambda *_name: None, routes=())
    core: Any = SimpleNamespace(state=state)
    pool = Pool()
    workloads = Workloads(core, None, pool, Path("unused"), lambda _event: True)  # type: ignore[arg-type]
    monkeypatch.setattr("node.serving.workloads.routes_away", lambda *_rest: [])
    deployed: Any = SimpleNamespace(change=CHANGE, release=b"r" * 32)
    order = Run("site", "production", deployed, "base", False)
    workloads._prepared[CHANGE] = asking(OFFICE, LAB)
    workloads._ordered["site", "production"] = order
    async with asyncio.TaskGroup() as workloads._tasks:
        await workloads._start(("site", "production"), order)
        first = running(workloads).key
        await workloads._follow_networks()
        assert running(workloads).key == first, "nothing changed"
        for networks in ((LAB,), ()):
            state.environments = [Environment("production", (), None, guarded(False, networks))]
            await workloads._follow_networks()
            load = pool.loaded[running(workloads).key]
            assert [app.spec.private_networks for app in load.apps] == [networks]
    assert set(pool.loaded) == {running(workloads).key}, "what was allowed before is gone from the workers"


def running(made: Workloads) -> Running:
    return made.running["site", "production"]
