"""What the alert rules of docs/monitoring make of metrics that nodes showed: judged by promtool. No test of its own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from node.api.callers.scope import EVERYTHING
from node.api.reports.app_metrics import look
from node.api.reports.metrics import render
from tests.support.mesh.in_process import House

RULES = Path(__file__).parents[3] / "docs" / "monitoring" / "alerts.yml"
NAMES = tuple(re.findall(r"alert: (\w+)", RULES.read_text()))
MINUTES = 75
"""Longer than any rule waits."""

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def need_promtool() -> None:
    """Skip the test by name where promtool is not installed."""
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool: apt-get install prometheus")


async def scraped(house: House, index: int = 0) -> Series:
    """What one node shows a scraper now."""
    control = house.control(index)
    await look(control)
    return parsed(render(control, "1", EVERYTHING).decode(), f"n{index}")


def parsed(text: str, instance: str) -> Series:
    """The series of an exposition, as a scraper names them."""
    table: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {**sample.labels, "instance": instance, "job": "freehold"}
            table[sample.name, tuple(sorted(labels.items()))] = sample.value
    return table


def firing(
    now: Series, before: Series | None = None, *, later_s: float = 0.0, minutes: int = MINUTES
) -> dict[str, str]:
    """The alerts that fire within `minutes` in which everything goes on as it stands, each with its labels.

    Counters grow each minute by what they grew from `before` to `now`, and a time in the past that moved on from `before`
    to `now` goes on with the clock. `later_s` moves the whole hour into the future.
    """
    began_s = time.time() + later_s
    series = []
    for (name, labels), value in now.items():
        start = value - began_s if name.endswith("_timestamp_seconds") else value
        grown = value - before.get((name, labels), 0.0) if before is not None else 0.0
        step = grown if name.endswith(("_total", "_count")) else 0.0
        if name.endswith("_timestamp_seconds") and grown and value <= began_s:
            step = 60.0
        series.append({"series": _written(name, dict(labels)), "values": f"{start!r}+{step!r}x{minutes}"})
    judged = [
        {"eval_time": f"{start}m", "alertname": name, "exp_alerts": []}
        for start in range(1, minutes, 3)
        for name in NAMES
    ]
    tests = {
        "rule_files": [str(RULES)], "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": judged}],
    }  # fmt: skip
    done = subprocess.run(
        ["promtool", "test", "rules", "/dev/stdin"],
        input=json.dumps(tests), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    table = {}
    for part in re.split(r"alertname: ?", said)[1:]:
        labels = re.search(r"Labels:\{([^}]*)\}", part)
        assert labels is not None, said
        table[part.partition(",")[0].strip()] = labels[1]
    assert (done.returncode == 0) == (not table), said
    return table


def _written(name: str, labels: Mapping[str, str]) -> str:
    return f"{name}{{{','.join(f'{key}={json.dumps(value)}' for key, value in labels.items())}}}"
