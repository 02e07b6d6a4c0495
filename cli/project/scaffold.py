"""Writes a new project from a template: app, test, smoke check, AGENTS.md. It never touches what is there already.

Not here: the templates themselves (`cli/templates`, data).
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cli.errors import UsageError
from cli.project import python_build
from runtime.durable import made_whole

TEMPLATES: Final = Path(__file__).parent.parent / "templates"
SHARED: Final = TEMPLATES / "shared"
NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,39}")

RUNS_PYTHON: Final = """\
- Python 3.14, pure Python packages only (`web/requirements.txt`). No native wheels, sockets, threads, subprocesses or
  files to write.
- `freehold.store`, `freehold.config`, `freehold.fetch` and `freehold.log` reach the node. `web/freehold.py` is the
  module for tests outside the sandbox; do not edit it."""
RUNS_FASTAPI: Final = (
    RUNS_PYTHON
    + """
- FastAPI needs pydantic-core, which is written in Rust and built for the sandbox once on each machine:
  `freehold wheels build pydantic-core`. It takes minutes and a Rust toolchain; without one the command says what to install.
- Endpoints run one at a time in an instance: those with `async def` take turns where they wait, those with `def` do not."""
)
RUNS_JAVASCRIPT: Final = """\
- Web-standard JavaScript (`fetch`, `Request`, `Response`, `URL`, streams, `crypto`), and of Node's own modules those that
  need no files, sockets, processes or threads. The top level runs once, at build: no `crypto`, no `fetch` there.
- `store`, `config`, `fetch` and `log` from `web/freehold.js` reach the node. That file is the module for tests outside
  the sandbox; do not edit it."""

RUNS_STATIC: Final = """\
- No code runs: each file in `public/` is served under its own name, `/` and folders by their `index.html`, `/about` by
  `about.html`, unknown paths by `404.html`. Hidden files are left out, but for `.well-known/`.
- For code beside the pages add a second app to `freehold.toml`, such as `[app.api]` with `routes = ["/api"]`."""


@dataclass(frozen=True, slots=True)
class Template:
    """One template: its language's own files, and what AGENTS.md says about it."""

    name: str
    shared: tuple[tuple[Path, str], ...]
    test_command: str
    prepare: str
    runs: str


PYTHON_MODULE: Final = ((python_build.GUEST / "freehold.py", "web/freehold.py"),)
JAVASCRIPT_MODULE: Final = (
    (SHARED / "freehold.js", "web/freehold.js"),
    (SHARED / "freehold.d.ts", "web/freehold.d.ts"),
)
TEST_PYTHON: Final = "python -m unittest discover -s tests"

CHOICES: Final = {
    template.name: template
    for template in (
        Template("python", PYTHON_MODULE, TEST_PYTHON, "", RUNS_PYTHON),
        Template("wsgi", PYTHON_MODULE, TEST_PYTHON, "", RUNS_PYTHON),
        Template("fastapi", PYTHON_MODULE, TEST_PYTHON, "freehold wheels build pydantic-core", RUNS_FASTAPI),
        Template("javascript", JAVASCRIPT_MODULE, "node --test", "", RUNS_JAVASCRIPT),
        Template("express", JAVASCRIPT_MODULE, "npm test", "npm install", RUNS_JAVASCRIPT),
        Template("typescript", JAVASCRIPT_MODULE, "npm test", "npm install", RUNS_JAVASCRIPT),
        Template("static", (), TEST_PYTHON, "", RUNS_STATIC),
    )
}


def create(name: str, template: Template, parent: Path) -> tuple[Path, list[str]]:
    """Write the project into `parent`/`name`, whole or not at all; return the folder and its files. Raises `UsageError`."""
    if not NAME.fullmatch(name):
        step = "choose a name of a-z, 0-9 and dashes that starts with a letter, such as: freehold new hello"
        raise UsageError(f"{name!r} cannot be a project's name", next_step=step, kind="name")
    target = parent / name
    if target.exists():
        step = f"choose another name, or remove it: rm -r {target}"
        raise UsageError(f"{target} is there already; nothing was written", next_step=step, kind="exists")
    pairs = [
        *((path, path.relative_to(TEMPLATES / template.name).as_posix())
          for path in sorted((TEMPLATES / template.name).rglob("*")) if path.is_file()),
        *template.shared,
        (SHARED / "gitignore", ".gitignore"),
        (SHARED / "AGENTS.md", "AGENTS.md"),
    ]  # fmt: skip
    pairs = [(source, relative) for source, relative in pairs if "__pycache__" not in relative]
    with made_whole(target) as folder:
        for source, relative in pairs:
            path = folder / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)
            if source not in [shared for shared, _ in template.shared]:
                path.write_text(_filled(path.read_text(), name, template))
    return target, sorted(relative for _, relative in pairs)


def _filled(text: str, name: str, template: Template) -> str:
    values = {"@NAME@": name, "@TEST_COMMAND@": template.test_command, "@RUNS@": template.runs}
    for mark, value in values.items():
        text = text.replace(mark, value)
    return text
