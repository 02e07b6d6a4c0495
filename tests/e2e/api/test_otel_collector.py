"""OpenTelemetry's own collector, built of its published modules, takes what a node sends and passes all of it on."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from node.config import TelemetrySettings
from tests.e2e.api.test_telemetry import CLIENT, TRACE, named, telling, visit
from tests.support.go import built_of
from tests.support.mesh.collector import a_collector, attributes
from tests.support.mesh.in_process import a_house, until

SOURCE = Path(__file__).parent / "otelcol"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def an_otelcol(program: Path, folder: Path, port: int, onward: str) -> AsyncIterator[None]:
    """Run one that takes OTLP over HTTP at a port and passes it on, at once, as JSON."""
    passing = {"endpoint": onward, "encoding": "json", "compression": "none", "sending_queue": {"enabled": False}}
    pipeline = {"receivers": ["otlp"], "exporters": ["otlp_http"]}
    settings = {
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{port}"}}}},
        "exporters": {"otlp_http": passing},
        "service": {"telemetry": {"metrics": {"level": "none"}}, "pipelines": {"traces": pipeline, "logs": pipeline}},
    }
    path = folder / "otelcol.yaml"
    path.write_text(json.dumps(settings))
    with (folder / "otelcol.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(program, str(path), stdout=log, stderr=log)
    try:
        yield
    finally:
        assert process.returncode is None, (folder / "otelcol.log").read_text()
        process.terminate()
        await process.wait()


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_opentelemetrys_collector_takes_traces_and_logs(
    component: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program, port = await asyncio.to_thread(built_of, SOURCE), free_port()
    telling(monkeypatch, TelemetrySettings(f"http://127.0.0.1:{port}"))
    async with a_collector() as behind, a_house(1) as house:
        await house.prepare_lane()
        await house.deploy(component("hello"), smoke="/other")
        telemetry = house.control(0).telemetry
        await until(lambda: len(telemetry.problems()) == 2, 20)  # nobody is there yet
        async with an_otelcol(program, tmp_path, port, behind.url):
            await until(lambda: not telemetry.problems(), 60)
            await visit(house, 0, "/", traceparent=f"00-{TRACE}-{CLIENT}-01")
            await until(lambda: any(span.trace_id.hex() == TRACE for span in behind.spans), 30)
            await until(lambda: bool(named(behind, "decision start")), 30)
            await until(lambda: any(record.body.string_value == "the node runs" for record in behind.records), 30)
            assert [exporter.dropped for exporter in telemetry.exporters] == [0, 0]
            assert min(exporter.sent for exporter in telemetry.exporters) > 0
    (span,) = [span for span in behind.spans if span.trace_id.hex() == TRACE]
    assert (span.name, span.parent_span_id.hex(), attributes(span)["url.path"]) == ("GET site/web", CLIENT, "/")
    assert {span.trace_id for span in named(behind, "rollout site production")} == {
        span.trace_id for span in named(behind, "decision start")
    }
