"""A build as an OCI artifact (image specification 1.1): its manifest as the configuration, each component as a layer, its bill.

Components have the media type `application/wasm`, as the CNCF's guidance for WebAssembly has it, and a file name, so other
tools pull them. As a file it is an OCI image layout in a tar archive, whose bytes follow from the build alone. What is read
comes from outside: every size is bounded before it is read, and every digest checked. Not here: registries (registry.py).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from cli.errors import CommandError
from cli.project.bundle import ARTIFACTS, MANIFEST, BuildBundle, BundleError, canonical, read, work_folder
from cli.project.sbom import SBOM_TYPE, sbom_of
from runtime.durable import made_whole

ARTIFACT_TYPE = "application/vnd.freehold.build.v1"
CONFIG_TYPE = "application/vnd.freehold.build.manifest.v1+json"
WASM_TYPE = "application/wasm"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
TITLE = "org.opencontainers.image.title"
REF_NAME = "org.opencontainers.image.ref.name"
SBOM_NAME = "sbom.cdx.json"

DOCUMENT_MAX_BYTES = 1 << 20
COMPONENT_MAX_BYTES = 256 << 20
LAYERS_MAX = 64
PIECE_BYTES = 1 << 20
_DIGEST = re.compile("sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes by their digest: here already (`data`), or in a file (`path`)."""

    media_type: str
    digest: str
    size_bytes: int
    data: bytes = b""
    path: Path | None = None
    title: str = ""

    @property
    def descriptor(self) -> dict[str, object]:
        """What a manifest says of it."""
        named = {"annotations": {TITLE: self.title}} if self.title else {}
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size_bytes, **named}


@dataclass(frozen=True, slots=True)
class ArtifactImage:
    """A whole artifact: its manifest, and the blobs that it names in order."""

    manifest: Blob
    blobs: tuple[Blob, ...]


def image_of(build: BuildBundle) -> ArtifactImage:
    """Return a build as an artifact; the same build gives the same bytes."""
    config = _blob(CONFIG_TYPE, (build.folder / MANIFEST).read_bytes())
    layers = []
    for name, app in sorted(build.manifest["apps"].items()):
        path = build.folder / ARTIFACTS / app["component"]
        named = f"sha256:{app['component']}"
        layers.append(Blob(WASM_TYPE, named, path.stat().st_size, path=path, title=f"{name}.wasm"))
    layers.append(_blob(SBOM_TYPE, canonical(sbom_of(build)), SBOM_NAME))
    source = build.manifest["source"]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": config.descriptor,
        "layers": [layer.descriptor for layer in layers],
        "annotations": {
            "org.opencontainers.image.title": build.manifest["project"]["name"],
            "org.opencontainers.image.version": build.id,
            **({"org.opencontainers.image.revision": source["commit"]} if source["commit"] else {}),
        },
    }
    unique = {blob.digest: blob for blob in (config, *layers)}
    return ArtifactImage(_blob(MANIFEST_TYPE, canonical(manifest)), tuple(unique.values()))


def _blob(media_type: str, data: bytes, title: str = "") -> Blob:
    return Blob(media_type, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data), data, title=title)


def write_layout(image: ArtifactImage, target: Path) -> None:
    """Write an artifact as an OCI image layout in one tar archive. Raises CommandError where a file is there already."""
    index = {
        "schemaVersion": 2, "mediaType": INDEX_TYPE,
        "manifests": [{**image.manifest.descriptor, "artifactType": ARTIFACT_TYPE, "annotations": {REF_NAME: "build"}}],
    }  # fmt: skip
    if os.path.lexists(target):
        raise CommandError(f"{target} is there already", next_step="choose another name", kind="exists")
    with (
        made_whole(target) as partial,
        partial.open("xb") as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "index.json", canonical(index))
        for entry in sorted((image.manifest, *image.blobs), key=lambda blob: blob.digest):
            _add(archive, f"blobs/sha256/{entry.digest.removeprefix('sha256:')}", entry.data, entry.path)


def _add(archive: tarfile.TarFile, name: str, data: bytes, path: Path | None = None) -> None:
    head = tarfile.TarInfo(name)
    head.mode, head.size = 0o644, path.stat().st_size if path is not None else len(data)
    if path is None:
        archive.addfile(head, io.BytesIO(data))
    else:
        with path.open("rb") as file:
            archive.addfile(head, file)


Fetch = Callable[[str, int, BinaryIO], None]
"""Writes the blob of a digest, of so many bytes, into a file; raises CommandError where it cannot."""


def read_manifest(data: bytes) -> tuple[dict[str, object], list[dict[str, object]]]:
    """Return the descriptors of configuration and components in a manifest. Raises CommandError for any other artifact."""
    said = _document(data)
    config, layers = said.get("config"), said.get("layers")
    if said.get("artifactType") != ARTIFACT_TYPE or not isinstance(config, dict) or not isinstance(layers, list):
        raise _no_build("it is an artifact of another kind")
    if config.get("mediaType") != CONFIG_TYPE or not 0 < len(layers) <= LAYERS_MAX:
        raise _no_build("its configuration is no build's manifest")
    found_layers = [layer for layer in layers if isinstance(layer, dict) and layer.get("mediaType") == WASM_TYPE]
    for row, limit in ((config, DOCUMENT_MAX_BYTES), *((layer, COMPONENT_MAX_BYTES) for layer in found_layers)):
        size = row.get("size")
        if not _DIGEST.fullmatch(str(row.get("digest"))) or type(size) is not int or not 0 < size <= limit:
            raise _no_build(f"a part has no SHA-256 digest, or is larger than {limit >> 20} MiB")
    return config, found_layers


def install(builds: Path, manifest: bytes, fetch: Fetch) -> BuildBundle:
    """Fetch an artifact's parts, check each against its digest, and keep the build below `builds` under its id."""
    config, layers = read_manifest(manifest)
    try:
        with work_folder(builds) as work:
            named = _take(config, work / MANIFEST, fetch)
            target = builds / named
            if not target.is_dir():
                (work / ARTIFACTS).mkdir()
                for layer in layers:
                    _take(layer, work / ARTIFACTS / str(layer["digest"]).removeprefix("sha256:"), fetch)
                _require_whole(work)
                work.rename(target)
            return read(target)
    except BundleError as error:
        raise _no_build(str(error)) from None


def _take(descriptor: Mapping[str, object], path: Path, fetch: Fetch) -> str:
    with path.open("wb") as file:
        fetch(str(descriptor["digest"]), int(str(descriptor["size"])), file)
    with path.open("rb") as file:
        text = hashlib.file_digest(file, "sha256").hexdigest()
    if f"sha256:{text}" != descriptor["digest"] or path.stat().st_size != descriptor["size"]:
        raise _no_build("a part has other bytes than its digest says")
    return text


def _require_whole(work: Path) -> None:
    """Raise CommandError unless the manifest of a build names exactly the components that came."""
    said = _document((work / MANIFEST).read_bytes())
    apps = said.get("apps")
    if said.get("format") != 1 or not isinstance(apps, dict) or not isinstance(said.get("project_file"), str):
        raise _no_build("its manifest is of another version")
    named = {str(app.get("component")) if isinstance(app, dict) else "" for app in apps.values()}
    if named != {path.name for path in (work / ARTIFACTS).iterdir()}:
        raise _no_build("it lacks a component, or has one that nothing names")


def layout_reader(source: Path) -> tuple[bytes, Fetch]:
    """Return the manifest of the one build in a layout archive, and what fetches its blobs. Raises CommandError."""
    index = _document(_member(source, "index.json", DOCUMENT_MAX_BYTES))
    listed = index.get("manifests")
    if not isinstance(listed, list) or len(listed) != 1 or not _DIGEST.fullmatch(str(listed[0].get("digest"))):
        raise _no_build("its index names no single artifact")
    named = str(listed[0]["digest"])
    manifest = _member(source, _blob_name(named), DOCUMENT_MAX_BYTES)
    if f"sha256:{hashlib.sha256(manifest).hexdigest()}" != named:
        raise _no_build("its manifest has other bytes than its digest says")

    def fetch(digest: str, size_bytes: int, file: BinaryIO) -> None:
        with tarfile.open(source) as archive:
            held = _open(archive, _blob_name(digest), size_bytes)
            shutil.copyfileobj(held, file, PIECE_BYTES)

    return manifest, fetch


def _member(source: Path, name: str, max_bytes: int) -> bytes:
    try:
        with tarfile.open(source) as archive:
            return bytes(_open(archive, name, max_bytes).read(max_bytes + 1))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise _no_build(f"{source} cannot be read: {error}") from None


def _open(archive: tarfile.TarFile, name: str, max_bytes: int) -> IO[bytes]:
    try:
        member = archive.getmember(name)
    except KeyError:
        raise _no_build(f"it has no {name}") from None
    held = archive.extractfile(member) if member.isreg() and member.size <= max_bytes else None
    if held is None:
        raise _no_build(f"its {name} is no file of at most {max_bytes} bytes")
    return held


def _blob_name(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _document(data: bytes) -> dict[str, object]:
    if len(data) > DOCUMENT_MAX_BYTES:
        raise _no_build(f"a document has over {DOCUMENT_MAX_BYTES >> 20} MiB")
    try:
        entry = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _no_build(f"a document is no JSON: {error}") from None
    if not isinstance(entry, dict):
        raise _no_build("a document is no JSON object")
    return entry


def _no_build(why: str) -> CommandError:
    return CommandError(
        f"this is no build of Freehold: {why}",
        next_step="freehold release export FILE, where it was built",
        kind="no-build",
    )
