"""Draws lines over a count into an SVG file: both axes logarithmic, readable on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from math import floor, log10
from typing import Final

WIDTH: Final = 720
HEIGHT: Final = 380
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 34, 46
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#777777")
"""Okabe and Ito's, which people with any colour vision can tell apart."""

FONT: Final = 'font-family="sans-serif" font-size="12"'

Line = Mapping[int, float]
"""Count -> value, both above zero."""


def lines(title: str, unit: str, over: str, drawn: Mapping[str, Line]) -> str:
    """Return the picture: one line for each name, over the counts called `over`."""
    counts = sorted({count for line in drawn.values() for count in line})
    values = [value for line in drawn.values() for value in line.values()]
    low, high = 10 ** floor(log10(min(values))), max(values) * 1.2

    def x(count: float) -> float:
        span = log10(counts[-1] / counts[0]) or 1.0
        return round(LEFT + (WIDTH - LEFT - RIGHT) * log10(count / counts[0]) / span, 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * log10(value / low) / log10(high / low), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" {FONT}>',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="14" fill="#222222">{escape(title)}, {escape(unit)}</text>',
    ]
    parts += [
        f'<text x="{x(count)}" y="{HEIGHT - 26}" text-anchor="middle" fill="#444444">{count}</text>' for count in counts
    ]
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle" fill="#444444">{escape(over)}</text>'
    )
    parts += [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value)}" y2="{y(value)}" stroke="#dddddd"/>'
        f'<text x="{LEFT - 6}" y="{y(value) + 4}" text-anchor="end" fill="#444444">{value:,g}</text>'
        for value in _marks(low, high)
    ]
    last = [(y(line[max(line)]), name) for name, line in drawn.items()]
    beside = _apart(sorted(last))
    for colour, (name, line) in zip(COLOURS, drawn.items(), strict=False):
        points = " ".join(f"{x(count)},{y(value)}" for count, value in sorted(line.items()))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(count)}" cy="{y(value)}" r="3" fill="{colour}"/>' for count, value in sorted(line.items())
        ]
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{beside[name] + 4}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _marks(low: float, high: float) -> list[float]:
    numbers, step = [], low
    while step <= high:
        numbers += [step * times for times in (1, 2, 5) if step * times <= high]
        step *= 10
    return numbers


def _apart(places: list[tuple[float, str]]) -> dict[str, float]:
    """Names, from the top down, none nearer than a line of text to the one above."""
    table: dict[str, float] = {}
    above = float("-inf")
    for place, name in places:
        above = max(place, above + 15)
        table[name] = above
    return table
