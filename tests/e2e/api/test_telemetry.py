"""Traces and logs of real nodes at a collector: of requests across nodes, of decisions, of a rollout; and without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import aiohttp
import msgspec
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from node.config import TelemetrySettings
from node.journal.logs import LogFilter
from runtime.native.choice import Wanted
from tests.e2e.api.test_metrics import series
from tests.support.mesh.alerting import EVERYTHING, firing, need_promtool, render, scraped
from tests.support.mesh.collector import Collector, a_collector, attributes
from tests.support.mesh.in_process import House, a_house, until
from tests.support.runtime.served import ENGINES

TRACE, CLIENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def telling(monkeypatch: pytest.MonkeyPatch, settings: TelemetrySettings, engine: Wanted = "auto") -> None:
    """Have every node of a house that is made send to a collector, and serve by an engine."""
    plain = House.config
    monkeypatch.setattr(
        House, "config",
        lambda self, name: msgspec.structs.replace(plain(self, name), telemetry=settings, engine=engine),
    )  # fmt: skip


def named(collector: Collector, name: str) -> list[Span]:
    return [span for span in collector.spans if span.name == name]


async def visit(house: House, index: int, path: str, **fields: str) -> str:
    address = f"http://{house.ingress(index)}{path}"
    async with (
        aiohttp.ClientSession() as visiting,
        visiting.get(address, headers={"Host": "site.test", **fields}) as answer,
    ):
        return await answer.text()


@pytest.mark.timeout(240)
async def test_a_request_that_another_node_answers_is_one_trace_and_so_is_a_rollout(
    component: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with a_collector() as collector:
        keys = tmp_path / "fields"
        keys.touch(0o600)
        keys.write_text("api-key: k1\n")
        telling(monkeypatch, TelemetrySettings(collector.url, fields=str(keys)))
        async with a_house(2) as house:
            await house.prepare_lane()
            await house.deploy(component("services"), app='keyvalue = ["visits"]', smoke="/env")
            await until(lambda: house.runs(0) != house.runs(1), 30)
            away = 0 if house.runs(1) else 1
            await visit(house, away, "/env", traceparent=f"00-{TRACE}-{CLIENT}-01")
            await visit(house, away, "/env", traceparent=f"00-{TRACE[:-1]}d-{CLIENT}-00")
            await until(lambda: len([span for span in collector.spans if span.trace_id.hex() == TRACE]) == 2, 30)
            await until(lambda: bool(named(collector, "rollout site production")), 20)
            names = {index: house.control(index).core.node for index in (0, 1)}
            metrics = render(house.control(0), "1", EVERYTHING).decode()
        assert all(received.fields["api-key"] == "k1" for received in collector.came)
    (here,) = [span for span in named(collector, "GET site/web") if span.trace_id.hex() == TRACE]
    (through,) = [span for span in named(collector, "GET") if span.trace_id.hex() == TRACE]
    assert (here.trace_id.hex(), through.parent_span_id.hex()) == (TRACE, CLIENT)
    assert here.parent_span_id == through.span_id, (
        "the node that answered goes on with the trace of the one that was asked"
    )
    assert (here.kind, attributes(here)["url.path"]) == (Span.SPAN_KIND_SERVER, "/env")
    assert all(span.trace_id.hex() != f"{TRACE[:-1]}d" for span in collector.spans), "its client does not record it"
    rollouts = named(collector, "rollout site production")
    (trace,) = {span.trace_id for span in rollouts}
    assert all(span.status.code == Status.STATUS_CODE_UNSET for span in rollouts)
    stages = named(collector, "stage 1 of 1")
    assert {span.trace_id for span in stages} == {trace}
    assert {span.parent_span_id for span in stages} <= {span.span_id for span in rollouts}
    decisions = [span for span in collector.spans if span.name == "decision start"]
    assert {span.trace_id for span in decisions} == {trace}
    assert any(record.body.string_value == "the node runs" for record in collector.records)
    assert any(record.trace_id.hex() == TRACE for record in collector.records), "lines lead to their trace"
    sent = series(metrics)
    assert sent["freehold_telemetry_sent_total[('signal', 'traces')]"] >= 2
    assert sent["freehold_telemetry_dropped_total[('signal', 'logs')]"] == 0
    assert len(set(names.values())) == 2


async def test_a_collector_that_is_away_costs_visitors_nothing_and_is_told_of(
    component: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    need_promtool()
    status = [503]
    async with a_collector(lambda _one: (status[0], {})) as collector:
        telling(monkeypatch, TelemetrySettings(collector.url))
        async with a_house(1) as house:
            await house.prepare_lane()
            await house.deploy(component("hello"), smoke="/other")
            assert await visit(house, 0, "/") == "hello world"
            await until(lambda: len(house.control(0).telemetry.problems()) == 2, 20)
            async with house.client() as client:
                warnings = (await client.get("/v1/node"))["warnings"]
            assert any("the collector does not take traces (status 503)" in warning for warning in warnings)
            away = await scraped(house)
            status[0] = 200
            await until(lambda: not house.control(0).telemetry.problems(), 40)
            await until(lambda: bool(named(collector, "GET site/web")), 20)
            back = await scraped(house)
            status[0] = 400
            assert await visit(house, 0, "/") == "hello world"
            traces, _logs = house.control(0).telemetry.exporters
            await until(lambda: traces.dropped > 0, 20)
            refusing = await scraped(house)
    assert firing(away) == {}, "what a collector could take later waits for it"
    assert firing(back, away) == {}, "nothing was lost"
    assert set(firing(refusing, back)) == {"FreeholdTelemetryDrops"}


@pytest.mark.parametrize("engine", ENGINES)
async def test_either_engine_places_its_answers_in_their_traces_and_records_a_share_of_its_own(
    engine: Wanted, component: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_collector() as collector:
        telling(monkeypatch, TelemetrySettings(collector.url, traces=1e-9), engine)
        async with a_house(1) as house:
            await house.prepare_lane()
            await house.deploy(component("hello"), smoke="/other")
            await visit(house, 0, "/ours")
            await visit(house, 0, "/unrecorded", traceparent=f"00-{TRACE[:-1]}d-{CLIENT}-02")
            await visit(house, 0, "/theirs", traceparent=f"00-{TRACE}-{CLIENT}-03")
            await until(lambda: bool(named(collector, "GET site/web")), 20)
            shown = await scraped(house)
    (span,) = named(collector, "GET site/web")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, CLIENT)
    assert attributes(span)["url.path"] == "/theirs"
    assert {dict(labels)["engine"] for name, labels in shown if name == "freehold_serving_info"} == {engine}


@pytest.mark.parametrize("engine", ENGINES)
async def test_what_an_app_asks_of_its_stores_hangs_below_its_request(
    engine: Wanted, component: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_collector() as collector:
        telling(monkeypatch, TelemetrySettings(collector.url), engine)
        async with a_house(1) as house:
            await house.prepare_lane()
            await house.deploy(component("services"), app='keyvalue = ["visits"]', smoke="/env")
            await visit(house, 0, "/kv/set?store=visits&value=v", traceparent=f"00-{TRACE}-{CLIENT}-01")
            await visit(house, 0, "/kv/set?store=others&value=v", traceparent=f"00-{TRACE[:-1]}d-{CLIENT}-01")
            await visit(house, 0, "/kv/set?store=visits&value=v", traceparent=f"00-{TRACE[:-1]}e-{CLIENT}-00")
            await until(lambda: len(spans_below(collector, TRACE)) == 2, 20)
            lines = await house.control(0).logs.recent(LogFilter(), 5000)
            shown = await scraped(house)
    assert lines
    assert not any(b"db.system.name" in line for line in lines), "spans are no lines of the log"
    assert spans_below(collector, TRACE) == [("open visits", ""), ("set visits", "")]
    assert spans_below(collector, f"{TRACE[:-1]}d") == [("open others", "access-denied")]
    assert spans_below(collector, f"{TRACE[:-1]}e") == [], "its client does not record it"
    assert {dict(labels)["engine"] for name, labels in shown if name == "freehold_serving_info"} == {engine}


def spans_below(collector: Collector, trace: str) -> list[tuple[str, str]]:
    """What hangs below the request of a trace, in order, and how it failed."""
    spans = [span for span in collector.spans if span.trace_id.hex() == trace]
    requests = [span.span_id for span in spans if span.parent_span_id.hex() == CLIENT]
    below = [span for span in spans if span.parent_span_id in requests]
    return [(span.name, span.status.message) for span in sorted(below, key=lambda span: span.start_time_unix_nano)]


async def test_without_settings_nothing_is_kept_or_sent(component: Callable[[str], Path]) -> None:
    del component
    async with a_house(1) as house:
        telemetry = house.control(0).telemetry
        assert telemetry.exporters == ()
        telemetry.take_line(b'{"span_id":"x"}')
        assert telemetry.problems() == []
