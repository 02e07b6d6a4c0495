"""One measured number, its aim, and the peer's number beside it."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """`met` is None where there is no aim; `ratio` is ours over the peer's; `note` says how it was measured."""

    name: str
    value: float
    unit: str
    aim: str = ""
    met: bool | None = None
    peer: str = ""
    ratio: float | None = None
    note: str = ""


def at_most(name: str, value: float, unit: str, limit: float, *, note: str = "", peer: str = "") -> Row:
    """A row that aims to stay at or below `limit`."""
    return Row(name, value, unit, f"<= {limit:g}", value <= limit, peer=peer, note=note)


def beside(
    name: str, value: float, unit: str, peer: str, theirs: float, *, at_least: float | None = None, note: str = ""
) -> Row:
    """A row with the peer's value; `at_least` is the aimed share of it."""
    ratio = round(value / theirs, 3) if theirs else None
    aim = f">= {at_least:g} x peer" if at_least is not None else ""
    met = ratio is not None and ratio >= at_least if at_least is not None else None
    return Row(name, value, unit, aim, met, f"{peer}: {theirs:g}", ratio, note)
