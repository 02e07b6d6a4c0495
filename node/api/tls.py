"""The certificate of the node's HTTPS API: made by the node itself, believed for its digest alone.

An ECDSA key on P-256 and a certificate without any authority, kept in the data folder with mode 0600. Clients hold the
SHA-256 of the certificate (the pin, which an invite line carries and the mesh's records tell), so neither names nor
dates prove anything; it lives for ten years, and a new one is made in its last year: clients then log in again. Not
here: who may call (api/callers.py).
"""

from __future__ import annotations

import datetime
import hashlib
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from node.errors import ConfigError
from node.keys import write_private

LIFETIME = datetime.timedelta(days=3650)
RENEWED_BEFORE = datetime.timedelta(days=365)
FILE_NAME = "api.pem"


@dataclass(frozen=True, slots=True)
class Tls:
    """What a listener needs, and the hex SHA-256 of the certificate."""

    context: ssl.SSLContext
    pin: str


def load_or_create_tls(folder: Path, node: str, now: datetime.datetime) -> Tls:
    """Return the node's certificate, making one if there is none or it ends soon. Raises ConfigError if it is damaged."""
    path = folder / FILE_NAME
    certificate = _load(path)
    if certificate is None or certificate.not_valid_after_utc - now < RENEWED_BEFORE:
        certificate = _create(path, node, now)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(path)
    except ssl.SSLError as error:
        raise ConfigError(f"{path} is no key with its certificate: {error}", f"remove {path}") from None
    return Tls(context, hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest())


def _load(path: Path) -> x509.Certificate | None:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None
    if mode & 0o077:
        raise ConfigError(f"{path} can be read by other users (mode {mode:04o})", f"chmod 600 {path}")
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        raise ConfigError(f"{path} holds no certificate", f"remove {path}; clients then log in again") from None


def _create(path: Path, node: str, now: datetime.datetime) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"freehold {node[-16:]}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("freehold")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(path, private + certificate.public_bytes(serialization.Encoding.PEM))
    return certificate
