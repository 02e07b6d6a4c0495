"""Builds that are kept beside a project: named by the beginning of their id. Not here: making or moving them."""

from __future__ import annotations

from pathlib import Path

from cli.errors import UsageError
from cli.project.build import BUILDS, STATE_FOLDER
from cli.project.bundle import BuildBundle, BundleError, read

PREFIX_MIN = 4


def builds_folder(root: Path) -> Path:
    """Where a project's builds are kept."""
    return root / STATE_FOLDER / BUILDS


def kept_build(root: Path, named: str) -> BuildBundle:
    """Return the build whose id begins so, checked whole. Raises UsageError for none or several, or a damaged one."""
    folder = builds_folder(root)
    known = sorted(path.name for path in folder.iterdir() if len(path.name) == 64) if folder.is_dir() else []
    texts = [text for text in known if len(named) >= PREFIX_MIN and text.startswith(named.lower())]
    if len(texts) != 1:
        what = f"{len(texts)} builds begin with {named}" if texts else f"no build here begins with {named!r}"
        raise UsageError(what, next_step="freehold build, or freehold release import FILE", kind="no-such-build")
    try:
        return read(folder / texts[0])
    except (BundleError, OSError) as error:
        raise UsageError(
            f"build {texts[0][:12]} is damaged: {error}", next_step="freehold build", kind="damaged"
        ) from None
