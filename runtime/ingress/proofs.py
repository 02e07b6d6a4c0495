"""Answers to a certificate authority's challenges, and certificates of the mesh: files that a node's daemon keeps for workers.

Below the workers' volatile folder: `http-01/TOKEN` holds a key authorization (RFC 8555, 8.3), `tls-alpn-01/NAME.pem` a
certificate that shows one (RFC 8737), `certificates/` what visitors get. They are looked at when they are asked for, so that
a worker answers from the moment its daemon says that it does, and one that the daemon before started goes on. An authority
says in its first bytes that it speaks acme-tls/1, which no visitor does; they are looked at while a challenge is open, and
alone. Not here: getting certificates (node/acme/), and which one a visitor gets (certificates.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import ssl
from pathlib import Path
from typing import Final

FRONT_FOLDER: Final = "front"
HTTP_PREFIX: Final = "/.well-known/acme-challenge/"
ALPN: Final = "acme-tls/1"
ANSWER_MAX_BYTES: Final = 512
HELLO_MAX_BYTES: Final = 16 * 1024
"""A record of TLS, which an authority's first message never fills."""

HELLO_TIMEOUT_S: Final = 5.0
HELLO_LOOK_S: Final = 0.01
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{22,128}")
_OFFER: Final = bytes((len(ALPN),)) + ALPN.encode()
_HANDSHAKE: Final = 22


class FrontFolder:
    """The three folders below `folder`; the daemon writes them, workers read."""

    def __init__(self, folder: Path) -> None:
        self.http = folder / FRONT_FOLDER / "http-01"
        self.alpn = folder / FRONT_FOLDER / "tls-alpn-01"
        self.certificates = folder / FRONT_FOLDER / "certificates"

    def make(self) -> None:
        """Make the folders, readable by this user alone."""
        for folder in (self.http.parent, self.http, self.alpn, self.certificates):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def answer(self, path: str) -> bytes | None:
        """Return what answers an authority's request for a path without its query, None if it is a visitor's."""
        token = path.removeprefix(HTTP_PREFIX)
        if token == path or not _TOKEN.fullmatch(token):
            return None
        try:
            with (self.http / token).open("rb") as file:
                return file.read(ANSWER_MAX_BYTES)
        except OSError:
            return None

    def proof_open(self) -> bool:
        """Whether a challenge over TLS may be asked for now."""
        try:
            with os.scandir(self.alpn) as listing:
                return next(listing, None) is not None
        except OSError:
            return False

    def proof_context(self) -> ssl.SSLContext | None:
        """Return what an authority's connection begins with: the certificate of the name that it asks for."""
        by_name: dict[str, ssl.SSLContext] = {}
        for path in sorted(self.alpn.glob("*.pem")):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.set_alpn_protocols([ALPN])
            with contextlib.suppress(OSError, ssl.SSLError):  # it was answered meanwhile
                context.load_cert_chain(path)
                by_name[path.stem] = context
        if not by_name:
            return None

        def choose(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
            tls_context = by_name.get((name or "").lower())
            if tls_context is None:
                return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
            connection.context = tls_context
            return None

        front = next(iter(by_name.values()))
        front.sni_callback = choose
        return front


async def offers_proof(connection: socket.socket) -> bool:
    """Whether whoever connects offers acme-tls/1 in the first record; nothing is taken from the socket."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + HELLO_TIMEOUT_S
    while loop.time() < deadline_s:
        try:
            seen = connection.recv(HELLO_MAX_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            seen = b""
        except OSError:
            return False
        else:
            if not seen or seen[0] != _HANDSHAKE:
                return False
        if _OFFER in seen:
            return True
        if len(seen) >= 5 and len(seen) >= min(HELLO_MAX_BYTES, 5 + int.from_bytes(seen[3:5])):
            return False
        await asyncio.sleep(HELLO_LOOK_S)
    return False
