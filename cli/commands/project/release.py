"""`freehold release sbom|export|import|push|pull`: a build goes elsewhere, as a file or through a registry, with its bill.

Whoever takes it in proposes it under their own key: a build names what runs, not who stands for it. Not here: deploying it
(`freehold deploy --build`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import aiohttp
import click

from cli.errors import CommandError
from cli.frame import Group, command
from cli.project.build import build_project
from cli.project.bundle import BuildBundle
from cli.project.find import find_project
from cli.project.kept_builds import builds_folder, kept_build
from cli.project.oci import Fetch, image_of, install, layout_reader, read_manifest, write_layout
from cli.project.parse import FILE_NAME
from cli.project.registry import Registry, parse_reference
from cli.project.sbom import sbom_of
from cli.text.output import Output

CONNECT_S, READ_S = 10, 120
T = TypeVar("T")
_FOLDER = click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path(),
                       help="The project's folder; by default the current one.")  # fmt: skip
_BUILD = click.option(
    "--build", "named", default="", metavar="ID", help="A build that is kept here; by default it is built now."
)
_INTO = click.option("--folder", type=click.Path(file_okay=False, path_type=Path), default=Path(),
                     help="Where its project is, or is made; by default the current folder.")  # fmt: skip


@command("sbom", examples=("freehold release sbom", "freehold release sbom --build 5c1d09 > sbom.cdx.json"))
@_BUILD
@_FOLDER
def sbom(output: Output, *, named: str, folder: Path) -> None:
    """Print the bill of materials of a build: CycloneDX 1.6, each app's packages and the tools that made it."""
    bill = sbom_of(_build(output, named, folder))
    output.result({"sbom": bill}, json.dumps(bill, indent=2, ensure_ascii=True))


@command("export", examples=("freehold release export hello.tar", "freehold release export hello.tar --build 5c1d09"))
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@_BUILD
@_FOLDER
def export(output: Output, *, target: Path, named: str, folder: Path) -> None:
    """Write a build as one file, an OCI image layout: its manifest, every component and its bill."""
    build = _build(output, named, folder)
    image = image_of(build)
    write_layout(image, target)
    size = target.stat().st_size
    output.result(
        {"build": build.id, "artifact": image.manifest.digest, "file": str(target), "size_bytes": size},
        f"build {build.id[:12]} is {target}, {size / (1 << 20):.1f} MiB",
    )


@command("import", examples=("freehold release import hello.tar", "freehold release import hello.tar --folder hello"))
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_INTO
def take(output: Output, *, source: Path, folder: Path) -> None:
    """Take in a build that somebody exported: every byte is held against its digest."""
    manifest, fetch = layout_reader(source)
    _taken(output, install(builds_folder(folder), manifest, fetch), folder)


@command("push", examples=("freehold release push registry.example.org/web/hello:1.4.0",))
@click.argument("reference")
@_BUILD
@_FOLDER
def push(output: Output, *, reference: str, named: str, folder: Path) -> None:
    """Send a build to a registry. Other tools pull it, too: oras, wkg."""
    where = parse_reference(reference)
    build = _build(output, named, folder)
    image = image_of(build)
    output.step("", f"pushing to {where.host}")
    digest = _converse(lambda session: Registry(where, session).push(image))
    output.result(
        {"build": build.id, "artifact": digest, "reference": f"{where.host}/{where.name}@{digest}"},
        f"build {build.id[:12]} is {where.host}/{where.name}@{digest}",
    )


@command("pull", examples=("freehold release pull registry.example.org/web/hello:1.4.0 --folder hello",))
@click.argument("reference")
@_INTO
def pull(output: Output, *, reference: str, folder: Path) -> None:
    """Take in a build from a registry: every byte is held against its digest. A tag moves; a digest does not."""
    where = parse_reference(reference)
    output.step("", f"pulling from {where.host}")
    with tempfile.TemporaryDirectory(prefix="freehold-pull-") as scratch:
        manifest = _converse(lambda session: _pulled(Registry(where, session), Path(scratch)))
        build = install(builds_folder(folder), manifest, _from_folder(Path(scratch)))
    _taken(output, build, folder)


async def _pulled(registry: Registry, folder: Path) -> bytes:
    """Fetch every part that a build is made of into a folder; return its manifest."""
    manifest = await registry.manifest()
    config, layers = read_manifest(manifest)
    for descriptor in (config, *layers):
        path = folder / str(descriptor["digest"]).removeprefix("sha256:")
        with contextlib.closing(path.open("wb")) as file:
            async for piece in registry.blob(str(descriptor["digest"]), int(str(descriptor["size"]))):
                file.write(piece)
    return manifest


def _from_folder(folder: Path) -> Fetch:
    def fetch(digest: str, size_bytes: int, file: BinaryIO) -> None:
        del size_bytes
        with (folder / digest.removeprefix("sha256:")).open("rb") as held:
            shutil.copyfileobj(held, file)

    return fetch


def _converse(conversation: Callable[[aiohttp.ClientSession], Awaitable[T]]) -> T:
    async def run() -> T:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
        async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
            try:
                return await conversation(session)
            except (aiohttp.ClientError, TimeoutError) as error:
                what = f"the registry does not answer: {type(error).__name__}"
                raise CommandError(what, next_step="try again", kind="registry") from None

    return asyncio.run(run())


def _build(output: Output, named: str, folder: Path) -> BuildBundle:
    project = find_project(folder)
    return (
        kept_build(project.root, named) if named else build_project(project.project, project.text, project.root, output)
    )


def _taken(output: Output, build: BuildBundle, folder: Path) -> None:
    """Say what came, and put its project file where none is: a build runs with its own, whatever stands there."""
    path = folder / FILE_NAME
    outcome = not path.exists()
    if outcome:
        path.write_text(str(build.manifest["project_file"]))
    answer: dict[str, object] = {
        "build": build.id,
        "project": build.manifest["project"]["name"],
        "folder": str(build.folder),
    }
    output.result(answer, f"build {build.id[:12]} of {answer['project']} is in {build.folder}")
    if outcome:
        output.note(f"{path} is the build's own project file")
    output.hint(f"freehold deploy --build {build.id[:12]} --folder {folder}")


@click.group("release", cls=Group)
def release() -> None:
    """Carry builds elsewhere, as files or through a registry."""


for _one in (sbom, export, take, push, pull):
    release.add_command(_one)
