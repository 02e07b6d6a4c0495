"""Results as two committed files: `results.json` for machines, `RESULTS.md` for people, missed aims first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
JSON: Final = HERE / "results.json"
MARKDOWN: Final = HERE / "RESULTS.md"

Results = dict[str, dict[str, Any]]
"""Module name -> {"machine": ..., "seconds": ..., "rows": [row, ...]}."""


def load() -> Results:
    """Read the last results; a module that is not run again keeps its own."""
    loaded: Results = json.loads(JSON.read_text())["modules"] if JSON.exists() else {}
    return loaded


def save(results: Results) -> None:
    """Write both files."""
    ordered = {name: results[name] for name in sorted(results)}
    JSON.write_text(json.dumps({"modules": ordered}, indent=1) + "\n")
    MARKDOWN.write_text(markdown(ordered))


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables: first what missed its aim, then everything by module with the machine it was measured on."""
    missed = [row for module in results.values() for row in module["rows"] if row["met"] is False]
    parts = ["# Results\n", "Written by `make bench`; what each row means stands in the module of its heading.\n"]
    parts.append("## Missed aims\n")
    parts.append(table(missed) if missed else "None.\n")
    for name, module in results.items():
        parts.append(f"## {name}\n")
        parts.append(module["about"] + "\n")
        machine = "; ".join(f"{key} {value}" for key, value in module["machine"].items())
        parts.append(f"{machine}; took {module['seconds']:.0f} s.\n")
        parts.append(table(module["rows"]))
        notes = dict.fromkeys(f"- {row['name']}: {row['note']}" for row in module["rows"] if row["note"])
        if notes:
            parts.append("\n".join(notes) + "\n")
    return "\n".join(parts)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of rows."""
    lines = ["| what | value | unit | aim | met | peer | ratio |", "|---|--:|---|---|---|---|--:|"]
    for row in rows:
        met = {True: "yes", False: "**no**", None: ""}[row["met"]]
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        cells = (row["name"], f"{row['value']:,g}", row["unit"], row["aim"], met, row["peer"], ratio)
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"
