"""The dashboard and the alert rules of docs/monitoring: they ask for what a node shows, and Prometheus can read them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from node.api.callers.scope import EVERYTHING
from node.api.reports.metrics import render
from tests.support.mesh.in_process import a_house

FILES = Path(__file__).parents[3] / "docs" / "monitoring"
NAME = re.compile(r"\bfreehold_[a-z0-9_]+")


def asked() -> dict[str, set[str]]:
    """The series that each file asks for."""
    panels = json.loads((FILES / "dashboard.json").read_bytes())
    texts = [entry["expr"] for panel in panels["panels"] for entry in panel["targets"]]
    texts += [panel["query"] for panel in panels["templating"]["list"]]
    rules = re.sub(r"#.*", "", (FILES / "alerts.yml").read_text())
    return {"dashboard.json": set(NAME.findall(" ".join(texts))), "alerts.yml": set(NAME.findall(rules))}


async def test_every_series_that_is_asked_for_is_one_that_a_node_shows() -> None:
    async with a_house(1) as house:
        await house.prepare_lane()
        text = render(house.control(0), "1", EVERYTHING).decode()
    shown: set[str] = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        shown |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
    for file, names in asked().items():
        assert len(names) >= 8, file
        assert names <= shown, (file, names - shown)
    assert not {"freehold_app_answers", "freehold_no_such"} & shown, "a near miss would pass"


def test_panels_have_their_own_place_and_number() -> None:
    panels = json.loads((FILES / "dashboard.json").read_bytes())["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len({panel["id"] for panel in panels}) == len(set(places)) == len(panels)


def test_promtool_reads_the_rules() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    command = ["promtool", "check", "rules", FILES / "alerts.yml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
