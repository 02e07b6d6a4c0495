"""The measures of scale, on a fleet small enough for every run; the large ones are in docs/reports/scale.md."""

from __future__ import annotations

from xml.etree import ElementTree

from simulation.mesh.scale import aims, measure, report
from simulation.mesh.scale_plot import plot


def test_a_small_fleet_meets_every_aim_and_is_written_up() -> None:
    found = [measure(3), measure(4)]
    assert [aim for aim, _, met in aims(found) if not met] == []
    page = report(found, "scale.svg")
    assert page.count("| record push |") == 2
    assert "**missed**" not in page
    drawing = ElementTree.fromstring(plot(found))
    lines = drawing.findall("{http://www.w3.org/2000/svg}polyline")
    with_times = sum(bool(row.times_ms) for row in found[0].rows)
    assert len(lines) == with_times + len(found[0].rows), (
        "one line for each measure in each panel that it has values for"
    )
