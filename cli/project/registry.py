"""Registries: a build is pushed to one and pulled from one (OCI distribution specification 1.1). No redirect to plain http.

Credentials come from REGISTRY_USERNAME and REGISTRY_PASSWORD, and go to the registry that was named, or over TLS to where it
says that tokens come from. Not here: what an artifact is (oci.py).
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec
from yarl import URL

from cli.errors import CommandError, UsageError
from cli.project.oci import DOCUMENT_MAX_BYTES, MANIFEST_TYPE, PIECE_BYTES, ArtifactImage, Blob

USERNAME, PASSWORD = "REGISTRY_USERNAME", "REGISTRY_PASSWORD"
_REFERENCE = re.compile(
    r"(?P<host>[A-Za-z0-9.-]+(?::[0-9]{1,5})?|\[[0-9a-f:]+\](?::[0-9]{1,5})?)/"
    r"(?P<name>[a-z0-9]+(?:[._/-][a-z0-9]+)*)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127})|@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_CHALLENGE = re.compile(r'([a-z]+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an artifact is: a registry, a repository, and a tag or a digest."""

    host: str
    name: str
    version: str

    @property
    def base(self) -> URL:
        """The repository's address; plain http on this machine alone."""
        return URL(f"{'http' if _is_here(self.host) else 'https'}://{self.host}/v2/{self.name}/", encoded=True)


def parse_reference(text: str) -> Reference:
    """Read HOST/NAME:TAG or HOST/NAME@sha256:…. Raises UsageError."""
    answer = _REFERENCE.fullmatch(text)
    if answer is None:
        raise UsageError(
            f"{text!r} is no address of an artifact", next_step="freehold release push registry.example.org/web/hello:1",
            kind="reference",
        )  # fmt: skip
    return Reference(answer["host"], answer["name"], answer["digest"] or answer["tag"] or "latest")


def _is_here(host: str) -> bool:
    name = host.rpartition(":")[0] if re.search(r":[0-9]+$", host) else host
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name == "localhost"


@dataclass
class Registry:
    """One conversation with a registry. Mutable: it learns how to be let in."""

    where: Reference
    session: aiohttp.ClientSession
    _fields: dict[str, str] = field(default_factory=dict)

    async def push(self, image: ArtifactImage) -> str:
        """Upload what the registry lacks, then the manifest; return the artifact's digest. Raises CommandError."""
        for blob in image.blobs:
            status, _, _ = await self._ask("HEAD", self.where.base / "blobs" / blob.digest)
            if status != 200:
                await self._upload(blob)
        version = image.manifest.digest if self.where.version.startswith("sha256:") else self.where.version
        if self.where.version.startswith("sha256:") and self.where.version != image.manifest.digest:
            raise CommandError(f"the build is {image.manifest.digest}", next_step="name a tag", kind="registry")
        status, data, _ = await self._ask(
            "PUT", self.where.base / "manifests" / version, image.manifest.data, {"Content-Type": MANIFEST_TYPE}
        )
        self._require(status, (201,), data, "did not take the manifest")
        return image.manifest.digest

    async def _upload(self, one: Blob) -> None:
        status, data, fields = await self._ask("POST", self.where.base / "blobs" / "uploads" / "", b"")
        self._require(status, (202,), data, "begins no upload")
        target = self.where.base.join(URL(fields.get("Location", ""), encoded=True)).update_query(digest=one.digest)
        if target.scheme not in {self.where.base.scheme, "https"}:
            raise CommandError(
                "the registry sends uploads to an address without TLS", next_step="use another", kind="registry"
            )
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(one.size_bytes)}
        status, data, _ = await self._ask("PUT", target, one.path or one.data, headers)
        self._require(status, (201,), data, f"did not take {one.title or one.digest}")

    async def manifest(self) -> bytes:
        """Return the manifest that is named. Raises CommandError."""
        status, data, _ = await self._ask(
            "GET", self.where.base / "manifests" / self.where.version, headers={"Accept": MANIFEST_TYPE}
        )
        self._require(status, (200,), data, f"has no {self.where.name}:{self.where.version}")
        wanted = self.where.version
        if wanted.startswith("sha256:") and f"sha256:{hashlib.sha256(data).hexdigest()}" != wanted:
            raise CommandError(
                "the registry shows other bytes than the digest names", next_step="use another", kind="registry"
            )
        return data

    async def blob(self, digest: str, size_bytes: int) -> AsyncIterator[bytes]:
        """Yield a blob in pieces, never more than its size. Raises CommandError."""
        url = self.where.base / "blobs" / digest
        async with self.session.get(url, headers=self._fields) as answer:
            if answer.status != 200 or answer.url.scheme not in {"https", self.where.base.scheme}:
                raise CommandError(f"the registry has no {digest}", next_step="push it again", kind="registry")
            left = size_bytes
            async for piece in answer.content.iter_chunked(PIECE_BYTES):
                left -= len(piece)
                if left < 0:
                    raise CommandError(f"{digest} is larger than it says", next_step="push it again", kind="registry")
                yield piece

    async def _ask(
        self, method: str, url: URL, body: bytes | Path | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """Make one request, once more where the registry says how to be let in."""
        for last in (False, True):
            data = body.open("rb") if isinstance(body, Path) else body
            try:
                async with self.session.request(
                    method, url, data=data, headers={**(headers or {}), **self._shown_to(url)}, allow_redirects=False
                ) as answer:
                    said = await answer.content.read(DOCUMENT_MAX_BYTES + 1)
                    if (
                        answer.status != 401
                        or last
                        or not await self._let_in(answer.headers.get("WWW-Authenticate", ""))
                    ):
                        return answer.status, said, answer.headers
            except (aiohttp.ClientError, TimeoutError) as error:
                what = f"the registry {self.where.host} does not answer: {type(error).__name__}"
                raise CommandError(what, next_step="try again", kind="registry") from None
            finally:
                if not isinstance(data, bytes | None):
                    data.close()
        raise AssertionError("the second answer is returned")

    def _shown_to(self, url: URL) -> dict[str, str]:
        """What lets in is shown to the registry alone, not to where it has uploads go."""
        return self._fields if url.origin() == self.where.base.origin() else {}

    async def _let_in(self, challenge: str) -> bool:
        """Learn what to show: basic credentials, or a token from where the registry says. Returns whether anything was."""
        user, password = os.environ.get(USERNAME, ""), os.environ.get(PASSWORD, "")
        credentials = {"Authorization": aiohttp.encode_basic_auth(user, password)} if user else {}
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic" and credentials:
            self._fields = credentials
            return True
        said = dict(_CHALLENGE.findall(rest))
        realm = URL(said.get("realm", ""))
        if scheme.lower() != "bearer" or realm.scheme not in {"https", self.where.base.scheme}:
            return False
        asked = realm.update_query({name: said[name] for name in ("service", "scope") if name in said})
        async with self.session.get(asked, headers=credentials, allow_redirects=False) as answer:
            data = await answer.content.read(DOCUMENT_MAX_BYTES)
        try:
            table = msgspec.json.decode(data, type=dict[str, object])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return False
        token = table.get("token") or table.get("access_token")
        self._fields = {"Authorization": f"Bearer {token}"} if isinstance(token, str) else {}
        return bool(self._fields)

    def _require(self, status: int, wanted: tuple[int, ...], data: bytes, what: str) -> None:
        if status in wanted and len(data) <= DOCUMENT_MAX_BYTES:
            return
        step = f"set {USERNAME} and {PASSWORD}" if status in {401, 403} else "look at its address, and try again"
        raise CommandError(f"the registry {self.where.host} {what}: status {status}", next_step=step, kind="registry")
