"""Writes the project file's JSON Schema and its page into docs/reference/: `python -m cli.project.publish`. No checks here."""

from __future__ import annotations

import json
from pathlib import Path

from cli.project.schema import published_schema, reference_page


def publish(docs: Path) -> None:
    """Write both files into the folder `docs`."""
    (docs / "freehold.schema.json").write_text(json.dumps(published_schema(), indent=2) + "\n")
    (docs / "freehold-toml.md").write_text(reference_page())


if __name__ == "__main__":
    publish(Path(__file__).resolve().parents[2] / "docs" / "reference")
