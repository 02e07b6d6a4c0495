"""Passkeys: what a person's authenticator signs, and what every voter checks of it. Not: whose passkey it is (grants.py).

A passkey is known by the SHA-256 of its description: its P-256 key, its relying party id, the origins it may be used from,
and the key of the person whose it is. A grant by that key names the digest as its own key, so the grant holds all four, and
what revokes, narrows or ends a grant does so here too. An assertion's challenge is the SHA-256 of the statement it
approves. No clock, no network and no server is asked. Counters are not judged: synced passkeys always say 0.

Sources: W3C Web Authentication Level 3, sections 5.8.1 (client data), 6.1 (authenticator data), 7.2 (verification).
"""

from __future__ import annotations

import base64
import hashlib
import re

import msgspec

from protocols.envelope import PUBLIC_KEY_BYTES
from protocols.machine import Digest, Verifier
from protocols.refusal import Refusal

DESCRIPTION_MAX_BYTES = 1024
AUTHENTICATOR_DATA_MAX_BYTES = 1024
CLIENT_DATA_MAX_BYTES = 2048
ES256_SIGNATURE_MAX_BYTES = 72
ORIGINS_MAX = 4
ORIGIN_MAX_CHARACTERS = 200
POINT_BYTES = 65
"""An uncompressed point of P-256: 0x04, then two coordinates (SEC 1, section 2.3.3)."""

_RP_HASH_BYTES = 32
_PLAIN_BYTES = 37
"""Authenticator data without extensions: SHA-256 of the relying party id, one byte of flags, a counter of four."""
_PRESENT, _VERIFIED, _ATTESTED, _EXTENDED = 0x01, 0x04, 0x40, 0x80
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"localhost|(?:{_LABEL}\.)+{_LABEL}")
_ORIGIN = re.compile(r"(https?)://([a-z0-9.-]{1,253})(:[1-9][0-9]{0,4})?")


class Passkey(msgspec.Struct, frozen=True):
    """A description: the person's Ed25519 key in hex, the point in base64, the relying party id, whole origins.

    An origin is scheme, host and, unless it is the scheme's own, port.
    """

    person: str
    point: str
    rp_id: str
    origins: tuple[str, ...]


class Assertion(msgspec.Struct, frozen=True):
    """What stands beside a passkey's signature in an envelope, each in base64; `passkey` is the description's bytes."""

    passkey: str
    authenticatorData: str  # noqa: N815 (the standard's own names)
    clientDataJSON: str  # noqa: N815


class _ClientData(msgspec.Struct, frozen=True):
    type: str
    challenge: str
    origin: str
    crossOrigin: bool = False  # noqa: N815
    topOrigin: msgspec.Raw = msgspec.Raw(b"")  # noqa: N815


def describe(person: bytes, point: bytes, rp_id: str, origins: tuple[str, ...]) -> bytes:
    """Return the bytes of a description; whether it is one that voters take, `read_passkey` says."""
    return msgspec.json.encode(Passkey(person.hex(), base64.b64encode(point).decode(), rp_id, origins))


def passkey_id(description: bytes) -> Digest:
    """Return what a grant names as the key of the passkey so described."""
    return Digest(hashlib.sha256(description).digest())


def challenge_of(statement: bytes) -> bytes:
    """Return the challenge by which an authenticator approves a statement."""
    return hashlib.sha256(statement).digest()


def read_passkey(description: bytes) -> tuple[Passkey, bytes] | Refusal:
    """Return a passkey and its point, or what is wrong: every origin must be one of the relying party's own."""
    if len(description) > DESCRIPTION_MAX_BYTES:
        return Refusal("passkey.malformed", f"a passkey's description has at most {DESCRIPTION_MAX_BYTES} bytes")
    try:
        passkey = msgspec.json.decode(description, type=Passkey)
        point, person = base64.b64decode(passkey.point, validate=True), bytes.fromhex(passkey.person)
    except (ValueError, RecursionError):
        return Refusal("passkey.malformed", "a passkey's description is JSON with person, point, rp_id and origins")
    if len(person) != PUBLIC_KEY_BYTES:
        return Refusal("passkey.malformed", f"a passkey names its person by a key of {PUBLIC_KEY_BYTES} bytes")
    if len(point) != POINT_BYTES or point[0] != 4:
        return Refusal("passkey.curve", "a passkey is an uncompressed point of P-256 (ES256)")
    if not _DOMAIN.fullmatch(passkey.rp_id):
        return Refusal("passkey.rp", "a relying party id is a domain in lower case, or localhost")
    if not 0 < len(passkey.origins) <= ORIGINS_MAX:
        return Refusal("passkey.origin", f"a passkey names 1 to {ORIGINS_MAX} origins")
    for origin in passkey.origins:
        answer = _ORIGIN.fullmatch(origin) if len(origin) <= ORIGIN_MAX_CHARACTERS else None
        if answer is None or not _serves(answer[1], answer[2], passkey.rp_id):
            return Refusal(
                "passkey.origin", "an origin is https://HOST[:PORT] of the relying party, or http://localhost"
            )
    return passkey, point


def _serves(scheme: str, host: str, rp_id: str) -> bool:
    """Whether a page of `host` may use the relying party id, over a scheme that nobody on the way alters."""
    own = host == rp_id or host.endswith(f".{rp_id}")
    return own and (scheme == "https" or host == "localhost")


def open_assertion(
    verifier: Verifier, key: bytes, statement: bytes, said: Assertion, signature: bytes
) -> Passkey | Refusal:
    """Return the passkey `key` if `said` shows that a present, verified person approved `statement` with it."""
    try:
        parts = (said.passkey, said.authenticatorData, said.clientDataJSON)
        description, authenticator_data, client_data = (base64.b64decode(part, validate=True) for part in parts)
    except ValueError:
        return Refusal("passkey.malformed", "a part of the assertion is not base64")
    if len(authenticator_data) > AUTHENTICATOR_DATA_MAX_BYTES or len(client_data) > CLIENT_DATA_MAX_BYTES:
        return Refusal("passkey.malformed", "the assertion is too long")
    if passkey_id(description) != key:
        return Refusal("passkey.other", "the assertion is of another passkey than the one it names")
    read = read_passkey(description)
    if isinstance(read, Refusal):
        return read
    passkey, point = read
    problem = client_data_problem(passkey, client_data, challenge_of(statement))
    problem = problem or authenticator_data_problem(passkey, authenticator_data)
    if problem is not None:
        return problem
    if len(signature) > ES256_SIGNATURE_MAX_BYTES:
        return Refusal("passkey.malformed", f"a signature of P-256 has at most {ES256_SIGNATURE_MAX_BYTES} bytes")
    if not verifier.verify_es256(point, signed_by(authenticator_data, client_data), signature):
        return Refusal("passkey.signature", "the passkey's signature does not verify")
    return passkey


def signed_by(authenticator_data: bytes, client_data: bytes) -> bytes:
    """Return what an authenticator signs."""
    return authenticator_data + hashlib.sha256(client_data).digest()


def client_data_problem(passkey: Passkey, data: bytes, challenge: bytes) -> Refusal | None:
    """Return why what the browser says is not an approval of `challenge` from one of the passkey's own pages, or None."""
    try:
        said = msgspec.json.decode(data, type=_ClientData)
    except (ValueError, RecursionError):
        return Refusal("passkey.malformed", "the client data is not what a browser writes")
    if said.type != "webauthn.get":
        return Refusal("passkey.type", "the client data is of another ceremony than an assertion")
    if said.challenge != base64.urlsafe_b64encode(challenge).rstrip(b"=").decode():
        return Refusal("passkey.challenge", "the person touched the passkey for another statement")
    if said.origin not in passkey.origins:
        return Refusal("passkey.origin", "the page that asked is none of the origins that the passkey was granted for")
    if said.crossOrigin or bytes(said.topOrigin):
        return Refusal("passkey.framed", "the page that asked stood inside a page of another origin")
    return None


def authenticator_data_problem(passkey: Passkey, data: bytes) -> Refusal | None:
    """Return why the authenticator does not say that it verified a present person for this relying party, or None."""
    if len(data) < _PLAIN_BYTES:
        return Refusal("passkey.malformed", f"authenticator data has at least {_PLAIN_BYTES} bytes")
    flags = data[_RP_HASH_BYTES]
    if flags & _ATTESTED or (not flags & _EXTENDED and len(data) != _PLAIN_BYTES):
        return Refusal("passkey.malformed", "an assertion's authenticator data holds no credential")
    if data[:_RP_HASH_BYTES] != hashlib.sha256(passkey.rp_id.encode()).digest():
        return Refusal("passkey.rp", "the passkey answered for another relying party")
    if not flags & _PRESENT or not flags & _VERIFIED:
        return Refusal("passkey.person", "the authenticator did not verify the person (PIN, finger or face)")
    return None
