"""The measures of scale, on a fleet small enough for every run; the large ones are in docs/reports/scale.md."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from simulation.mesh.fleet import Fleet
from simulation.mesh.scale import STARTED_MAX, aims, measure, report, start
from simulation.mesh.scale_plot import draw


def test_a_small_fleet_meets_every_aim_and_is_written_up() -> None:
    scales = [measure(3), measure(4)]
    assert [aim for aim, _, met in aims(scales) if not met] == []
    page = report(scales, "scale.svg")
    assert page.count("| record push |") == 2
    assert "**missed**" not in page
    drawing = ElementTree.fromstring(draw(scales))
    lines = drawing.findall("{http://www.w3.org/2000/svg}polyline")
    with_times = sum(bool(row.times_ms) for row in scales[0].rows)
    assert len(lines) == with_times + len(scales[0].rows), (
        "one line for each measure in each panel that it has values for"
    )


@pytest.mark.parametrize("nodes", [8, 16, 32])
def test_the_start_of_a_fleet_costs_each_node_a_fixed_few_messages_of_records(nodes: int) -> None:
    fleet = Fleet([f"n{index + 1}" for index in range(nodes)], seed=1)
    of_records, of_all = start(fleet)
    assert len({core.records.store.trie.root() for _, core in fleet.cores()}) == 1
    assert 0 < of_records.messages <= STARTED_MAX
    # Every link costs each side a hello, an echo and a head, and half a comparison of records.
    assert of_all.messages <= STARTED_MAX + 5 * nodes
