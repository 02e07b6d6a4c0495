"""The files of a static site: a folder as it is, without what nobody means to publish.

Not here: answering requests for them (`guest/python/freehold_static.py`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from cli.errors import BuildError
from cli.project.model import App
from cli.project.source import SourceTree, read_tree

WELL_KNOWN: Final = ".well-known"
"""The one hidden folder that is published: RFC 8615 puts there what visitors' programs ask for."""

NOT_FOUND: Final = "404.html"
INDEX: Final = "index.html"


def read_site(app: App, folder: Path) -> SourceTree:
    """Return the files that `app` publishes. Raises `BuildError`.

    Hidden files and folders stay out, but for `.well-known`; a link that leads out of the folder is refused.
    """
    tree = read_tree(app.name, folder)
    if (folder / WELL_KNOWN).is_dir():
        known = read_tree(app.name, folder / WELL_KNOWN)
        files = [*tree.files, *((f"{WELL_KNOWN}/{name}", content) for name, content in known.files)]
        tree = replace(tree, files=tuple(sorted(files)))
    inside = folder.resolve()
    for name, _ in tree.files:
        if not (folder / name).resolve().is_relative_to(inside):
            step = f"put the file itself there, or take {app.source}/{name} away"
            raise BuildError(app.name, f"{app.source}/{name} is a link that leads out of the site", next_step=step)
    if tree.content(INDEX) is None:
        text = "; a site generator's output is often called dist, build, public or _site"
        step = f"set source of [app.{app.name}] in freehold.toml to the folder that is to be served{text}"
        raise BuildError(app.name, f"{app.source} holds no {INDEX}", next_step=step)
    if app.entry != NOT_FOUND and tree.content(app.entry) is None:
        step = f"set entry of [app.{app.name}] in freehold.toml to a page that is there"
        raise BuildError(app.name, f"{app.source}/{app.entry} does not exist", next_step=step)
    return tree
