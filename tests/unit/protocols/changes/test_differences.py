"""No field of what a reviewer signs can differ unseen: each one is altered by itself and must show."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import fields, replace

from protocols.changes.change import Analysis, Component, Plan, Release, Route, SecretVersion, Stage
from protocols.changes.demands import Demands, EvidenceDemand, FreezeWindow
from protocols.changes.differences import Difference, Side, differences, exact_size
from protocols.changes.effective import Effective, EffectiveApp, SmokeCheck

MIB = 1 << 20
APP = EffectiveApp(
    "web", b"c" * 32, "http", 30_000, 128 * MIB, "fresh", (Route("a", "/"),), "0 * * * *", ("api.test",), ("carts",),
    (("KEY", "1"),), ("TOKEN",),
)  # fmt: skip
OTHER_APP: dict[str, Any] = {
    "component": b"d" * 32, "kind": "command", "timeout_ms": 30_001, "memory_max_bytes": 128 * MIB + 1,
    "instances": "reuse", "schedule": "1 * * * *", "allow_hosts": ("api.test", "evil.test"),
    "keyvalue": ("carts", "users"), "sql": ("main",), "blobs": ("uploads",),
    "publish": ("jobs",), "subscribe": ("mail",), "providers": (("carts", "main-kv"),),
    "websocket": "/ws", "websocket_origins": ("https://www.test",),
    "private_networks": ("10.0.5.0/24",), "migrate": True,
    "config": (("KEY", "2"),), "secrets": ("TOKEN", "OTHER"), "name": "api",
}  # fmt: skip
PLAN = Plan((Stage("25%"), Stage("100%")), analysis=Analysis(1_000, 500, 0))
OTHER_PLAN: dict[str, Any] = {
    "stages": (Stage("50%"), Stage("100%")), "healthy_deadline_ms": 1, "progress_deadline_ms": 1, "max_parallel": 2,
    "auto_promote": False, "auto_revert": False, "analysis": Analysis(2_000, 500, 0), "candidate_ttl_ms": 1,
    "irreversible": True, "probe_only": True,
}  # fmt: skip
OTHER_STAGE: dict[str, Any] = {"nodes": "26%", "min_healthy_ms": 10_001, "pause_ms": 1, "approve": True}
OTHER_ANALYSIS: dict[str, Any] = {
    "max_error_ppm": 1_001, "max_latency_p99_ms": 501, "failure_limit": 1, "min_requests": 21,
}  # fmt: skip
WINDOW = FreezeWindow("deny", 1_000, 1_000)
DEMANDS = Demands(1, ("owner",), (EvidenceDemand("test", 3_600_000),), (WINDOW,))
OTHER_DEMANDS: dict[str, Any] = {
    "approvals": 2, "asked": ("passkey",), "evidence": (EvidenceDemand("test", 3_600_001),),
    "windows": (replace(WINDOW, length_ms=2_000),),
}  # fmt: skip
OTHER_WINDOW: dict[str, Any] = {
    "effect": "allow",
    "start_ms": 1_001,
    "length_ms": 999,
    "every_ms": 604_800_000,
    "reason": "r",
}
SMOKE = SmokeCheck("web", "/", 200, "hello")


def side(app: EffectiveApp = APP, plan: Plan = PLAN, demands: Demands = DEMANDS, **rest: Any) -> Side:
    component = Component(app.name, app.component, 10, "rustc 1")
    release = Release("shop", (component,), b"", "", b"a" * 32, (("*", demands),))
    effective = Effective("shop", "prod", (app,), rest.pop("smoke", (SMOKE,)))
    versions = tuple(SecretVersion(name, 1, b"v" * 32) for name in app.secrets)
    return Side(release, effective, rest.pop("secrets", versions), rest.pop("routes", app.routes), plan, **rest)


IMPORTS = {b"c" * 32: ("wasi:http/types",), b"d" * 32: ("wasi:http/types",)}


def shown(before: Side, after: Side) -> tuple[Difference, ...]:
    return differences(before, after, IMPORTS)


def test_nothing_differs_from_itself() -> None:
    assert shown(side(), side()) == ()


def test_every_field_is_in_the_tables_of_this_test() -> None:
    assert {field.name for field in fields(EffectiveApp)} == {*OTHER_APP, "routes"}
    assert {field.name for field in fields(Plan)} == set(OTHER_PLAN)
    assert {field.name for field in fields(Stage)} == set(OTHER_STAGE)
    assert {field.name for field in fields(Analysis)} == set(OTHER_ANALYSIS)
    assert {field.name for field in fields(Demands)} == set(OTHER_DEMANDS)
    assert {field.name for field in fields(FreezeWindow)} == set(OTHER_WINDOW)


@pytest.mark.parametrize("name", OTHER_APP)
def test_a_field_of_an_app_that_differs_is_shown(name: str) -> None:
    assert shown(side(), side(replace(APP, **{name: OTHER_APP[name]})))


@pytest.mark.parametrize("name", OTHER_PLAN)
def test_a_field_of_the_plan_that_differs_is_shown(name: str) -> None:
    found_differences = shown(side(), side(plan=replace(PLAN, **{name: OTHER_PLAN[name]})))
    assert [difference.section for difference in found_differences] == ["rollout"]


@pytest.mark.parametrize("name", OTHER_STAGE)
def test_a_field_of_a_later_stage_that_differs_is_shown(name: str) -> None:
    stages = (PLAN.stages[0], replace(PLAN.stages[1], **{name: OTHER_STAGE[name]}))
    assert shown(side(), side(plan=replace(PLAN, stages=stages)))


@pytest.mark.parametrize("name", OTHER_ANALYSIS)
def test_a_limit_of_the_analysis_that_differs_is_shown(name: str) -> None:
    analysis = replace(PLAN.analysis, **{name: OTHER_ANALYSIS[name]})
    assert shown(side(), side(plan=replace(PLAN, analysis=analysis)))


@pytest.mark.parametrize("name", OTHER_DEMANDS)
def test_a_demand_that_differs_is_shown(name: str) -> None:
    found_differences = shown(side(), side(demands=replace(DEMANDS, **{name: OTHER_DEMANDS[name]})))
    assert {difference.section for difference in found_differences} == {"policy"}


@pytest.mark.parametrize("name", OTHER_WINDOW)
def test_a_field_of_a_window_that_differs_is_shown(name: str) -> None:
    windows = (replace(WINDOW, **{name: OTHER_WINDOW[name]}),)
    assert shown(side(), side(demands=replace(DEMANDS, windows=windows)))


def test_what_is_outside_the_app_is_shown_too() -> None:
    assert shown(side(), side(replicas=2))
    assert shown(side(), side(routes=(Route("b", "/"),)))
    assert shown(side(), side(secrets=(SecretVersion("TOKEN", 2, b"w" * 32),)))
    assert shown(side(), side(smoke=()))
    assert shown(side(), side(smoke=(replace(SMOKE, contains="hell"),)))
    first = SmokeCheck("web", "/", 500)
    assert shown(side(), side(smoke=(first, SMOKE))), "a second check of one path hides the first"


def test_two_limits_never_look_alike() -> None:
    sizes = [128 * MIB, 128 * MIB + 1, 128 * MIB + 1024, 1023, 1024, 1025, 1536, 64 * 1024, MIB, MIB - 1]
    assert len({exact_size(size) for size in sizes}) == len(sizes)
    assert exact_size(128 * MIB) == "128.0 MiB"


def test_what_comes_and_goes_has_its_sign() -> None:
    hosts = shown(side(), side(replace(APP, allow_hosts=("evil.test",))))
    assert [(host.sign, host.name) for host in hosts] == [("-", "reaches api.test"), ("+", "reaches evil.test")]
    (limit,) = shown(side(), side(replace(APP, memory_max_bytes=256 * MIB)))
    assert (limit.section, limit.name, limit.before, limit.after) == ("limits", "memory_max", "128.0 MiB", "256.0 MiB")
