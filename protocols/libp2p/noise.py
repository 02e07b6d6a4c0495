"""Noise_XX_25519_ChaChaPoly_SHA256: the handshake state machine and the two ciphers it ends in.

      -> e
      <- e, ee, s, es
      -> s, se

Each side alternates `write_message` and `read_message`; after the third message `split` gives one cipher for each
direction. Any failure raises and the handshake is over. Not here: the libp2p payload (`noise_payload`), framing
(`noise_channel`), other patterns, PSKs, rekeying; libp2p uses none of them.
Source: The Noise Protocol Framework, revision 34, sections 5 and 7; HKDF of section 4.3 is RFC 5869 with SHA-256.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from protocols.libp2p.errors import LocalProtocolError, RemoteProtocolError

PROTOCOL_NAME = b"Noise_XX_25519_ChaChaPoly_SHA256"
KEY_BYTES = 32
TAG_BYTES = 16

NONCE_END = 2**64 - 1
"""The reserved nonce (section 5.1): a cipher that reaches it has encrypted all it may."""


_NONCE = struct.Struct("<IQ").pack
"""Four zero bytes, then the counter, little endian (section 12.3)."""


class CipherState:
    """One direction's key and counting nonce (section 5.1)."""

    __slots__ = ("_aead", "_nonce")

    def __init__(self, key: bytes, nonce: int = 0) -> None:
        """Take a 32-byte key; `nonce` other than 0 serves to test exhaustion."""
        self._aead = ChaCha20Poly1305(key)
        self._nonce = nonce

    def encrypt(self, plaintext: bytes | bytearray | memoryview, associated: bytes = b"") -> bytes:
        """Return ciphertext and tag; LocalProtocolError once the nonces are used up."""
        nonce = self._nonce
        if nonce >= NONCE_END:
            raise LocalProtocolError("noise.nonce-exhausted")
        self._nonce = nonce + 1
        return self._aead.encrypt(_NONCE(0, nonce), plaintext, associated)

    def decrypt(self, ciphertext: bytes | bytearray | memoryview, associated: bytes = b"") -> bytes:
        """Return the plaintext; RemoteProtocolError if it was not made with this key and the next nonce."""
        nonce = self._nonce
        if nonce >= NONCE_END:
            raise RemoteProtocolError("noise.nonce-exhausted")
        try:
            plaintext = self._aead.decrypt(_NONCE(0, nonce), ciphertext, associated)
        except (InvalidTag, ValueError):
            raise RemoteProtocolError("noise.decrypt", "the tag does not verify") from None
        self._nonce = nonce + 1
        return plaintext


class _SymmetricState:
    """Chaining key, handshake hash and the handshake's own cipher (section 5.2)."""

    def __init__(self, prologue: bytes) -> None:
        # The name has exactly 32 bytes, so it is its own hash (section 5.2, InitializeSymmetric).
        self.chaining_key = PROTOCOL_NAME
        self.hash = PROTOCOL_NAME
        self._cipher: CipherState | None = None
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        self.hash = hashlib.sha256(self.hash + data).digest()

    def mix_key(self, material: bytes) -> None:
        self.chaining_key, key = _hkdf(self.chaining_key, material)
        self._cipher = CipherState(key)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        data = plaintext if self._cipher is None else self._cipher.encrypt(plaintext, self.hash)
        self.mix_hash(data)
        return data

    def decrypt_and_hash(self, data: bytes) -> bytes:
        plaintext = data if self._cipher is None else self._cipher.decrypt(data, self.hash)
        self.mix_hash(data)
        return plaintext


class Handshake:
    """One side of XX (section 5.3). Messages 0 and 2 are the initiator's."""

    def __init__(self, *, initiator: bool, static: bytes, ephemeral: bytes, prologue: bytes = b"") -> None:
        """Take the 32-byte private static key and a fresh 32-byte private ephemeral key."""
        self._initiator = initiator
        self._static = X25519PrivateKey.from_private_bytes(static)
        self._ephemeral = X25519PrivateKey.from_private_bytes(ephemeral)
        self._state = _SymmetricState(prologue)
        self._step = 0
        self._remote_ephemeral: X25519PublicKey | None = None
        self._remote_static: X25519PublicKey | None = None

    @property
    def finished(self) -> bool:
        """Whether all three messages have been exchanged."""
        return self._step == 3

    @property
    def our_turn(self) -> bool:
        """Whether this side writes the next message."""
        return not self.finished and (self._step % 2 == 0) == self._initiator

    @property
    def handshake_hash(self) -> bytes:
        """The hash of everything exchanged: the same 32 bytes on both sides, unique to this session."""
        return self._state.hash

    @property
    def remote_static(self) -> bytes:
        """The peer's public static key, known after its first encrypted message."""
        assert self._remote_static is not None, "the peer's static key has not arrived"
        return self._remote_static.public_bytes_raw()

    def write_message(self, payload: bytes) -> bytes:
        """Return the next message with `payload` inside (encrypted from the second message on)."""
        if not self.our_turn:
            raise LocalProtocolError("noise.turn", "the peer writes the next message")
        state, out = self._state, bytearray()
        if self._step < 2:
            public = self._ephemeral.public_key().public_bytes_raw()
            state.mix_hash(public)
            out += public
        if self._step == 1:
            self._mix_dh(self._ephemeral, self._remote_ephemeral)
        if self._step > 0:
            out += state.encrypt_and_hash(self._static.public_key().public_bytes_raw())
            self._mix_dh(self._static, self._remote_ephemeral)
        out += state.encrypt_and_hash(payload)
        self._step += 1
        return bytes(out)

    def read_message(self, message: bytes) -> bytes:
        """Return the payload of the peer's next message; RemoteProtocolError if it is short or not authentic."""
        if self.our_turn or self.finished:
            raise LocalProtocolError("noise.turn", "this side writes the next message")
        offset = 0
        if self._step < 2:
            public, offset = self._take(message, 0, KEY_BYTES)
            self._remote_ephemeral = X25519PublicKey.from_public_bytes(public)
            self._state.mix_hash(public)
        if self._step == 1:
            self._mix_dh(self._ephemeral, self._remote_ephemeral)
        if self._step > 0:
            sealed, offset = self._take(message, offset, KEY_BYTES + TAG_BYTES)
            self._remote_static = X25519PublicKey.from_public_bytes(self._state.decrypt_and_hash(sealed))
            self._mix_dh(self._ephemeral, self._remote_static)
        payload = self._state.decrypt_and_hash(message[offset:])
        self._step += 1
        return payload

    def split(self) -> tuple[CipherState, CipherState]:
        """Return (cipher to send with, cipher to receive with); only when finished (section 5.2, Split)."""
        if not self.finished:
            raise LocalProtocolError("noise.unfinished")
        first, second = (CipherState(key) for key in _hkdf(self._state.chaining_key, b""))
        return (first, second) if self._initiator else (second, first)

    def _mix_dh(self, private: X25519PrivateKey, public: X25519PublicKey | None) -> None:
        assert public is not None, "the pattern mixes a key only after it arrived"
        try:
            shared = private.exchange(public)
        except ValueError:
            # A low-order point gives the all-zero secret (RFC 7748, section 6.1), which anybody knows.
            raise RemoteProtocolError("noise.weak-key") from None
        self._state.mix_key(shared)

    @staticmethod
    def _take(message: bytes, offset: int, count: int) -> tuple[bytes, int]:
        if len(message) < offset + count:
            raise RemoteProtocolError("noise.short-message", f"{len(message)} bytes")
        return message[offset : offset + count], offset + count


def _hkdf(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
    temporary = hmac.digest(chaining_key, material, "sha256")
    first = hmac.digest(temporary, b"\x01", "sha256")
    return first, hmac.digest(temporary, first + b"\x02", "sha256")
