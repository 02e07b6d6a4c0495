"""A folder of files as a website: index pages, content types, entity tags, ranges, compression. It runs no code of the app.

Every file is in memory, under the name it has in the folder, so a path can lead to nothing else. What a request may ask
of a file follows RFC 9110. Not here: which files of the folder belong to the site (`site.py` of the builder).
"""

from __future__ import annotations

import encodings.ascii
import encodings.idna
import encodings.latin_1
import hashlib
import os
import re
import unicodedata
import zlib
from typing import Callable, Mapping
from urllib.parse import unquote

from freehold import Request, Response

CODECS = (encodings.ascii, encodings.idna, encodings.latin_1)  # looked up by name while serving: imported at build
NOT_FOUND = "404.html"
INDEX = "index.html"
COMPRESSED_MIN_BYTES = 256
PIECE_BYTES = 256 * 1024

TYPES = {
    "aac": "audio/aac", "apng": "image/apng", "avif": "image/avif", "bmp": "image/bmp", "css": "text/css", "csv": "text/csv",
    "epub": "application/epub+zip", "eot": "application/vnd.ms-fontobject", "flac": "audio/flac", "gif": "image/gif",
    "gz": "application/gzip", "htm": "text/html", "html": "text/html", "ico": "image/vnd.microsoft.icon",
    "ics": "text/calendar", "jpeg": "image/jpeg", "jpg": "image/jpeg", "js": "text/javascript", "json": "application/json",
    "jsonld": "application/ld+json", "m4a": "audio/mp4", "map": "application/json", "md": "text/markdown",
    "mjs": "text/javascript", "mp3": "audio/mpeg", "mp4": "video/mp4", "ogg": "audio/ogg", "opus": "audio/ogg",
    "otf": "font/otf", "pdf": "application/pdf", "png": "image/png", "rss": "application/rss+xml", "svg": "image/svg+xml",
    "tar": "application/x-tar", "ttf": "font/ttf", "txt": "text/plain", "vtt": "text/vtt", "wasm": "application/wasm",
    "wav": "audio/wav", "webm": "video/webm", "webmanifest": "application/manifest+json", "webp": "image/webp",
    "woff": "font/woff", "woff2": "font/woff2", "xhtml": "application/xhtml+xml", "xml": "application/xml",
    "zip": "application/zip",
}  # fmt: skip
UNKNOWN = "application/octet-stream"
TEXTS = re.compile(r"text/|application/(json|ld\+json|manifest\+json|rss\+xml|xhtml\+xml|xml)|image/svg\+xml")
WORTH_COMPRESSING = re.compile(TEXTS.pattern + r"|application/wasm|image/(bmp|vnd.microsoft.icon)|font/(otf|ttf)|.*fontobject")
RANGE = re.compile(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})\s*")
TAG = re.compile(r'(?:W/)?("[^"]*")')


class File:
    """One file of the site."""

    def __init__(self, name: str, content: bytes) -> None:
        self.content = content
        kind = TYPES.get(name.rpartition(".")[2].lower(), UNKNOWN) if "." in name else UNKNOWN
        self.type = f"{kind}; charset=utf-8" if TEXTS.match(kind) else kind
        self.worth = bool(WORTH_COMPRESSING.match(kind)) and len(content) >= COMPRESSED_MIN_BYTES
        self.tag = hashlib.sha256(content).hexdigest()[:32]
        self._gzip: bytes | None = None

    def gzip(self) -> bytes | None:
        """Return the content compressed, or None where that saves nothing."""
        if not self.worth:
            return None
        if self._gzip is None:
            packer = zlib.compressobj(9, zlib.DEFLATED, 31)
            self._gzip = packer.compress(self.content) + packer.flush()
            self.worth = len(self._gzip) < len(self.content) * 0.9
        return self._gzip if self.worth else None


def read_folder(folder: str) -> dict[str, bytes]:
    """Return the files below `folder` by their names in it."""
    found = {}
    for path, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(path, name), "rb") as file:
                found[os.path.join(path, name)[len(folder) + 1 :]] = file.read()
    return found


class Site:
    """Answers requests for the files. `fallback` is the page for paths that name none of them."""

    def __init__(self, files: Mapping[str, bytes], fallback: str, prefixes: tuple[str, ...] = ()) -> None:
        self._files = {unicodedata.normalize("NFC", name): File(name, content) for name, content in files.items()}
        self._folders = {name.rpartition("/")[0] for name in self._files}
        self._fallback = fallback
        self._prefixes = prefixes

    def prepare(self) -> Site:
        """Compress now, at build, what would be compressed at the first request for it."""
        for file in self._files.values():
            file.gzip()
        return self

    def handle(self, request: Request) -> Response:
        if request.method == "OPTIONS":
            return Response(b"", 204, {"allow": "GET, HEAD, OPTIONS"})
        if request.method not in ("GET", "HEAD"):
            return said(405, "Method Not Allowed\n", {"allow": "GET, HEAD, OPTIONS"})
        prefix = next((one for one in self._prefixes if (request.path + "/").startswith(one + "/")), "")
        names = decoded(request.path[len(prefix) :])
        if names is None:
            return self._missing(request)
        name = "/".join(names)
        if name in self._files and name:
            return answered(self._files[name], request)
        inside = name.removesuffix("/")
        index = f"{inside}/{INDEX}".lstrip("/")
        if name.endswith("/") or not name:
            if index in self._files and (name or request.path.endswith("/")):
                return answered(self._files[index], request)
            if not name and not request.path.endswith("/"):
                return moved(request)
            return self._missing(request)
        if index in self._files:
            return moved(request)
        page = self._files.get(f"{name}.html")
        return answered(page, request) if page else self._missing(request)

    def _missing(self, request: Request) -> Response:
        page = self._files.get(self._fallback)
        if page is None:
            return said(404, "Not Found\n")
        if self._fallback == NOT_FOUND:
            return answered(page, request, 404)
        # An app that routes by itself wants its page for what people open, not in the place of a script that is gone.
        opened = "text/html" in request.headers.get("accept", "") or "." not in request.path.rpartition("/")[2]
        return answered(page, request) if opened else said(404, "Not Found\n")


def decoded(path: str) -> list[str] | None:
    """Return the segments of a path without its first slash, decoded once; None for one that can name no file."""
    found = []
    for segment in path.removeprefix("/").split("/"):
        try:
            text = unicodedata.normalize("NFC", unquote(segment, errors="strict"))
        except UnicodeDecodeError:
            return None
        if text in (".", "..") or any(char in "/\\\0" for char in text):
            return None
        found.append(text)
    return None if "" in found[:-1] else found


def said(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(text, status, {"content-type": "text/plain; charset=utf-8", **sized(len(text)), **(headers or {})})


def sized(size: int) -> dict[str, str]:
    return {"content-length": str(size), "x-content-type-options": "nosniff"}


def moved(request: Request) -> Response:
    """Send to the folder's own address, with its slash, or relative links on its page would lead elsewhere."""
    query = f"?{request.query}" if request.query else ""
    return said(308, "", {"location": f"{request.path}/{query}"})


def answered(file: File, request: Request, status: int = 200) -> Response:
    """Answer with a file, a part of it, or that the visitor has it already."""
    headers = request.headers
    asked = headers.get("range", "") if request.method == "GET" and status == 200 else ""
    span = span_of(asked, len(file.content)) if if_range(headers, file) else None
    zipped = file.gzip() if span is None and takes_gzip(headers.get("accept-encoding", "")) else None
    tag = f'"{file.tag}-gz"' if zipped is not None else f'"{file.tag}"'
    fields = {"content-type": file.type, "cache-control": "no-cache", "etag": tag, "accept-ranges": "bytes"}
    if file.worth:
        fields["vary"] = "accept-encoding"
    if status == 200 and matches(headers.get("if-none-match", ""), tag):
        return Response(b"", 304, {name: fields[name] for name in fields if name not in ("content-type", "accept-ranges")})
    if status == 200 and "if-match" in headers and not matches(headers["if-match"], tag, strong=True):
        return said(412, "Precondition Failed\n")
    if span == ():
        return said(416, "Range Not Satisfiable\n", {"content-range": f"bytes */{len(file.content)}"})
    if span:
        first, last = span
        fields["content-range"] = f"bytes {first}-{last}/{len(file.content)}"
        return Response(pieces(file.content, first, last + 1), 206, {**fields, **sized(last + 1 - first)})
    body = file.content
    if zipped is not None:
        body, fields["content-encoding"] = zipped, "gzip"
    return Response(pieces(body, 0, len(body)), status, {**fields, **sized(len(body))})


def pieces(content: bytes, start: int, end: int):
    """Yield a part of a file in pieces, so that no second copy of a large one is made."""
    for at in range(start, end, PIECE_BYTES):
        yield content[at : min(at + PIECE_BYTES, end)]


def span_of(asked: str, size: int) -> tuple[int, int] | tuple[()] | None:
    """Return first and last byte of the one range asked for, () if the file has none of it, None for the whole file."""
    found = RANGE.fullmatch(asked)
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        length = min(int(found[2]), size)
        return (size - length, size - 1) if length else ()
    first, last = int(found[1]), int(found[2] or size)
    if found[2] and last < first:
        return None
    return (first, min(last, size - 1)) if first < size else ()


def if_range(headers: Mapping[str, str], file: File) -> bool:
    """Whether the range is asked of the file as it is now; there are no dates to compare."""
    return headers.get("if-range", f'"{file.tag}"').strip() == f'"{file.tag}"'


def matches(given: str, tag: str, *, strong: bool = False) -> bool:
    """Whether a list of entity tags has this one."""
    if given.strip() == "*":
        return True
    return tag in (found[1] for found in TAG.finditer(given) if not (strong and found[0].startswith("W/")))


def takes_gzip(accepted: str) -> bool:
    """Whether a visitor takes gzip (RFC 9110, 12.5.3)."""
    weights = {}
    for item in accepted.lower().split(","):
        name, _, weight = item.partition(";")
        weights[name.strip()] = not re.fullmatch(r"\s*q\s*=\s*0(\.0{0,3})?\s*", weight)
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", False)))


def handle_of(folder: str, fallback: str, prefixes: tuple[str, ...], *, prepare: bool) -> Callable[[Request], Response]:
    """Return what answers requests for the files of a folder."""
    site = Site(read_folder(folder), fallback, tuple(prefixes))
    return (site.prepare() if prepare else site).handle
