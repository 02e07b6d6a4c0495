"""A node's own certificate authority: what ordinary TLS clients believe instead of a pin, and why it is this node's.

It certifies nothing but the names and addresses of its node (name constraints, RFC 5280 section 4.2.1.10), so no node's key
is good for another's. The certificate carries the node key's signature over the authority's public key: whoever knows the
node id can check whose it is. Not here: the certificate that is served (tls.py), and any right in the mesh.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from protocols.envelope import signing_bytes
from protocols.keys import public_key_of
from protocols.machine import PeerId, Signer, Verifier

AUTHORITY_DOMAIN = "freehold/api-authority/1"
BOUND = "freehold-bound:"
"""Begins the name (a URI, in hex from here on) that holds the node key's signature."""
BOUND_BEFORE = x509.ObjectIdentifier("2.25.329800735698586629295641978511506172918")
"""The extension that held it before, of an arc of 128 bits: no client written in Go reads a certificate with it."""

CERTIFICATE_MAX_BYTES = 2_048
LIFETIME = datetime.timedelta(days=3650)
BEFORE = datetime.timedelta(days=1)
NAMES_MAX = 32
_DNS = re.compile(r"(?=.{1,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")

UNREADABLE = (
    ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound, x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)  # fmt: skip

Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Names:
    """Where an API is reached: DNS names and IP addresses, each ascending."""

    dns: tuple[str, ...]
    addresses: tuple[str, ...]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Names:
        """Sort hosts into names and addresses; what is neither, and wildcards, are left out."""
        dns, addresses = set(), set()
        for text in texts:
            host = text.strip("[]").lower()
            try:
                address = ipaddress.ip_address(host)
            except ValueError:
                if _DNS.fullmatch(host):
                    dns.add(host)
                continue
            if not address.is_unspecified:
                addresses.add(str(address))
        return cls(tuple(sorted(dns)[:NAMES_MAX]), tuple(sorted(addresses)[:NAMES_MAX]))


def spki_of(certificate: x509.Certificate) -> bytes:
    """The public key of a certificate as it stands there (SubjectPublicKeyInfo, DER): what a pin covers."""
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def make_authority(
    key: Key, names: Names, *, node: PeerId, mesh: bytes, signer: Signer, now: datetime.datetime
) -> x509.Certificate:
    """Return the certificate of the authority, good for these names alone."""
    name = _subject(node)
    public = key.public_key()
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    bound = signer.sign(signing_bytes(AUTHORITY_DOMAIN, mesh, der))
    permitted: list[x509.GeneralName] = [x509.DNSName(text) for text in names.dns or ("invalid",)]
    permitted += [x509.IPAddress(ipaddress.ip_network(text)) for text in names.addresses or ("192.0.2.1",)]
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEFORE)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certifies=True), critical=True)
        .add_extension(x509.NameConstraints(permitted, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(BOUND + bound.hex())]), critical=False
        )
        .sign(key, hashes.SHA256())
    )


def make_leaf(
    authority: x509.Certificate, authority_key: Key, key: Key, names: Names, *, now: datetime.datetime,
    lifetime: datetime.timedelta,
) -> x509.Certificate:  # fmt: skip
    """Return a server's certificate for these names, by the authority."""
    held: list[x509.GeneralName] = [x509.DNSName(text) for text in names.dns]
    held += [x509.IPAddress(ipaddress.ip_address(address)) for address in names.addresses]
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "freehold API")]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEFORE)
        .not_valid_after(min(now + lifetime, authority.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName(held), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certifies=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )


def is_of_node(verifier: Verifier, node: PeerId, mesh: bytes, data: bytes) -> bool:
    """Whether bytes from elsewhere are the certificate of this node's authority: a constrained one, bound to its key."""
    if not 0 < len(data) <= CERTIFICATE_MAX_BYTES:
        return False
    try:
        certificate = x509.load_der_x509_certificate(data)
        certificate.verify_directly_issued_by(certificate)
        extensions = certificate.extensions
        bound = _bound_by(certificate)
        constraints = extensions.get_extension_for_class(x509.NameConstraints)
        limits = extensions.get_extension_for_class(x509.BasicConstraints).value
        spki = spki_of(certificate)
    except UNREADABLE:
        return False
    kinds = {type(subtree) for subtree in constraints.value.permitted_subtrees or ()}
    narrow = constraints.critical and {x509.DNSName, x509.IPAddress} <= kinds and limits.path_length == 0
    return narrow and verifier.verify(public_key_of(node), signing_bytes(AUTHORITY_DOMAIN, mesh, spki), bound)


def is_readable(authority: x509.Certificate) -> bool:
    """Whether every client can read an authority's certificate: one of an earlier release is made anew, of the same key."""
    return not any(extension.oid == BOUND_BEFORE for extension in authority.extensions)


def _bound_by(certificate: x509.Certificate) -> bytes:
    """The signature of the node's key. Raises one of UNREADABLE where there is none."""
    if not is_readable(certificate):
        before = certificate.extensions.get_extension_for_oid(BOUND_BEFORE).value
        return before.value if isinstance(before, x509.UnrecognizedExtension) else b""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (said,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    if not said.startswith(BOUND):
        raise ValueError("it is bound to no node's key")
    return bytes.fromhex(said.removeprefix(BOUND))


def permitted_by(authority: x509.Certificate) -> Names:
    """The names that an authority may certify."""
    permitted = authority.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or []
    dns = [str(general_name.value) for general_name in permitted if isinstance(general_name, x509.DNSName)]
    networks = [general_name.value for general_name in permitted if isinstance(general_name, x509.IPAddress)]
    return Names.of([*dns, *(str(network).partition("/")[0] for network in networks)])


def _subject(node: PeerId) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"freehold {node}")])


def _usage(*, certifies: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certifies, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=certifies, crl_sign=certifies, encipher_only=False, decipher_only=False,
    )  # fmt: skip
