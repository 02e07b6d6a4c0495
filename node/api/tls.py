"""The TLS that the API is served with: a certificate by the node's own authority, believed by CA file or by pin.

The pin is the SHA-256 of the certificate's public key, so it outlives the certificate, which is made anew when it grows old
or when the node is reached under other names. Keys and the authority lie in the data folder with mode 0600. A node whose
folder holds the `api.pem` of an earlier version goes on with it, because logins have pinned it whole; whoever removes it
has people log in again. Not here: who may call (callers.py), and what an authority may certify (authority.py).
"""

from __future__ import annotations

import datetime
import hashlib
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from node.api.callers.authority import Key, Names, is_readable, make_authority, make_leaf, permitted_by, spki_of
from node.errors import ConfigError
from node.keys import write_private
from protocols.machine import PeerId, Signer

LIFETIME = datetime.timedelta(days=90)
RENEWED_BEFORE = datetime.timedelta(days=30)
AUTHORITY_RENEWED_BEFORE = datetime.timedelta(days=365)
EARLIER_NAME, AUTHORITY_NAME, SERVED_NAME = "api.pem", "api-ca.pem", "api-tls.pem"


@dataclass(frozen=True, slots=True)
class Tls:
    """What a listener needs, its pin in hex, and the authority's certificate (DER; empty with an earlier certificate)."""

    context: ssl.SSLContext
    pin: str
    authority: bytes


class ApiCertificate:
    """The certificate of one node's API. `refresh` follows the names it is reached by and the calendar."""

    def __init__(self, folder: Path, node: PeerId, mesh: bytes, signer: Signer) -> None:
        """Take the data folder, and whose authority it is."""
        self._folder, self._node, self._mesh, self._signer = folder, node, mesh, signer
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3

    def refresh(self, names: Names, now: datetime.datetime) -> Tls:
        """Return what to serve under these names, made anew where it must be. Raises ConfigError for a damaged file."""
        earlier = _load(self._folder / EARLIER_NAME)
        if earlier is not None:
            self._serve(self._folder / EARLIER_NAME)
            der = earlier[1].public_bytes(serialization.Encoding.DER)
            return Tls(self._context, hashlib.sha256(der).hexdigest(), b"")
        authority_key, authority = self._authority(names, now)
        path = self._folder / SERVED_NAME
        held = _load(path)
        key = held[0] if held is not None else ec.generate_private_key(ec.SECP256R1())
        if held is None or not _is_good(held[1], authority, names, now) or _vouching(path) != [authority]:
            leaf = make_leaf(authority, authority_key, key, names, now=now, lifetime=LIFETIME)
            _write(path, key, leaf, authority)
        self._serve(path)
        pin = hashlib.sha256(spki_of(_public(path))).hexdigest()
        return Tls(self._context, pin, authority.public_bytes(serialization.Encoding.DER))

    def _authority(self, names: Names, now: datetime.datetime) -> tuple[Key, x509.Certificate]:
        path = self._folder / AUTHORITY_NAME
        held = _load(path)
        if held is not None:
            key, certificate = held
            may = permitted_by(certificate)
            covers = set(names.dns) <= set(may.dns) and set(names.addresses) <= set(may.addresses)
            if covers and is_readable(certificate) and certificate.not_valid_after_utc - now > AUTHORITY_RENEWED_BEFORE:
                return key, certificate
        key = held[0] if held is not None else ec.generate_private_key(ec.SECP256R1())
        authority = make_authority(key, names, node=self._node, mesh=self._mesh, signer=self._signer, now=now)
        _write(path, key, authority)
        return key, authority

    def _serve(self, path: Path) -> None:
        try:
            self._context.load_cert_chain(path)
        except ssl.SSLError as error:
            raise ConfigError(f"{path} is no key with its certificate: {error}", f"remove {path}") from None


def _is_good(leaf: x509.Certificate, authority: x509.Certificate, names: Names, now: datetime.datetime) -> bool:
    held = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    covered = Names.of([*held.get_values_for_type(x509.DNSName), *map(str, held.get_values_for_type(x509.IPAddress))])
    issued = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    return covered == names and issued == own and leaf.not_valid_after_utc - now > RENEWED_BEFORE


def _public(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _vouching(path: Path) -> list[x509.Certificate]:
    """What is sent beside a server's certificate."""
    return x509.load_pem_x509_certificates(path.read_bytes())[1:]


def _load(path: Path) -> tuple[Key, x509.Certificate] | None:
    """A key and the certificate after it; None if there is no file. Raises ConfigError if it is damaged."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None
    if mode & 0o077:
        raise ConfigError(f"{path} can be read by other users (mode {mode:04o})", f"chmod 600 {path}")
    data = path.read_bytes()
    try:
        key = serialization.load_pem_private_key(data, None)
        certificate = x509.load_pem_x509_certificate(data)
    except (ValueError, TypeError):
        raise ConfigError(
            f"{path} holds no key with its certificate", f"remove {path}; clients then log in again"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} holds no key on P-256", f"remove {path}; clients then log in again")
    return key, certificate


def _write(path: Path, key: Key, *certificates: x509.Certificate) -> None:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(
        path, private + b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)
    )
