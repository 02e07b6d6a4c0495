"""`freehold dev`: serve the project here, reload on save."""

from __future__ import annotations

from pathlib import Path

import click
import uvloop

from cli.dev.server import DevServer, DevSettings
from cli.frame import command
from cli.project.find import find_project
from cli.text.output import Output


@command("dev", examples=("freehold dev", "freehold dev --port 8081", "freehold dev --exact"), line_by_line=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True,
              help="Port on 127.0.0.1; 0 picks a free one.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1, 16), default=1, show_default=True, help="Worker processes.")
@click.option("--exact", is_flag=True, help="Serve components exactly as a release holds them; slower to reload.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path(),
              help="The project's folder; by default the current one.")  # fmt: skip
def dev(output: Output, port: int, workers: int, exact: bool, folder: Path) -> None:
    """Build the project, serve it on this machine, and serve the next version on every save.

    Every version goes through a mesh of one in .freehold/dev, with the gates of a real one: its smoke checks run,
    its start is decided and recorded. `freehold status`, `why`, `decisions`, `releases`, `rollback`, `logs` and `audit`
    answer for it with --context dev. A version that cannot be built or imported, or whose smoke checks fail, is
    reported, and the one before goes on serving. Apps run from their source in a prebuilt interpreter or engine, so
    that a save is served at once; --exact builds every time. Ctrl-C finishes the requests under way and stops. With
    --json, one JSON object a line.
    """
    project = find_project(folder)
    server = DevServer(project, DevSettings("127.0.0.1", port, workers, exact), output)
    uvloop.run(server.run())
