"""Writes docs/reference/providers.md from the conformance suites: `python -m tests.conformance.providers_page`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tests.conformance import keyvalue_providers, sql_providers

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "providers.md"


def page() -> str:
    """Return the page of the reference."""
    lines = [
        "# Providers",
        "",
        "Made from the conformance suites by `python -m tests.conformance.providers_page`; each cell is a check that ran.",
    ]
    for title, suite in (("Key-value stores", keyvalue_providers), ("SQL databases", sql_providers)):
        lines += ["", f"## {title}", *_table(suite.PROVIDERS, suite.CAPABILITIES, suite.LACKS)]
    return "\n".join(lines) + "\n"


def _table(
    providers: Mapping[str, str], capabilities: Mapping[str, Callable[..., Any]], lacks: frozenset[tuple[str, str]]
) -> list[str]:
    lines = [f"| capability | {' | '.join(providers.values())} |", f"|---|{'---|' * len(providers)}"]
    for name, check in capabilities.items():
        cells = ["no" if (provider, name) in lacks else "yes" for provider in providers]
        lines.append(f"| {check.__doc__} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    PAGE.write_text(page())
