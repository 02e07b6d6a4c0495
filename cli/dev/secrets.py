"""Secrets of a development run: `.freehold/secrets`, a git-ignored file of NAME=VALUE lines. Not: any real secret."""

from __future__ import annotations

import re
from pathlib import Path

from cli.errors import UsageError

FILE_MAX_BYTES = 64 * 1024


def read_secrets(path: Path) -> dict[str, str]:
    """Return name and value of each line; no file, no secrets. Raises `UsageError` naming the line, never the value."""
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text()[:FILE_MAX_BYTES].splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name.strip()):
            step = f"write NAME=VALUE on line {number} of {path}"
            raise UsageError(f"{path.name}:{number}: this is not NAME=VALUE", next_step=step, kind="secrets-file")
        found[name.strip()] = value.strip()
    return found
