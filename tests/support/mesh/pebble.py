"""Pebble, the test authority of Let's Encrypt, beside its name server, as processes on loopback. Not here: any test.

Both are built once with Go into .cache/. Names lead where the test says; a certificate's status is the authority's word.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
        found: str = json.loads(self.manage(f"cert-status-by-serial/{serial:x}"))["Status"]
        return found

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


@contextlib.contextmanager
def pebble(folder: Path, *, lifetime_s: int = 7_776_000, sleep_s: int = 0) -> Iterator[Pebble]:
    """Run one for the duration of the block; certificates live for `lifetime_s`, a validation waits up to `sleep_s`."""
    program, names = tools()
    folder.mkdir()
    certificate = pem.write(folder / "authority.pem", "localhost")
    directory, management, http, tls, dns, told = (free_port() for _ in range(6))
    config = {
        "listenAddress": f"127.0.0.1:{directory}", "managementListenAddress": f"127.0.0.1:{management}",
        "certificate": str(certificate), "privateKey": str(certificate), "httpPort": http, "tlsPort": tls,
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
    made = Pebble(
        f"https://localhost:{directory}/dir", certificate, http, tls, folder / "pebble.log",
        f"https://localhost:{management}", f"http://127.0.0.1:{told}",
    )  # fmt: skip
    try:
        until(lambda: _answers(made), 20, "the authority to answer")
        yield made
    finally:
        for process in ended:
            process.terminate()
            process.wait(10)


def _answers(made: Pebble) -> bool:
    try:
        return bool(made.root()) and made._tell("clear-servfail", {"host": "nobody."}) is None
    except OSError:
        return False
