"""`freehold mesh backup|restore`: one node's data folder as a file, and back.

Not here: what goes in (node/membership/backup.py), and the mesh's own redundancy, which needs no backup while a majority lives.
"""

from __future__ import annotations

import time
from pathlib import Path

import click

from cli.access import contexts
from cli.access.client import default_data_folder, node_folder
from cli.access.prompts import confirm
from cli.errors import CommandError, UsageError
from cli.frame import command
from cli.text.output import Output
from cli.text.units import in_words

_DATA = click.option("--data", type=click.Path(file_okay=False, path_type=Path),
                     help="The node's data folder; by default in your home, /var/lib/freehold/node for root.")  # fmt: skip
_YES = click.option("-y", "--yes", is_flag=True, help="Go on without asking.")

RESTORE_MEANS = (
    "the node knows nothing decided since the backup; it learns it again from its peers",
    "if it votes, it says nothing before it has read what the other voters hold",
    "a mesh with this one voter forgets what was decided since: nobody else holds it",
    "the original must never run again: of two copies both lose their vote",
)


@command(
    "backup",
    examples=("freehold mesh backup node.tar.gz", "freehold mesh backup /mnt/node.tar.gz --data /srv/freehold"),
)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_DATA
def backup(output: Output, file: Path, data: Path | None) -> None:
    """Write this machine's node to one file: identity, votes, records, artifacts, the apps' data.

    Works while the node runs. The file holds the node's private key: whoever has it can be this node.
    """
    from cli.host import local_node

    if file.exists():
        raise UsageError(f"{file} exists", next_step="choose another name", kind="exists")
    folder = node_folder(data)
    try:
        size_bytes = local_node.backup(folder, file.absolute())
    except OSError as error:
        raise CommandError(f"the backup failed: {error}", next_step="choose another place", kind="os") from None
    output.result({"file": str(file), "size_bytes": size_bytes}, f"{file}  {size_bytes / (1 << 20):.1f} MiB")
    output.note("It holds the node's private key: keep it as you keep a password.")
    output.note("Your own keys are not in it; they are in " + str(contexts.home_folder() / "keys"))


@command(
    "restore",
    examples=("freehold mesh restore node.tar.gz", "freehold mesh restore node.tar.gz --data /srv/freehold -y"),
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_DATA
@_YES
def restore(output: Output, file: Path, data: Path | None, yes: bool) -> None:
    """Make the node of a backup again, in an empty folder.

    A restore goes back in time: read what it means before you confirm.
    """
    from cli.host import local_node

    folder = (data or default_data_folder()).absolute()
    output.note(f"This puts the node of {file} into {folder}:")
    for line in RESTORE_MEANS:
        output.note(f"  {line}")
    confirm(output, "Restore it?", yes)
    manifest = local_node.backup_of(file)
    again = local_node.is_made(folder) and not local_node.has_run(folder)
    if again and local_node.node_id_of(folder) == manifest.node:  # it was cut short before its last step
        local_node.tidy(folder)
    else:
        manifest = local_node.restore(file, folder)
    age_ms = time.time_ns() // 1_000_000 - manifest.at_ms
    known = contexts.read_contexts().contexts.values()
    socket = local_node.socket_of(folder)
    if not any(context.socket == socket for context in known):
        contexts.write_context(f"node-{manifest.mesh[:8]}", contexts.Context(manifest.mesh, socket, ""))
    output.result(
        {"node": manifest.node, "mesh": manifest.mesh, "at_ms": manifest.at_ms, "data": str(folder)},
        f"node {manifest.node} as it was {in_words(age_ms)} ago",
    )
    output.hint("freehold node run" + (f" --data {folder}" if data else ""))
