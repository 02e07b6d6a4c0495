"""A browser and an authenticator in software: what they sign over a statement, and every near miss. Not a secure one."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from protocols.changes.evidence import seal_by_passkey
from protocols.changes.passkeys import Assertion, challenge_of, describe, passkey_id, signed_by

ORIGIN, RP_ID = "http://localhost:4188", "localhost"
PRESENT, VERIFIED = 0x01, 0x04


@dataclass(frozen=True)
class Authenticator:
    """Holds one passkey of the person with the Ed25519 key `person`; `sign` signs with the key at `point`."""

    person: bytes
    point: bytes
    sign: Callable[[bytes], bytes]
    rp_id: str = RP_ID
    origins: tuple[str, ...] = (ORIGIN,)

    @property
    def description(self) -> bytes:
        """What the person granted."""
        return describe(self.person, self.point, self.rp_id, self.origins)

    @property
    def id(self) -> bytes:
        """What the grant names as its key."""
        return passkey_id(self.description)

    def touch(self, statement: bytes, **other: Any) -> bytes:
        """Return the envelope of a statement that the person approved with a touch.

        `other` replaces what an honest browser and authenticator say: `asked` (the statement they were shown), `rp_id`,
        `flags`, `counter`, `tail` (bytes behind the counter), `description`, `key`, `signature`, and any field of the
        client data; a field that is None is left out.
        """
        flags = other.pop("flags", PRESENT | VERIFIED)
        said = other.pop("rp_id", self.rp_id)
        asked = other.pop("asked", statement)
        counter, tail = other.pop("counter", 0), other.pop("tail", b"")
        description, key = other.pop("description", self.description), other.pop("key", self.id)
        signature = other.pop("signature", None)
        data = hashlib.sha256(said.encode()).digest() + bytes([flags]) + counter.to_bytes(4, "big") + tail
        fields = {
            "type": "webauthn.get",
            "challenge": base64.urlsafe_b64encode(challenge_of(asked)).rstrip(b"=").decode(),
            "origin": (self.origins or (ORIGIN,))[0],
            "crossOrigin": False,
        } | other
        client = json.dumps({name: value for name, value in fields.items() if value is not None}).encode()
        signature = self.sign(signed_by(data, client)) if signature is None else signature
        shown = Assertion(*(base64.b64encode(part).decode() for part in (description, data, client)))
        return seal_by_passkey(statement, key, signature, shown)
