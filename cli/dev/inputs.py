"""Which files of a project decide what `freehold dev` serves: a change of any other is no reason to build again.

What dev itself writes, redirected into a file of the project, least of all: it would build for ever. Not here: watching
(server.py), and reading the files (cli/project/).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from cli.project.javascript_build import OUTER
from cli.project.model import ProjectFile
from cli.project.parse import FILE_NAME
from cli.project.site import WELL_KNOWN
from cli.project.source import LEFT_OUT

BESIDE: Final = frozenset({FILE_NAME, "package-lock.json"})
"""Files of the project's own folder that count; everything else that counts lies in an app's source, or above it."""

NOISE: Final = (".pyc", "~", ".swp", ".log")
"""Endings of what interpreters, editors and loggers leave in a source folder."""


def is_input(root: Path, project: ProjectFile, path: str) -> bool:
    """Whether a file of the project in `root` can change what is served."""
    try:
        parts = Path(os.path.realpath(path)).relative_to(os.path.realpath(root)).parts
    except ValueError:
        return False  # a link to elsewhere
    if not parts or parts[-1].endswith(NOISE) or any(part in LEFT_OUT for part in parts) or _is_own_output(path):
        return False
    if len(parts) == 1 and parts[0] in BESIDE:
        return True
    if any(part.startswith(".") and part != WELL_KNOWN for part in parts):
        return False
    if any(fnmatch(parts[-1], pattern) for pattern in OUTER):
        return any(
            source[: len(parts) - 1] == parts[:-1] or parts[: len(source)] == source for source in _sources(project)
        )
    return any(parts[: len(source)] == source for source in _sources(project))


def _sources(project: ProjectFile) -> Iterable[tuple[str, ...]]:
    """The apps' folders, and files of those that are components."""
    return {Path(os.path.normpath(app.source)).parts for app in project.base.apps.values()}


def _is_own_output(path: str) -> bool:
    """Whether the file is where this process writes what it says."""
    try:
        pair = os.stat(path)
        return any(
            os.path.samestat(pair, os.fstat(stream.fileno())) for stream in (sys.__stdout__, sys.__stderr__) if stream
        )
    except (OSError, ValueError):
        return False
