"""A table as plain text: columns as wide as their widest cell, two spaces apart, no lines. For standard output."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the rows under their header; an empty string if there are none."""
    if not rows:
        return ""
    every = [header, *rows]
    widths = [max(len(row[column]) for row in every) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in every
    )


def short(node: str) -> str:
    """Return the end of a node's id, where ids differ."""
    return node[-8:]
