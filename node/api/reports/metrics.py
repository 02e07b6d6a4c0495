"""Metrics of one node in the Prometheus text format, prefix `freehold_`, base units, no label without a small bound.

Read when asked: nothing is counted here that is not counted anyway. Not here: what to alert on (docs/monitoring),
and the series of apps and rollouts (app_metrics.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from node.api.callers.scope import Scope
from node.api.reports.app_metrics import app_metrics, job_metrics, lane_metrics, message_metrics
from node.api.reports.upkeep_metrics import ending_metrics, upkeep_metrics
from node.control import Control
from protocols.liveness import Belief

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
RULES_MAX = 64
"""Kinds of rejected messages shown; there are about that many rules, and a peer cannot invent one."""


def render(control: Control, build: str, scope: Scope) -> bytes:
    """Return the metrics of this node as text; what counts projects counts those the caller sees."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Node(control, build, scope))
    return generate_latest(registry)


class _Node(Collector):
    def __init__(self, control: Control, build: str, scope: Scope) -> None:
        self._scope = scope
        self._control = control
        self._build = build

    def collect(self) -> Iterable[Metric]:
        """Yield every metric."""
        control, core = self._control, self._control.core
        yield InfoMetricFamily("freehold_node", "Who this node is.", {
            "node": core.node, "name": control.config.name, "mesh": core.trust.mesh.hex(), "version": self._build,
        })  # fmt: skip
        yield InfoMetricFamily(
            "freehold_serving", "What serves in this node's workers.", {"engine": control.app_counts.engine}
        )
        yield _gauge("chain_slot", "Decisions this node holds.", core.chain.position.slot)
        yield _gauge("chain_speaking", "1 if this node's store may promise and vote.", core.chain.speaking)
        yield _gauge("chain_stalled", "1 if this node cannot follow the chain.", bool(core.chain.stalled))
        yield _gauge("chain_muted", "1 if this node does not vote because its disk is full.", bool(core.chain.muted))
        yield _gauge("quarantined", "1 if this node gave up its vote.", bool(control.concerns.quarantined))
        yield _gauge("voters", "Voters the chain names.", len(core.state.voters))
        yield _gauge("mesh_resets", "Times the mesh was reset by its admins.", core.state.resets)
        yield _gauge("records", "Records this node holds.", len(core.records.store.entries))
        yield self._members()
        certificate = core.trust.certificate(core.node)
        if certificate is not None:
            expiry = certificate.expires_ms / 1000
            yield _gauge("certificate_expiry_timestamp_seconds", "When this node's certificate runs out.", expiry)
        yield _gauge("disk_free_bytes", "Free space under the data folder.", shutil.disk_usage(control.folder).free)
        counts = control.mesh.transport.counts()
        yield _gauge("links", "Connections to peers.", counts["links"])
        yield _gauge("links_admitted", "Connections to admitted peers.", counts["admitted"])
        yield _gauge("links_half_open", "Inbound connections that are not admitted.", counts["half_open"])
        yield _gauge(
            "lanes_running",
            "Project environments that run here.",
            sum(self._scope.sees(*lane) for lane in control.workloads.running),
        )
        yield from job_metrics(control, self._scope)
        yield _counter("storage_syncs", "Durable writes this node waited for.", control.storage.sync_count)
        yield _counter("log_lines_lost", "Log lines that a full disk lost.", control.logs.dropped)
        yield self._rejects()
        yield from app_metrics(control, self._scope)
        yield from message_metrics(control, self._scope)
        yield from lane_metrics(control, self._scope)
        yield from ending_metrics(control, self._scope)
        yield from upkeep_metrics(control, self._scope)

    def _members(self) -> Metric:
        core = self._control.core
        family = GaugeMetricFamily("freehold_members", "Members by what this node believes.", labels=["belief"])
        beliefs = [core.liveness.belief(node.node) for node in core.state.nodes if node.node != core.node]
        for belief in Belief:
            family.add_metric([belief.value], beliefs.count(belief))
        return family

    def _rejects(self) -> Metric:
        rejects = self._control.mesh.rejects
        family = CounterMetricFamily(
            "freehold_rejected_messages", "Messages of peers refused, by rule.", labels=["rule"]
        )
        for rule in sorted(rejects)[:RULES_MAX]:
            family.add_metric([rule], rejects[rule])
        return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"freehold_{name}", text, value=float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"freehold_{name}", text, value=float(value))
