"""Pebble, the test authority of Let's Encrypt, beside its name server, as processes on loopback. Not here: any test.

Both are built once with Go into .cache/. Names lead where the test says; a certificate's status is the authority's word.
Pebble knows no limits of rate: `Limits` stands before it, passes everything on, and refuses orders for names as RFC 8555 says.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.mesh.nodes import free_port, until
from tests.support.runtime import pem

CACHE = Path(__file__).resolve().parents[3] / ".cache" / "interop"
VERSION = "v2.10.3"
TOOLS = ("pebble", "pebble-challtestsrv")


class NoPebbleError(Exception):
    """This machine cannot have it; the text says why."""


def tools() -> tuple[str, str]:
    """Build both programs unless they are there. Raises NoPebbleError without Go."""
    go = shutil.which("go")
    if go is None:
        raise NoPebbleError("go is missing; install Go 1.26 or newer: the test authority (Pebble) is built with it")
    target = CACHE / f"pebble-{VERSION}"
    if not all((target / name).exists() for name in TOOLS):
        target.mkdir(parents=True, exist_ok=True)
        packages = [f"github.com/letsencrypt/pebble/v2/cmd/{name}@{VERSION}" for name in TOOLS]
        done = subprocess.run(
            [go, "install", *packages], env={**os.environ, "GOBIN": str(target)}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    return str(target / TOOLS[0]), str(target / TOOLS[1])


@dataclass
class Pebble:
    """A running authority: nodes show control at `http_port` and `tls_port`, whatever address a name has."""

    directory: str
    authority: Path
    http_port: int
    tls_port: int
    log: Path
    _management: str
    _names: str
    limits: Limits

    def lead(self, name: str, addresses: Sequence[str]) -> None:
        """Have a name lead to these addresses and no others."""
        self._tell("clear-a", {"host": f"{name}."})
        self._tell("add-a", {"host": f"{name}.", "addresses": list(addresses)})

    def refuse(self, name: str) -> None:
        """Have the name server fail for a name."""
        self._tell("set-servfail", {"host": f"{name}."})

    def allow(self, name: str) -> None:
        """Have it answer again."""
        self._tell("clear-servfail", {"host": f"{name}."})

    def set_txt(self, name: str, text: str) -> None:
        """Set a TXT record."""
        self._tell("set-txt", {"host": f"{name}.", "value": text})

    def asked(self) -> list[str]:
        """Which addresses the authority connected to, in order."""
        return re.findall(r"Attempting to validate w/ HTTP: http://[^\s]+|performing.*?(\S+)$", self.log.read_text())

    def orders(self) -> int:
        """How many orders were begun."""
        return self.log.read_text().count("Added order ")

    def status_of(self, serial: int) -> str:
        """ "Valid" or "Revoked"."""
        load: str = json.loads(self.manage(f"cert-status-by-serial/{serial:x}"))["Status"]
        return load

    def root(self) -> bytes:
        """The certificate (PEM) that vouches for what it issues."""
        return self.manage("roots/0")

    def manage(self, path: str) -> bytes:
        context = ssl.create_default_context(cafile=str(self.authority))
        with urllib.request.urlopen(f"{self._management}/{path}", timeout=10, context=context) as answer:
            body: bytes = answer.read()
            return body

    def _tell(self, act: str, what: dict[str, Any]) -> None:
        request = urllib.request.Request(f"{self._names}/{act}", json.dumps(what).encode(), method="POST")
        urllib.request.urlopen(request, timeout=10).close()


@dataclass
class Limits:
    """What stands before the authority.

    Mutable: for how long it refuses orders of which names, which it refused, and whether it says when to renew (RFC 9773).
    """

    port: int
    behind: int
    authority: Path
    retry_after_s: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    says_when: bool = True

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        limits, verified = self, ssl.create_default_context(cafile=str(self.authority))

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                name = _ordered(body) if self.path == "/order-plz" else ""
                if name in limits.retry_after_s:
                    limits.refused.append(name)
                    problem = {
                        "type": "urn:ietf:params:acme:error:rateLimited",
                        "detail": f"too many orders for {name}",
                    }
                    fields = {
                        "Content-Type": "application/problem+json",
                        "Retry-After": str(limits.retry_after_s[name]),
                    }
                    self._answer(429, fields, json.dumps(problem).encode())
                    return
                behind = http.client.HTTPSConnection("localhost", limits.behind, timeout=60, context=verified)
                with contextlib.closing(behind):
                    behind.request(self.command, self.path, body or None, dict(self.headers))
                    answer = behind.getresponse()
                    headers = {
                        k: v for k, v in answer.getheaders() if k.lower() not in {"content-length", "connection"}
                    }
                    body = answer.read()
                    if self.path == "/dir" and not limits.says_when:
                        body = json.dumps({k: v for k, v in json.loads(body).items() if k != "renewalInfo"}).encode()
                    self._answer(answer.status, headers, body)

            do_POST = do_HEAD = do_GET  # noqa: N815  the names are http.server's

            def _answer(self, status: int, fields: dict[str, str], body: bytes) -> None:
                self.send_response_only(status)
                for name, value in {**fields, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else body)

            def log_message(self, *_: Any) -> None:
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.authority)
        with ThreadingHTTPServer(("127.0.0.1", self.port), Handler) as server:
            server.daemon_threads, server.block_on_close = True, False
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield
            finally:
                server.shutdown()
                thread.join()


def _ordered(body: bytes) -> str:
    """The name that a request for an order is about (RFC 8555, 7.4)."""
    payload: str = json.loads(body)["payload"]
    asked = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    name: str = asked["identifiers"][0]["value"]
    return name


@contextlib.contextmanager
def pebble(folder: Path, *, lifetime_s: int = 7_776_000, sleep_s: int = 0) -> Iterator[Pebble]:
    """Run one for the duration of the block; certificates live for `lifetime_s`, a validation waits up to `sleep_s`."""
    program, names = tools()
    folder.mkdir()
    certificate = pem.write(folder / "authority.pem", "localhost")
    directory, behind, management, visited, tls, dns, told = (free_port() for _ in range(7))
    config = {
        "listenAddress": f"127.0.0.1:{behind}", "managementListenAddress": f"127.0.0.1:{management}",
        "certificate": str(certificate), "privateKey": str(certificate), "httpPort": visited, "tlsPort": tls,
        "ocspResponderURL": "", "externalAccountBindingRequired": False, "retryAfter": {"authz": 1, "order": 1},
        "keyAlgorithm": "ecdsa", "profiles": {"default": {"description": "as asked", "validityPeriod": lifetime_s}},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"pebble": config}))
    waits = {"PEBBLE_VA_SLEEPTIME": str(sleep_s)} if sleep_s else {"PEBBLE_VA_NOSLEEP": "1"}
    with (folder / "pebble.log").open("wb") as log:
        ended = [
            subprocess.Popen(
                [names, "-dnsserver", f"127.0.0.1:{dns}", "-management", f"127.0.0.1:{told}", "-http01", "", "-https01", "",
                 "-tlsalpn01", "", "-doh", "", "-defaultIPv6", ""],
                stdout=log, stderr=log,
            ),
            subprocess.Popen(
                [program, "-config", str(folder / "config.json"), "-dnsserver", f"127.0.0.1:{dns}"],
                env={**os.environ, **waits, "PEBBLE_AUTHZREUSE": "0", "PEBBLE_WFE_NONCEREJECT": "20"},
                stdout=log, stderr=log,
            ),
        ]  # fmt: skip
    new_pebble = Pebble(
        f"https://localhost:{directory}/dir", certificate, visited, tls, folder / "pebble.log",
        f"https://localhost:{management}", f"http://127.0.0.1:{told}", Limits(directory, behind, certificate),
    )  # fmt: skip
    try:
        until(lambda: _answers(new_pebble), 20, "the authority to answer")
        with new_pebble.limits.serving():
            yield new_pebble
    finally:
        for process in ended:
            process.terminate()
            process.wait(10)


def _answers(made: Pebble) -> bool:
    try:
        return bool(made.root()) and made._tell("clear-servfail", {"host": "nobody."}) is None
    except OSError:
        return False
