"""`freehold data export|import|freeze|thaw`: an app's data as files, back again, and held still meanwhile.

Not here: the folder an export is (cli/host/exported_data.py), what the node does (node/serving/data_custody.py).
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import click

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.access.cosigning import read_paper, require_enough
from cli.access.members import members_of
from cli.access.principals import require_admin, unlock_admin
from cli.access.prompts import confirm
from cli.commands.options import environment_option
from cli.errors import CommandError, UsageError
from cli.frame import command
from cli.host.exported_data import ExportFolder, as_stored, opened, read_manifest
from cli.text.output import Output
from cli.text.table import short
from cli.text.times import moment
from cli.text.units import size
from cli.views.lanes import find_lane
from protocols.api_data import DataManifest, DataView, ExportView, ImportBody, ImportView, ListedFile, MandateBody
from protocols.changes.mandates import NONCE_BYTES, Act, DataMandate, sign_mandate
from protocols.envelope import digest, encode
from protocols.keys import Ed25519Signer
from protocols.machine import PeerId
from protocols.state.model import Lane

COPY_PATIENCE_S = 3_600.0
"""The node copies, or compares and puts into place, before it answers."""

CONTEXT = click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")
ENVIRONMENT = environment_option("Where the project runs.")
YES = click.option("-y", "--yes", is_flag=True, help="Go on without asking.")
MANDATE = click.option(
    "--mandate", default="", metavar="PAPER", help="What several admins signed: freehold mesh cosign wrote it."
)


@command("export", examples=("freehold data export guestbook --to guestbook.export",))
@click.argument("name")
@click.option("--to", "to", required=True, metavar="FOLDER", type=click.Path(path_type=Path), help="A new folder.")
@ENVIRONMENT
@CONTEXT
@MANDATE
@YES
def export_data(
    output: Output, *, name: str, to: Path, environment: str, context_name: str | None, mandate: str, yes: bool
) -> None:
    """Write a project's data to a folder, while it is served. Needs the admin key.

    Each database is one moment of it; what several must agree on needs `freehold data freeze` before. Key-value stores
    become JSON lines, databases SQLite files, objects plain files, and manifest.json lists them with their SHA-256.
    """
    context, lane, held_by = holder_of(context_name, name, environment, f"export the data of {name} in {environment}")
    if to.exists():
        raise UsageError(f"{to} exists", next_step="choose another name", kind="exists")
    output.note(f"plan: copy the data of {name} in {environment} on {held_by}, and fetch it into {to};")
    output.note("the app serves on. Whoever has the folder can read all of it.")
    confirm(output, "Go on?", yes)
    admin = None if mandate else unlock_admin(context, f"export the data of {name} in {environment}")

    async def carry(client: NodeClient, folder: ExportFolder) -> DataManifest:
        path = f"/v1/data/{name}/{environment}/exports"
        output.live("the node makes a copy")
        leave = await (mandate_for(client, admin, lane, "export") if admin else mandate_in(client, mandate))
        view = await client.send(ExportView, path, leave, patience_s=COPY_PATIENCE_S)
        total, done = sum(file.size_bytes for file in view.files), 0
        for number, listed_file in enumerate(view.files):
            output.live(f"fetching {size(done)} of {size(total)}")
            target = folder.path / listed_file.name
            if ".." in Path(listed_file.name).parts or Path(listed_file.name).is_absolute():
                raise CommandError(
                    f"the node names a file {listed_file.name[:80]!r}", next_step="do not trust it", kind="bad-answer"
                )
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with target.open("wb") as file:
                await client.fetch_file(f"{path}/{view.export}/{number}", file.write)
            done += listed_file.size_bytes
            _check_file(folder.path, listed_file)
        await client.delete(f"{path}/{view.export}")
        return folder.finish(name, environment, lane.data_node, view.at_ms)

    folder = ExportFolder(to)
    try:
        manifest = talk(context, lambda client: carry(client, folder))
    except (OSError, sqlite3.Error) as error:
        what = f"the export failed, and {to} was not made: {error}"
        raise CommandError(what, next_step="choose a place with more room", kind="os") from None
    finally:
        folder.drop()
    _told(output, manifest, to, f"the data of {name} in {environment} is in {to}")


@command(
    "import",
    examples=(
        "freehold data import guestbook guestbook.export",
        "freehold data import guestbook guestbook.export --replace",
        "freehold data import guestbook guestbook.production.20260101T030000Z.tar.age --identity key.txt --replace",
    ),
)
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--identity",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The age key of an encrypted backup.",
)
@click.option("--replace", is_flag=True, help="Put what is there aside. Without it nothing that is there is touched.")
@ENVIRONMENT
@CONTEXT
@MANDATE
@YES
def import_data(
    output: Output,
    *,
    name: str,
    folder: Path,
    identity: Path | None,
    replace: bool,
    environment: str,
    context_name: str | None,
    mandate: str,
    yes: bool,
) -> None:
    """Put an export, or a backup, in the place of a project's data, whole or not at all. Needs the admin key.

    Writers wait while the files change places, after all of them came and were compared.
    """
    context, lane, held_by = holder_of(context_name, name, environment, f"import data for {name} in {environment}")
    with opened(folder, identity) as path:
        manifest = read_manifest(path)
        _require_leave(output, context, lane, held_by, manifest, folder, replace=replace)
        confirm(output, "Go on?", yes)
        admin = None if mandate else unlock_admin(context, f"import data for {name} in {environment}")

        async def leave(client: NodeClient, files: tuple[ListedFile, ...]) -> MandateBody:
            if admin is None:
                return await mandate_in(client, mandate)
            return await mandate_for(client, admin, lane, "import", files, replace=replace)

        talk(context, lambda client: _send(output, client, leave, lane, path, manifest))
    _told(output, manifest, folder, f"the data of {name} in {environment} is what {folder} holds")


def _require_leave(
    output: Output, context: contexts.Context, lane: Lane, held_by: str, manifest: DataManifest, source: Path, *,
    replace: bool,
) -> None:  # fmt: skip
    """Say what an import does. Raises UsageError where it would take the place of data and nobody said so."""
    name, environment = lane.project, lane.environment
    there = _present(talk(context, lambda client: client.read(DataView, f"/v1/data/{name}/{environment}")))
    if there and not replace:
        step = f"freehold data import {name} {source} --env {environment} --replace"
        what = f"{held_by} holds data of {name} in {environment} already ({there})"
        raise UsageError(
            f"{what}; with --replace it is put aside, unwritable, for 7 days", next_step=step, kind="exists"
        )
    output.note(f"plan: put the data of {manifest.project} in {manifest.environment} as of {moment(manifest.at_ms)}")
    output.note(f"({_amount(manifest)}) in the place of the data of {name} in {environment} on {held_by}.")
    if there:
        output.note(f"What is there now ({there}) goes aside, unwritable, for 7 days: every write since then is in")
        output.note("it alone. Writers wait for that moment.")


async def _send(
    output: Output, client: NodeClient, leave: Callable[[NodeClient, tuple[ListedFile, ...]], Awaitable[MandateBody]],
    lane: Lane, folder: Path, manifest: DataManifest,
) -> None:  # fmt: skip
    path = f"/v1/data/{lane.project}/{lane.environment}/imports"
    with as_stored(folder, manifest) as (files, places):
        mandate = await leave(client, files)
        answer = await client.send(ImportView, path, ImportBody(mandate.mandate, files))
        total, done = sum(file.size_bytes for file in files), 0
        for sha256, listed_file in {file.sha256: file for file in files}.items():
            output.live(f"sending {size(done)} of {size(total)}")
            await client.put_file(f"{path}/{answer.name}/files/{sha256}", places[sha256], sha256)
            done += listed_file.size_bytes
        output.live("the node compares, and puts it into its place")
        await client.post_nothing(f"{path}/{answer.name}/install", patience_s=COPY_PATIENCE_S)


@command("freeze", examples=("freehold data freeze guestbook",))
@click.argument("name")
@ENVIRONMENT
@CONTEXT
@YES
def freeze_data(output: Output, name: str, environment: str, context_name: str | None, yes: bool) -> None:
    """Hold a project's data still: it is read, and not written, until it is thawed. Needs the admin key."""
    output.note(f"plan: writers of {name} in {environment} wait 8 s, and then their visitors get 503 and Retry-After,")
    output.note("until: " + f"freehold data thaw {name} --env {environment}")
    _hold(output, "freeze", name, environment, context_name, yes=yes)
    output.result({"project": name, "environment": environment, "frozen": True},
                  f"the data of {name} in {environment} is frozen")  # fmt: skip


@command("thaw", examples=("freehold data thaw guestbook",))
@click.argument("name")
@ENVIRONMENT
@CONTEXT
@YES
def thaw_data(output: Output, name: str, environment: str, context_name: str | None, yes: bool) -> None:
    """Let a project's data be written again. Needs the admin key."""
    output.note(f"plan: the data of {name} in {environment} is written again.")
    _hold(output, "thaw", name, environment, context_name, yes=yes)
    output.result({"project": name, "environment": environment, "frozen": False},
                  f"the data of {name} in {environment} can be written")  # fmt: skip


def _check_file(folder: Path, one: ListedFile) -> None:
    """Raise CommandError if a file that came is not what the node listed."""
    with (folder / one.name).open("rb") as file:
        text = hashlib.file_digest(file, "sha256").hexdigest()
    if text != one.sha256:
        raise CommandError(f"{one.name} came damaged", next_step="export it again", kind="bad-answer")


def _hold(output: Output, act: Act, name: str, environment: str, context_name: str | None, *, yes: bool) -> None:
    context, lane, _ = holder_of(context_name, name, environment, f"{act} the data of {name} in {environment}")
    confirm(output, "Go on?", yes)
    admin = unlock_admin(context, f"{act} the data of {name} in {environment}")

    async def carry(client: NodeClient) -> None:
        mandate = await mandate_for(client, admin, lane, act)
        await client.post_nothing(f"/v1/data/{name}/{environment}/{act}", mandate)

    talk(context, carry)


def holder_of(
    context_name: str | None, name: str, environment: str, purpose: str
) -> tuple[contexts.Context, Lane, str]:
    """The context, the lane and the name of the node that holds its data. Raises CommandError if there is none."""
    _, context = contexts.current_context(context_name)
    require_admin(context, purpose)
    lane = talk(context, lambda client: find_lane(client, name, environment))
    if not lane.data_node:
        raise UsageError(f"{name} has no data in {environment} yet", next_step="freehold data list", kind="no-data")
    members = talk(context, members_of)
    return (
        context,
        lane,
        next((member.title for member in members if member.node == lane.data_node), short(lane.data_node)),
    )


async def mandate_for(
    client: NodeClient, admin: Ed25519Signer, lane: Lane, act: Act, files: tuple[ListedFile, ...] = (), *,
    replace: bool = False, target: str = "",
) -> MandateBody:  # fmt: skip
    """Sign a mandate for the node that holds a lane's data. Raises CommandError where other admins must sign it first."""
    listing = bytes(digest(encode(files))) if act == "import" else b""
    mandate = DataMandate(
        act, lane.project, lane.environment, PeerId(lane.data_node), secrets.token_bytes(NONCE_BYTES),
        time.time_ns() // 1_000_000, listing, replace, target,
    )  # fmt: skip
    signed = sign_mandate(admin, await client.mesh(), mandate)
    require_enough(await client.state(), signed, mandate)
    return MandateBody(encode(signed))


async def mandate_in(client: NodeClient, line: str) -> MandateBody:
    """Read a mandate that enough admins signed. Raises CommandError."""
    signed, said = read_paper(line, await client.mesh())
    require_enough(await client.state(), signed, said)
    return MandateBody(encode(signed))


def _present(view: DataView) -> str:
    held = [file for file in view.files if file.name.endswith(".db") or file.name.startswith("blobs/")]
    return f"{len(held)} files, {size(sum(stored_file.size_bytes for stored_file in held))}" if held else ""


def _amount(manifest: DataManifest) -> str:
    return f"{len(manifest.files)} files, {size(sum(file.size_bytes for file in manifest.files))}"


def _told(output: Output, manifest: DataManifest, folder: Path, text: str) -> None:
    total = sum(file.size_bytes for file in manifest.files)
    output.result(
        {"project": manifest.project, "environment": manifest.environment, "folder": str(folder),
         "at_ms": manifest.at_ms, "files": len(manifest.files), "size_bytes": total},
        f"{text} ({_amount(manifest)})",
    )  # fmt: skip
