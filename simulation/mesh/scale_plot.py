"""The plot of docs/reports/scale.md, drawn as SVG by hand: time and bytes per node over the size of the fleet.

Both axes are logarithmic, so that a straight line is a power of the size. Not here: the measures (scale.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from simulation.mesh.scale import Row, Scale

WIDTH, HEIGHT = 380, 250
LEFT, TOP, RIGHT, BOTTOM = 62, 30, 12, 34
LEGEND = 20
COLOURS = ("#4269d0", "#ff8ab7", "#3ca951", "#9c6b4e", "#ff725c", "#6cc5b0", "#a463f2", "#97bbf5")
FONT = 'font-family="sans-serif" font-size="11"'


def draw(found: Sequence[Scale]) -> str:
    """Return an SVG of two panels: 99 % times in ms, and bytes per node."""
    names = [row.measure for row in found[0].rows]
    panels = [
        _panel("99 % done, ms", found, lambda row: float(row.share_ms(0.99)), 0),
        _panel("bytes per node", found, lambda row: row.sent_bytes, WIDTH),
    ]
    legend = []
    for index, name in enumerate(names):
        x, y = LEFT + index % 3 * 240, HEIGHT + 14 + index // 3 * LEGEND
        legend.append(f'<line x1="{x}" y1="{y}" x2="{x + 18}" y2="{y}" stroke="{COLOURS[index]}" stroke-width="2"/>')
        legend.append(f'<text x="{x + 24}" y="{y + 4}" {FONT}>{name}</text>')
    size = f'width="{2 * WIDTH}" height="{HEIGHT + 3 * LEGEND}"'
    body = "\n".join([*panels, *legend])
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'


def _panel(title: str, found: Sequence[Scale], value: Callable[[Row], float], left: int) -> str:
    values = [value(row) for scale in found for row in scale.rows if value(row) > 0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    sizes = [scale.nodes for scale in found]
    first, last = math.log10(sizes[0]), math.log10(sizes[-1])

    def across(nodes: int) -> float:
        share = (math.log10(nodes) - first) / (last - first) if last > first else 0.5
        return left + LEFT + share * (WIDTH - LEFT - RIGHT)

    def down(amount: float) -> float:
        return TOP + (high - math.log10(amount)) / max(1, high - low) * (HEIGHT - TOP - BOTTOM)

    lines = [f'<text x="{left + LEFT}" y="18" {FONT} font-weight="bold">{title}</text>']
    for power in range(low, high + 1):
        y = down(10**power)
        lines.append(f'<line x1="{left + LEFT}" y1="{y:.1f}" x2="{left + WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        lines.append(f'<text x="{left + LEFT - 6}" y="{y + 4:.1f}" {FONT} text-anchor="end">{10**power:,}</text>')
    for nodes in sizes:
        x, y = across(nodes), HEIGHT - BOTTOM + 16
        lines.append(f'<text x="{x:.1f}" y="{y}" {FONT} text-anchor="middle">{nodes}</text>')
    lines.append(f'<text x="{left + WIDTH - RIGHT}" y="{HEIGHT - 4}" {FONT} text-anchor="end">nodes</text>')
    for index in range(len(found[0].rows)):
        points = [(across(scale.nodes), value(scale.rows[index])) for scale in found]
        shown = [(x, down(amount)) for x, amount in points if amount > 0]
        if not shown:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in shown)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[index]}" stroke-width="2"/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[index]}"/>' for x, y in shown]
    return "\n".join(lines)
