"""Certificates for the ingress: every NAME.pem of a folder (a chain and its key), chosen by what the client asks for.

A file that changes is read within seconds, and connections that are open keep what they began with; while the node runs, a
folder that cannot be read whole changes nothing, so that a half-written file never takes a site down; at a start, what can
be read is served. Of several for one name the one that is valid and ends last counts. A client that names no host, or one
that no certificate has, gets the first file's by name that is valid. TLS 1.2 and newer, HTTP/1.1 only. Names are matched as
RFC 9525 says: DNS names, a wildcard standing for one whole label. A node whose mesh gets certificates has a second folder,
of those, and may begin with none: until it has one, a handshake is refused. Not here: getting them (node/acme/), and the
node's API.
"""

from __future__ import annotations

import ssl
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509

FILE_MAX_BYTES: Final = 256 * 1024
"""A chain of a few certificates and a key has 10 KiB."""

FILES_MAX: Final = 1024
PROTOCOLS: Final = ("http/1.1",)

Fingerprint = tuple[tuple[str, int, int], ...]


class CertificateError(Exception):
    """The folder cannot be served from; the text names the file and says what to do."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """One file: the names it answers for, when it ends, and what a connection needs."""

    path: Path
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    context: ssl.SSLContext


class Certificates:
    """The certificates of a node. `refresh` belongs to one thread; contexts may be used by any."""

    def __init__(self, folder: Path, shared: Path | None = None) -> None:
        """Read the folder, and `shared`, which holds those of the mesh.

        Raises `CertificateError` if nothing can be served and none will come from the mesh.
        """
        self._folder = folder
        self._shared = shared
        self._fingerprint: Fingerprint = ()
        self._by_name: dict[str, ssl.SSLContext] = {}
        self.front: ssl.SSLContext
        """What a new connection begins with."""
        self.problem = ""
        """Why a file of the folder is not served, as far as the node began without it."""
        try:
            self._take(self._now(), self._read())
        except CertificateError as error:
            self.problem = str(error)
            self._take(self._now(), self._read_some())

    def refresh(self) -> bool:
        """Read the folders again if they changed; whether they did. Raises `CertificateError` and keeps what it had."""
        fingerprint = self._now()
        if fingerprint == self._fingerprint:
            return False
        self._fingerprint = fingerprint  # a bad state is told once, not at every look
        self._take(fingerprint, self._read())
        return True

    def _now(self) -> Fingerprint:
        return _fingerprint(self._folder) + (_fingerprint(self._shared) if self._shared is not None else ())

    def _read(self) -> list[Loaded]:
        if self._shared is None:
            return read(self._folder)
        # Of the mesh's own files none is half-written; one that a release to come makes otherwise must not hide the rest.
        return [*(read(self._folder) if holds_any(self._folder) else ()), *_readable(self._shared)[0]]

    def _read_some(self) -> list[Loaded]:
        if self._shared is None:
            return read_some(self._folder)
        return [*_readable(self._folder)[0], *_readable(self._shared)[0]]

    def _take(self, fingerprint: Fingerprint, found: list[Loaded]) -> None:
        loaded = best_first(found)
        by_name: dict[str, ssl.SSLContext] = {}
        for entry in loaded:
            for name in entry.names:
                by_name.setdefault(name, entry.context)
        self._by_name, self._fingerprint = by_name, fingerprint
        self.front = loaded[0].context if loaded else ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        for context in (self.front, *(candidate.context for candidate in loaded)):
            context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, begun: ssl.SSLContext) -> int | None:
        wanted = (name or "").lower()
        tls_context = self._by_name.get(wanted) or self._by_name.get("*." + wanted.partition(".")[2])
        if tls_context is not None:
            connection.context = tls_context
        elif not self._by_name:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        return None


def holds_any(folder: Path) -> bool:
    """Whether a folder has any certificate of its own."""
    return next(iter(folder.glob("*.pem")), None) is not None


def read(folder: Path) -> list[Loaded]:
    """Return every certificate of a folder, in order of file name. Raises `CertificateError` naming the first bad file."""
    try:
        paths = sorted(folder.glob("*.pem"))
    except OSError as error:
        raise CertificateError(f"{folder} cannot be read: {error.strerror}") from None
    if not paths:
        raise CertificateError(f"{folder} holds no NAME.pem (the certificate's chain, then its key)")
    if len(paths) > FILES_MAX:
        raise CertificateError(f"{folder} holds {len(paths)} files, at most {FILES_MAX} are served")
    return [_load(path) for path in paths]


def read_some(folder: Path) -> list[Loaded]:
    """Return every certificate that can be read, in order of file name. Raises `CertificateError` if none can."""
    certificates, problems = _readable(folder)
    if not certificates:
        raise problems[0] if problems else CertificateError(f"{folder} holds no NAME.pem")
    return certificates


def _readable(folder: Path) -> tuple[list[Loaded], list[CertificateError]]:
    certificates, problems = [], []
    for path in sorted(folder.glob("*.pem"))[:FILES_MAX]:
        try:
            certificates.append(_load(path))
        except CertificateError as error:
            problems.append(error)
    return certificates, problems


def best_first(loaded: Sequence[Loaded]) -> list[Loaded]:
    """Return certificates in the order in which they are preferred: valid before others, later ends first for one name.

    Of those that are valid the first by file name stays first, since it is what clients without a name get.
    """
    now = datetime.now(UTC)
    valid = [entry for entry in loaded if entry.not_before <= now < entry.not_after]
    others = [entry for entry in loaded if entry not in valid]
    if not valid:
        return sorted(others, key=lambda one: one.not_after, reverse=True)
    first = valid[0]
    same = [loaded for loaded in valid if set(loaded.names) & set(first.names)]
    first = max(same, key=lambda one: one.not_after)
    rest = sorted((loaded for loaded in valid if loaded is not first), key=lambda one: one.not_after, reverse=True)
    return [first, *rest, *sorted(others, key=lambda one: one.not_after, reverse=True)]


def _load(path: Path) -> Loaded:
    try:
        status = path.stat()
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise CertificateError(f"{path} can be read by other users; run: chmod 600 {path}")
        if status.st_size > FILE_MAX_BYTES:
            raise CertificateError(f"{path} has {status.st_size} bytes, a certificate has at most {FILE_MAX_BYTES}")
        leaf = x509.load_pem_x509_certificates(path.read_bytes())[0]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(list(PROTOCOLS))
        context.load_cert_chain(path, password=_no_password)
        names = _names_of(leaf)
    except (ValueError, ssl.SSLError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise CertificateError(
            f"{path} is no chain with its key, both in PEM and without a password: {error}"
        ) from None
    except OSError as error:
        raise CertificateError(f"{path} cannot be read: {error.strerror}") from None
    return Loaded(path, names, leaf.not_valid_before_utc, leaf.not_valid_after_utc, context)


def _names_of(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        said = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(name.lower() for name in said.get_values_for_type(x509.DNSName))


def _no_password() -> str:
    """Answer OpenSSL's question for an encrypted key, which must not be asked on a terminal."""
    raise ValueError("the key is encrypted")


def _fingerprint(folder: Path) -> Fingerprint:
    pairs = []
    for path in sorted(folder.glob("*.pem")):
        try:
            status = path.stat()
        except OSError:
            continue  # removed meanwhile: the next look sees that
        pairs.append((path.name, status.st_mtime_ns, status.st_size))
    return tuple(pairs)


def days_left(certificate: Loaded) -> int:
    """Whole days until a certificate ends; negative once it has."""
    return (certificate.not_after - datetime.now(UTC)).days
