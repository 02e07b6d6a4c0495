"""`freehold new`: a project that builds, is tested and serves, to start from."""

from __future__ import annotations

from pathlib import Path

import click

from cli.frame import command
from cli.project.scaffold import CHOICES, create
from cli.text.output import Output


@command("new", examples=("freehold new hello --template wsgi", "freehold new api --template typescript"))
@click.argument("name")
@click.option("--template", "choice", type=click.Choice(list(CHOICES)), default="wsgi", show_default=True,
              help="What to start from.")  # fmt: skip
def new(output: Output, name: str, choice: str) -> None:
    """Make a project in a new folder NAME: an app, its test, a smoke check, and AGENTS.md for coding agents."""
    template = CHOICES[choice]
    folder, files = create(name, template, Path())
    output.result(
        {"project": name, "template": choice, "folder": str(folder), "files": files},
        "\n".join(f"{folder}/{file}" for file in files),
    )
    if template.prepare:
        output.note(f"before the first build and test: cd {folder} && {template.prepare}")
    output.hint(f"cd {folder} && freehold dev")
