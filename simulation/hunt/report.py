"""What hunts showed, as pages to commit: seeds.md and mutants.md in docs/reports/. Not here: running them (hunt.py)."""

from __future__ import annotations

from collections.abc import Sequence

from simulation.chain.mutants import Mutant
from simulation.chain.run import Result
from simulation.hunt.hunt import HuntTally

MEANING = {
    "fault ": "Faults",
    "crashes": "Crashes",
    "outcome ": "What clients were told",
    "reject ": "Messages refused, by rule",
}
"""Counts by the beginning of their names; all others stand first."""


def seeds_page(first_seed: int, tally: HuntTally) -> str:
    """Return the page on a stretch of seeds."""
    last = first_seed + tally.seeds - 1
    lines = [
        "# Seeds",
        "",
        f"`python -m simulation --first-seed {first_seed} --seeds {tally.seeds} --write` wrote this. Each seed draws a",
        "fleet, its links, its clients and its faults; every tenth one is a fleet of whole nodes, the others are chains",
        "alone. Every invariant is judged as things happen; then all heals, and every node must get a command decided.",
        "",
        "| | |",
        "|---|---|",
        f"| seeds | {first_seed} to {last} |",
        f"| virtual hours | {tally.virtual_ms / 3_600_000:,.1f} |",
        f"| decisions | {tally.decisions:,} |",
        f"| violations | {_violations(tally.failed)} |",
        "",
    ]
    left = dict(sorted(tally.counts.items()))
    grouped = {title: {n: left.pop(n) for n in list(left) if n.startswith(begin)} for begin, title in MEANING.items()}
    for title, counts in {"What happened": left, **grouped}.items():
        lines += [f"## {title}", "", "| | times |", "|---|---|"]
        lines += [f"| {name} | {number:,} |" for name, number in counts.items()]
        lines.append("")
    return "\n".join(lines)


def hostile_page(first_seed: int, tally: HuntTally) -> str:
    """Return the page on a stretch of seeds of a hostile member."""
    last = first_seed + tally.seeds - 1
    lines = [
        "# A hostile member",
        "",
        f"`python -m simulation --hostile {tally.seeds} --first-seed {first_seed} --write` wrote this. In each seed a",
        "certified node, and keys with rights elsewhere, try every cell of the trust model among honest stores, in an order",
        "of its own, while honest people file papers, end some and are revoked. A cell is a thing that must never succeed;",
        "beside each stands how often it was tried. Those that begin with `honest` are the counterpart: what must succeed.",
        "",
        "| | |",
        "|---|---|",
        f"| seeds | {first_seed} to {last} |",
        f"| attempts | {tally.counts.total():,} |",
        f"| cells | {len(tally.counts)} |",
        f"| violations | {_violations(tally.failed)} |",
        "",
        "| cell | attempts |",
        "|---|---|",
        *(f"| {name} | {number:,} |" for name, number in sorted(tally.counts.items())),
        "",
    ]
    return "\n".join(lines)


def _violations(failed: Sequence[Result]) -> str:
    return "none" if not failed else ", ".join(f"seed {result.seed}: {result.invariant}" for result in failed)


def mutant_rows(kills: Sequence[tuple[Mutant, Result | None]]) -> list[str]:
    """Return a table's lines."""
    lines = ["| mutant | what it breaks | noticed as | by seed |", "|---|---|---|---|"]
    for mutant, result in kills:
        noticed = "**survived**" if result is None else result.invariant
        lines.append(f"| {mutant.name} | {mutant.says} | {noticed} | {'-' if result is None else result.seed} |")
    return lines


def mutants_page(kills: Sequence[tuple[Mutant, Result | None]]) -> str:
    """Return the page on all mutants."""
    killed = sum(result is not None for _, result in kills)
    head = [
        "# Mutants",
        "",
        "`python -m simulation --mutants --write` wrote this. Each mutant is one named way to break the protocol, and is",
        "hunted from seed 0 under faults that suit it; it is noticed by the first seed that fails with it, and not without.",
        f"**{killed} of {len(kills)} were noticed.**",
        "",
    ]
    return "\n".join([*head, *mutant_rows(kills), ""])
