"""Which apps `freehold dev` runs from their source, and what they run in. Not here: how each language does it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cli.dev import engine, interpreter
from cli.project.build import Progress, source_of_app
from cli.project.find import Found
from cli.project.model import App
from protocols.changes.change import SOURCE_MAX_BYTES

IN_PYTHON: Final = frozenset({"python", "wsgi", "asgi", "static"})
SCRIPT_MAX_CHARS: Final = 512 * 1024
"""A fresh instance evaluates the script at its first request; a larger one takes longer than building it once."""


@dataclass(frozen=True, slots=True)
class FromSource:
    """An app to run from source: the component that runs it, that component's digest, and the source."""

    component: Path
    digest: str
    source: str


def from_source(found: Found, app: App, progress: Progress) -> FromSource | None:
    """Return how `app` runs from source, or None if it has to be built. Raises `BuildError`."""
    if app.schedule is not None or app.language == "component":
        return None
    tree = source_of_app(app, found.root)
    in_python = app.language in IN_PYTHON
    if in_python:
        source = interpreter.packed_source(found.project, app, tree)
    else:
        source = engine.bundled_source(app, tree, found.root, progress)
    if len(source) > (SOURCE_MAX_BYTES if in_python else SCRIPT_MAX_CHARS):
        return None
    if in_python:
        component, digest = interpreter.interpreter(app, tree, progress)
    else:
        component, digest = engine.engine(app, progress)
    return FromSource(component, digest, source)
