"""Sphinx reads this to build the site: `make docs`. Not here: the generated pages (`generate.py`)."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generate  # the folder of this file is no package

project = "Freehold"
copyright = "the Freehold authors, Apache-2.0"  # noqa: A001 (Sphinx names it)
release = version = version_of("freehold")
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["requirements.txt"]
html_theme = "furo"
html_title = f"Freehold {release}"
html_show_sourcelink = False
# Highlighting falls back silently for shell transcripts; a link that leads nowhere must not.
suppress_warnings = ["misc.highlighting_failure"]
nitpicky = True

generate.write_all(Path(__file__).parent / "reference")
