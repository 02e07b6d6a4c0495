"""Metrics of what needs somebody's hand in time: what ends, what fills up, what is not delivered or not copied.

What tells of people and of the node's own affairs is shown to those alone who see every project.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from node.api.callers.scope import Scope
from node.config import certificates_folder
from node.control import Control
from protocols.refusal import Refusal
from runtime.ingress import certificates

GRANTS_MAX = 256
_LANE = ["project", "environment"]


def ending_metrics(control: Control, scope: Scope) -> Iterable[Metric]:
    """Yield when each certificate and each principal's grant ends, as Unix times."""
    core, wall_ms = control.core, control.clock().wall_ms
    members = GaugeMetricFamily(
        "freehold_member_certificate_expiry_timestamp_seconds", "When it ends.", labels=["node"]
    )
    for node in core.state.nodes:
        certificate = core.trust.certificate(node.node)
        if certificate is not None:
            members.add_metric([node.node], certificate.expires_ms / 1000)
    yield members
    if not scope.whole:
        return
    yield _visitors(control)
    grants = GaugeMetricFamily(
        "freehold_grant_expiry_timestamp_seconds", "When a grant ends.", labels=["name", "key", "kind"]
    )
    for key in core.dossiers.principals()[:GRANTS_MAX]:
        rights = core.dossiers.rights(key, wall_ms)
        if not isinstance(rights, Refusal):
            ends_ms = max(entry.expires_ms for entry in rights.each)
            grants.add_metric([rights.name, key.hex()[:16], rights.kind], ends_ms / 1000)
    yield grants


def _visitors(control: Control) -> Metric:
    """The certificates that visitors get from files of this node, by file."""
    family = GaugeMetricFamily(
        "freehold_ingress_certificate_expiry_timestamp_seconds",
        "When a certificate for visitors ends.",
        labels=["file"],
    )
    folder = certificates_folder(control.config, control.folder)
    if control.config.ingress_tls and certificates.holds_any(folder):
        try:
            held = certificates.read_some(folder)
        except certificates.CertificateError:
            held = []  # `doctor` says what is wrong with them
        for loaded in held:
            family.add_metric([loaded.path.name], loaded.not_after.timestamp())
    return family


def upkeep_metrics(control: Control, scope: Scope) -> Iterable[Metric]:
    """Yield how full this node's records are, what its webhooks do not deliver, and how old second copies of data are."""
    copied = GaugeMetricFamily(
        "freehold_standby_copy_timestamp_seconds", "The moment that a second copy of this data is of.", labels=_LANE
    )
    failing = GaugeMetricFamily("freehold_standby_failing", "1 if it cannot be brought up to date now.", labels=_LANE)
    for lane, state in sorted(control.standby.states.items()):
        if scope.sees(*lane):
            copied.add_metric(list(lane), state.at_ms / 1000)
            failing.add_metric(list(lane), bool(state.problem))
    yield from (copied, failing)
    if not scope.whole:
        return
    lost = GaugeMetricFamily(
        "freehold_webhook_given_up_messages", "Of its newest messages, how many were given up.", labels=["webhook"]
    )
    waiting = GaugeMetricFamily("freehold_webhook_waiting_messages", "Messages to deliver.", labels=["webhook"])
    off = GaugeMetricFamily("freehold_webhook_off", "1 if it delivers no more.", labels=["webhook"])
    for name, file in sorted(control.webhooks.files.items()):
        lost.add_metric([name], len(file.lost()))
        waiting.add_metric([name], len(file.pending))
        off.add_metric([name], bool(file.off))
    yield from (lost, waiting, off)
    yield from _telemetry(control)
    yield GaugeMetricFamily(
        "freehold_records_used_ratio",
        "Of the records this node may write, how many it has.",
        value=control.audit.fullness,
    )


def _telemetry(control: Control) -> Iterable[Metric]:
    """What became of the spans and lines for a collector, by signal."""
    sent = CounterMetricFamily("freehold_telemetry_sent", "Spans or lines that a collector took.", labels=["signal"])
    dropped = CounterMetricFamily("freehold_telemetry_dropped", "Those it will never get.", labels=["signal"])
    waiting = GaugeMetricFamily("freehold_telemetry_waiting", "Those it has yet to get.", labels=["signal"])
    for exporter in control.telemetry.exporters:
        sent.add_metric([exporter.name], exporter.sent)
        dropped.add_metric([exporter.name], exporter.dropped)
        waiting.add_metric([exporter.name], exporter.waiting)
    yield from (sent, dropped, waiting)
