"""A table as plain text: columns as wide as their widest cell, two spaces apart, no lines. For standard output.

A row is one line whatever its cells hold (cli/text/foreign.py). Not here: what stands in the cells.
"""

from __future__ import annotations

from collections.abc import Sequence

from cli.text.foreign import one_line


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the rows under their header; an empty string if there are none."""
    if not rows:
        return ""
    every = [header, *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in every) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in every
    )


def short(node: str) -> str:
    """Return the end of a node's id, where ids differ."""
    return node[-8:]
