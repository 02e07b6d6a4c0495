"""Makes the page that agents' windows show of a rollout: the console's own view in one file.

`python -m cli.console.agent_page` writes it. The file is committed where nodes serve it (node/api/rollout.html), and a test
holds it to its sources. It loads nothing: hosts of MCP Apps give such a page no network. Not here: how it is served
(node/api/rollout_page.py).
"""

from __future__ import annotations

import re
from pathlib import Path

from cli.console.serving import asset
from node.api import rollout_page

PARTS = Path(__file__).parent / "agent"
_IMPORT = re.compile(r"^import .*\n", re.MULTILINE)


def made() -> str:
    """The page as it should be."""
    modules = [asset("common.js").decode(), asset("rollout.js").decode(), (PARTS / "rollout_app.js").read_text()]
    script = "\n".join(_IMPORT.sub("", module).replace("\nexport ", "\n") for module in modules)
    style = "\n".join(asset(name).decode() for name in ("base.css", "console.css"))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Freehold rollout</title>\n'
        f'<style>\n{style}</style>\n</head>\n<body>\n<main id="main"><h1>One moment</h1></main>\n'
        f'<script type="module">\n{script}</script>\n</body>\n</html>\n'
    )


if __name__ == "__main__":
    rollout_page.FILE.write_text(made())
